"""Screening a data set shard by shard: encode, read, project; one table row for every row of the data."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from numpy import ndarray

from personavec.data.dataset import Bad, Dataset
from personavec.data.sample import Sample, Turn
from personavec.errors import DataError
from personavec.judges.judge import TraitJudge
from personavec.model.chat_model import ChatModel
from personavec.model.endpoint import Failure
from personavec.runs.progress import stage
from personavec.runs.run import Row, Run
from personavec.steering.generate import Reply
from personavec.verbs.screen.reading.base_replies import BaseReplies
from personavec.verbs.screen.reading.rows import NO_BASE_REPLY, RowReader, encode
from personavec.verbs.screen.reading.rungs import READ, columns, read, score
from personavec.verbs.screen.table import Place, Table

SHARD_ROWS, SHARD_CHARACTERS = 500, 4_000_000
"""A shard is what a kill may cost, and what is in memory at a time."""
COLUMNS = dict.fromkeys(("row", "conversation"), "int64")
COLUMNS |= dict.fromkeys(("where", "id", "source", "kind", "error"), "string")
COLUMNS |= dict.fromkeys(("prompt_tokens", "response_tokens", "base_tokens", "more_turns"), "int32")
"""Of the table, with their Arrow types, beside those of the vectors."""


@dataclass(frozen=True)
class Actors:
    """Processes that share a pass over a data set."""

    load: Callable[[], ChatModel]
    """Makes the model in each of them."""
    answer: Callable[[ChatModel], BaseReplies]
    """Makes the store of base replies there."""
    workers: int = 1
    gpus: float = 1.0
    """Of each, where there are any."""


@dataclass(frozen=True)
class DataPass:
    """A data set on its way through a screening: how it is read and judged, and where the work is kept."""

    data: Dataset
    run: Run
    reader: RowReader
    base: BaseReplies
    turn: Turn = "first"
    seed: int = 0
    judge: str = ""
    """As it was named."""
    judges: Mapping[str, TraitJudge] = field(default_factory=dict)
    """Of each vector's trait, by name."""
    actors: Actors | None = None
    elsewhere: Place | None = None
    """Where the table lies, if not in the run."""

    @property
    def table(self) -> Place:
        """Where the parts of the table lie."""
        return self.elsewhere or self.run.path("table")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the directions, which are the table's columns."""
        return self.reader.directions.names

    def samples(self, *, announce: bool = False) -> Iterator[Sample | Bad]:
        """All rows as conversations."""
        return self.data.samples(self.turn, announce=announce)


def shards(samples: Iterable[Sample | Bad]) -> Iterator[list[Sample | Bad]]:
    """Rows in order, cut where a shard is full; depends on the data alone."""
    shard: list[Sample | Bad] = []
    characters = 0
    for sample in samples:
        shard.append(sample)
        if isinstance(sample, Sample):
            characters += len(sample.response) + sum(len(message["content"]) for message in sample.messages)
        if len(shard) == SHARD_ROWS or characters >= SHARD_CHARACTERS:
            yield shard
            shard, characters = [], 0
    if shard:
        yield shard


def screen_in_order(work: DataPass, rows: int) -> int:
    """Write all parts of the table that are not there; returns the rows done now.

    Raises:
        DataError: As `screen_shard`.
    """
    base = work.base if work.reader.cost == "full" else None
    steps = 2 if base else 1  # rows are answered, then read
    fresh = 0
    with stage(f"rows of {work.data.name}{', answered and read' * (steps > 1)}", steps * rows) as advance:
        for number, shard in enumerate(shards(work.samples())):
            part, shown = f"part-{number:06d}", 0

            def advance_shard(count: int) -> None:
                nonlocal shown
                shown += count
                advance(count)

            if not Table.has(work.table, part):
                Table.write(work.table, part, screen_shard(work.reader, shard, base, advance_shard))
                fresh += len(shard)
            advance(steps * len(shard) - shown)
    return fresh


