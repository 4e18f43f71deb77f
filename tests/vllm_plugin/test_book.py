"""Bookkeeping against invented batches: chunks, preemption, prefix hits, more requests than there is room for."""

import base64
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.stepping import Stepper, as_sent, by_hooks, stored

from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.vllm.asked import RESPONSE
from personavec.vllm.book import StepPart

TOKENS, AT_ONCE = 12, 2


def kinds(v: PersonaVector) -> list[list[Steering]]:
    return [
        [],
        [Steering(v, 1.5, 1)],
        [Steering(v, -0.5, "all")],
        [Steering(v, 1.0, 2, "prompt")],
        [Steering(v, layer=1, positions="all", op="ablate")],
        [Steering(v, layer="all", op="cap", ceiling=0.1)],
    ]


def mean(span: dict[str, Any]) -> torch.Tensor:
    layers = [np.frombuffer(base64.b64decode(text), "<f4").copy() for text in span["mean"].values()]
    return torch.from_numpy(np.stack(layers))


@settings(max_examples=15, deadline=None)
@given(random=st.randoms(use_true_random=True))
def test_whatever_the_batches_every_token_is_steered_and_read_once(
    model: ChatModel, v: PersonaVector, random: Random
) -> None:
    rows = kinds(v)
    stepper = Stepper(stored(v), requests=AT_ONCE)
    asked: dict[str, dict[str, Any]] = {}
    prompts: dict[str, int] = {}
    for number, row in enumerate(rows):
        name, prompt = f"{number}", random.randint(1, 9)
        prompts[name] = prompt
        generator = torch.Generator().manual_seed(number)
        stepper.streams[name] = torch.randn((model.n_layers, TOKENS, tiny.D_MODEL), generator=generator)
        spans = [[0, prompt], [prompt, TOKENS]]
        watch = [{"vector": v.content_hash, "layer": layer} for layer in (0, 2)]
        asked[name] = {"steering": [as_sent(s) for s in row], "watch": watch, "spans": spans, "id": f"r{name}"}
    computed = dict.fromkeys(prompts, 0)
    while alive := [name for name in computed if computed[name] < TOKENS]:
        chosen = random.sample(alive, min(len(alive), random.randint(1, AT_ONCE)))
        parts = []
        for name in chosen:
            if computed[name] and random.randint(0, 9) == 0:
                computed[name] = 0
            count = random.randint(1, TOKENS - computed[name])
            parts.append(StepPart(name, computed[name], count, prompts[name], asked[name]))
            computed[name] += count
        for name in set(alive) - set(chosen):  # who has to wait may have lost its place
            if name in stepper.book.records and stepper.book.records[name].rows is None:
                computed[name] = 0
        stepper.step(parts, alive)
        waiting = [name for name in stepper.book.records if stepper.book.records[name].rows is None]
        computed |= {name: 0 for name in waiting if computed[name] < TOKENS}
    found = stepper.book.fetch([f"r{name}" for name in prompts])
    assert not stepper.book.failed
    for name, row in zip(prompts, rows, strict=True):
        wanted = by_hooks(model, stepper.streams[name], row, prompts[name])
        torch.testing.assert_close(stepper.edited[name], wanted, rtol=1e-5, atol=1e-5)
        readings, first = found[f"r{name}"], prompts[name] - 1
        assert readings["error"] is None and readings["start"] == first
        for layer, look in zip((0, 2), readings["watch"], strict=True):
            torch.testing.assert_close(torch.tensor(look), wanted[layer, first:] @ v.unit(layer), rtol=1e-4, atol=1e-5)
        for span, part in zip(readings["spans"], (wanted[:, : first + 1], wanted[:, first + 1 :]), strict=True):
            torch.testing.assert_close(mean(span), part.mean(1), rtol=1e-5, atol=1e-5)
            lengths = torch.tensor([*span["norm"].values()])
            torch.testing.assert_close(lengths, part.norm(dim=-1).mean(1), rtol=1e-5, atol=1e-5)
    assert not stepper.book.fetch([f"r{name}" for name in prompts]), "readings are told once"


def test_a_prefix_hit_is_steered_from_where_it_starts(model: ChatModel, v: PersonaVector) -> None:
    stepper = Stepper(stored(v))
    stepper.streams["a"] = torch.randn((model.n_layers, TOKENS, tiny.D_MODEL))
    sent = {"steering": [as_sent(Steering(v, 2.0, 1))]}
    stepper.step([StepPart("a", 8, 4, 6, sent)], ["a"])
    wanted = by_hooks(model, stepper.streams["a"], [Steering(v, 2.0, 1)], 6)
    torch.testing.assert_close(stepper.edited["a"][:, 8:], wanted[:, 8:])


def test_a_span_that_was_not_read_says_so(model: ChatModel, v: PersonaVector) -> None:
    stepper = Stepper(stored(v))
    stepper.streams["a"] = torch.randn((model.n_layers, TOKENS, tiny.D_MODEL))
    stepper.step([StepPart("a", 4, 4, 6, {"spans": [[0, 6]], "id": "x"})], ["a"])
    assert "did not" in stepper.book.fetch(["x"])["x"]["error"]


def test_what_goes_wrong_in_a_step_harms_nobody_else(model: ChatModel, v: PersonaVector) -> None:
    stepper = Stepper(stored(v))
    for name in ("good", "bad"):
        stepper.streams[name] = torch.randn((model.n_layers, TOKENS, tiny.D_MODEL))
    sent = {"steering": [as_sent(Steering(v, 2.0, 1))]}
    stepper.step([StepPart("bad", 0, 4, 2, {"steering": "?"}), StepPart("good", 0, 4, 2, sent)], ["good", "bad"])
    assert stepper.book.failed.keys() == {"bad"}
    wanted = by_hooks(model, stepper.streams["good"], [Steering(v, 2.0, 1)], 2)
    torch.testing.assert_close(stepper.edited["good"][:, :4], wanted[:, :4])


def test_rows_are_shared_and_come_free(model: ChatModel, v: PersonaVector) -> None:
    stepper = Stepper(stored(v), requests=2)
    for number in range(50):  # doses without end, two requests at a time
        names = [f"{number}a", f"{number}b"]
        sent = {"steering": [as_sent(Steering(v, 1.0 + number, 1))]}
        for name in names:
            stepper.streams[name] = torch.zeros((model.n_layers, TOKENS, tiny.D_MODEL))
        stepper.step([StepPart(name, 0, 4, 2, sent) for name in names], names)
        first, second = (stepper.book.records[name].rows for name in names)
        assert first == second and first is not None and first[RESPONSE] > 0
    assert not stepper.book.failed
