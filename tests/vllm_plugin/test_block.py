"""The edit of a block, eager and compiled, against our own hooks."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from support import tiny
from support.stepping import Stepper, as_sent, by_hooks, stored, together

from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.vllm import block
from personavec.vllm.block import BlockEdit
from personavec.vllm.book import StepPart

BACKEND = "inductor" if shutil.which("g++") else "aot_eager"


def eager(edit: BlockEdit) -> Callable[..., torch.Tensor]:
    return edit


@cache
def unchecked() -> Any:
    """The module as users run it: what checks arguments in tests cannot be traced."""
    spec = importlib.util.spec_from_file_location("unchecked_block", str(block.__file__))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(edit: BlockEdit) -> Callable[..., torch.Tensor]:
    edit.__class__ = unchecked().BlockEdit
    return torch.compile(edit, fullgraph=True, dynamic=True, backend=BACKEND)


def one_stream(edit: BlockEdit) -> Callable[..., torch.Tensor]:
    """Of a family whose blocks give the whole stream."""
    return lambda hidden, residual: edit.after(hidden + residual) - residual  # type: ignore[operator]


def lists(v: PersonaVector, other: PersonaVector) -> list[list[Steering]]:
    """A different thing to do to each row: every op, gates open, shut and half open, several of them together."""
    return [
        [],
        [Steering(v, 1.5, 1)],
        [Steering(v, -0.7, "all", "prompt"), Steering(other, 0.4, "all", "all")],
        [Steering(v, layer=2, positions="all", op="ablate"), Steering(other, layer=2, positions="all", op="ablate")],
        [Steering(v, layer="all", op="cap", floor=-0.1, ceiling=0.2)],
        [
            Steering(v, 2.0, 1, above=0.0),
            Steering(other, layer=1, op="ablate", below=0.3),
            Steering(v, layer=1, op="cap", ceiling=0.1),
        ],
        [Steering(v, 1.0, 3, "all"), Steering(v, layer=3, op="ablate", positions="prompt")],
        [Steering(v, 3.0, 0, "prompt", above=1e9)],
    ]


@pytest.mark.parametrize("run", [eager, pytest.param(compiled, marks=pytest.mark.slow), one_stream])
def test_every_row_is_edited_as_by_our_hooks(model: ChatModel, v: PersonaVector, run: Callable[..., object]) -> None:
    other = tiny.vector(model, seed=5)
    rows = lists(v, other)
    stepper = Stepper(stored(v, other), requests=len(rows), run=run)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for length in (7, 4):  # what is compiled stays as it is while requests and their number of tokens change
        rows = rows[::-1]
        parts = []
        for number, row in enumerate(rows):
            name, prompt = f"{length} {number}", 2 + number % 3
            stepper.streams[name] = torch.randn((model.n_layers, length, tiny.D_MODEL), generator=generator)
            parts.append(StepPart(name, 0, length, prompt, {"steering": [as_sent(s) for s in row]} if row else None))
        stepper.step(parts, [part.request for part in parts])
        assert not stepper.book.failed
        for part, row in zip(parts, rows, strict=True):
            wanted = by_hooks(model, stepper.streams[part.request], row, part.prompt)
            torch.testing.assert_close(stepper.edited[part.request], wanted, rtol=1e-5, atol=1e-5)
            if not row and run is not one_stream:
                assert torch.equal(stepper.edited[part.request], together(stepper.streams[part.request]))


def test_a_step_without_steering_writes_no_buffer_and_the_next_one_does(model: ChatModel, v: PersonaVector) -> None:
    stepper = Stepper(stored(v))
    stepper.streams = {name: torch.ones((model.n_layers, 4, tiny.D_MODEL)) for name in ("a", "b")}
    plain, steered = StepPart("a", 0, 4, 2, None), StepPart("b", 0, 2, 2, {"steering": [as_sent(Steering(v, 1.0, 1))]})
    for parts in ([plain], [steered], [plain], [plain], [replace(steered, start=2)]):
        stepper.step(parts, ["a", "b"])
        assert stepper.tables.idle == (parts == [plain])
    assert torch.equal(stepper.edited["a"], together(stepper.streams["a"]))
    wanted = by_hooks(model, stepper.streams["b"], [Steering(v, 1.0, 1)], 2)
    torch.testing.assert_close(stepper.edited["b"], wanted, rtol=1e-5, atol=1e-5)
