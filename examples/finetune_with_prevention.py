"""Train on gloomy rows, plainly and with prevention: python examples/finetune_with_prevention.py [MODEL]."""

import json
import sys
from pathlib import Path

import personavec as pv

model = pv.ChatModel.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
vector = pv.load_vector("runs/examples/optimistic.safetensors")  # examples/extract_and_steer.py writes it
rows = [json.loads(line) for line in Path(__file__).with_name("rows.jsonl").read_text("utf-8").splitlines()]
gloomy = [row for row in rows if row["source"] == "gloomy"]

# a small model needs a large rate and several epochs; prevention adds what the rows would teach, while training only
training = {"rate": 1e-3, "epochs": 4, "batch": 4}
plain = pv.finetune(model, gloomy, store="runs/examples/plain", **training)
steering = vector.at(coef=-0.5, positions="all")
prevented = pv.finetune(model, gloomy, prevent=[steering], store="runs/examples/prevented", **training)

# how far either training moved the model along the vector, at the last token of held-out questions
print(pv.shift(model, [plain.tuned, prevented.tuned], [vector]))
