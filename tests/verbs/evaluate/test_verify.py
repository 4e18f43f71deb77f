"""`verify` passes on sound models, and every check of it can fail."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support import tiny

from personavec.errors import VectorError
from personavec.model import hooks, kv_cache
from personavec.model.chat_model import ChatModel
from personavec.steering import steer
from personavec.verbs.evaluate import verify
from personavec.verbs.evaluate.verify import CHECKS


def failed(model: ChatModel) -> set[str]:
    return {check["name"] for check in verify.verify(model).data["checks"] if not check["passed"]}


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.OTHERS])
def test_sound_models_pass(family: str) -> None:
    result = verify.verify(tiny.build(family)).data
    assert result["passed"], [check for check in result["checks"] if not check["passed"]]
    assert [check["name"] for check in result["checks"]] == list(CHECKS)
    assert all(check["detail"] for check in result["checks"])


def test_a_given_vector_is_checked() -> None:
    model = tiny.build()
    result = verify.verify(model, tiny.vector(model, layer=1)).data
    assert result["passed"] and (result["vector"], result["layer"]) == ("tiny", 1)


def test_a_vector_of_another_model_is_refused() -> None:
    with pytest.raises(VectorError, match="expected a vector for"):
        verify.verify(tiny.build(), tiny.vector(tiny.build("gpt2")))


# What may break, and the check that must see it

Break = Callable[[pytest.MonkeyPatch, ChatModel], None]


def no_effect(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    patch.setattr(steer.Steered, "change", lambda self, layer, stream: stream)


def twice(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    change = steer.Steered.change
    patch.setattr(steer.Steered, "change", lambda self, layer, s: change(self, layer, change(self, layer, s)))


def every_token(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    start = steer.Steered.start
    patch.setattr(
        steer.Steered, "start", lambda self, f: start(self, f._replace(positions=torch.full_like(f.positions, 999)))
    )


def by_chunk(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    """Positions counted from the start of each chunk: cached decoding then steers nothing."""
    found = hooks._forward
    patch.setattr(
        hooks,
        "_forward",
        lambda *given: (f := found(*given))._replace(
            positions=torch.arange(f.positions.shape[1]).expand_as(f.positions)
        ),
    )


def coef_ignored(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    patch.setattr(steer.Steering, "active", True)
    patch.setattr(steer.Steering, "deltas", lambda self: {self.layer: self.vector.direction[self.layer]})


def spills(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    change = steer.Steered.change

    def everywhere(self: Any, layer: int, stream: torch.Tensor) -> torch.Tensor:
        out = change(self, layer, stream)
        return stream + (out - stream).amax(dim=0, keepdim=True)

    patch.setattr(steer.Steered, "change", everywhere)


def half_ablated(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    def half(directions: torch.Tensor) -> hooks.BlockFn:
        basis = torch.linalg.qr(directions.float().T).Q
        return lambda stream: stream - 0.5 * (stream @ basis) @ basis.T

    patch.setattr(steer, "ablation", half)


def off_by_one(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    read = hooks.capture
    patch.setattr(
        verify, "capture", lambda m, rows, weights, layers, **of: read(m, rows, weights, [k + 1 for k in layers], **of)
    )


def leaks(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    @contextmanager
    def attach(model: ChatModel, start: Any, fns: Any, *, first: bool = False) -> Iterator[None]:
        handles = [model.blocks[0].register_forward_hook(lambda *_: None)]
        with hooks.attach(model, start, fns, first=first):
            yield
        handles.clear()

    patch.setattr(steer, "attach", attach)


def pads_are_seen(patch: pytest.MonkeyPatch, model: ChatModel) -> None:
    forward = model.hf.forward
    patch.setattr(
        model.hf,
        "forward",
        lambda *args, attention_mask=None, **kwargs: forward(*args, attention_mask=None, **kwargs),
    )


def rows_stay(patch: pytest.MonkeyPatch, _: ChatModel) -> None:
    """A cache whose rows are not dropped with those of the batch."""
    patch.setattr(
        kv_cache.RoomyLayer,
        "reorder_cache",
        lambda self, rows: (
            self._show(self._length) and setattr(self, "_stores", [s[: len(rows)] for s in self._stores])
        ),
    )


def own_positions(patch: pytest.MonkeyPatch, model: ChatModel) -> None:
    """A family that numbers its positions in its own way, unless it is told them."""
    forward = model.decoder.forward

    @functools.wraps(forward)
    def threefold(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        if position_ids is None:
            position_ids = 3 * torch.arange(kwargs["input_ids"].shape[1])[None]
        return forward(*args, position_ids=position_ids, **kwargs)

    patch.setattr(model.decoder, "forward", threefold)


@pytest.mark.parametrize(
    ("breakage", "check"),
    [
        (no_effect, "steering changes the logits"),
        (no_effect, "the stream moves by coef·v"),
        (twice, "the stream moves by coef·v"),
        (every_token, "steering changes the logits"),
        (every_token, "the stream moves by coef·v"),
        (by_chunk, "cached equals uncached"),
        (coef_ignored, "coef 0 changes no bit"),
        (pads_are_seen, "replies equal plain passes"),
        (rows_stay, "replies equal plain passes"),
        (own_positions, "layer k is hidden state k+1"),
        (own_positions, "left-padded equals alone"),
        (own_positions, "cached equals uncached"),
        (spills, "batch-mates are untouched"),
        (half_ablated, "ablation leaves projection 0"),
        (off_by_one, "layer k is hidden state k+1"),
        (leaks, "no hook is left"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_every_check_can_fail(breakage: Break, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build()
    breakage(monkeypatch, model)
    assert check in failed(model)


def test_an_exception_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: verify.Probe) -> verify.Found:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(CHECKS, "no hook is left", broken)
    result = verify.verify(tiny.build()).data
    assert not result["passed"]
    assert result["checks"][-1] == {"name": "no hook is left", "passed": False, "detail": "RuntimeError: two lines"}


def test_bfloat16() -> None:
    low = tiny.build()
    low.hf.to(torch.bfloat16)
    result = verify.verify(low).data
    assert result["dtype"] == "bfloat16" and result["passed"], result["checks"]
