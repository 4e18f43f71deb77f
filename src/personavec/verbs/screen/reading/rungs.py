"""What every cost reads of encoded rows, and the score that it makes of it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.model.activations import BEGINNING, activations, branches, by_length
from personavec.model.machine.limits import Limit, in_parts
from personavec.runs.run import Row
from personavec.steering.gradient import likelihood_gradients
from personavec.verbs.screen.reading.lift import likelihood_lifts
from personavec.verbs.screen.reading.rows import Cost, RowReader

READ = ("response", "prompt_last", "base", "matched")
"""Projections in the table: of the reply's mean, of the last prompt token, of the base reply's mean; and the difference
of the means over equally many tokens of both."""
ALONE: dict[str, tuple[str, ...]] = {"gradient": ("gradient",), "lift": ("lift",)}
"""What there is with these costs in their place."""


class Reading(NamedTuple):
    """What was read of some rows; nan where a row overflows the model's numbers."""

    places: list[int]
    """Of the rows."""
    projections: Float[ndarray, "row span name"]
    """On every direction, see `columns`."""
    cosine: Float[ndarray, "row name"]
    """Of the first span with the direction."""
    total: Float[ndarray, "span layer d_model"]
    """Sum over the rows that do not overflow of what was projected."""


def columns(cost: Cost, answered: bool) -> tuple[str, ...]:
    """Names of what a cost reads, `READ` without base replies being its first two."""
    return ALONE.get(cost) or (READ if answered else READ[:2])


def read(reader: RowReader, rows: Sequence[Row], answered: bool) -> Iterator[Reading]:
    """What a reader's cost reads of rows, batch by batch and in any order.

    Args:
        reader: How.
        rows: As `encode` makes them, without those that have an error.
        answered: Whether they have base replies.
    """
    along = reader.directions
    if reader.cost == "lift":
        nothing = np.zeros((1, len(along.read_layers), reader.model.identity.d_model))
        for places, lifts in likelihood_lifts(reader, rows):
            yield Reading(places, lifts[:, None], np.full_like(lifts, np.nan), nothing)
        return
    at = [along.read_layers.index(layer) for layer in along.layers]
    spans = _pulls if reader.cost == "gradient" else _contrasted if answered else _read
    for places, means in spans(reader, rows):
        finite = means.isfinite().flatten(1).all(dim=1)
        means = means.where(finite[:, None, None, None], torch.nan)
        projections, norms = along.project(means), means[:, 0].norm(dim=-1).numpy()[:, at]
        cosine = projections[:, 0] / np.where(norms == 0, 1, norms)
        yield Reading(places, projections, cosine, means[finite].double().sum(dim=0).numpy())


def score(spans: Float[ndarray, "span *axes"], cost: Cost) -> Float[ndarray, "*axes"]:
    """What rows are ranked by, from what was read of them (`columns`): where base replies were, the difference to them.

    Source: Persona Vectors (arXiv 2507.21509) section 6.1; appendix H for the raw projection, I for the proxy.
    """
    if cost in ALONE or (cost == "raw" and len(spans) < len(READ)):
        return np.asarray(spans[0])
    return np.asarray(spans[0] - spans[2 if len(spans) == len(READ) else 1])


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
