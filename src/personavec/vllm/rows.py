"""Rows of the tables: what the changes of a request do to a kind of token, as numbers for every layer."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from personavec.vllm.asked import Change
from personavec.vllm.block import IDLE
from personavec.vllm.settings import StoredVector

Edit = tuple[Tensor, tuple[float, float, float, float, float]]
"""A direction of length 1, and its numbers."""


def make_row(
    changes: Sequence[Change], kind: int, vectors: Mapping[str, StoredVector], layers: Sequence[int], edits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `Tables.write` takes: [layer, d_model] to add, [layer, edit, d_model] and [layer, edit, 5].

    The order is that of `personavec.steering.steer`: what adds, then what adds behind a gate, ablations, ablations
    behind a gate, caps.

    Args:
        changes: Of one request.
        kind: Of the token.
        vectors: By content hash.
        layers: That are edited.
        edits: Room for directions in a layer.
    """
    width = next(iter(vectors.values())).direction.shape[1]
    add = torch.zeros((len(layers), width))
    unit = torch.zeros((len(layers), edits, width))
    numbers = torch.tensor(IDLE).repeat(len(layers), edits, 1)
    for index, layer in enumerate(layers):
        here = [change for change in changes if change.here(layer, kind)]
        for change in here:
            if not change.edits:
                vector = vectors[change.vector]
                step = vector.increment(layer) if change.layer is None else vector.at(layer)
                add[index] += change.coef * step
        for place, (direction, values) in enumerate(_edits(here, layer, vectors)):
            unit[index, place] = direction
            numbers[index, place] = torch.tensor(values)
    return add, unit, numbers


def _edits(changes: Sequence[Change], layer: int, vectors: Mapping[str, StoredVector]) -> list[Edit]:
    def gated(op: str) -> list[Edit]:
        made = []
        for change in changes:
            if change.op == op and (change.gated or op == "cap"):
                vector = vectors[change.vector]
                low, high = {"add": (-math.inf, math.inf), "ablate": (0.0, 0.0), "cap": (change.floor, change.ceiling)}[
                    op
                ]
                shift = change.coef * float(vector.direction[layer].norm()) if op == "add" else 0.0
                made.append((vector.unit(layer), (low, high, change.above, change.below, shift)))
        return made

    ablated = [change for change in changes if change.op == "ablate" and not change.gated]
    free: list[Edit] = []
    for positions in dict.fromkeys(change.positions for change in ablated):
        units = [vectors[change.vector].unit(layer) for change in ablated if change.positions == positions]
        free += [(direction, (0.0, 0.0, -math.inf, math.inf, 0.0)) for direction in _basis(units)]
    return [*gated("add"), *free, *gated("ablate"), *gated("cap")]


def _basis(units: Sequence[Tensor]) -> Tensor:
    """An orthonormal basis of the span of some directions, [n, d_model]."""
    if len(units) == 1:
        return units[0][None]
    u, sizes, _ = torch.linalg.svd(torch.stack(list(units)).T, full_matrices=False)
    basis: Tensor = u[:, sizes > 1e-5 * sizes.max()].T
    return basis
