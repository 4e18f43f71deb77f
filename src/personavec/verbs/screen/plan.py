"""What screening costs: tokens and time of every rung, from measured rates."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
import torch

from personavec.data.dataset import Bad
from personavec.data.sample import Sample
from personavec.errors import DataError, ModelError
from personavec.model.activations import activations
from personavec.model.machine.plan import price_of
from personavec.runs.progress import stage, tell
from personavec.runs.run import Row
from personavec.steering.generate import Reply
from personavec.steering.gradient import likelihood_gradients
from personavec.verbs.screen.reading.lift import likelihood_lifts, prompts_of
from personavec.verbs.screen.reading.rows import RowReader, encode
from personavec.verbs.screen.shards import DataPass

COSTS = ("raw", "proxy", "gradient", "lift", "sampled", "full")
SIZES = (1_000_000, 100_000_000)
"""Rows of the larger data sets that the plan tells about."""


@dataclass(frozen=True)
class Rates:
    """What was measured on some rows of the data set, with this model on this machine."""

    prompt_tokens: float
    """Mean per row."""
    response_tokens: float
    base_tokens: float
    """Mean length of the base replies that were written."""
    read_per_second: float
    """Tokens."""
    written_per_second: float | None
    """None where no base replies were asked for."""
    rows: int
    """How many rows it was measured on."""
    gradient_per_second: float | None = None
    """Tokens through which a gradient was taken; None where none was asked for."""
    lift_tokens: float | None = None
    """Mean tokens per row that its lift reads, under every instruction; None where none was asked for."""
    lift_per_second: float | None = None
    """Of these."""


def sample_size(rows: int, precision: float) -> int:
    """Rows that need a base reply for an interval of ± precision standard deviations, were the proxy worth nothing."""
    needed = (1.96 / precision) ** 2
    return min(rows, ceil(needed / (1 + needed / rows))) if rows else 0


def estimate(rates: Rates, rows: int, precision: float, price_per_hour: float | None = None) -> list[dict[str, Any]]:
    """Tokens read and written, seconds, and price of every rung for that many rows; of lift where it was measured."""
    read = rates.prompt_tokens + rates.response_tokens
    answered = dict.fromkeys(COSTS, 0) | {"sampled": sample_size(rows, precision), "full": rows}
    table = []
    for cost in COSTS if rates.lift_tokens else [cost for cost in COSTS if cost != "lift"]:
        # a prompt is read once to write the base reply, and once more with both replies after it
        again = rates.prompt_tokens * 2 + rates.base_tokens + (rates.response_tokens if cost == "sampled" else 0)
        tokens_read = rows * read + answered[cost] * (again if cost == "sampled" else again - rates.prompt_tokens)
        if cost == "lift":
            tokens_read = rows * (rates.lift_tokens or 0)
        tokens_written = answered[cost] * rates.base_tokens
        seconds = None
        own = {"gradient": rates.gradient_per_second, "lift": rates.lift_per_second}
        if cost in own:
            seconds = tokens_read / rate if (rate := own[cost]) else None
        elif not tokens_written or rates.written_per_second:
            seconds = tokens_read / rates.read_per_second + tokens_written / (rates.written_per_second or 1)
        table.append(
            {
                "cost": cost,
                "rows": rows,
                "base_replies": answered[cost],
                "tokens_read": round(tokens_read),
                "tokens_written": round(tokens_written),
                "seconds": None if seconds is None else round(seconds, 1),
                "price": price_of(seconds, price_per_hour),
            }
        )
    return table


def predicted(rung: Mapping[str, Any], chosen: bool) -> str:
    """A line of the plan."""
    took = "not measured" if rung["seconds"] is None else f"about {rung['seconds'] / 60:.1f} min"
    mark = "this run" if chosen else ""
    line = f"{rung['cost']:<8} reads {rung['tokens_read']:>15,} tokens, writes {rung['tokens_written']:>13,}: {took}"
    return f"{line:<76} {mark}".rstrip()


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


def take_census(work: DataPass) -> Census:
    """Read the whole data set once, before anything is computed on it, and try whether the model takes the rows drawn.

    Raises:
        DataError: A row cannot be used, and `on_error` is "stop"; nothing is written then.
    """
    stop = work.reader.on_error == "stop"
    kept = work.run.read_json("data.json") if work.run.done("data.json") else None
    if kept and not (kept["bad"] and stop):
        return _taken(work, kept["rows"], kept["bad"], [Sample.of(row) for row in kept["drawn"]])
    rng = np.random.default_rng(work.seed)
    rows = bad = 0
    drawn: list[Sample] = []
    for sample in work.samples(announce=True):
        rows += 1
        if isinstance(sample, Bad):
            bad += 1
            if stop:
                raise DataError(f"{sample.where}: {sample.reason}; correct that row, or pass --on-error skip")
        elif len(drawn) < MEASURED:
            drawn.append(sample)
        elif (place := int(rng.integers(0, rows - bad))) < MEASURED:  # each row with the same chance
            drawn[place] = sample
    census = _taken(work, rows, bad, drawn)
    work.run.write_json("data.json", {"rows": rows, "bad": bad, "drawn": [asdict(sample) for sample in drawn]})
    return census


def _taken(work: DataPass, rows: int, bad: int, drawn: Sequence[Sample]) -> Census:
    stop = work.reader.on_error == "stop"
    faults = [row for sample in drawn if stop and (row := encode(work.reader, sample))["error"]]
    if faults:
        fault = min(faults, key=lambda row: int(row["row"]))
        raise DataError(f"{fault['where']}: {fault['error']}; correct that row, or pass --on-error skip")
    return Census(rows, bad, tuple(drawn))


def measure(work: DataPass, census: Census, planning: bool) -> Rates:
    """Read some rows of the data set, answer them if base replies are wanted or planned, and take the time.

    Raises:
        DataError: None of them can be read.
    """
    run, reader, base, model = work.run, work.reader, work.base, work.reader.model
    layers = reader.directions.read_layers
    control = model.template.control
    spelt = [each for each in census.drawn if any(control.spelled(turn["content"]) for turn in each.turns)]
    if spelt:
        tell(
            f"{len(spelt):,} of {len(census.drawn):,} rows looked at spell control tokens of {model.identity.id} in "
            f"their text ({spelt[0].where} is one): they are read as words; rows that were rendered before belong into "
            "messages"
        )
    answers = planning or reader.answered
    gradient = reader.cost == "gradient" or (planning and model.engine is None)
    encoded = [encode(reader, sample) for sample in census.drawn]
    rows = [row for row in encoded if not row["error"]]
    if not rows:
        first = (
            f"the first of those looked at, {encoded[0]['where']}: {encoded[0]['error']}" if encoded else "all are bad"
        )
        raise DataError(
            f"expected rows that can be screened in {work.data.name}, got none ({first}); correct the data set"
        )
    count = min(len(rows), MEASURED if planning else max(FEWEST, census.rows // SHARE))
    if run.done("rates.json"):
        rates = Rates(**run.read_json("rates.json"))
        known = (rates.written_per_second or not answers) and (rates.gradient_per_second or not gradient)
        if rates.rows >= count and known:
            return rates
    rows = [rows[place] for place in np.linspace(0, len(rows) - 1, count).astype(int)]
    tokens = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
    lift = reader.cost == "lift"
    with stage("measuring speed", 2 + gradient + lift) as advance:
        list(activations(model, rows[:4], layers=layers))  # warms up
        began = time.perf_counter()
        list(activations(model, rows, layers=layers, limit=reader.limit))
        read_rate = tokens / (time.perf_counter() - began)
        advance(1)
        gradient_rate = None
        if gradient:
            gradient_rate = _gradient_rate(reader, rows, tokens)
            advance(1)
        lifted = _lift_rate(reader, rows) if lift else {}
        advance(lift)
        room = model.context - reader.max_new_tokens
        some = [row for row in rows if answers and len(row["prompt_ids"]) <= room]
        began = time.perf_counter()
        groups = base.engine.write(some, range(len(some)))
        replies = [reply for group in groups for _, reply in group if isinstance(reply, Reply)]
        written = sum(len(reply.ids) for reply in replies)
        written_rate = written / (time.perf_counter() - began) if written else None
        advance(1)
    rates = Rates(
        prompt_tokens=float(np.mean([row["prompt_tokens"] for row in rows])),
        response_tokens=float(np.mean([row["response_tokens"] for row in rows])),
        base_tokens=float(np.mean([len(reply.ids) for reply in replies])) if replies else reader.max_new_tokens,
        read_per_second=read_rate,
        written_per_second=written_rate,
        rows=len(rows),
        gradient_per_second=gradient_rate,
        **lifted,
    )
    run.write_json("rates.json", asdict(rates))
    return rates


def _lift_rate(reader: RowReader, rows: Sequence[Row]) -> dict[str, float]:
    prompts = [(row, prompt) for row in rows for prompt in prompts_of(row, reader.directions.names)]
    tokens = sum(len(prompt) + len(row["response_ids"]) for row, prompt in prompts)
    began = time.perf_counter()
    list(likelihood_lifts(reader, rows))
    return {"lift_tokens": tokens / len(rows), "lift_per_second": tokens / (time.perf_counter() - began)}


def _gradient_rate(reader: RowReader, rows: Sequence[Row], tokens: int) -> float | None:
    """Tokens a second through which a gradient is taken; None where a plan of another cost finds that it cannot be."""
    began = time.perf_counter()
    try:
        list(likelihood_gradients(reader.model, rows, reader.directions.read_layers, reader.limit))
    except (ModelError, torch.OutOfMemoryError):
        if reader.cost == "gradient":
            raise
        return None
    return tokens / (time.perf_counter() - began)
