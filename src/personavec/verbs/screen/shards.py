"""Screening a data set shard by shard: encode, read, project; one table row for every row of the data."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.data.dataset import Bad, Dataset
from personavec.data.sample import Sample, Turn
from personavec.errors import DataError, ModelError
from personavec.judges.judge import TraitJudge
from personavec.model.activations import BEGINNING, activations, branches, by_length
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import response_of
from personavec.model.endpoint import Failure
from personavec.model.machine.limits import Limit, in_parts
from personavec.runs.progress import stage
from personavec.runs.run import Row, Run
from personavec.steering.generate import Reply
from personavec.steering.gradient import likelihood_gradients
from personavec.steering.projection import Directions
from personavec.steering.rollouts import Reasoning
from personavec.verbs.screen.base_replies import BaseReplies
from personavec.verbs.screen.table import Place, Table

SHARD_ROWS, SHARD_CHARACTERS = 500, 4_000_000
"""A shard is what a kill may cost, and what is in memory at a time."""
WITH_BASE = ("sampled", "full")
"""Costs at which base replies are written, and so must fit into the context."""
NO_BASE_REPLY = "expected words in the base reply"
"""How the errors begin of rows that cannot be faulted: their base reply is empty, or cut while still reasoning."""
READ = ("response", "prompt_last", "base", "matched")
"""Projections in the table: of the reply's mean, of the last prompt token, of the base reply's mean; and the difference
of the means over equally many tokens of both."""
GRADIENT = ("gradient",)
"""What there is with that cost in their place."""

COLUMNS = dict.fromkeys(("row", "conversation"), "int64")
COLUMNS |= dict.fromkeys(("where", "id", "source", "kind", "error"), "string")
COLUMNS |= dict.fromkeys(("prompt_tokens", "response_tokens", "base_tokens", "more_turns"), "int32")
"""Of the table, with their Arrow types, beside those of the vectors."""

Cost = Literal["raw", "proxy", "gradient", "sampled", "full"]
OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class RowReader:
    """How rows are read: by which model, along what, and what counts as a reply."""

    model: ChatModel
    directions: Directions
    cost: Cost = "proxy"
    on_error: OnError = "stop"
    max_new_tokens: int = 64
    """Of base replies, for which the context must have room."""
    read_tokens: int | None = None
    """In one forward pass; None for what the model's device bears."""
    reasoning: Reasoning = "out"
    system: str = "template"

    @property
    def answered(self) -> bool:
        """Whether base replies are written to rows."""
        return self.cost in WITH_BASE

    @property
    def limit(self) -> Limit | None:
        """Tokens of a pass; None if the model runs elsewhere, where nobody here plans passes."""
        if self.model.engine is not None:
            return None
        return Limit(self.read_tokens) if self.read_tokens else self.model.limits.screened

    def reply_start(self, prompt: Sequence[int], reply: Sequence[int]) -> int:
        """How many of the first tokens of a reply do not count."""
        return 0 if self.reasoning == "in" else self.model.reasoning_tokens(prompt, reply)


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
        A pyarrow table with `COLUMNS`, and for every name its score (see `score`), projections (`READ`) and cosine. Its
        metadata hold the sum over rows of what is projected for the score, [layer, d_model].
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
    gradient = reader.cost == "gradient"
    spans = len(READ) if base else 1 if gradient else 2
    projections = np.full((len(rows), spans, len(along.names)), np.nan, dtype=np.float32)
    cosine = np.full((len(rows), len(along.names)), np.nan, dtype=np.float32)
    total = np.zeros((spans, len(along.read_layers), reader.model.identity.d_model))
    at = [along.read_layers.index(layer) for layer in along.layers]
    for batch, means in (_pulls if gradient else _contrasted if base else _read)(reader, good):
        finite = means.isfinite().flatten(1).all(dim=1)
        for index in (index for index, known in zip(batch, finite.tolist(), strict=True) if not known):
            _overflowed(reader, good[index])
        places = [usable[index] for index, known in zip(batch, finite.tolist(), strict=True) if known]
        means = means[finite]
        projections[places] = along.project(means)
        norms = means[:, 0].norm(dim=-1).numpy()[:, at]
        cosine[places] = projections[places, 0] / np.where(norms > 0, norms, 1)
        total += means.double().sum(dim=0).numpy()
        advance(len(batch))
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
    what = "a finite gradient" if reader.cost == "gradient" else "finite activations"
    row["error"] = f"expected {what}, got inf or nan ({reader.model.numbers})"
    if reader.on_error == "stop":
        raise DataError(f"{row['where']}: {row['error']}; pass --dtype float32, or --on-error skip")


