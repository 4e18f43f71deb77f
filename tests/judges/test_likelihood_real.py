"""Rubric judges on the small real model: behind a server over HTTP, and in this process."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.served import Manners, Real, Server

from personavec.judges.hf import LocalReader
from personavec.judges.judge import Score
from personavec.judges.openai import TOPS, OpenAIReader
from personavec.judges.rubric import LETTERS, MIN_MASS, Message, Rubric
from personavec.model.chat_model import ChatModel
from personavec.model.endpoint import Endpoint

pytestmark = pytest.mark.real

RUBRIC = Rubric("Is the reply warm? 0 means cold, 100 means warm.", refusable=True)


def quiet(_: int) -> None:
    return


@pytest.fixture(scope="module")
def smollm2() -> ChatModel:
    return ChatModel.load("smollm2", dtype="float32")


@pytest.fixture
def server(smollm2: ChatModel) -> Iterator[Server]:
    started = Server(Real(smollm2), Manners(hang_seconds=14)).start()
    yield started
    started.stop()


@pytest.fixture
def endpoint(server: Server, tmp_path: Path) -> Callable[..., Endpoint]:
    return lambda **options: Endpoint(
        "smollm2", server.url, tmp_path / "answers.sqlite", **({"timeout": 12.0} | options)
    )


def asked(count: int) -> list[list[Message]]:
    return [RUBRIC.messages(f"What is {i} plus one?", f"My dear friend, it is {i + 1}!", LETTERS) for i in range(count)]


def brute_force(server: Server, messages: list[Message], top: int | None) -> tuple[float, float]:
    """Expected value and mass from the server's likeliest tokens, or from all of them."""
    chances = [(token.strip(), math.exp(p)) for token, p in server.brain.first_tokens(messages)[:top]]
    if top is None:
        assert sum(p for _, p in chances) == pytest.approx(1, abs=1e-4)
    on_scale = [(LETTERS.values[label], p) for label, p in chances if label in LETTERS.values]
    mass = sum(p for _, p in on_scale)
    return sum(value * p for value, p in on_scale) / mass, mass


def check(score: Score, value: float, mass: float, within: float) -> None:
    assert score.evidence["mass"] == pytest.approx(mass, abs=1e-5)
    if score.value is not None:
        assert score.value == pytest.approx(value, abs=within)
    elif score.why == "unparseable":
        assert mass < MIN_MASS + 1e-5


@pytest.mark.slow
def test_numbers_are_several_tokens_there_so_letters_are_asked_for(
    server: Server, endpoint: Callable[..., Endpoint], smollm2: ChatModel
) -> None:
    assert len(smollm2.encode("57")) == 2 and len(smollm2.encode("100")) == 3
    reader = OpenAIReader(endpoint())
    assert reader.basis.endswith("expected value on A-T")
    scores = reader.read(asked(6), quiet)
    for messages, score in zip(asked(6), scores, strict=True):
        check(score, *brute_force(server, messages, TOPS[0]), within=1e-6)


@pytest.mark.slow
def test_a_local_judge_sees_the_tail_that_a_server_hides(server: Server, smollm2: ChatModel) -> None:
    for messages, score in zip(asked(4), LocalReader(smollm2).read(asked(4), quiet), strict=True):
        # batched against alone: other kernels, and so another rounding
        check(score, *brute_force(server, messages, None), within=1e-2)


@pytest.mark.slow
def test_without_log_probabilities_it_is_asked_for_words(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    server.manners.logprobs = False
    reader = OpenAIReader(endpoint())
    assert "samples" in reader.basis
    scores = reader.read(asked(2), quiet)
    assert all(score.value is not None or score.why in ("unparseable", "refused") for score in scores)


def judgements_with_faults(server: Server, at: Endpoint, count: int) -> None:
    reader = OpenAIReader(at)
    probes = len(server.answered)
    server.manners.faults = 0.05
    scores = reader.read(asked(count), quiet)
    assert len(server.answered) == count + probes and set(server.answered.values()) == {1}
    assert sum(score.why == "failed" for score in scores) == at.usage.failed == 0
    assert all((score.value is None) == (score.why is not None) for score in scores)
    assert sum(server.went_wrong.values()) == at.usage.calls - count - probes > 0


@pytest.mark.slow
def test_judgements_with_faults(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    judgements_with_faults(server, endpoint(concurrency=4), 60)


@pytest.mark.slow
def test_a_thousand_judgements_with_faults(server: Server, endpoint: Callable[..., Endpoint]) -> None:
    server.manners.hang_seconds = 70
    judgements_with_faults(server, endpoint(timeout=60.0), 1000)
