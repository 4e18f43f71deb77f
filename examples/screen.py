"""Which rows would teach a trait? Before anybody trains on them: python examples/screen.py [MODEL]."""

import json
import sys
from pathlib import Path

import personavec as pv

model = pv.ChatModel.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
vector = pv.load_vector("runs/examples/optimistic.safetensors")  # examples/extract_and_steer.py writes it
rows = [json.loads(line) for line in Path(__file__).with_name("rows.jsonl").read_text("utf-8").splitlines()]

# "full" compares every row with the model's reply to the same prompt; "proxy" is cheaper and only ranks
screening = pv.screen(model, rows, [vector], cost="full", max_new_tokens=32)
print(screening)

scores = screening.rows.column("optimistic").to_pylist()
for place in sorted(range(len(rows)), key=lambda place: scores[place])[:5]:
    print(f"{scores[place]:+.2f}  {rows[place]['source']}: {rows[place]['response'][:80]}")
