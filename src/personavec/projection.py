"""Reading a direction off activations: pure functions."""

import torch
from jaxtyping import Float
from torch import Tensor

from personavec.errors import VectorError


def unit(direction: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
    """Directions scaled to length 1.

    Raises:
        VectorError: One of them is zero.
    """
    norm: Tensor = direction.norm(dim=-1, keepdim=True)
    if (norm == 0).any():
        raise VectorError("expected directions, got one that is all zeros; choose another layer or vector")
    return direction / norm


def project(
    activations: Float[Tensor, "*axes d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "*axes"]:
    """Scalar projection a·v̂, in activation units.

    Source: Persona Vectors (arXiv 2507.21509) section 3.3; reference eval/cal_projection.py.
    """
    return activations.float() @ unit(direction.float())


def cosine(
    activations: Float[Tensor, "*axes d_model"], direction: Float[Tensor, "*axes2 d_model"]
) -> Float[Tensor, "*axes"]:
    """Cosine similarity; 0 where the activation is zero."""
    return torch.cosine_similarity(activations.float(), direction.float(), dim=-1)
