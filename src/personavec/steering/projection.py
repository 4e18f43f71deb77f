"""Reading a direction off activations: pure functions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.errors import ConfigError, VectorError
from personavec.stats.nulls import covariance_directions
from personavec.steering.vector import PersonaVector, load_vector


def unit(direction: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
    """Directions scaled to length 1.

    Raises:
        VectorError: One of them is zero.
    """
    norm: Tensor = direction.norm(dim=-1, keepdim=True)
    if (norm == 0).any():
        raise VectorError("expected directions, got one that is all zeros; choose another layer or vector")
    return direction / norm


def projection(
    activations: Float[Tensor, "*axes d_model"], direction: Float[Tensor, " d_model"]
) -> Float[Tensor, "*axes"]:
    """Scalar projection a·v̂, in activation units.

    Source: Persona Vectors (arXiv 2507.21509) section 3.3; reference eval/cal_projection.py.
    """
    return activations.float() @ unit(direction.float())


RANDOM = 20
"""Random directions that are looked at next to the vectors at every layer."""


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


def names_of(vectors: Sequence[PersonaVector]) -> list[str]:
    """A name for each vector: its trait, with the beginning of its hash where two have one trait."""
    times = Counter(vector.card.trait for vector in vectors)
    names = [v.card.trait if times[v.card.trait] == 1 else f"{v.card.trait}-{v.content_hash[:6]}" for v in vectors]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ConfigError(f"expected different vectors, got {twice} twice; pass each once")
    return names


Vectors = PersonaVector | str | Path | Sequence[PersonaVector | str | Path]
"""What a verb reads along: vectors, or their files."""


def vectors_of(vectors: Vectors) -> dict[str, PersonaVector]:
    """The vectors that a verb was given, by name; files are loaded.

    Raises:
        ConfigError: There are none, or one is there twice.
        VectorError: A file cannot be read, or something else was given.
    """
    several = _several(vectors)
    if wrong := [vector for vector in several if not isinstance(vector, PersonaVector | str | Path)]:
        raise VectorError(f"expected persona vectors or their files, got {wrong[0]!r}; pass what load_vector returns")
    if not several:
        raise ConfigError("expected persona vectors or their files, got none; pass one or more")
    loaded = [vector if isinstance(vector, PersonaVector) else load_vector(vector) for vector in several]
    return dict(zip(names_of(loaded), loaded, strict=True))


def load_vectors(vectors: Vectors) -> dict[str, PersonaVector]:
    """The same, but those of files by path: what a run's inputs call them.

    Raises:
        ConfigError: As `vectors_of`.
        VectorError: Likewise.
    """
    named = vectors_of(vectors)
    labels = (
        name if isinstance(vector, PersonaVector) else str(vector)
        for vector, name in zip(_several(vectors), named, strict=True)
    )
    return dict(zip(labels, named.values(), strict=True))


def vector_inputs(vectors: Vectors) -> dict[str, str]:
    """Hashes of vectors as a run's inputs."""
    return {f"vector {label}": vector.content_hash for label, vector in load_vectors(vectors).items()}


def _several(vectors: Vectors) -> Sequence[PersonaVector | str | Path]:
    if isinstance(vectors, PersonaVector | str | Path):
        return [vectors]
    if not isinstance(vectors, Iterable):
        raise VectorError(f"expected persona vectors or their files, got {vectors!r}; pass what load_vector returns")
    return list(vectors)


def directions(vectors: Sequence[PersonaVector], names: Sequence[str], layers: Sequence[int], seed: int) -> Directions:
    """The directions of vectors, each at the layer of its card, or at all of the given layers.

    Raises:
        VectorError: A card recommends no layer, or a direction is zero.
    """
    chosen: list[tuple[str, int, Tensor]] = []
    for vector, name in zip(vectors, names, strict=True):
        at = layers or ((vector.card.layer,) if vector.card.layer is not None else ())
        if not at:
            raise ConfigError(f"expected a recommended layer in the card of {name}, got none; pass --layers")
        chosen += [(f"{name}@{layer}" if len(layers) > 1 else name, layer, vector.unit(layer)) for layer in at]
    return Directions(
        tuple(name for name, _, _ in chosen),
        tuple(layer for _, layer, _ in chosen),
        torch.stack([direction for _, _, direction in chosen]),
        seed,
    )


def random_directions(vector: PersonaVector, count: int, seed: int) -> list[PersonaVector]:
    """The vector turned at random as a whole: without meaning, but as long at every layer and from layer to layer.

    A single direction may push a trait far up or down by chance. With another one for every reply of an arm, the arm's
    interval speaks of random directions in general.
    """
    _, shape = torch.linalg.qr(vector.direction.T)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((count, vector.direction.shape[1], len(shape)), generator=generator)
    basis, mixed = torch.linalg.qr(drawn)
    # the signs make it uniform: the factorisation has a convention of its own
    turned = basis * mixed.diagonal(dim1=-2, dim2=-1).sign()[:, None] @ shape
    return [PersonaVector(direction.T, vector.card) for direction in turned]


def matched_directions(
    vector: PersonaVector, activations: Float[ndarray, "row layer d_model"], count: int, seed: int
) -> list[PersonaVector]:
    """Random directions with the covariance of some activations, as long as the vector at every layer.

    Raises:
        VectorError: The activations do not vary.
    """
    drawn = covariance_directions(count, np.swapaxes(activations, 0, 1), np.random.default_rng(seed))
    if not len(drawn[0]):
        raise VectorError("expected replies whose activations differ, got the same for all; ask more questions")
    directions = torch.tensor(np.stack(drawn, axis=1), dtype=torch.float32) * vector.norms[:, None]
    return [PersonaVector(direction, vector.card) for direction in directions]


def rescaled(other: PersonaVector, vector: PersonaVector) -> PersonaVector:
    """Another vector made as long as the vector at every layer."""
    factor = vector.norms / other.norms.clamp(min=torch.finfo(torch.float32).tiny)
    return PersonaVector(other.direction * factor[:, None], vector.card)
