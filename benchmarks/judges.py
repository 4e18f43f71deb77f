"""Another model as judge of the same rollouts: python benchmarks/judges.py MODEL RUN/TRAIT [RUN/TRAIT …].

Prints the AUC of the run's own judge beside that of `likelihood:MODEL`, both cross-validated by question and blind to
the pair that wrote the reply, and the rank correlation of their scores.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from personavec.judges.likelihood import LikelihoodJudge
from personavec.model import ChatModel
from personavec.progress import stage
from personavec.trait import load_trait


def main() -> None:
    """Score every run's rollouts with the other model."""
    name, *folders = sys.argv[1:]
    model = ChatModel.load(name, plain_template=True)
    print(f"| trait | the run's judge | AUC | likelihood:{name}, AUC | rank correlation |\n|---|---|---|---|---|")
    for folder in map(Path, folders):
        rows = [json.loads(line) for line in (folder / "rollouts.jsonl").open()]
        own = {row["id"]: row["trait"] for row in map(json.loads, (folder / "rollouts.scores.jsonl").open())}
        judge = LikelihoodJudge(model, load_trait(folder.name))
        with stage(folder.name, len(rows) * judge.steps) as advance:
            scores = judge.calibrate(
                [row["question"] for row in rows],
                [row["response"] for row in rows],
                [row["side"] for row in rows],
                [row["pair"] for row in rows],
                0,
                advance,
            )
        both = np.array([(own[row["id"]], score.value) for row, score in zip(rows, scores, strict=True)], dtype=float)
        correlation = spearmanr(both[~np.isnan(both).any(axis=1)]).statistic
        learned = json.loads((folder / "judge.json").read_text())["trait"]
        assert judge.auc is not None
        mine, theirs = (
            f"{a['mean']:.2f} [{a['low']:.2f}, {a['high']:.2f}]" for a in (learned["auc"], judge.auc._asdict())
        )
        print(f"| {folder.name} | {learned['id']} | {mine} | {theirs} | {correlation:.2f} |", flush=True)


if __name__ == "__main__":
    main()
