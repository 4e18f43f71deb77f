"""The one place that registers hooks, and reading activations through them."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from personavec.errors import ModelError, VectorError
from personavec.model.chat_model import BlockModel, ChatModel


class Forward(NamedTuple):
    """Which tokens a running forward pass holds."""

    positions: Int[Tensor, "rows seq"]
    """Absolute position of each token in its own conversation, whatever chunk it came in."""
    real: Bool[Tensor, "rows seq"]
    """False on padding."""


Start = Callable[[Forward], None]
BlockFn = Callable[[Tensor], Tensor | None]


@contextmanager
def attach(
    model: BlockModel,
    start: Start,
    fns: Mapping[int, BlockFn],
    *,
    first: bool = False,
    inputs: Callable[[Mapping[str, Any]], None] | None = None,
) -> Iterator[None]:
    """Run functions on block outputs while the context is open.

    Args:
        model: The model to attach to.
        start: Called once at the start of every forward pass with its positions.
        fns: Per layer, a function of the stream [batch, seq, d_model] that returns a new stream, or None to
            leave it as it is.
        first: Run before hooks that are already there, so that those see the change.
        inputs: Called before `start` with the named inputs of the whole model, such as its labels.

    Raises:
        VectorError: A layer that the model does not have.
        ModelError: In a forward pass: a layer that does not run, runs twice, or gives another form of stream.
    """
    for layer in fns:
        if not 0 <= layer < model.n_layers:
            raise VectorError(
                f"expected a layer from 0 to {model.n_layers - 1}, got {layer}; layers count blocks from 0"
            )

    unwrapped = model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf  # of PEFT
    whole: dict[str, Any] = {}  # what that is called with: a model of text and images gives its decoder other masks
    visited: set[int] = set()
    running: list[tuple[int, ...]] = []  # what the blocks of a pass give; empty while they are recomputed for gradients

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = _forward(args, kwargs, whole)
        visited.clear()
        running[:] = [(*forward.real.shape, model.identity.d_model)]
        start(forward)

    def after(layer: int, fn: BlockFn) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_: nn.Module, _args: Any, output: Any) -> Any:
            stream = output if isinstance(output, Tensor) else output[0]
            if running:
                if not isinstance(stream, Tensor) or stream.shape != running[0]:
                    raise _another_form(layer, stream, running[0])
                if layer in visited:
                    raise ModelError(
                        f"expected block {layer} to run once a pass, got twice; this family is not supported"
                    )
            visited.add(layer)
            changed = fn(stream)
            if changed is None:
                return None
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        return hook

    def ended(*_: Any) -> None:
        running.clear()
        if missed := fns.keys() - visited:
            raise _not_run(missed)

    handles = []
    try:
        if inputs is not None:
            handles.append(model.hf.register_forward_pre_hook(lambda _, __, named: inputs(named), with_kwargs=True))
        if unwrapped is not model.decoder:
            handles.append(
                unwrapped.register_forward_pre_hook(lambda _, __, named: whole.update(named), with_kwargs=True)
            )
            handles.append(unwrapped.register_forward_hook(lambda *_: whole.clear(), always_call=True))
        handles.append(model.decoder.register_forward_pre_hook(before, with_kwargs=True))
        for layer, fn in fns.items():
            handles.append(model.blocks[layer].register_forward_hook(after(layer, fn), prepend=first))
        handles.append(model.decoder.register_forward_hook(ended))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward(args: tuple[Any, ...], kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> Forward:
    """Positions from what the decoder was called with, as transformers would derive them.

    Args:
        args: Of the decoder.
        kwargs: Of the decoder.
        given: Of the whole model, of which the decoder may not be told, or in another form.

    Raises:
        ModelError: A cache that does not know how many tokens it holds, and no positions.
    """
    inputs: Any = args[0] if args else kwargs.get("input_ids")
    inputs = kwargs["inputs_embeds"] if inputs is None else inputs
    rows, seq = inputs.shape[:2]
    mask = _mask(kwargs.get("attention_mask"), given.get("attention_mask"), rows, seq)
    mask = None if mask is None else mask.to(inputs.device)
    positions: Any = next((p for p in (kwargs.get("position_ids"), given.get("position_ids")) if p is not None), None)
    if isinstance(positions, Tensor) and positions.ndim == 3:  # of text and images: the first are those of text
        positions = positions[0]
    real = torch.ones((rows, seq), dtype=torch.bool, device=inputs.device) if mask is None else mask[:, -seq:].bool()
    if positions is None and mask is not None:
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -seq:]
    elif positions is None:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))  # its name since transformers 5.24, and before
        past = 0 if cache is None else _length(cache)
        positions = torch.arange(past, past + seq, device=inputs.device)[None]
    return Forward(positions.to(inputs.device).expand(rows, seq), real)


def _length(cache: Any) -> int:
    try:
        return int(cache.get_seq_length())
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"expected position_ids with a {type(cache).__name__} that does not count its tokens, got none; pass them"
        ) from error


def _mask(mask: Any, given: Any, rows: int, seq: int) -> Tensor | None:
    """Which columns are no padding [rows, columns], from a mask of any form."""
    for candidate in (mask, given):
        if (
            isinstance(candidate, Tensor)
            and candidate.ndim == 2
            and len(candidate) == rows
            and candidate.shape[1] >= seq
        ):
            return candidate
    masks = mask.values() if isinstance(mask, Mapping) else (mask,)
    for square in masks:
        if (
            isinstance(square, Tensor) and square.ndim == 4
        ):  # [rows, heads, seq, columns]: padding reads not even itself
            itself = square[:, 0].diagonal(square.shape[-1] - square.shape[-2], -2, -1)
            return itself if itself.dtype == torch.bool else itself == 0
    return None


def _another_form(layer: int, stream: Any, wanted: tuple[int, ...]) -> ModelError:
    got = list(stream.shape) if isinstance(stream, Tensor) else type(stream).__name__
    return ModelError(
        f"expected blocks that give [rows, seq, d_model] = {list(wanted)}, got {got} of block {layer}; this family is "
        "not supported"
    )


def _not_run(layers: Collection[int]) -> ModelError:
    return ModelError(
        f"expected layer {', '.join(map(str, sorted(layers)))} to run, got a forward pass that did not call it as a "
        "module; choose layers that run on text, and call the model without kernels that go past hooks"
    )


_idle: WeakKeyDictionary[ChatModel, tuple[int, ...]] = WeakKeyDictionary()


@torch.inference_mode()
def idle_layers(model: ChatModel) -> tuple[int, ...]:
    """Blocks that do not run on text alone, such as those that read an image; found by one short pass a model."""
    if model.engine is not None:
        return model.engine.idle_layers()
    if model not in _idle:
        ran: set[int] = set()
        handles = [
            block.register_forward_hook(lambda *_, layer=layer: ran.add(layer))
            for layer, block in enumerate(model.blocks)
        ]
        try:
            model.decoder(**model.inputs([[model.pad_id] * 2]))
        finally:
            for handle in handles:
                handle.remove()
        _idle[model] = tuple(layer for layer in range(model.n_layers) if layer not in ran)
    return _idle[model]


class _Deepest(Exception):
    """Raised inside the forward pass once the deepest layer asked for was read."""


@torch.inference_mode()
def read(model: ChatModel, layers: Collection[int], fn: Callable[[int, Tensor], None], **inputs: Any) -> None:
    """Run the decoder, hand the stream of some layers to a function, and stop after the deepest of them.

    Args:
        model: What to read.
        layers: Which block outputs.
        fn: Told a layer and its stream [batch, seq, d_model].
        inputs: Of the decoder.

    Raises:
        ModelError: A layer that does not run.
    """
    deepest, waiting = max(layers), set(layers)

    def at(layer: int) -> BlockFn:
        def block(stream: Tensor) -> None:
            fn(layer, stream)
            waiting.discard(layer)
            if layer == deepest:
                raise _not_run(waiting) if waiting else _Deepest

        return block

    with attach(model, lambda _: None, {layer: at(layer) for layer in set(layers)}), suppress(_Deepest):
        model.decoder(**inputs)


@torch.inference_mode()
def capture(
    model: ChatModel,
    rows: Sequence[Sequence[int]],
    weights: Float[Tensor, "batch span seq"],
    layers: Sequence[int] | None,
    of: Callable[[Tensor], Tensor] = Tensor.float,
) -> Float[Tensor, "batch span layer d_model"]:
    """Weighted sums of the residual stream over positions, computed inside the hooks.

    Nothing of length seq outlives its block, blocks above the deepest layer and the LM head do not run, and
    padding is on the right. Sums are float32.

    Args:
        model: What to read.
        rows: Token ids of each conversation.
        weights: Per row and span, the weight of every position; a mean has weights that sum to 1. Zero beyond
            the row's own length.
        layers: Which block outputs to read; None for all. Of all, one that is idle repeats the layer before it, as the
            stream does, and is zero where there is none.
        of: What to sum: the stream itself, or a function of it, such as its norms, that keeps the first two axes.

    The site is `resid_post`, never `output_hidden_states`, whose last entry is normed.
    """
    inputs = model.inputs(rows)
    ids = inputs["input_ids"]
    spread = torch.zeros((len(rows), weights.shape[1], ids.shape[1]), device=ids.device)
    spread[:, :, : weights.shape[2]] = weights.to(ids.device)
    sums: dict[int, Tensor] = {}

    def add(layer: int, stream: Tensor) -> None:  # which may be on another device than its neighbours
        sums[layer] = torch.bmm(spread.to(stream.device), of(stream)).to(ids.device)

    idle = idle_layers(model) if layers is None else ()
    every = range(model.n_layers) if layers is None else layers
    read(model, [layer for layer in every if layer not in idle] or every, add, **inputs)
    for layer in idle:
        sums[layer] = sums[layer - 1] if layer else torch.zeros_like(next(iter(sums.values())))
    return torch.stack([sums[layer] for layer in every], dim=2).cpu()


@contextmanager
def parts(model: BlockModel, layers: Collection[int], fn: Callable[[int, str, Tensor], None]) -> Iterator[None]:
    """Tell a function the `input` of some blocks and the stream in the `middle`, between attention and MLP.

    The middle is found by structure: what the first part after the attention is given, parts of the attention's own
    output (norms, dropout) left aside. Where it is given what the attention or the block was, both read the same, and
    there is no middle.
    """
    handles: list[Any] = []

    def watch(layer: int, block: nn.Module) -> None:
        known: dict[str, Tensor] = {}

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            known.clear()
            known["block"] = args[0] if args else kwargs["hidden_states"]
            fn(layer, "input", known["block"])

        def attend(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            known["attention"] = args[0] if args else kwargs["hidden_states"]

        def attended(_: nn.Module, _args: Any, output: Any) -> None:
            known["added"] = output if isinstance(output, Tensor) else output[0]

        def given(_: nn.Module, args: tuple[Any, ...]) -> None:
            if "added" in known and args[0] is not known["added"]:
                if not any(args[0] is stream for stream in known.values()):
                    fn(layer, "middle", args[0])
                known.clear()

        handles.append(block.register_forward_pre_hook(begin, with_kwargs=True))
        for name, part in block.named_children():
            if name.endswith(("attn", "attention")):
                handles.append(part.register_forward_pre_hook(attend, with_kwargs=True))
                handles.append(part.register_forward_hook(attended))
            else:
                handles.append(part.register_forward_pre_hook(given))

    try:
        for layer in layers:
            watch(layer, model.blocks[layer])
        yield
    finally:
        for handle in handles:
            handle.remove()
