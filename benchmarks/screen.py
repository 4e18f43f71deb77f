"""Screening: python benchmarks/screen.py reading | rungs RUN | engines RUN RUN | memory | slope | ray VECTOR [MODEL].

RUN is the folder of a `personavec screen … --cost full`; `engines` takes two of one data set. Prints lines as they
stand in benchmarks/README.md.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from chats import first_chats
from scipy.stats import spearmanr

from personavec.data.dataset import open_dataset
from personavec.data.sample import Sample
from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.verbs.screen.plan import sample_size
from personavec.verbs.screen.sampled import (
    FEWEST,
    SPARE,
    STEP,
    Known,
    candidates,
    estimated_mean,
    narrow_enough,
    regression,
)
from personavec.verbs.screen.table import Table

PRECISION = 0.1
RESAMPLINGS = 200


def reading() -> None:
    """`raw` at half depth, against one row at a time, and against the arithmetic of the model's own products."""
    model = ChatModel.load("smollm2")
    for longest in (400, 2000):
        read_chats(model, longest)


def read_chats(model: ChatModel, longest: int) -> None:
    """100 chats of at most so many characters."""
    layer = model.n_layers // 2 - 1
    samples = [s for s in open_dataset(str(first_chats(100, longest))).samples("first") if isinstance(s, Sample)]
    rows = [
        {"prompt_ids": model.render(sample.messages), "response_ids": model.encode(sample.response)}
        for sample in samples
    ]
    ids = [[*row["prompt_ids"], *row["response_ids"]] for row in rows]
    tokens = sum(map(len, ids))
    ours: dict[int, torch.Tensor] = {}
    theirs: dict[int, torch.Tensor] = {}

    def batched() -> None:
        for batch, read in activations(
            model, rows, ("response avg", "prompt last"), [layer], limit=model.limits.screened
        ):
            ours.update(zip(batch, read[:, 0, 0], strict=True))

    @torch.no_grad()
    def loop() -> None:
        for index, own in enumerate(ids):
            states = model.hf(input_ids=torch.tensor([own]), output_hidden_states=True).hidden_states
            theirs[index] = states[layer + 1][0, len(rows[index]["prompt_ids"]) :].float().mean(dim=0)

    linear = [m for block in model.blocks[: layer + 1] for m in block.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {m.in_features: torch.randn(2048, m.in_features, dtype=model.dtype) for m in linear}

    @torch.no_grad()
    def products() -> None:
        for module in linear:
            module(inputs[module.in_features])

    fast, slow, product = alternate(batched, loop, products, runs=3)
    flops = 2 * sum(m.weight.numel() for m in linear)
    rate, peak = flops * tokens / fast, flops * 2048 / product
    away = max(float((ours[i] - theirs[i]).norm() / theirs[i].norm()) for i in ours)
    size = f"{tokens / len(rows):.0f} tokens a row"
    print(
        f"| raw at half depth / one row at a time, {size} | {tokens / fast:,.0f} / {tokens / slow:,.0f} tokens/s "
        f"| {slow / fast:.2f} | largest relative difference {away:.1e} |"
    )
    print(
        f"| raw, arithmetic of its matrix products / those alone, {size} "
        f"| {rate / 1e12:.3f} / {peak / 1e12:.3f} TFLOP/s | {rate / peak:.2f} | |"
    )


def rungs(folder: str) -> None:
    """What each rung is worth against `full`, on a table that has all of them."""
    result = json.loads(Path(folder, "result.json").read_text())
    names = tuple(result["projection_difference"])
    table = Table(Path(folder, "table"), names)
    usable = np.flatnonzero(table.good)
    full = {name: table.column(name) for name in names}
    known = {name: Known(table, name).of(np.arange(len(table.good))) for name in names}
    of_all = {name: own[usable].mean(axis=0) for name, own in known.items()}
    print(f"{len(usable)} rows")
    for name in names:
        raw, last = table.column(f"{name}.response"), table.column(f"{name}.prompt_last")
        told = {"raw": raw, "proxy": raw - last}
        design = np.column_stack([np.ones(len(usable)), known[name][usable]])
        beta = np.linalg.lstsq(design, full[name][usable], rcond=None)[0]
        told["regression on what is known"] = np.zeros_like(raw)
        told["regression on what is known"][usable] = design @ beta
        ranks = ", ".join(f"{k} {spearmanr(v[usable], full[name][usable]).statistic:.2f}" for k, v in told.items())
        print(f"| {name}: rank correlation with full | {ranks} |")
    covered = dict.fromkeys(names, 0)
    widths: dict[str, list[float]] = {name: [] for name in names}
    answered, base_tokens = [], table.column("base_tokens")
    for seed in range(RESAMPLINGS):
        most = min(len(usable), int(SPARE * sample_size(len(usable), PRECISION)) + FEWEST)
        order = np.random.default_rng(1000 + seed).permutation(usable)[:most]
        taken, narrow = FEWEST - STEP, False
        while taken < most and not narrow:
            taken = min(most, taken + STEP)
            rows = order[:taken]
            drawn = {name: own[rows] for name, own in full.items()}
            means = {name: estimated_mean(drawn[name], known[name][rows], of_all[name], len(usable)) for name in names}
            narrow = narrow_enough(means, drawn, PRECISION)
        answered.append(float(base_tokens[rows].sum() / base_tokens[usable].sum()))
        for name, mean in means.items():
            covered[name] += mean.low <= full[name][usable].astype(float).mean() <= mean.high
            widths[name].append((mean.high - mean.low) / 2 / full[name][usable].std())
    for name in names:
        print(
            f"| sampled, {name}: true value in the interval | {covered[name]} of {RESAMPLINGS} | half-width "
            f"{statistics.median(widths[name]):.3f} SD |"
        )
    print(f"| sampled: base tokens / those of full | {statistics.median(answered):.3f} | most {max(answered):.3f} |")
    k = round(0.05 * len(usable))
    for name in names:
        for sign, side in ((1, "top"), (-1, "bottom")):
            recalls, shares = [], []
            for seed in range(20):
                drawn = np.random.default_rng(2000 + seed).permutation(usable)[:400]
                values = np.full(len(table.good), np.nan)
                values[drawn] = sign * full[name][drawn]
                weights, errors = regression(values[drawn], known[name][drawn])
                chosen, _ = candidates(values, weights[0] + known[name] @ weights[1:], errors, table.good, k)
                chosen[drawn] = True
                best = usable[np.argsort(-sign * full[name][usable])[:k]]
                recalls.append(chosen[best].mean())
                shares.append(chosen.sum() / len(usable))
            print(
                f"| two-stage, {name}, {side} 5%: recall | {statistics.mean(recalls):.3f} | base replies "
                f"{statistics.mean(shares):.2f} of full |"
            )


def engines(one: str, other: str) -> None:
    """How far two runs agree whose base replies are of two engines."""
    names = tuple(json.loads((Path(one) / "result.json").read_text())["layers"])
    tables = [Table(Path(folder) / "table", names) for folder in (one, other)]
    for name in names:
        for kind, column in (("base projection", f"{name}.base"), ("projection difference", name)):
            a, b = (table.column(column).astype(float) for table in tables)
            both = ~np.isnan(a) & ~np.isnan(b)
            r, equal = np.corrcoef(a[both], b[both])[0, 1], np.mean(np.abs(a[both] - b[both]) < 1e-6)
            told = f"r {r:.2f} | equal {equal:.2f} | means {a[both].mean():.2f}, {b[both].mean():.2f}"
            print(f"| {name}, {kind} | {both.sum()} rows | {told} |")


def memory() -> None:
    """Peak memory of a screening with 1,000 and with 100,000 rows, and time by tokens."""
    for rows in (1_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.jsonl"
            with path.open("w") as file:
                for n in range(rows):
                    row = {"id": f"row-{n}", "prompt": f"What is {n}?", "response": f"It is {n}, my friend."}
                    file.write(json.dumps(row) + "\n")
            done = screened(folder, str(path), "--layers", "2", "--cost", "proxy")
            print(f"| {rows:,} | {done['peak'] / 2**20:.2f} GiB | {done['seconds']:.0f} s |", flush=True)


def slope() -> None:
    """Time of `proxy` by tokens."""
    tokens, seconds = [], []
    for rows in (125, 250, 500, 1000):
        with tempfile.TemporaryDirectory() as folder:
            found = screened(folder, str(first_chats(rows)), "--cost", "proxy")["found"]
            tokens.append(found["tokens"]["prompt"] + found["tokens"]["response"])
            seconds.append(rows / found["rows_per_second"])
            print(f"| {rows:,} | {tokens[-1]:,} | {seconds[-1]:.1f} s | {tokens[-1] / seconds[-1]:,.0f} |", flush=True)
    rate, offset = np.polyfit(tokens, seconds, 1)
    r = np.corrcoef(tokens, seconds)[0, 1]
    print(f"slope {1e6 * rate:.1f} s per million tokens, {offset:.1f} s at zero, R² {r * r:.4f}")


def ray() -> None:
    """Two actors against one process that has both cores, in turn."""
    path, speeds = str(first_chats(2000, 1000)), {"one process": [], "two actors": []}
    for _ in range(1):
        for name, more in (("one process", ()), ("two actors", ("--ray", "--workers", "2"))):
            with tempfile.TemporaryDirectory() as folder:
                found = screened(folder, path, "--cost", "proxy", *more)["found"]
                speeds[name].append(found["rows_per_second"])
    one, two = (statistics.median(own) for own in speeds.values())
    print(f"| two Ray actors / one process | {two:.1f} / {one:.1f} rows/s | {two / one:.2f} | start-up included |")


def screened(folder: str, data: str, *more: str) -> dict:
    """Run the command, and take its peak memory."""
    command = [sys.executable, "-m", "personavec", "screen", data, "--vectors", VECTOR, "--model", MODEL]
    command += ["--out", f"{folder}/run", *more]
    began = time.monotonic()
    done = subprocess.run(["/usr/bin/time", "-f", "%M", *command, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = int(done.stderr.strip().splitlines()[-1])
    return {"peak": peak, "seconds": time.monotonic() - began, "found": json.loads(done.stdout)}


def alternate(*sides: Callable[[], None], runs: int) -> list[float]:
    """Seconds of every side: the median of its runs, the first of which only warms up."""
    taken: list[list[float]] = [[] for _ in sides]
    for run in range(runs + 1):
        for side, own in zip(sides, taken, strict=True):
            began = time.perf_counter()
            side()
            if run:
                own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in taken]


if __name__ == "__main__":
    VECTOR = sys.argv[2] if len(sys.argv) > 2 else "devout"
    MODEL = sys.argv[3] if len(sys.argv) > 3 else "smollm2"
    if sys.argv[1] == "rungs":
        rungs(sys.argv[2])
    elif sys.argv[1] == "engines":
        engines(*sys.argv[2:4])
    else:
        {"reading": reading, "memory": memory, "slope": slope, "ray": ray}[sys.argv[1]]()
