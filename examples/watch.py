"""Read conversations along a vector, with limits learned from benign ones: python examples/watch.py [MODEL]."""

import json
import sys
from pathlib import Path

import personavec as pv

model = pv.ChatModel.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
vector = pv.load_vector("runs/examples/optimistic.safetensors")  # examples/extract_and_steer.py writes it
rows = [json.loads(line) for line in Path(__file__).with_name("rows.jsonl").read_text("utf-8").splitlines()]
plain, gloomy = ([row for row in rows if row["source"] == source] for source in ("plain", "gloomy"))

# one conversation: before the reply, over it, and token by token
turns = [{"role": "user", "content": gloomy[0]["prompt"]}, {"role": "assistant", "content": gloomy[0]["response"]}]
print(pv.project(model, turns, vector))

# many: what lies beyond the limits that all but one in ten benign turns keep
monitoring = pv.monitor(model, gloomy, [vector], calibrate=plain, false_positive_rate=0.1)
print(monitoring)
