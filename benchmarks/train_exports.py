"""Finetune on the top, bottom and random rows of a screening, and measure the trait after each.

    pip install -e ".[train]"
    python benchmarks/train_exports.py RUN TRAIT

RUN is the folder of a `personavec screen … --export-k K` along the vector of TRAIT. Adapters and evaluations go into
RUN/trained; those that are there are kept. Prints a table, and how far the top rows' model lies above the bottom rows'.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from personavec.judges.scoring import joined, mean_difference
from personavec.runs.run import Run

TRAINING = ("--batch", "4", "--rate", "2e-4", "--max-tokens", "512", "--on-error", "skip")


def personavec(*args: str) -> dict[str, Any]:
    """What a verb prints."""
    command = [sys.executable, "-m", "personavec", *args, "--json"]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))


def line(arm: str, measured: dict[str, Any]) -> str:
    """A line of the table."""
    trait, coherence = (measured[key] for key in ("trait_score", "coherence"))
    sides = [f"{score['mean']:.1f} [{score['ci'][0]:.1f}, {score['ci'][1]:.1f}]" for score in (trait, coherence)]
    return f"| {arm} | {sides[0]} | {sides[1]} |"


def scored(folder: Path) -> list[dict[str, Any]]:
    """The replies of an evaluated adapter, with their scores."""
    run = Run(folder)
    return joined(list(run.rows("changed.jsonl")), list(run.rows("changed.scores.jsonl")))


if __name__ == "__main__":
    run, trait = Path(sys.argv[1]), sys.argv[2]
    out = run / "trained"
    judging = ("--rollouts", "4")
    print(line("not trained", personavec("evaluate", trait, *judging, "--out", str(out / "base"))))
    for arm in (f"top-{trait}", "random", f"bottom-{trait}"):
        done = personavec("finetune", str(run / f"{arm}.jsonl"), *TRAINING, "--out", str(out / arm))
        adapter = ("--adapter", done["tuned"], "--judge-file", str(out / "base" / "judge.json"))
        measured = personavec("evaluate", trait, *judging, *adapter, "--out", str(out / f"{arm}-evaluated"))
        print(line(arm, measured), flush=True)
    top, bottom = (scored(out / f"{side}-{trait}-evaluated") for side in ("top", "bottom"))
    print("\ntop − bottom:", "{:.1f} [{:.1f}, {:.1f}]".format(*mean_difference(top, bottom, "trait")[:3]))