def screen_shard(
    reader: RowReader,
    samples: Sequence[Sample | Bad],
    base: BaseReplies | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Any:
    """Project every row of a shard.

    Args:
        reader: How.
        samples: Rows of the data set, unusable ones included.
        base: Where base replies come from; without, none are read.
        advance: Is called with the number of rows answered, and of rows read.

    Raises:
        DataError: A row cannot be read, or the server gave it no base reply, and `on_error` is "stop".

    Returns:
        A pyarrow table with `COLUMNS`, and for every name its score (see `score`), what that is of (`columns`) and its
        cosine. Its metadata hold the sum over rows of what is projected for the score, [layer, d_model].
    """
    along = reader.directions
    rows = [encode(reader, sample) for sample in samples]
    bad = next((row for row in rows if row["error"]), None)
    if bad and reader.on_error == "stop":
        raise DataError(f"{bad['where']}: {bad['error']}; correct that row, or pass --on-error skip")
    if base:
        readable = [row for row in rows if not row["error"]]
        questions = [row | {"prompt_ids": row["asked_ids"]} for row in readable]
        for row, reply in zip(readable, base.replies(questions, advance), strict=True):
            _answer(reader, row, reply)
    usable = [index for index, row in enumerate(rows) if not row["error"]]
    good = [rows[index] for index in usable]
    spans = len(columns(reader.cost, base is not None))
    projections = np.full((len(rows), spans, len(along.names)), np.nan, dtype=np.float32)
    cosine = np.full((len(rows), len(along.names)), np.nan, dtype=np.float32)
    total = np.zeros((spans, len(along.read_layers), reader.model.identity.d_model))
    for reading in read(reader, good, base is not None):
        for index, values in zip(reading.places, reading.projections, strict=True):
            if not np.isfinite(values).all():
                _overflowed(reader, good[index])
        places = [usable[index] for index in reading.places]
        projections[places], cosine[places] = reading.projections, reading.cosine
        total += reading.total
        advance(len(places))
    return _table(reader, rows, projections, cosine, score(total, reader.cost))


def _answer(reader: RowReader, row: Row, reply: Reply | Failure) -> None:
    """Add its base reply to a row, or why it has none."""
    if isinstance(reply, Failure):
        row["error"] = f"expected a base reply, got none from its server ({reply.reason})"
        if reader.on_error == "stop":
            raise DataError(f"{row['where']}: {row['error']}; run the same command again, or pass --on-error skip")
        return
    skipped = reader.reply_start(row["asked_ids"], reply.ids)
    row |= {"base_ids": reply.ids, "base_reasoning": skipped, "base_tokens": len(reply.ids) - skipped}
    if not reply.ids:
        row["error"] = f"{NO_BASE_REPLY}, got none"
    elif not row["base_tokens"]:
        row["error"] = f"{NO_BASE_REPLY} after its reasoning, got none within {reader.max_new_tokens} tokens"


def _overflowed(reader: RowReader, row: Row) -> None:
    """Note that a row cannot be read in the model's numbers."""
    what = {"gradient": "a finite gradient", "lift": "finite likelihoods"}.get(reader.cost, "finite activations")
    row["error"] = f"expected {what}, got inf or nan ({reader.model.numbers})"
    if reader.on_error == "stop":
        raise DataError(f"{row['where']}: {row['error']}; pass --dtype float32, or --on-error skip")


def _table(
    reader: RowReader,
    rows: Sequence[Row],
    projections: Float[ndarray, "row span name"],
    cosine: Float[ndarray, "row name"],
    total: Float[ndarray, "layer d_model"],
) -> Any:
    table = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    read_of = columns(reader.cost, projections.shape[1] == len(READ))
    for index, name in enumerate(reader.directions.names):
        spans = projections[:, :, index].T
        table[name] = pa.array(score(spans, reader.cost), pa.float32(), from_pandas=True)
        for span, values in zip(read_of, spans, strict=True):
            table[f"{name}.{span}"] = pa.array(values, pa.float32(), from_pandas=True)  # nan is null
        table[f"{name}.cosine"] = pa.array(cosine[:, index], pa.float32(), from_pandas=True)
    packed = io.BytesIO()
    np.save(packed, total.astype(np.float32))
    return pa.table(table).replace_schema_metadata({"total": base64.b64encode(packed.getvalue())})
