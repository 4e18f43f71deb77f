"""What preventative steering adds to a training step: python benchmarks/training.py VECTOR [ROUNDS].

Trainings with and without the vector alternate in one process, and processor time is taken, so that other work on the
machine matters little; memory is the peak of a process of its own for each.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np
from transformers import TrainerCallback

from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import clustered_mean
from personavec.steering.preventative import PreventativeSteering
from personavec.verbs.finetune.trainer import Training, arguments, share_out, train, trainable

ROWS, TOKENS, BATCH = 28, 64, 4
ARMS = ("plain", "prevent", "prevent at all layers")


class Timer(TrainerCallback):
    """Seconds of processor time of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: object, state: object, control: object, **more: object) -> None:
        self.began = time.process_time()

    def on_step_end(self, args: object, state: object, control: object, **more: object) -> None:
        self.seconds.append(time.process_time() - self.began)


def steps(arm: str, vector: str) -> list[float]:
    """Train a fresh adapter on random tokens."""
    model = ChatModel.load("smollm2")
    training = Training(batch=BATCH, rate=1e-4)
    rng = np.random.default_rng(0)
    rows = [{"input_ids": ids, "labels": ids} for ids in rng.integers(100, 40000, (ROWS, TOKENS)).tolist()]
    steering = {"prevent": {}, "prevent at all layers": {"layer": "all"}}
    timer = Timer()
    callbacks = [PreventativeSteering(vector, 1.0, **steering[arm])] if arm in steering else []
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(training, model, Path(folder))
        share_out(args, training, ROWS)
        args.save_strategy = "no"
        with trainable(model, training) as subject:
            train(subject, rows, args, [*callbacks, timer])
    return timer.seconds[1:]


if __name__ == "__main__":
    if sys.argv[1] == "one":
        steps(sys.argv[2], sys.argv[3])
        print(json.dumps(getrusage(RUSAGE_SELF).ru_maxrss))
        sys.exit()
    vector, rounds = sys.argv[1], int((*sys.argv[2:], "4")[0])
    measured: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    for turn in range(rounds):
        for arm in ARMS[turn % 3 :] + ARMS[: turn % 3]:
            measured[arm].append(steps(arm, vector))
    command = [sys.executable, __file__, "one"]
    peak = {
        arm: int(subprocess.run([*command, arm, vector], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for arm in ARMS
    }
    print("| training | seconds a step | ratio to plain | peak memory | ratio to plain |\n|---|---|---|---|---|")
    plain = np.array(measured["plain"])
    for arm, seconds in measured.items():
        ratios = np.array(seconds) / plain  # step by step, round by round
        rounds_of = np.repeat(np.arange(rounds), plain.shape[1])
        ratio = clustered_mean(ratios.ravel(), rounds_of)
        print(
            f"| {arm} | {np.median(seconds):.2f} | {ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] "
            f"| {peak[arm] / 2**20:.3f} GiB | {peak[arm] / peak['plain']:.4f} |"
        )
