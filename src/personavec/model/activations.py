"""Activations of written conversations: which positions to average, and reading many rows in good batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture, read
from personavec.model.kv_cache import behind, shared
from personavec.model.machine.limits import Limit, in_parts
from personavec.runs.progress import stage

POSITIONS = ("response avg", "prompt avg", "prompt last")
"""What a conversation's activation may be: a mean over its reply, a mean over its prompt, or its last prompt token."""
BEGINNING = "response begin"
"""The mean over the first tokens of its reply that count, as many as `begin_tokens` says."""

Row = Mapping[str, Any]


def spans_of(row: Row) -> dict[str, tuple[int, int]]:
    """Which positions of a conversation each kind of position stands for, from and up to."""
    prompt, total = len(row["prompt_ids"]), len(row["prompt_ids"]) + len(row["response_ids"])
    answer = prompt + row.get("reasoning_tokens", 0)
    spans = {"response avg": (answer, total), "prompt avg": (0, prompt), "prompt last": (prompt - 1, prompt)}
    return spans | {BEGINNING: (answer, answer + row.get("begin_tokens", 0))}


def weights(rows: Sequence[Row], positions: Sequence[str]) -> Float[Tensor, "batch span seq"]:
    """Weight of every token in the average at each kind of position; zero on padding."""
    width = max(len(row["prompt_ids"]) + len(row["response_ids"]) for row in rows)
    out = torch.zeros((len(rows), len(positions), width))
    for span_weights, row in zip(out, rows, strict=True):
        spans = spans_of(row)
        for weight, kind in zip(span_weights, positions, strict=True):
            start, end = spans[kind]
            weight[start:end] = 1 / (end - start)
    return out


def activations(
    model: ChatModel,
    rows: Sequence[Row],
    positions: Sequence[str] = POSITIONS[:1],
    layers: Sequence[int] | None = None,
    of: Callable[[Tensor], Tensor] = Tensor.float,
    limit: Limit | None = None,
) -> Iterator[tuple[list[int], Float[Tensor, "batch span layer d_model"]]]:
    """Read conversations in batches of similar length; yields their indices and averages.

    Args:
        model: What to read.
        rows: Conversations with `prompt_ids` and `response_ids`, what is averaged of them not empty; of the latter, the
            first `reasoning_tokens` (if given) do not count.
        positions: Some of `POSITIONS`, or `BEGINNING`.
        layers: Which block outputs; None for all, see `capture`.
        of: What to average, see `capture`.
        limit: Tokens in one forward pass, padding included; a longer row has one of its own. Default what the model's
            device bears.
    """
    if model.engine is not None:
        yield from model.engine.means(rows, positions, layers)
        return
    ids = [[*row["prompt_ids"], *row["response_ids"]] for row in rows]
    limit = limit or model.limits.read

    def of_batch(batch: Sequence[int]) -> Tensor:
        return capture(model, [ids[i] for i in batch], weights([rows[i] for i in batch], positions), layers, of)

    for batch in by_length(ids, limit):
        for part, means in in_parts(batch, of_batch, limit):
            yield [*part], means


def read_rows(
    model: ChatModel, rows: Sequence[Row], position: str, layers: Sequence[int] | None, title: str
) -> Float[ndarray, "row layer d_model"]:
    """Activations of all rows at one kind of position and some layers (None: all), in order, under a progress bar."""
    means = np.empty((len(rows), model.n_layers if layers is None else len(layers), model.identity.d_model), np.float32)
    with stage(title, len(rows)) as advance:
        for batch, averages in activations(model, rows, (position,), layers):
            means[batch] = averages[:, 0].numpy()
            advance(len(batch))
    return means


