"""Three verbs in a row: three commands, each of which loads the model, against three calls on one model.

    python benchmarks/one_process.py VECTOR [PAIRS]

Both are timed in turn, PAIRS times (default 3), as whole processes; prints the seconds and the ratio, pair by pair.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERBS = ("verify", "evaluate", "screen")
ROWS = Path(__file__).parents[1] / "examples" / "rows.jsonl"
CALLS = """
import json, sys
import personavec as pv
model = pv.ChatModel.load("smollm2")
vector = pv.load_vector(sys.argv[1])
rows = [json.loads(line) for line in open(sys.argv[2])]
pv.verify(model, vector)
pv.evaluate(model, "optimistic", steer=vector.at(), rollouts=1, questions=2)
pv.screen(model, rows, [vector])
"""


def commands(vector: str, out: Path) -> list[list[str]]:
    """The same three as commands."""
    base = [sys.executable, "-m", "personavec"]
    return [
        [*base, "verify", "--vector", vector, "--json"],
        [
            *base,
            "evaluate",
            "optimistic",
            "--steer",
            f"{vector}:{coefficient(vector)}",
            "--rollouts",
            "1",
            "--questions",
            "2",
            "--out",
            str(out / "evaluate"),
            "--json",
        ],
        [*base, "screen", str(ROWS), "--vectors", vector, "--out", str(out / "screen"), "--json"],
    ]


def coefficient(vector: str) -> float:
    """What the vector's card recommends."""
    import personavec as pv

    return float(pv.load_vector(vector).card.coef or 1)


def timed(several: list[list[str]]) -> float:
    """Seconds that the processes take, one after the other."""
    began = time.perf_counter()
    for command in several:
        subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    vector, pairs = sys.argv[1], int((sys.argv[2:] or ["3"])[0])
    ratios = []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            three = timed(commands(vector, Path(folder)))
            one = timed([[sys.executable, "-c", CALLS, vector, str(ROWS)]])
        ratios.append(one / three)
        print(f"{', '.join(VERBS)}: three commands {three:.1f} s, one process {one:.1f} s, ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f}")
