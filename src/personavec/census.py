"""A first look at a data set: how many rows, which of them are unusable, and what screening them will cost."""

import time
from dataclasses import asdict, dataclass

import numpy as np

from personavec.activations import activations
from personavec.base_replies import BaseReplies
from personavec.config import ScreenConfig
from personavec.dataset import Bad, Dataset
from personavec.directions import Directions
from personavec.errors import DataError
from personavec.generate import Reply
from personavec.model import ChatModel
from personavec.plan import Rates
from personavec.progress import stage
from personavec.run import Run
from personavec.sample import Sample
from personavec.shards import WITH_BASE, encode

MEASURED = 64
"""Random rows at most that are read, and answered where that is asked for, to measure rates."""
SHARE, FEWEST = 20, 32
"""Before a screening no more than one row in so many is measured, but so many at least; a plan measures `MEASURED`."""


@dataclass(frozen=True)
class Census:
    """What a data set holds."""

    rows: int
    """Unusable ones included."""
    bad: int
    """Rows that cannot be used, whatever the model."""
    drawn: tuple[Sample, ...]
    """Some usable rows at random."""


def take_census(run: Run, data: Dataset, config: ScreenConfig) -> Census:
    """Read the whole data set once, without a model: nothing is computed on it before all of it was seen.

    Raises:
        DataError: A row cannot be used, and `on_error` is "stop".
    """
    kept = run.read_json("data.json") if run.done("data.json") else None
    if kept and not (kept["bad"] and config.on_error == "stop"):
        return Census(
            kept["rows"],
            kept["bad"],
            tuple(Sample(**row | {"messages": tuple(row["messages"])}) for row in kept["drawn"]),
        )
    rng = np.random.default_rng(config.seed)
    rows = bad = 0
    drawn: list[Sample] = []
    for sample in data.samples(config.turn):
        rows += 1
        if isinstance(sample, Bad):
            bad += 1
            if config.on_error == "stop":
                raise DataError(f"{sample.where}: {sample.reason}; correct that row, or pass --on-error skip")
        elif len(drawn) < MEASURED:
            drawn.append(sample)
        elif (place := int(rng.integers(0, rows - bad))) < MEASURED:  # each row with the same chance
            drawn[place] = sample
    census = Census(rows, bad, tuple(drawn))
    run.write_json("data.json", {"rows": rows, "bad": bad, "drawn": [asdict(sample) for sample in drawn]})
    return census


def measure(
    run: Run, census: Census, model: ChatModel, read: Directions, config: ScreenConfig, base: BaseReplies
) -> Rates:
    """Read some rows of the data set, answer them where that is asked for, and take the time.

    Raises:
        DataError: None of them can be read.
    """
    answers = config.plan or config.cost in WITH_BASE
    encoded = [encode(model, sample, config, config.cost in WITH_BASE) for sample in census.drawn]
    rows = [row for row in encoded if not row["error"]]
    if not rows:
        told = encoded[0]["error"] if encoded else f"{census.rows:,} rows, none of them usable"
        raise DataError(f"expected rows that can be screened in {config.data}, got {told}; correct the data set")
    count = min(len(rows), MEASURED if config.plan else max(FEWEST, census.rows // SHARE))
    if run.done("rates.json"):
        rates = Rates(**run.read_json("rates.json"))
        if rates.rows >= count and (rates.written_per_second or not answers):
            return rates
    rows = [rows[place] for place in np.linspace(0, len(rows) - 1, count).astype(int)]
    with stage("measuring speed", 2) as advance:
        list(activations(model, rows[:4], layers=read.read_layers))  # warms up
        began = time.perf_counter()
        list(activations(model, rows, layers=read.read_layers, batch_tokens=config.read_tokens))
        tokens = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
        read_rate = tokens / (time.perf_counter() - began)
        advance(1)
        room = model.context - config.max_new_tokens
        some = [row for row in rows if answers and len(row["prompt_ids"]) <= room]
        began = time.perf_counter()
        batches = [[some[index] for index in batch] for batch in base.engine.plan(some)]
        replies = [reply for batch in batches for reply in base.engine.write(batch) if isinstance(reply, Reply)]
        written = sum(len(reply.ids) for reply in replies)
        written_rate = written / (time.perf_counter() - began) if written else None
        advance(1)
    rates = Rates(
        prompt_tokens=float(np.mean([row["prompt_tokens"] for row in rows])),
        response_tokens=float(np.mean([row["response_tokens"] for row in rows])),
        base_tokens=float(np.mean([len(reply.ids) for reply in replies])) if replies else config.max_new_tokens,
        read_per_second=read_rate,
        written_per_second=written_rate,
        rows=len(rows),
    )
    run.write_json("rates.json", asdict(rates))
    return rates
