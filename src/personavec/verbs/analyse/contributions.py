"""What writes a direction: the embedding, and attention and MLP of every block, each by what it adds to the stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.model.activations import by_length, token_projections, weights
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import parts, read
from personavec.model.machine.limits import in_parts
from personavec.runs.progress import stage

T = TypeVar("T")
Row = Mapping[str, Any]
"""A reply: `prompt_ids`, `response_ids`, and for tokens its `side`."""


class Written(NamedTuple):
    """What each term adds along some directions, averaged over every reply's tokens."""

    terms: tuple[str, ...]
    """`embedding`, and for every block up to the layer `attention N` and `MLP N`, or `block N` if it has no middle."""
    values: Float[ndarray, "row term direction"]
    whole: Float[ndarray, "row direction"]
    """Projection of the stream itself; the terms sum to it."""


def written(model: ChatModel, rows: Sequence[Row], layer: int, units: Float[Tensor, "direction d_model"]) -> Written:
    """Direct contributions to the stream at a layer, along directions.

    The stream after a block is the embedding and everything that attention and MLP of the blocks so far have added.

    Args:
        model: Who is read.
        rows: Conversations with `prompt_ids` and `response_ids`.
        layer: Block output at which the directions are.
        units: Directions of length 1.
    """
    sites = 2 * (layer + 1)  # after each attention, and after each block
    read_at = np.full((len(rows), 1 + sites, len(units)), np.nan)

    def read_sites(batch: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        inputs = model.inputs(ids)
        spread = torch.zeros((len(batch), 1, inputs["input_ids"].shape[1]), device=model.device)
        average = weights([rows[i] for i in batch], ("response avg",))
        spread[:, :, : average.shape[2]] = average.to(model.device)

        def keep(site: int, stream: Tensor) -> None:
            mean = torch.bmm(spread.to(stream.device), stream.float())[:, 0].double().cpu()
            read_at[[*batch], site] = (mean @ units.double().T).numpy()

        def part(block: int, kind: str, stream: Tensor) -> None:
            keep(2 * block + (kind == "middle"), stream)

        def after(block: int, stream: Tensor) -> None:
            keep(2 * block + 2, stream)

        with parts(model, range(layer + 1), part):
            read(model, range(layer + 1), after, **inputs)

    for _ in _in_batches(model, rows, "contributions of blocks", read_sites):
        pass
    terms, values = ["embedding"], [read_at[:, 0]]
    for block in range(layer + 1):
        before, middle_of, end = (read_at[:, 2 * block + step] for step in range(3))
        if np.isnan(middle_of).all():
            terms.append(f"block {block}")
            values.append(end - before)
        else:
            terms += [f"attention {block}", f"MLP {block}"]
            values += [middle_of - before, end - middle_of]
    return Written(tuple(terms), np.stack(values, axis=1), read_at[:, -1])


class Token(NamedTuple):
    """One token of a reply, and how far it lies along the direction."""

    row: int
    place: int
    id: int
    projection: float
    weight: float
    """In its side's mean: replies weigh the same, and the tokens of a reply."""


def tokens(model: ChatModel, rows: Sequence[Row], layer: int, unit: Float[Tensor, " d_model"]) -> list[Token]:
    """Every token of the replies with its projection on a direction at a layer."""
    counts = {side: sum(row["side"] == side for row in rows) for side in {row["side"] for row in rows}}
    along: list[Token] = []

    def along_unit(_: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        return token_projections(model, ids, [layer], unit[None])[0][:, :, 0]

    for batch, read_in in _in_batches(model, rows, "tokens along the vector", along_unit):
        for index, projections in zip(batch, read_in, strict=True):
            start, reply = _reply(rows[index])
            weight = 1 / (len(reply) * counts[rows[index]["side"]])
            values = zip(reply, projections[start : start + len(reply)].tolist(), strict=True)
            along += [Token(index, at, token, value, weight) for at, (token, value) in enumerate(values)]
    return sorted(along, key=lambda token: (token.row, token.place))


def token_activations(
    model: ChatModel, rows: Sequence[Row], layer: int
) -> Iterator[tuple[Row, Float[Tensor, "token d_model"]]]:
    """Each reply with the stream of its tokens at a layer."""

    def streams(_: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        kept: list[Tensor] = []
        read(model, [layer], lambda _, stream: kept.append(stream.float().cpu()), **model.inputs(ids))
        return kept[0]

    for batch, read_in in _in_batches(model, rows, "tokens of replies", streams):
        for index, stream in zip(batch, read_in, strict=True):
            start, reply = _reply(rows[index])
            yield rows[index], stream[start : start + len(reply)]


def _in_batches(
    model: ChatModel, rows: Sequence[Row], title: str, work: Callable[[Sequence[int], Sequence[Sequence[int]]], T]
) -> Iterator[tuple[Sequence[int], T]]:
    """What a function gives for the indices and token ids of a batch of rows, under a progress bar."""
    ids = [[*row["prompt_ids"], *row["response_ids"]] for row in rows]
    limit = model.limits.read
    with stage(title, len(rows)) as advance:
        for batch in by_length(ids, limit):
            for part, done in in_parts(batch, lambda part: work(part, [ids[i] for i in part]), limit):
                yield part, done
                advance(len(part))


def _reply(row: Row) -> tuple[int, Sequence[int]]:
    """Where the reply begins, reasoning left out, and its tokens."""
    skipped = row.get("reasoning_tokens", 0)
    return len(row["prompt_ids"]) + skipped, row["response_ids"][skipped:]