def by_length(rows: Sequence[Sequence[int]], limit: Limit) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length under a limit of tokens, padding included; longer rows stand alone.

    The limit may change from batch to batch.
    """
    batch: list[int] = []
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for place, index in enumerate(order):
        batch.append(index)
        following = order[place + 1 : place + 2]
        if not following or (len(batch) + 1) * len(rows[following[0]]) > limit.most:
            yield batch
            batch = []


def token_projections(
    model: ChatModel, rows: Sequence[Sequence[int]], layers: Sequence[int], units: Float[Tensor, "name d_model"]
) -> tuple[Float[Tensor, "batch seq name"], Float[Tensor, "batch seq name"]]:
    """Projection of every token on directions of length 1, and the norm of its activation at each one's layer.

    Args:
        model: What to read.
        rows: Token ids of each conversation; what is found beyond a row's own length has no meaning.
        layers: Block output of each direction.
        units: The directions.
    """
    inputs = model.inputs(rows)
    projections = torch.zeros((*inputs["input_ids"].shape, len(units)))
    norms = torch.zeros_like(projections)

    def at(layer: int, stream: Tensor) -> None:
        columns = [place for place, there in enumerate(layers) if there == layer]
        values = stream.float()
        projections[:, :, columns] = (values @ units[columns].T.to(values.device)).cpu()
        norms[:, :, columns] = values.norm(dim=-1, keepdim=True).cpu()

    read(model, layers, at, **inputs)
    return projections, norms


def activation_norms(model: ChatModel, rows: Sequence[Row]) -> tuple[float, ...]:
    """Mean ‖h‖ over the tokens of the base model's replies, per layer: the unit of dose."""
    total = torch.zeros(model.n_layers, dtype=torch.float64)
    lengths = [len(row["response_ids"]) - row.get("reasoning_tokens", 0) for row in rows]
    for batch, norms in _norms(model, rows):
        tokens = torch.tensor([lengths[index] for index in batch], dtype=torch.float64)
        total += torch.einsum("b,bl->l", tokens, norms.double())
    return tuple((total / sum(lengths)).tolist())


def _norms(model: ChatModel, rows: Sequence[Row]) -> Iterator[tuple[list[int], Float[Tensor, "batch layer"]]]:
    """Mean ‖h‖ over the tokens of each reply."""
    if model.engine is not None:
        yield from model.engine.norms(rows)
        return
    for batch, norms in activations(model, rows, of=lambda stream: stream.float().norm(dim=-1, keepdim=True)):
        yield batch, norms[:, 0, :, 0]


Ids = Sequence[int]


@torch.inference_mode()
def branches(
    model: ChatModel,
    prompts: Sequence[Ids],
    replies: Sequence[Ids],
    owners: Sequence[int],
    weights: Float[Tensor, "reply span seq"],
    layers: Sequence[int],
) -> Float[Tensor, "reply span layer d_model"]:
    """Weighted sums of the residual stream over each reply, every prompt read once for all replies to it.

    The same as `capture` of prompt + reply, one row each; blocks above the deepest layer and the head do not run.

    Args:
        model: What to read.
        prompts: Token ids of each prompt, none empty.
        replies: Token ids of each reply.
        owners: Which prompt each reply answers.
        weights: Per reply and span, the weight of the last prompt token (first column) and of every reply token.
        layers: Which block outputs to read.
    """
    share = shared(model) and any(len(prompt) > 1 for prompt in prompts)
    read_by_all = [len(prompts[owner]) - 1 if share else 0 for owner in owners]
    # the last prompt token goes with the reply, so that its own activation can be read as well
    tails = [[*prompts[owner][cut:], *reply] for owner, reply, cut in zip(owners, replies, read_by_all, strict=True)]
    owned = [prompts[owner] for owner in owners]

    def prefill(**inputs: Any) -> None:
        read(model, [max(layers)], lambda *_: None, **inputs)

    inputs = behind(model, owned, tails, prefill) if share else model.inputs(tails)
    ids = inputs["input_ids"]
    spread = torch.zeros((len(tails), weights.shape[1], ids.shape[1]), device=ids.device)
    for row, prompt, cut, reply, given in zip(spread, owned, read_by_all, replies, weights, strict=True):
        first = len(prompt) - 1 - cut
        row[:, first : first + len(reply) + 1] = given[:, : len(reply) + 1].to(ids.device)
    sums: dict[int, Tensor] = {}

    def add(layer: int, stream: Tensor) -> None:
        sums[layer] = torch.bmm(spread.to(stream.device), stream.float()).to(ids.device)

    read(model, layers, add, **inputs)
    return torch.stack([sums[layer] for layer in layers], dim=2).cpu()
