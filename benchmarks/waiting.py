"""How torch's threads had better wait for each other: 48 replies of 32 tokens, alone and beside two busy processes.

    python benchmarks/waiting.py --rounds 6

A process for each setting; they take turns, so that what else slows the machine slows them alike. Prints medians of
seconds, of each setting's time over that without one in the same round, and of its own time beside busy processes
over that alone.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

SETTINGS = {
    "none": {},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def work() -> None:
    """Write the replies whenever a line comes, and say how long it took."""
    import personavec as pv
    from personavec.model.sampling import Sampling
    from personavec.steering.generate import Request, generate

    model = pv.ChatModel.load("smollm2", dtype="float32")
    asked = [f"Tell me about the number {number}, and why it matters." for number in range(48)]
    prompts = [model.render([{"role": "user", "content": text}]) for text in asked]
    requests = [Request(prompt, (), (number,)) for number, prompt in enumerate(prompts)]
    for _ in sys.stdin:
        began = time.perf_counter()
        generate(model, requests, Sampling(32, 0.7))
        print(time.perf_counter() - began, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="busy processes beside")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work()
    plain = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--work"],
            env=plain | more,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, more in SETTINGS.items()
    }

    def seconds(name: str) -> float:
        stdin, stdout = workers[name].stdin, workers[name].stdout
        assert stdin is not None and stdout is not None
        stdin.write("go\n")
        stdin.flush()
        return float(stdout.readline())

    alone: dict[str, float] = {}
    try:
        for name in SETTINGS:  # to warm up
            seconds(name)
        for busy in options.busy:
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            rounds = []
            for number in range(options.rounds):
                names = [*SETTINGS][number % len(SETTINGS) :] + [*SETTINGS][: number % len(SETTINGS)]
                rounds.append({name: seconds(name) for name in names})
            for process in others:
                process.kill()
            for name in SETTINGS:
                own = median(times[name] for times in rounds)
                alone.setdefault(name, own)
                over = median(times[name] / times["none"] for times in rounds)
                print(
                    f"{busy} busy, {name}: {own:.2f} s, {over:.3f} of none, {own / alone[name]:.2f} of alone",
                    flush=True,
                )
    finally:
        for worker in workers.values():
            worker.kill()


if __name__ == "__main__":
    main()
