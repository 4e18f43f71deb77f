"""Models whose weights are in Ray's actors alone: what is read by one is what is read here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personavec.errors import ModelError
from personavec.model import loading
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering
from personavec.steering.vector import load_vector
from personavec.verbs.screen.parallel import ActorEngine, ActorModel, ReadingActor, by_name
from personavec.verbs.screen.screen import screen

ROWS = [{"prompt": f"Say {n}.", "response": f"{n}, {n * n}!"} for n in range(30)]


class Near(ActorEngine):
    """One whose actor is an object of this process; what it is asked passes by value, as through Ray."""

    def ask(self, work: Callable[..., Any], *arguments: Any) -> Any:
        result, fault = ReadingActor(self._load, 1).run(work, arguments)
        if fault:
            raise ModelError(fault)
        return result


@pytest.fixture
def far(saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> ActorModel:
    """Once made, this process can load no weights."""
    there = ChatModel.load(str(saved[0]), device="cpu", dtype="float32")
    monkeypatch.setattr(loading, "_weights", lambda *_, **__: pytest.fail("weights are loaded here"))
    return ActorModel.of(Near(lambda: there))


@pytest.mark.parametrize("cost", ["raw", "proxy"])
def test_a_screening_without_weights_here_is_the_same(
    cost: Any, far: ActorModel, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    vector, here = load_vector(saved[1]), far.engine._load()
    assert far.identity == here.identity and far.numbers == here.numbers and far.context == here.context
    one = screen(here, ROWS, vector, cost=cost, store=tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    two = screen(far, ROWS, vector, cost=cost, store=tmp_path / "run")  # one run: the inputs are the same
    anew = screen(far, ROWS, vector, cost=cost)
    for found in (two, anew):
        np.testing.assert_array_equal(found.table.column("tiny"), one.table.column("tiny"))
        assert found.data["random_control"] == one.data["random_control"]


def test_replies_and_log_probabilities_are_those_of_the_actor(far: ActorModel) -> None:
    here, prompts = far.engine._load(), [far.render([{"role": "user", "content": text}]) for text in ("Hi.", "Who?")]
    requests = [Request(prompt) for prompt in prompts]
    replies = generate(far, requests, Sampling(8, 0))
    assert replies == generate(here, requests, Sampling(8, 0))
    logs = [reply_logprobs(model, prompts, [prompts[0][:4]] * 2) for model in (far, here)]
    for one, two in zip(*logs, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_nothing_is_steered_there(far: ActorModel, saved: tuple[Path, Path]) -> None:
    request = Request(far.render([{"role": "user", "content": "Hi."}]), (Steering(load_vector(saved[1]), 1.0, 1),))
    with pytest.raises(ModelError, match="expected replies that nothing steers from Ray's actors, got a steering"):
        generate(far, [request], Sampling(8, 0))


def test_what_is_wrong_there_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a model folder, got no folder"):
        Near(lambda: ChatModel.load(str(tmp_path / "none")))


def test_a_model_is_loaded_again_as_it_was_quantised(saved: tuple[Path, Path]) -> None:
    model = ChatModel.load(str(saved[0]), device="cpu", dtype="float32")
    load: Any = by_name(model)
    assert load.keywords == {"device": "cpu", "dtype": "float32", "quantise": None}
    model.quantised = "torchao:int8"
    load = by_name(model)
    assert load.keywords["quantise"] == "torchao:int8"
