"""Many small finetunings: does the shift, or the data's projection difference, predict the trait score?

    pip install -e ".[train]"
    python benchmarks/prediction.py FOLDER VECTOR VECTOR …

For the trait of every vector the model itself writes replies under positive and under negative instructions, which are
then left out; four data sets a trait mix them in shares of 0, ⅓, ⅔ and 1 positive. Takes minutes for each on two cores,
goes on after a kill.
"""

import json
import sys
from pathlib import Path

import numpy as np

from personavec.model.chat_model import ChatModel
from personavec.paper.grid import finetuning_grid
from personavec.runs.run import Run
from personavec.steering.rollouts import Interview
from personavec.steering.vector import load_vector
from personavec.traits.load import load_trait
from personavec.verbs.finetune.trainer import TrainingOptions

ROWS, SHARES = 48, (0, 1 / 3, 2 / 3, 1)


def datasets(model: ChatModel, name: str, folder: Path) -> dict[str, str]:
    """Files of training rows, by their name."""
    folder.mkdir(parents=True, exist_ok=True)
    interview = Interview(model)
    plans = interview.contrastive(load_trait(name), 1)
    written = interview.write(plans, name, run=Run(folder), name=f"{name}.rollouts")
    rows = [row for row in written if row["response"]]
    files = {}
    for share in SHARES:
        rng = np.random.default_rng(0)
        count = {"pos": round(share * ROWS), "neg": ROWS - round(share * ROWS)}
        chosen = [
            row
            for side, wanted in count.items()
            for row in rng.permutation([row for row in rows if row["side"] == side])[:wanted]
        ]
        path = folder / f"{name}-{round(100 * share)}.jsonl"
        lines = [json.dumps({"prompt": row["question"], "response": row["response"]}) + "\n" for row in chosen]
        if not path.exists():  # a run that resumes knows its files by their time
            path.write_text("".join(lines))
        files[f"{name} {round(100 * share)}%"] = str(path)
    return files


if __name__ == "__main__":
    folder, vectors = Path(sys.argv[1]), [load_vector(name) for name in sys.argv[2:]]
    model = ChatModel.load("smollm2")
    names = [vector.card.trait for vector in vectors]
    every = {label: path for name in names for label, path in datasets(model, name, folder / "data").items()}
    training: TrainingOptions = {"batch": 4, "rate": 2e-4, "checkpoints": 1}
    grid = finetuning_grid(model, every, vectors, training=training, rollouts=1, store=folder / "grid").data
    print("| trait | r of the shift | p: shuffled, random, covariance-matched | r of the projection difference | p |")
    print("|---|---|---|---|---|")
    for name, trait in grid["traits"].items():
        data, nulls = trait["projection_difference"], trait["nulls"]
        r, ahead = (f"{each['pearson']['r']:.2f} {each['pearson']['ci']}" for each in (trait, data))
        p = ", ".join(f"{nulls[null]['p']:.3f}" for null in ("permutation", "isotropic", "covariance"))
        print(f"| {name} | {r} | {p} | {ahead} | {data['nulls']['permutation']['p']:.3f} |")
    for name, trait in grid["traits"].items():
        print(f"\n{name}: {trait['verdict']}")
