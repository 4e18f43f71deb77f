"""An engine that is none: it runs requests in steps as vLLM would, on streams of numbers in place of a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from personavec.model.hooks import Forward
from personavec.steering.steer import Steered, Steering
from personavec.steering.vector import PersonaVector
from personavec.vllm.asked import Asked, read
from personavec.vllm.block import BlockEdit, Tables
from personavec.vllm.book import Book, StepPart
from personavec.vllm.settings import Settings, StoredVector


def as_sent(steering: Steering) -> dict[str, Any]:
    """A steering as a request sends it: JSON has no infinity, so a bound that is none is null."""
    names = ("coef", "floor", "ceiling", "above", "below")
    numbers = {name: getattr(steering, name) if math.isfinite(getattr(steering, name)) else None for name in names}
    place = {"vector": steering.vector.content_hash, "layer": steering.layer, "positions": steering.positions}
    return place | numbers | {"op": steering.op}


def stored(*vectors: PersonaVector) -> dict[str, StoredVector]:
    """Vectors as a worker keeps them."""
    return {
        vector.content_hash: StoredVector(vector.card.trait, vector.direction, vector.card.layer, vector.absent)
        for vector in vectors
    }


@dataclass
class Stepper:
    """A book, the edits of all blocks, and what they made of each request's tokens."""

    vectors: dict[str, StoredVector]
    requests: int = 4
    edits: int = 3
    run: Callable[[BlockEdit], Callable[[Tensor, Tensor], Tensor]] = lambda edit: edit
    streams: dict[str, Tensor] = field(default_factory=dict)
    """[layer, position, d_model] before the edit."""
    edited: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = Settings("", tuple(self.vectors), edits=self.edits)
        n_layers = len(next(iter(self.vectors.values())).direction)
        units = torch.stack([torch.stack([v.unit(layer) for v in self.vectors.values()]) for layer in range(n_layers)])
        self.tables = Tables(
            units,
            rows=1 + 3 * self.requests,
            edits=self.edits,
            tokens=64,
            spans=1 + 3 * self.requests,
            dtype=torch.float32,
            device="cpu",
        )
        self.runs = [self.run(BlockEdit(self.tables, layer)) for layer in range(n_layers)]

        def asked(value: Any) -> Asked:
            return read(value, self.vectors, settings, 1000)

        self.book = Book(self.tables, self.vectors, range(n_layers), self.edits, asked)

    def step(self, parts: Sequence[StepPart], alive: Sequence[str]) -> None:
        """One step, with padding behind its tokens."""
        self.book.step(parts, alive)
        for layer, run in enumerate(self.runs):
            whole = torch.cat([self.streams[p.request][layer, p.start : p.start + p.count] for p in parts])
            whole = torch.cat([whole, torch.full((3, whole.shape[1]), 7.0)])
            out = run(*apart(whole)) + apart(whole)[1]
            place = 0
            for part in parts:
                self.edited.setdefault(part.request, torch.zeros_like(self.streams[part.request]))
                mine = out[place : place + part.count]
                self.edited[part.request][layer, part.start : part.start + part.count] = mine
                place += part.count


def apart(stream: Tensor) -> tuple[Tensor, Tensor]:
    """What a block adds, and the residual."""
    return stream - 0.25 * stream, 0.25 * stream


def together(stream: Tensor) -> Tensor:
    """A stream that was taken apart and is not edited."""
    hidden, residual = apart(stream)
    return hidden + residual


def by_hooks(model: Any, stream: Tensor, steering: Sequence[Steering], prompt: int) -> Tensor:
    """What our own hooks make of the streams [layer, position, d_model] of one request."""
    steered = Steered(model, [steering], [prompt])
    positions = torch.arange(stream.shape[1])[None]
    steered.start(Forward(positions, torch.ones_like(positions, dtype=torch.bool)))
    return torch.stack([steered.change(layer, rows[None])[0] for layer, rows in enumerate(stream)])
