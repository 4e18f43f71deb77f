"""What steering does to a stream: pure functions."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Edit = Callable[[Tensor], Tensor]
"""A function of the stream [rows, seq, d_model] that returns a changed one."""


def ablation(directions: Float[Tensor, "n d_model"]) -> Edit:
    """A function that removes the span of some directions: h − Q Qᵀ h with an orthonormal basis Q of their span.

    Source: Persona Vectors (arXiv 2507.21509) appendix J.4, after CAFT (Casademunt et al. 2025).
    """
    u, sizes, _ = torch.linalg.svd(directions.float().T, full_matrices=False)
    basis: Tensor = u[:, sizes > 1e-5 * sizes.max()]

    def edit(stream: Tensor) -> Tensor:
        q = basis.to(stream.device)
        return (stream.float() - (stream.float() @ q) @ q.T).to(stream.dtype)

    return edit


def capping(direction: Float[Tensor, " d_model"], floor: float, ceiling: float) -> Edit:
    """A function that moves projections outside [floor, ceiling] back to the bound.

    Source: Assistant Axis (arXiv 2601.10387); both bounds here, on a direction of length 1.
    """

    def edit(stream: Tensor) -> Tensor:
        unit = direction.to(stream.device)
        along = stream.float() @ unit
        return (stream.float() + (along.clamp(floor, ceiling) - along)[..., None] * unit).to(stream.dtype)

    return edit


def adding(delta: Float[Tensor, " d_model"]) -> Edit:
    """A function that adds a vector."""
    return lambda stream: stream + delta.to(stream)


def gate(edit: Edit, direction: Float[Tensor, " d_model"], above: float, below: float) -> Edit:
    """A function that edits only tokens whose projection lies between two bounds.

    Source: projection-aware steering (arXiv 2604.08169).
    """

    def gated(stream: Tensor) -> Tensor:
        along = stream.float() @ direction.to(stream.device)
        return torch.where(((along > above) & (along < below))[..., None], edit(stream), stream)

    return gated
