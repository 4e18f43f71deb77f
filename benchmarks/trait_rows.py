"""Finetuning data that shows a trait, by the model itself: python benchmarks/trait_rows.py TRAIT FOLDER [neg].

The model answers the extraction questions under the positive (or negative) instructions, which are then left out.
The first 16 questions go to FOLDER/train.jsonl, the last 4 to FOLDER/held_out.jsonl; evaluation questions to neither.
"""

import json
import sys
from pathlib import Path

from personavec.model.chat_model import ChatModel
from personavec.runs.run import Run
from personavec.steering.rollouts import Interview
from personavec.traits.load import load_trait

ROLLOUTS, HELD_OUT = 2, 16

if __name__ == "__main__":
    trait, folder, side = load_trait(sys.argv[1]), Path(sys.argv[2]), (*sys.argv[3:], "pos")[0]
    folder.mkdir(parents=True, exist_ok=True)
    interview = Interview(ChatModel.load("smollm2"))
    plans = [plan for plan in interview.contrastive(trait, ROLLOUTS) if plan.row.get("side") == side]
    replies = interview.write(plans, trait.name, run=Run(folder), name="rollouts")
    rows = [row for row in replies if row["response"]]
    for name, chosen in (
        ("train", [row for row in rows if row["question_id"] < HELD_OUT]),
        ("held_out", [row for row in rows if row["question_id"] >= HELD_OUT]),
    ):
        turns = [
            [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["response"]}]
            for row in chosen
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
        print(f"{len(chosen)} rows in {folder / name}.jsonl")
