"""What a run reads activations along: directions of vectors, and random ones beside them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.errors import ConfigError
from personavec.projection import unit
from personavec.vector import PersonaVector

RANDOM = 20
"""Random directions that are read beside the vectors at every layer."""


@dataclass(frozen=True)
class Directions:
    """What a run reads: a direction for each column of its table, and random ones beside them."""

    names: tuple[str, ...]
    layers: tuple[int, ...]
    """Of each name."""
    units: Float[Tensor, "name d_model"]
    seed: int = 0

    @property
    def read_layers(self) -> list[int]:
        """Each layer once."""
        return sorted(set(self.layers))

    def random(self, layer: int) -> Float[Tensor, "direction d_model"]:
        """Directions without meaning, of length 1."""
        generator = torch.Generator().manual_seed(1000 * self.seed + layer)
        return unit(torch.randn((RANDOM, self.units.shape[1]), generator=generator))

    def project(self, read: Float[Tensor, "row span layer d_model"]) -> Float[ndarray, "row span name"]:
        """Projections on every direction, from what was read at `read_layers`."""
        at = [self.read_layers.index(layer) for layer in self.layers]
        return torch.einsum("rsnd,nd->rsn", read[:, :, at], self.units).numpy()

    def project_random(self, read: Float[Tensor, "row span layer d_model"]) -> Float[ndarray, "row span layer random"]:
        """Projections on the random directions."""
        units = torch.stack([self.random(layer) for layer in self.read_layers])
        return torch.einsum("rsld,lkd->rslk", read, units).numpy()


def names_of(vectors: Sequence[PersonaVector]) -> list[str]:
    """A name for each vector: its trait, with the beginning of its hash where two have one trait."""
    times = Counter(vector.card.trait for vector in vectors)
    names = [v.card.trait if times[v.card.trait] == 1 else f"{v.card.trait}-{v.content_hash[:6]}" for v in vectors]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ConfigError(f"expected different vectors, got {twice} twice; pass each once")
    return names


def directions(vectors: Sequence[PersonaVector], names: Sequence[str], layers: Sequence[int], seed: int) -> Directions:
    """The directions of vectors, each at the layer of its card, or at all of the given layers.

    Raises:
        VectorError: A card recommends no layer, or a direction is zero.
    """
    chosen: list[tuple[str, int, Tensor]] = []
    for vector, name in zip(vectors, names, strict=True):
        own = layers or ((vector.card.layer,) if vector.card.layer is not None else ())
        if not own:
            raise ConfigError(f"expected a recommended layer in the card of {name}, got none; pass --layers")
        chosen += [(f"{name}@{layer}" if len(layers) > 1 else name, layer, vector.unit(layer)) for layer in own]
    return Directions(
        tuple(name for name, _, _ in chosen),
        tuple(layer for _, layer, _ in chosen),
        torch.stack([direction for _, _, direction in chosen]),
        seed,
    )
