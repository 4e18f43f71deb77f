"""The table of traits from an extract run: python benchmarks/traits.py RUN."""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one row a trait, in the order of the run."""
    run = Path(sys.argv[1])
    traits = json.loads((run / "config.json").read_text())["traits"]
    print("| trait | proven | suppressed | base | steered | random | steered coherence | AUC | layer, dose | kept |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for trait in traits:
        result = json.loads((run / trait / "result.json").read_text())
        choice, counts = result["choice"], result["counts"]
        arms = {arm["arm"]: arm for arm in result["check"]}
        scores = " | ".join(interval(arms[name]["trait"]) for name in ("suppressed", "base", "steered", "random"))
        kept = " + ".join(f"{counts[side]['kept']}/{counts[side]['written']}" for side in ("pos", "neg"))
        print(
            f"| {trait} | {'yes' if result['proven'] else 'no'} | {scores} | {interval(arms['steered']['coherence'])} "
            f"| {interval(result['judge']['auc'], 2)} | {choice['layer']}, {choice['dose']:g} | {kept} |"
        )
    print()
    for trait in traits:
        result = json.loads((run / trait / "result.json").read_text())
        for condition in result["verdict"]:
            if not condition["holds"]:
                print(f"- {trait}: {condition['text']}: no")


def interval(found: dict[str, Any], digits: int = 0) -> str:
    """A mean with its 95% interval."""
    mean, low, high = ("–" if value is None else f"{value:.{digits}f}" for value in (found["mean"], *found["ci"]))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
