"""Two judges of the same rollouts: python benchmarks/judges.py RUN/TRAIT OTHER_RUN/TRAIT.

The runs differ in --judge alone, so that their rollouts are the same replies. Prints what each judge made of the
trait, and the rank correlation of their scores; the AUC is cross-validated by question and blind to the pair that
wrote a reply.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from traits import interval


def main() -> None:
    """One row a judge."""
    folders = [Path(folder) for folder in sys.argv[1:3]]
    print("| judge | AUC | suppressed | base | steered | random | layer, dose | proven |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        arms = {arm["arm"]: arm["trait"] for arm in result["check"]}
        scores = " | ".join(interval(arms[name]) for name in ("suppressed", "base", "steered", "random"))
        print(
            f"| {result['judge']['id']} | {interval(result['judge']['auc'], 2)} | {scores} "
            f"| {result['choice']['layer']}, {result['choice']['dose']:g} | {'yes' if result['proven'] else 'no'} |"
        )
    first, second = ({row["id"]: row for row in rows(folder / "rollouts.jsonl")} for folder in folders)
    same = [name for name in first if first[name]["response_ids"] == second[name]["response_ids"]]
    scores_of = [{row["id"]: row["trait"] for row in rows(folder / "rollouts.scores.jsonl")} for folder in folders]
    both = np.array([[own[name] for own in scores_of] for name in same], dtype=float)
    both = both[~np.isnan(both).any(axis=1)]
    rank = spearmanr(both).statistic
    print(
        f"\nRank correlation of their scores: {rank:.2f} ({len(both)} of {len(first)} rollouts, the same in both runs)"
    )


def rows(path: Path) -> list[dict]:
    """A JSONL table."""
    return [json.loads(line) for line in path.open()]


if __name__ == "__main__":
    main()
