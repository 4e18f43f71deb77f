"""The edit of a block in plain torch on static buffers: it is traced with the model and captured by CUDA graphs.

A buffer says of every token which row of the tables edits it; row 0 changes nothing, bit for bit. Outside the graph
rows are written when a request comes, and the buffer before every step.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LOW, HIGH, ABOVE, BELOW, SHIFT = range(5)
"""Places in `numbers`: bounds that a projection is clamped to, bounds of the gate, and what is added to it then."""
IDLE = (-math.inf, math.inf, -math.inf, math.inf, 0.0)
"""Numbers of an edit that changes nothing."""


class Tables:
    """All buffers: of tokens, of rows that edit, and of what is read."""

    def __init__(
        self,
        units: Tensor,
        *,
        rows: int,
        edits: int,
        tokens: int,
        spans: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Set up buffers that do nothing.

        Args:
            units: Directions of length 1 to read, [layer, vector, d_model].
            rows: Most different edits at once, row 0 included.
            edits: Most clamped or gated directions in a layer of a row.
            tokens: Most tokens of a step.
            spans: Rows of sums, row 0 included, where tokens of no span go; 0 sums nothing.
            dtype: Of the stream.
            device: Of the model.
        """
        n_layers, n_vectors, width = units.shape
        self.rows, self.spans = rows, spans
        self.idle = True
        """Whether no token of the last step was edited or summed."""
        self.slot = torch.zeros(tokens, dtype=torch.long, device=device)
        """Which row edits each token."""
        self.span = torch.zeros(tokens, dtype=torch.long, device=device)
        """Which row of the sums each token is added to."""
        self.add = torch.zeros((n_layers, rows, width), dtype=dtype, device=device)
        self.unit = torch.zeros((n_layers, edits, rows, width), device=device)
        self.numbers = torch.tensor(IDLE, device=device).view(1, 1, 5, 1).repeat(n_layers, edits, 1, rows)
        self.read = units.to(device, torch.float32)
        # apart from each other: what a graph writes to must not share memory with another input of it
        self.seen = [torch.zeros((tokens, n_vectors), device=device) for _ in range(n_layers)]
        self.sums = [torch.zeros((spans, width), device=device) for _ in range(n_layers)]
        self.norms = [torch.zeros(spans, device=device) for _ in range(n_layers)]

    def write(self, row: int, add: Tensor, unit: Tensor, numbers: Tensor) -> None:
        """Fill a row in all layers: [layer, d_model], [layer, edit, d_model], [layer, edit, 5]."""
        self.add[:, row] = add.to(self.add)
        self.unit[:, :, row] = unit.to(self.unit)
        self.numbers[:, :, :, row] = numbers.to(self.numbers)

    def assign(self, slot: Sequence[int], span: Sequence[int]) -> None:
        """Say which rows the tokens of the next step have; those after them are padding."""
        idle = not (any(slot) or any(span))
        if idle and self.idle:
            return
        for buffer, values in ((self.slot, slot), (self.span, span)):
            buffer[: len(values)].copy_(sent(values, buffer.device))
            buffer[len(values) :].zero_()
        self.idle = idle


class BlockEdit(nn.Module):
    """What is done to the output of a block: add, then clamp projections one after the other, then read."""

    slot: Tensor
    span: Tensor
    add: Tensor
    unit: Tensor
    numbers: Tensor
    read: Tensor
    seen: Tensor
    sums: Tensor
    norms: Tensor

    def __init__(self, tables: Tables, index: int) -> None:
        """Take the buffers of a layer.

        Args:
            tables: Of all layers.
            index: Of this one among them.
        """
        super().__init__()
        for name in ("slot", "span"):
            self.register_buffer(name, getattr(tables, name), persistent=False)
        for name in ("add", "unit", "numbers", "read", "seen", "sums", "norms"):
            self.register_buffer(name, getattr(tables, name)[index], persistent=False)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        """The edited part of the stream.

        Args:
            hidden: What the block adds to the residual, or all of the stream, [tokens, d_model].
            residual: The rest of the stream, if the block keeps it apart.
        """
        slot = self.slot[: hidden.shape[0]]
        hidden = hidden + self.add[slot]
        for unit, numbers in zip(self.unit, self.numbers, strict=True):
            direction = unit[slot]
            low, high, above, below, shift = numbers[:, slot]
            along = (_stream(hidden, residual) * direction).sum(-1)
            moved = torch.minimum(torch.maximum(along, low), high) + shift
            move = torch.where((along > above) & (along < below), moved - along, 0.0)
            hidden = (hidden.float() + move[:, None] * direction).to(hidden.dtype)
        stream = _stream(hidden, residual)
        self.seen[: hidden.shape[0]].copy_(stream @ self.read.T)
        if len(self.sums):
            span = self.span[: hidden.shape[0]]
            self.sums.index_add_(0, span, stream)
            self.norms.index_add_(0, span, stream.norm(dim=-1))
        return hidden

    def after(self, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """The output of a block, edited: the stream, or two parts of it."""
        if isinstance(output, Tensor):
            edited: Tensor = self(output, None)
            return edited
        hidden, residual, *rest = output
        return (self(hidden, residual), residual, *rest)


def _stream(hidden: Tensor, residual: Tensor | None) -> Tensor:
    return hidden.float() if residual is None else hidden.float() + residual.float()


def sent(values: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on a device; the host does not wait for the step that runs there."""
    numbers = torch.tensor(values, dtype=torch.long)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def edited(block: nn.Module, edit: BlockEdit) -> None:
    """Have a block edit its output; its type is exchanged, so that names of modules and weights stay as they are."""
    kind = type(block)

    class Edited(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: object, **kwargs: object) -> object:
            return self.persona_edit.after(kind.forward(self, *args, **kwargs))

    block.persona_edit = edit
    become(block, Edited)


def become(thing: object, kind: type) -> None:
    """Exchange the class of an object for one derived from it, under the same name."""
    old = type(thing)
    kind.__name__, kind.__qualname__, kind.__module__ = old.__name__, old.__qualname__, old.__module__
    thing.__class__ = kind
