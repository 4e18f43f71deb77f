"""What goes wrong in one reply ends that reply, and no other."""

from itertools import cycle
from typing import Any

import pytest
import torch
from support.asking import SAMPLING, Asked, ask
from support.tiny import prompt

from personavec.errors import SteeringOverflow
from personavec.model.chat_model import ChatModel
from personavec.model.kv_cache import Slots
from personavec.model.sampling import Sampling
from personavec.server.writing import drawing
from personavec.server.writing.engine import Engine
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector


def test_an_overflow_in_a_step_ends_its_own_row_alone(
    model: ChatModel, engine: Engine, v: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that failed half-way is taken again; no token is lost or doubled, of steered rows neither."""
    from personavec.steering.steer import Steered

    own, calls = Steered.change, cycle([False] * 7 + [True])

    def change(self: Steered, layer: int, stream_: torch.Tensor) -> torch.Tensor:
        if stream_.shape[0] > 2 and next(calls):
            raise SteeringOverflow("expected layer 2 to move by coef·v, got a stream that overflowed", (1,))
        return own(self, layer, stream_)

    monkeypatch.setattr(Steered, "change", change)
    small = (Steering(v, 0.5, 2),)
    asked = [
        Asked(model, prompt(6), 0, tokens=60),
        Asked(model, prompt(6), 1, tokens=60, steering=(Steering(v, 1.0, 2),)),
        Asked(model, prompt(6), 2, tokens=60, steering=small),
    ]
    with engine._changed:  # row 1 is that of the second reply: all three begin together
        for one in asked:
            engine.submit([one.job])
    plain, huge, other = (one.wait() for one in asked)
    assert huge.job.reply.finish in ("error", "stop")
    for seed, one, steering in ((0, plain, ()), (2, other, small)):
        wanted = generate(model, [Request(prompt(6), steering, (seed,))], Sampling(60, 0.9))[0].ids
        assert tuple(one.job.reply.ids) == wanted


def test_a_cap_that_overflows_ends_nobody_elses_steered_reply(
    model: ChatModel, engine: Engine, v: PersonaVector
) -> None:
    """Its row overflows at a later layer, where another row adds a little."""
    small = (Steering(v, 0.5, 2),)
    huge = (Steering(v, op="cap", floor=1e25, layer=1), Steering(v, 0.1, 2))
    asked = [Asked(model, prompt(6), 0, steering=huge), Asked(model, prompt(6), 1, steering=small)]
    with engine._changed:
        for one in asked:
            engine.submit([one.job])
    first, second = (one.wait() for one in asked)
    assert first.job.reply.finish == "error"
    assert tuple(second.job.reply.ids) == generate(model, [Request(prompt(6), small, (1,))], SAMPLING)[0].ids


@pytest.mark.parametrize("temperature", [1e-3, 1e-5, 1e-38, 5e-39, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy_and_ends_nobody(model: ChatModel, engine: Engine, temperature: float) -> None:
    cold, warm = Asked(model, prompt(6), 0), Asked(model, prompt(6), 1)
    cold.job.sampling = Sampling(12, temperature)
    ask(engine, [warm, cold])
    assert tuple(cold.job.reply.ids) == generate(model, [Request(prompt(6), (), (0,))], Sampling(12, 0))[0].ids
    assert tuple(warm.job.reply.ids) == generate(model, [Request(prompt(6), (), (1,))], SAMPLING)[0].ids
    sampling = Sampling(12, temperature, 0.5)
    assert generate(model, [Request(prompt(6), (), (0,))], sampling)[0].ids == tuple(cold.job.reply.ids)


@pytest.mark.parametrize("where", ["draw", "_join", "add", "_read"])
def test_whatever_is_raised_ends_its_own_replies(
    model: ChatModel, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """From the queue to the reply: nobody waits for ever, and the next one is served."""
    target: Any = {"draw": drawing, "add": Slots}.get(where, Engine)
    with monkeypatch.context() as patched:
        patched.setattr(target, where, lambda *_, **__: 1 / 0)
        (bad,) = ask(engine, [Asked(model, prompt(4), 1)])
    assert bad.job.reply.finish == "error" and "its log says which" in (bad.job.reply.error or "")
    assert "ZeroDivisionError" in caplog.text and "Zero" not in (bad.job.reply.error or "")
    (good,) = ask(engine, [Asked(model, prompt(4), 1)])
    assert good.job.reply.finish in ("stop", "length")
