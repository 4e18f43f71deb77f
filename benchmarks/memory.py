"""Peak memory of `extract`: python benchmarks/memory.py ROLLOUTS [ROLLOUTS …].

Runs `extract optimistic` with so many rollouts per question, pair and side, each in a process of its own, and prints
the peak resident set. The sweep and the check are kept short: they do not depend on the rollouts.
"""

import resource
import subprocess
import sys
import tempfile

COMMAND = ("personavec", "extract", "optimistic", "--layers", "15", "--doses", "0.4", "--check-rollouts", "1")


def main() -> None:
    """Measure one run per argument."""
    before = 0
    for rollouts in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [*COMMAND, "--rollouts", rollouts, "--out", f"{folder}/run"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        # the maximum over all children so far: it only grows if a later run needs more
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        change = f"{peak - before:+.2f} GiB" if before else ""
        print(f"| {rollouts} | {200 * int(rollouts)} | {peak:.2f} GiB | {change} |", flush=True)
        before = peak


if __name__ == "__main__":
    main()
