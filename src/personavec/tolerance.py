"""How far two computations of the same logits may differ by rounding."""

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest `distance` between computations that differ only in their order."""


def distance(a: Float[Tensor, "*axes vocab"], b: Float[Tensor, "*axes vocab"]) -> float:
    """Largest ‖a − b‖ / ‖b‖ over tokens, of logits centred: a shift of all of them means nothing."""
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())