def score(spans: Float[ndarray, "span *axes"], cost: Cost) -> Float[ndarray, "*axes"]:
    """What rows are ranked by, from what was read of them (`READ`): the projection difference where base replies were.

    Source: Persona Vectors (arXiv 2507.21509) section 6.1; appendix H for the raw projection, I for the proxy.
    """
    if cost == "gradient":
        return np.asarray(spans[0])
    if len(spans) == len(READ):
        return np.asarray(spans[0] - spans[2])
    return np.asarray(spans[0] if cost == "raw" else spans[0] - spans[1])


def encode(reader: RowReader, sample: Sample | Bad) -> Row:
    """A row as token ids, or with the reason why it cannot be read."""
    model = reader.model
    conversation = sample.row if sample.conversation is None else sample.conversation
    row: Row = {"row": sample.row, "conversation": conversation, "where": sample.where, "error": ""}
    if isinstance(sample, Bad):
        return row | {"error": sample.reason}
    row |= {"id": sample.id, "source": sample.source, "kind": prompt_kind(sample.messages[-1]["content"])}
    row |= {"messages": sample.messages, "more_turns": sample.more_turns}
    try:
        prompt, ids = response_of(model, sample, reader.system)
        asked = model.render(sample.messages, reader.system, sample.tools) if reader.answered else ()
    except ModelError as error:
        return row | {"error": str(error)}
    skipped = reader.reply_start(prompt, ids)
    row |= {"prompt_ids": prompt, "response_ids": ids, "reasoning_tokens": skipped, "asked_ids": asked}
    row |= {"prompt_tokens": len(prompt), "response_tokens": len(ids) - skipped}
    longest = max(len(prompt) + len(ids), len(asked) + reader.max_new_tokens if reader.answered else 0)
    if longest > model.context:
        return row | {"error": f"expected prompt and reply to fit into {model.context:,} tokens, got {longest:,}"}
    if len(ids) == skipped:
        return row | {"error": "expected a reply after the reasoning, got none"}
    return row


def prompt_kind(prompt: str) -> str:
    """What sort of prompt a text is, by its looks: what rows differ in besides the trait."""
    text = prompt.strip()
    foreign = sum(not character.isascii() for character in text) / len(text) if text else 0
    if "```" in text or any(mark in text for mark in ("def ", "import ", "#include", "</", "();", "SELECT ")):
        return "code"
    if foreign > 0.3:
        return "other script"
    if len(text) > 1000:
        return "long"
    return "question" if text.endswith("?") else "request"


