"""The table of traits from extract runs: python benchmarks/traits.py RUN [RUN …]."""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one row a trait, in the order of the runs, then what decided where nothing was proven."""
    results = [
        json.loads((run / trait / "result.json").read_text())
        for run in map(Path, sys.argv[1:])
        for trait in (key[6:] for key in json.loads((run / "config.json").read_text())["inputs"] if key[:6] == "trait ")
    ]
    print(
        "| trait | verdict | suppressed | base | steered | random | check −, 0, + | lowest AUC | layer, dose | kept |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for result in results:
        choice, counts = result["choice"], result["counts"]
        arms = {arm["arm"]: arm for arm in result["check"]}
        scores = " | ".join(interval(arms[name]["trait"]) for name in ("suppressed", "base", "steered", "random"))
        kept = " + ".join(f"{counts[side]['kept']}/{counts[side]['written']}" for side in ("pos", "neg"))
        name, auc = min(result["judge"]["aucs"].items(), key=lambda item: item[1]["ci"][0])
        check = result["independent_check"]
        seen = [check["arms"][name]["mean"] for name in ("suppressed", "base", "steered")] if check else []
        counted = ", ".join(f"{mean:.2f}" for mean in seen)
        print(
            f"| {result['trait']['name']} | {result['verdict_word']} | {scores} | {counted} "
            f"| {name} {interval(auc, 2)} | {choice['layer']}, {choice['dose']:g} | {kept} |"
        )
    print()
    for result in results:
        if not result["proven"]:
            print(f"- {result['trait']['name']}: {result['deciding']}")


def interval(found: dict[str, Any], digits: int = 0) -> str:
    """A mean with its 95% interval."""
    mean, low, high = ("–" if value is None else f"{value:.{digits}f}" for value in (found["mean"], *found["ci"]))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
