"""Screening a data set shard by shard: encode, read, project; one table row for every row of the data."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.data.dataset import Bad
from personavec.data.sample import Sample
from personavec.errors import DataError, ModelError
from personavec.model.activations import activations, branches
from personavec.model.chat_model import ChatModel
from personavec.model.endpoint import Failure
from personavec.steering.generate import Reply
from personavec.steering.projection import Directions
from personavec.verbs.screen.base_replies import BaseReplies
from personavec.verbs.screen.options import ScreenConfig

SHARD_ROWS, SHARD_CHARACTERS = 500, 4_000_000
"""A shard is what a kill may cost, and what is in memory at a time."""
WITH_BASE = ("sampled", "full")
"""Costs at which base replies are written, and so must fit into the context."""
NO_BASE_REPLY = "expected words in the base reply"
"""How the errors begin of rows that cannot be faulted: their base reply is empty, or cut while still reasoning."""
READ = ("response", "prompt_last", "base", "matched")
"""Projections in the table: of the reply's mean, of the last prompt token, of the base reply's mean; and the difference
of the means over equally many tokens of both."""

COLUMNS = {"row": "int64", **dict.fromkeys(("where", "id", "source", "kind", "error"), "string")}
COLUMNS |= dict.fromkeys(("prompt_tokens", "response_tokens", "base_tokens", "more_turns"), "int32")
"""Of the table, with their Arrow types, beside those of the vectors."""

Row = dict[str, Any]


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


def screen_shard(
    model: ChatModel,
    samples: Sequence[Sample | Bad],
    read: Directions,
    config: ScreenConfig,
    base: BaseReplies | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Any:
    """Project every row of a shard.

    Args:
        model: The base model.
        samples: Rows of the data set, unusable ones included.
        read: On what.
        config: Options of the run.
        base: Where base replies come from; without, none are read.
        advance: Told of rows answered, and of rows read.

    Raises:
        DataError: A row cannot be read, or the server gave it no base reply, and `on_error` is "stop".

    Returns:
        A pyarrow table with `row where id source kind error prompt_tokens response_tokens base_tokens more_turns`, and
        for every name its score (see `score`), projections (`READ`) and cosine. Its metadata hold the sum over rows of
        what is projected for the score, [layer, d_model].
    """
    rows = [encode(model, sample, config, config.cost in WITH_BASE) for sample in samples]
    bad = next((row for row in rows if row["error"]), None)
    if bad and config.on_error == "stop":
        raise DataError(f"{bad['where']}: {bad['error']}; correct that row, or pass --on-error skip")
    if base:
        readable = [row for row in rows if not row["error"]]
        for row, reply in zip(readable, base.replies(readable, advance), strict=True):
            _answer(model, row, reply, config)
    usable = [index for index, row in enumerate(rows) if not row["error"]]
    good = [rows[index] for index in usable]
    spans = len(READ) if base else 2
    found = np.full((len(rows), spans, len(read.names)), np.nan, dtype=np.float32)
    cosine = np.full((len(rows), len(read.names)), np.nan, dtype=np.float32)
    total = np.zeros((spans, len(read.read_layers), model.identity.d_model))
    at = [read.read_layers.index(layer) for layer in read.layers]
    for batch, own in _contrasted(model, good, read, config) if base else _read(model, good, read, config):
        places = [usable[index] for index in batch]
        found[places] = read.project(own)
        norms = own[:, 0].norm(dim=-1).numpy()[:, at]
        cosine[places] = found[places, 0] / np.where(norms > 0, norms, 1)
        total += own.double().sum(dim=0).numpy()
        advance(len(batch))
    return _table(rows, read, found, cosine, score(total, config.cost), config)


def _answer(model: ChatModel, row: Row, reply: Reply | Failure, config: ScreenConfig) -> None:
    """Add its base reply to a row, or why it has none."""
    if isinstance(reply, Failure):
        row["error"] = f"expected a base reply, got none from its server ({reply.reason})"
        if config.on_error == "stop":
            raise DataError(f"{row['where']}: {row['error']}; run the same command again, or pass --on-error skip")
        return
    skipped = 0 if config.reasoning == "in" else model.reasoning_tokens(row["prompt_ids"], reply.ids)
    row |= {"base_ids": reply.ids, "base_reasoning": skipped, "base_tokens": len(reply.ids) - skipped}
    if not reply.ids:
        row["error"] = f"{NO_BASE_REPLY}, got none"
    elif not row["base_tokens"]:
        row["error"] = f"{NO_BASE_REPLY} after its reasoning, got none within {config.max_new_tokens} tokens"


def score(read: Float[ndarray, "span *axes"], cost: str) -> Float[ndarray, "*axes"]:
    """What rows are ranked by, from what was read of them (`READ`): the projection difference where base replies were.

    Source: Persona Vectors (arXiv 2507.21509) section 6.1; appendix H for the raw projection, I for the proxy.
    """
    if len(read) == len(READ):
        return np.asarray(read[0] - read[2])
    return np.asarray(read[0] if cost == "raw" else read[0] - read[1])


def encode(model: ChatModel, sample: Sample | Bad, config: ScreenConfig, answered: bool) -> Row:
    """A row as token ids, or with the reason why it cannot be read.

    Args:
        model: Whose tokens.
        sample: The row.
        config: Options of the run.
        answered: Whether a base reply may be written to it, which needs room in the context.
    """
    row: Row = {"row": sample.row, "where": sample.where, "error": ""}
    if isinstance(sample, Bad):
        return row | {"error": sample.reason}
    row |= {"id": sample.id, "source": sample.source, "kind": prompt_kind(sample.messages[-1]["content"])}
    row |= {"messages": sample.messages, "more_turns": sample.more_turns}
    try:
        prompt = model.render(sample.messages, config.system)
    except ModelError as error:
        return row | {"error": str(error)}
    ids = model.encode(sample.response)
    skipped = 0 if config.reasoning == "in" else model.reasoning_tokens(prompt, ids)
    row |= {"prompt_ids": prompt, "response_ids": ids, "reasoning_tokens": skipped}
    row |= {"prompt_tokens": len(prompt), "response_tokens": len(ids) - skipped}
    longest = len(prompt) + max(len(ids), config.max_new_tokens if answered else 0)
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


def _read(
    model: ChatModel, rows: Sequence[Row], read: Directions, config: ScreenConfig
) -> Iterator[tuple[list[int], Tensor]]:
    """Means over replies and the last prompt tokens, in one pass."""
    return activations(model, rows, ("response avg", "prompt last"), read.read_layers, batch_tokens=config.read_tokens)


def _contrasted(
    model: ChatModel, rows: Sequence[Row], read: Directions, config: ScreenConfig
) -> Iterator[tuple[list[int], Tensor]]:
    """The same with the base reply, the prompt read once for both: spans as `READ` names them."""
    lengths = [max(len(row["response_ids"]), len(row["base_ids"])) + len(row["prompt_ids"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: lengths[index])
    batch: list[int] = []
    for place, index in enumerate(order):
        batch.append(index)
        following = order[place + 1 : place + 2]
        if not following or 2 * (len(batch) + 1) * lengths[following[0]] > config.read_tokens:
            yield batch, _contrast(model, [rows[i] for i in batch], read)
            batch = []


def _contrast(model: ChatModel, rows: Sequence[Row], read: Directions) -> Tensor:
    replies = [row[kind] for row in rows for kind in ("response_ids", "base_ids")]
    skipped = [row[kind] for row in rows for kind in ("reasoning_tokens", "base_reasoning")]
    own = [len(reply) - skip for reply, skip in zip(replies, skipped, strict=True)]
    shared = [min(pair) for pair in zip(own[::2], own[1::2], strict=True) for _ in range(2)]
    weights = torch.zeros((len(replies), 3, 1 + max(map(len, replies))))
    for weight, skip, tokens, matched in zip(weights, skipped, own, shared, strict=True):
        weight[0, 1 + skip : 1 + skip + tokens] = 1 / tokens
        weight[1, 0] = 1
        weight[2, 1 + skip : 1 + skip + matched] = 1 / matched
    owners = [row for row in range(len(rows)) for _ in range(2)]
    mean, last, matched_mean = branches(
        model, [row["prompt_ids"] for row in rows], replies, owners, weights, read.read_layers
    ).unbind(dim=1)
    return torch.stack([mean[::2], last[::2], mean[1::2], matched_mean[::2] - matched_mean[1::2]], dim=1)


def _table(
    rows: Sequence[Row],
    read: Directions,
    found: Float[ndarray, "row span name"],
    cosine: Float[ndarray, "row name"],
    total: Float[ndarray, "layer d_model"],
    config: ScreenConfig,
) -> Any:
    import pyarrow as pa

    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    for index, name in enumerate(read.names):
        columns[name] = pa.array(score(found[:, :, index].T, config.cost), pa.float32(), from_pandas=True)
        for span, values in zip(READ, found[:, :, index].T, strict=False):
            columns[f"{name}.{span}"] = pa.array(values, pa.float32(), from_pandas=True)  # nan is null
        columns[f"{name}.cosine"] = pa.array(cosine[:, index], pa.float32(), from_pandas=True)
    packed = io.BytesIO()
    np.save(packed, total.astype(np.float32))
    return pa.table(columns).replace_schema_metadata({"total": base64.b64encode(packed.getvalue())})