def _read(reader: RowReader, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
    """Means over replies and the last prompt tokens, in one pass."""
    layers = reader.directions.read_layers
    return activations(reader.model, rows, ("response avg", "prompt last"), layers, limit=reader.limit)


def _pulls(reader: RowReader, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
    """Gradients of the replies' likelihood, see `likelihood_gradients`."""
    return likelihood_gradients(reader.model, rows, reader.directions.read_layers, reader.limit)


def _contrasted(reader: RowReader, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
    """The same with the base reply, the prompt read once for both: spans as `READ` names them."""
    if (limit := reader.limit) is None:
        yield from _contrasted_elsewhere(reader, rows)
        return
    lengths = [max(len(row["response_ids"]), len(row["base_ids"])) + len(row["prompt_ids"]) for row in rows]
    half = Limit(limit.most / 2)
    for batch in by_length([range(length) for length in lengths], half):
        for part, means in in_parts(batch, lambda part: _contrast(reader, [rows[i] for i in part]), limit, half):
            yield [*part], means


def _contrasted_elsewhere(reader: RowReader, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
    """The same of a model elsewhere, which reads reply and base reply as two conversations that come in any order."""
    talks: list[Row] = []
    for row in rows:
        matched = {"begin_tokens": min(row["response_tokens"], row["base_tokens"])}
        for prompt, reply, skipped in (
            ("prompt_ids", "response_ids", "reasoning_tokens"),
            ("asked_ids", "base_ids", "base_reasoning"),
        ):
            talk = {"prompt_ids": row[prompt], "response_ids": row[reply], "reasoning_tokens": row[skipped]}
            talks.append(talk | matched)
    waiting: dict[int, Tensor] = {}
    spans, layers = ("response avg", "prompt last", BEGINNING), reader.directions.read_layers
    for batch, means in activations(reader.model, talks, spans, layers):
        waiting |= zip(batch, means, strict=True)
        places = [place // 2 for place in batch if place ^ 1 in waiting]
        pairs = [(waiting.pop(2 * place), waiting.pop(2 * place + 1)) for place in dict.fromkeys(places)]
        if pairs:
            (reply, last, begun), (base, _, base_begun) = (
                torch.stack(side, dim=1) for side in zip(*pairs, strict=True)
            )
            yield [*dict.fromkeys(places)], torch.stack([reply, last, base, begun - base_begun], dim=1)


def _contrast(reader: RowReader, rows: Sequence[Row]) -> Tensor:
    replies = [row[kind] for row in rows for kind in ("response_ids", "base_ids")]
    skipped = [row[kind] for row in rows for kind in ("reasoning_tokens", "base_reasoning")]
    counts = [len(reply) - skip for reply, skip in zip(replies, skipped, strict=True)]
    shared = [min(pair) for pair in zip(counts[::2], counts[1::2], strict=True) for _ in range(2)]
    weights = torch.zeros((len(replies), 3, 1 + max(map(len, replies))))
    for weight, skip, tokens, matched in zip(weights, skipped, counts, shared, strict=True):
        weight[0, 1 + skip : 1 + skip + tokens] = 1 / tokens
        weight[1, 0] = 1
        weight[2, 1 + skip : 1 + skip + matched] = 1 / matched
    # most templates ask as they write a finished reply: then both are read after one prompt
    asked = [tuple(row[kind]) for row in rows for kind in ("prompt_ids", "asked_ids")]
    prompts, layers = [*dict.fromkeys(asked)], reader.directions.read_layers
    places = {prompt: place for place, prompt in enumerate(prompts)}
    owners = [places[prompt] for prompt in asked]
    mean, last, matched_mean = branches(reader.model, prompts, replies, owners, weights, layers).unbind(dim=1)
    return torch.stack([mean[::2], last[::2], mean[1::2], matched_mean[::2] - matched_mean[1::2]], dim=1)


def _table(
    reader: RowReader,
    rows: Sequence[Row],
    projections: Float[ndarray, "row span name"],
    cosine: Float[ndarray, "row name"],
    total: Float[ndarray, "layer d_model"],
) -> Any:
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    for index, name in enumerate(reader.directions.names):
        spans = projections[:, :, index].T
        columns[name] = pa.array(score(spans, reader.cost), pa.float32(), from_pandas=True)
        for span, values in zip(GRADIENT if reader.cost == "gradient" else READ, spans, strict=False):
            columns[f"{name}.{span}"] = pa.array(values, pa.float32(), from_pandas=True)  # nan is null
        columns[f"{name}.cosine"] = pa.array(cosine[:, index], pa.float32(), from_pandas=True)
    packed = io.BytesIO()
    np.save(packed, total.astype(np.float32))
    return pa.table(columns).replace_schema_metadata({"total": base64.b64encode(packed.getvalue())})
