"""Steering: adding, ablating or capping directions in the residual stream, per row and per position."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from personavec.errors import ConfigError, ModelError, SteeringOverflow, VectorError
from personavec.model.chat_model import BlockModel
from personavec.model.hooks import BlockFn, Forward, attach
from personavec.runs.rules import check
from personavec.steering.vector import PersonaVector, increments

Positions = Literal["all", "prompt", "response"]
FromCall = Literal["call"]


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


@dataclass(frozen=True)
class Steering:
    """One change to the residual stream. In a list of them all add first, then ablate, then cap.

    Source: Persona Vectors (arXiv 2507.21509) sections 3.2 and J.3 (add), J.4 (ablate, after CAFT); capping after
    the Assistant Axis (arXiv 2601.10387).
    """

    vector: PersonaVector
    coef: float = 1.0
    """How many natural differences to add (op "add")."""
    layer: int | Literal["all"] | None = None
    """Which block's output to change; default the layer that the card recommends. "all" means every layer: by
    increments to add, by its own row otherwise."""
    positions: Positions = "response"
    """`response` starts at the last prompt token, whose output predicts the first response token."""
    op: Literal["add", "ablate", "cap"] = "add"
    floor: float = -math.inf
    """Projections below are moved up to it (op "cap")."""
    ceiling: float = math.inf
    """Projections above are moved down to it (op "cap")."""
    above: float = -math.inf
    """Only tokens whose own projection there is above this are changed; for the others this is not here."""
    below: float = math.inf
    """And only those whose projection is below this."""

    def __post_init__(self) -> None:
        check(Steering, vars(self))
        if self.layer is None:
            recommended = self.vector.card.layer
            if recommended is None:
                raise VectorError(
                    f"expected a recommended layer for {self.vector.card.trait}, got none; pass layer=…, or "
                    'layer="all" for every layer'
                )
            object.__setattr__(self, "layer", recommended)

    @property
    def single_layer(self) -> int | None:
        """The layer; None where it changes all of them."""
        return self.layer if isinstance(self.layer, int) else None

    @property
    def text(self) -> str:
        """What it does, in a word: trait:coef@layer."""
        amount = f":{self.coef:.6g}" if self.op == "add" else f":{self.op}"
        return f"{self.vector.card.trait}{amount}@{self.layer}"

    @property
    def gated(self) -> bool:
        """Whether it waits for a projection to pass a bound."""
        return self.above > -math.inf or self.below < math.inf

    @property
    def active(self) -> bool:
        """False when this changes nothing: adding with coef 0."""
        return self.op != "add" or self.coef != 0

    def deltas(self) -> dict[int, Float[Tensor, " d_model"]]:
        """What op "add" adds at each layer it touches."""
        if (layer := self.single_layer) is not None:
            self.vector.check_layer(layer)
            return {layer: self.coef * self.vector.direction[layer]}
        adds = enumerate(self.coef * increments(self.vector.direction))
        return {layer: delta for layer, delta in adds if layer not in self.vector.absent}

    def edit(self, layer: int, device: torch.device) -> Edit:
        """What a cap, or anything gated, does at a layer."""
        unit = self.vector.unit(layer).to(device)
        if self.op == "add":
            edit = adding(self.deltas()[layer].to(device))
        else:
            edit = ablation(unit[None]) if self.op == "ablate" else capping(unit, self.floor, self.ceiling)
        return gate(edit, unit, self.above, self.below) if self.gated else edit


class Steered:
    """A running `steer` context: what it changes, what it did, and which rows are still there."""

    def __init__(
        self, model: BlockModel, rows: Sequence[Sequence[Steering]], prompt_tokens: Sequence[int] | FromCall | None
    ) -> None:
        active = [[steering for steering in row if steering.active] for row in rows]
        if prompt_tokens is None and any(s.positions != "all" for row in active for s in row):
            raise ConfigError(
                "expected prompt_tokens to tell prompt from response, got none; give the length of each row's prompt, "
                'or steer positions="all"'
            )
        for steering in {steering for row in active for steering in row}:
            steering.vector.check_model(model.identity)
            if (layer := steering.single_layer) is not None:
                steering.vector.check_layer(layer)
                if steering.vector.direction.any():  # of a difference that is zero everywhere nothing is expected
                    steering.vector.unit(layer)
        self._device, self._dtype = model.device, model.dtype
        self._from_call = prompt_tokens == "call"
        self.expect([0] if prompt_tokens is None or prompt_tokens == "call" else prompt_tokens)
        self._touched = {
            kind: torch.tensor([[any(s.positions == kind for s in row)] for row in active], device=model.device)
            for kind in sorted({s.positions for row in active for s in row})
        }
        self._adds = self._collect_adds(active, model)
        self._edits = self._collect_edits(active, model)
        self._count = torch.zeros((), dtype=torch.long, device=model.device)
        self._uncounted: Tensor | None = None
        self._covered: dict[str, Bool[Tensor, "rows seq 1"]] = {}
        self._checked: set[int] = set()
        self._alive: Tensor | slice = slice(None)

    def expect(self, prompt_tokens: Sequence[int]) -> None:
        """Say how long the prompts of the rows of the next forward passes are."""
        self._prompt = torch.tensor(prompt_tokens, device=self._device)[:, None]

    @property
    def tokens(self) -> int:
        """Steered tokens so far."""
        return int(self._count)

    @property
    def layers(self) -> list[int]:
        """Layers that are changed."""
        return sorted(self._adds.keys() | self._edits.keys())

    def keep(self, alive: Tensor) -> None:
        """Say which of the original rows the next forward passes hold, by index."""
        self._alive = alive

    def covers(self, forward: Forward) -> dict[str, Bool[Tensor, "rows seq"]]:
        """The tokens that each kind of position covers in a forward pass."""
        real = forward.real
        prompt = self._prompt[self._alive].to(real.device)
        if self._from_call and not prompt.any():  # a forward pass by itself: all of it is prompt
            prompt = forward.positions.masked_fill(~real, -1).amax(1, keepdim=True) + 1
        elif len(prompt) > 1:  # several beams or replies to each prompt
            prompt = prompt.repeat_interleave(len(real) // len(prompt), 0)
        return {
            "all": real,
            "prompt": real & (forward.positions < prompt),
            "response": real & (forward.positions >= prompt - 1),
        }

    def start(self, forward: Forward) -> None:
        """Be told of a forward pass before its blocks run."""
        covers, self._uncounted = self.covers(forward), torch.zeros_like(self._count)
        for kind, touched in self._touched.items():
            covered = covers[kind].to(self._device) & touched[self._alive]
            self._covered[kind] = covered[:, :, None]
            self._uncounted += covered.sum()

    def change(self, layer: int, stream: Float[Tensor, "rows seq d_model"]) -> Float[Tensor, "rows seq d_model"]:
        """The steered stream: additions first, then ablation, then caps."""
        if self._uncounted is not None:  # the first layer of a pass: `attach` sees to it that the others follow
            self._count += self._uncounted
            self._uncounted = None
        out = stream
        covered = {kind: places.to(stream.device) for kind, places in self._covered.items()}
        for kind, delta in self._adds.get(layer, {}).items():
            out = out + covered[kind] * delta[self._alive][:, None].to(stream)
        if layer not in self._checked:
            self._check(layer, stream, out)
            self._checked.add(layer)
        for kind, rows, edit in self._edits.get(layer, []):
            out = torch.where(covered[kind] & rows[self._alive][:, :, None].to(stream.device), edit(out), out)
        return out

    def _check(self, layer: int, before: Tensor, after: Tensor) -> None:
        """Proof of effect at the site: the stream moved by coef·v, up to the rounding of its dtype."""
        wanted = before.float()
        for kind, delta in self._adds.get(layer, {}).items():
            wanted = wanted + (self._covered[kind] * delta[self._alive][:, None].float()).to(wanted)
        rounding = 2 * torch.finfo(after.dtype).eps * (before.float().abs() + wanted.abs())
        # its square must be finite too: the next block's norm takes it in float32
        right = ((after.float() - wanted).abs() <= rounding) & after.float().square().isfinite()
        rows = (~right.flatten(1).all(dim=1)).nonzero()[:, 0].tolist()
        if rows:
            raise SteeringOverflow(
                f"expected layer {layer} to move by coef·v, got a stream that overflowed; lower the coef "
                "(a dose under 1 is usual)",
                tuple(rows),
            )

    def _collect_adds(
        self, rows: Sequence[Sequence[Steering]], model: BlockModel
    ) -> dict[int, dict[str, Float[Tensor, "rows d_model"]]]:
        adds: dict[int, dict[str, Tensor]] = {}
        for index, row in enumerate(rows):
            for steering in row:
                if steering.op != "add" or steering.gated:
                    continue
                for layer, delta in steering.deltas().items():
                    kinds = adds.setdefault(layer, {})
                    if steering.positions not in kinds:
                        kinds[steering.positions] = torch.zeros((len(rows), model.identity.d_model))
                    kinds[steering.positions][index] += delta
        return {
            layer: {kind: delta.to(self._device, self._dtype) for kind, delta in kinds.items()}
            for layer, kinds in adds.items()
        }

    def _collect_edits(
        self, rows: Sequence[Sequence[Steering]], model: BlockModel
    ) -> dict[int, list[tuple[str, Bool[Tensor, "rows 1"], Edit]]]:
        # rows that edit a layer alike go together; every row keeps its own order, whatever its batch-mates do
        groups: dict[tuple[int, tuple[Steering, ...]], list[int]] = {}
        for index, row in enumerate(rows):
            for layer in range(model.n_layers):
                here = tuple(s for s in row if (s.op != "add" or s.gated) and s.layer in ("all", layer))
                if here:
                    groups.setdefault((layer, here), []).append(index)
        edits: dict[int, list[tuple[str, Tensor, Edit]]] = {}
        for (layer, here), members in groups.items():
            mask = torch.zeros((len(rows), 1), dtype=torch.bool, device=self._device)
            mask[members] = True
            changes = edits.setdefault(layer, [])
            changes += [(s.positions, mask, s.edit(layer, self._device)) for s in here if s.op == "add"]
            ablated = [s for s in here if s.op == "ablate" and not s.gated]
            for kind in dict.fromkeys(s.positions for s in ablated):
                units = torch.stack([s.vector.unit(layer) for s in ablated if s.positions == kind])
                changes.append((kind, mask, ablation(units.to(self._device))))
            changes += [(s.positions, mask, s.edit(layer, self._device)) for s in here if s.op == "ablate" and s.gated]
            changes += [(s.positions, mask, s.edit(layer, self._device)) for s in here if s.op == "cap"]
        return edits


@contextmanager
def steer(
    model: BlockModel, rows: Sequence[Sequence[Steering]], prompt_tokens: Sequence[int] | FromCall | None = None
) -> Iterator[Steered]:
    """Steer every forward pass inside the context.

    Args:
        model: The model to steer.
        rows: What to do to each row of the batch; a single entry applies to every row.
        prompt_tokens: Length of each row's prompt, one or as many as rows; "call" takes it from each call of
            `generate`, while of a forward pass by itself all is prompt; not needed where all positions are "all".

    Raises:
        ConfigError: Positions "prompt" or "response" without `prompt_tokens`.
        VectorError: A vector of another model, or a layer that is not there.
        ModelError: No token was steered though something was asked for, or the stream overflowed.
    """
    steered = Steered(model, rows, prompt_tokens)
    if not steered.layers:
        yield steered
        return

    def at(layer: int) -> BlockFn:
        return lambda stream: steered.change(layer, stream)

    calls = _generating(model.hf, steered.expect) if prompt_tokens == "call" else nullcontext()
    with calls, attach(model, steered.start, {layer: at(layer) for layer in steered.layers}, first=True):
        yield steered
    if steered.tokens == 0:
        raise ModelError(
            f"expected steering at layer {steered.layers} to touch a token, got none; "
            "run the model inside the context and check prompt_tokens"
        )


@contextmanager
def _generating(hf: Any, expect: Callable[[Sequence[int]], None]) -> Iterator[None]:
    """Tell a function the prompt lengths of every call of `hf.generate`: no hook on a module sees that call."""
    before, generate = vars(hf).get("generate"), hf.generate

    def generating(*args: Any, **named: Any) -> Any:
        mask = named.get("attention_mask")
        ids = next((x for x in (*args[:1], named.get("input_ids"), named.get("inputs")) if x is not None), None)
        if mask is not None:
            expect(mask.sum(-1).tolist())
        elif ids is not None:
            expect([ids.shape[-1]] * len(ids))
        try:
            return generate(*args, **named)
        finally:
            expect([0])

    hf.generate = generating
    try:
        yield
    finally:
        del hf.generate
        if before is not None:
            hf.generate = before
