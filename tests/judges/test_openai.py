"""Judges behind a server, over real HTTP: how they ask, what they make of answers, nothing lost or paid twice."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.served import Manners, Planted, Server

from personavec.errors import JudgeError, ModelError
from personavec.judges.openai import SAMPLES, OpenAIReader, probe
from personavec.judges.rubric import LETTERS, NUMBERS, Rubric, RubricJudge
from personavec.model.endpoint import Answer, Endpoint, Failure

RUBRIC = Rubric("Rate how warm the reply is. 0 means cold, 100 means warm.", refusable=True)
DIGITS = tuple("0123456789")
LETTER_LABELS = tuple("ABCDEFGHIJKLMNOPQRSTX")

Serve = Callable[..., Server]


def quiet(_: int) -> None:
    return


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[Server] = []

    def start(brain: Planted | None = None, **manners: object) -> Server:
        started.append(Server(brain or Planted(), Manners(**manners)).start())  # type: ignore[arg-type]
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def endpoint(tmp_path: Path) -> Callable[..., Endpoint]:
    def make(server: Server | None = None, **options: object) -> Endpoint:
        url = server.url if server else None
        return Endpoint(
            **({"model": "judge", "url": url, "cache": tmp_path / "answers.sqlite", "timeout": 2.0} | options)
        )  # type: ignore[arg-type]

    return make


def brute_force(server: Server, messages: list[dict[str, str]], values: dict[str, float]) -> float:
    """Expected value from the whole distribution."""
    chances = [(token.strip(), math.exp(logprob)) for token, logprob in server.brain.first_tokens(messages)]
    assert sum(chance for _, chance in chances) == pytest.approx(1)
    on_scale = [(values[label], chance) for label, chance in chances if label in values]
    return sum(value * chance for value, chance in on_scale) / sum(chance for _, chance in on_scale)


@pytest.mark.parametrize(
    ("brain", "manners", "mode", "limit"),
    [
        (Planted(), {}, "expected value on 0-100", "max_tokens"),
        (Planted((*DIGITS, *LETTER_LABELS)), {}, "expected value on A-T", "max_tokens"),
        (Planted(DIGITS), {}, f"mean of {SAMPLES} samples on 0-100", "max_tokens"),
        (Planted(), {"logprobs": False}, f"mean of {SAMPLES} samples on 0-100", "max_tokens"),
        (Planted(), {"refused": {"logprobs"}}, f"mean of {SAMPLES} samples on 0-100", "max_tokens"),
        (Planted(), {"refused": {"max_tokens"}}, "expected value on 0-100", "max_completion_tokens"),
        (
            Planted(),
            {"refused": {"max_tokens"}, "logprobs": False},
            f"mean of {SAMPLES} samples on 0-100",
            "max_completion_tokens",
        ),
        (Planted(), {"refused": {"temperature", "max_tokens"}}, "one number on 0-100", "max_tokens"),
    ],
)  # fmt: skip
def test_the_way_of_asking_is_found_by_trying(
    brain: Planted, manners: dict[str, object], mode: str, limit: str, serve: Serve, endpoint: Callable[..., Endpoint]
) -> None:
    found = probe(endpoint(serve(brain, **manners)))
    assert found.name == mode and found.limit == limit


@pytest.mark.parametrize(("labels", "scale"), [(NUMBERS.values, NUMBERS), ((*DIGITS, *LETTER_LABELS), LETTERS)])
def test_expected_values_equal_brute_force(
    labels: tuple[str, ...], scale: object, serve: Serve, endpoint: Callable[..., Endpoint]
) -> None:
    server = serve(Planted(tuple(labels)))
    reader = OpenAIReader(endpoint(server))
    assert reader.scale is scale
    judge = RubricJudge(reader, RUBRIC)
    questions, replies = [f"Question {i}?" for i in range(40)], [f"Reply {{answer}} {i}" for i in range(40)]
    scores = judge.score(questions, replies, quiet)
    for question, reply, score in zip(questions, replies, scores, strict=True):
        messages = RUBRIC.messages(question, reply, reader.scale)
        distribution = {token.strip(): p for token, p in server.brain.first_tokens(messages)}
        mass = score.evidence["mass"]
        if math.exp(distribution.get("X", -99)) > mass:
            assert score.why == "refused"
        elif score.value is None:
            assert score.why == "unparseable" and mass < 0.25
        else:
            assert score.value == pytest.approx(brute_force(server, messages, reader.scale.values), abs=1e-6)
    assert sum(score.value is not None for score in scores) > 20


def test_samples_are_averaged_and_what_names_no_score_is_counted(
    serve: Serve, endpoint: Callable[..., Endpoint]
) -> None:
    def words(asked: str, seed: int) -> str:
        if "declines" in asked.partition("<reply>")[2].partition("</reply>")[0]:
            return "X"
        if "babble" in asked:
            return "It is hard to say."
        return ["40", "Score: 50", "60/100", "well, 50", "<think>10 or 90?</think> 50"][seed]

    judge = RubricJudge(OpenAIReader(endpoint(serve(Planted(DIGITS, words)))), RUBRIC)
    told: list[int] = []
    scores = judge.score(["Q?"] * 4, ["fine", "it declines", "babble", " "], told.append)
    assert [(score.value, score.why) for score in scores] == [
        (50.0, None),
        (None, "refused"),
        (None, "unparseable"),
        (None, "empty"),
    ]
    assert sum(told) == 4


@pytest.mark.slow
def test_a_thousand_judgements_with_faults_are_scored_once_each(
    serve: Serve, endpoint: Callable[..., Endpoint]
) -> None:
    server = serve()
    at = endpoint(server)
    reader = OpenAIReader(at)
    server.manners.faults = 0.05
    asked = [RUBRIC.messages(f"Question {i}?", f"Reply {i}", NUMBERS) for i in range(1000)]
    before = at.usage.calls
    scores = reader.read(asked, quiet)
    assert set(server.went_wrong) == {"429", "500", "503", "slow", "broken", "garbled", "shapeless"}
    failed = sum(score.why == "failed" for score in scores)
    for messages, score in zip(asked, scores, strict=True):
        if score.value is not None:
            assert score.value == pytest.approx(brute_force(server, messages, NUMBERS.values), abs=1e-6)
    assert sum(score.value is not None for score in scores) + sum(score.why is not None for score in scores) == 1000
    assert failed == at.usage.failed == 0, "none of these faults lasts"
    assert set(server.answered.values()) == {1}, "an answer was paid for twice"
    assert len(server.answered) == 1000 + 2  # the probe's
    wrong = sum(server.went_wrong.values())
    assert at.usage.calls - before == 1000 + wrong and wrong >= 20


def test_a_storm_of_429_is_waited_out(serve: Serve, endpoint: Callable[..., Endpoint]) -> None:
    server = serve()
    reader = OpenAIReader(endpoint(server))
    server.manners.storm = 60
    scores = reader.read([RUBRIC.messages("Q?", str(i), NUMBERS) for i in range(40)], quiet)
    assert all(score.why != "failed" for score in scores) and set(server.answered.values()) == {1}


def test_a_server_that_is_killed_and_comes_back_loses_nothing(serve: Serve, endpoint: Callable[..., Endpoint]) -> None:
    server = serve(delay_seconds=0.02)
    reader = OpenAIReader(endpoint(server, concurrency=4))

    def restart() -> None:
        while len(server.answered) < 30:
            time.sleep(0.01)
        server.stop()
        time.sleep(1)
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    scores = reader.read([RUBRIC.messages("Q?", str(i), NUMBERS) for i in range(120)], quiet)
    thread.join()
    assert all(score.why != "failed" for score in scores)


def test_a_server_that_stays_away_stops_the_run_and_what_was_answered_is_kept(
    serve: Serve, endpoint: Callable[..., Endpoint]
) -> None:
    server = serve()
    asked = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(30)]
    at = endpoint(server, retries=1)
    at.ask_all(asked[:20])
    server.stop()
    with pytest.raises(ModelError, match=r"server that answers as judge at .*what was answered is kept"):
        at.ask_all(asked)
    server.start()
    again = endpoint(server)
    assert all(isinstance(answer, Answer) for answer in again.ask_all(asked))
    assert again.usage.cached == 20 and again.usage.calls == 10


@pytest.mark.slow
def test_a_killed_client_does_not_pay_twice(serve: Serve, tmp_path: Path) -> None:
    server = serve(delay_seconds=0.05)
    script = f"""
from pathlib import Path
from personavec.model.endpoint import Endpoint
asked = [{{"messages": [{{"role": "user", "content": str(i)}}]}} for i in range(200)]
Endpoint("judge", {server.url!r}, Path({str(tmp_path / "answers.sqlite")!r}), concurrency=8).ask_all(asked)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    while len(server.answered) < 60:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(server.answered) < 200
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert len(server.answered) == 200
    assert sum(server.answered.values()) <= 200 + 8, "more than the calls in flight were paid twice"


def test_equal_requests_are_asked_once(serve: Serve, endpoint: Callable[..., Endpoint]) -> None:
    server = serve()
    told: list[int] = []
    answers = endpoint(server).ask_all([{"messages": [{"role": "user", "content": "same"}]}] * 50, told.append)
    assert sum(server.seen.values()) == 1 and len(answers) == 50 and sum(told) == 50


@pytest.mark.parametrize(
    ("budget", "told"),
    [({"max_calls": 10}, "at most 10 calls .*--api-calls"), ({"max_tokens": 1000}, "1,000 tokens .*--api-tokens")],
)
def test_a_budget_stops_clearly_and_more_of_it_goes_on(
    budget: dict[str, int], told: str, serve: Serve, endpoint: Callable[..., Endpoint]
) -> None:
    server = serve()
    asked = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(30)]
    with pytest.raises(ModelError, match=told):
        endpoint(server, concurrency=1, **budget).ask_all(asked)
    assert sum(server.answered.values()) == 10
    endpoint(server).ask_all(asked)
    assert set(server.answered.values()) == {1} and len(server.answered) == 30


def test_one_bad_request_is_counted_and_the_others_are_scored(serve: Serve, endpoint: Callable[..., Endpoint]) -> None:
    server = serve(refused={"stop"})
    asked = [{"messages": [{"role": "user", "content": str(i)}], **({"stop": "x"} if i == 3 else {})} for i in range(9)]
    at = endpoint(server)
    answers = at.ask_all(asked)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, Failure)] == [3]
    assert at.usage.failed == 1 and "400" in answers[3].reason  # type: ignore[union-attr]


def test_a_notebook_can_ask(serve: Serve, endpoint: Callable[..., Endpoint]) -> None:
    import asyncio

    async def cell() -> Answer | Failure:
        return endpoint(serve()).ask({"messages": [{"role": "user", "content": "hello"}]})

    assert isinstance(asyncio.run(cell()), Answer)


def test_the_key_comes_from_the_environment(
    serve: Serve, endpoint: Callable[..., Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="a key in the environment variable OPENAI_API_KEY, got none"):
        endpoint()
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve()
    endpoint(server).ask({"messages": [{"role": "user", "content": "hello"}]})
    assert server.keys == {"Bearer secret"}


@pytest.mark.parametrize(
    ("manners", "told"),
    [
        ({"html": True}, "no chat completion"),
        ({"status": 404}, "404: .*usually ends in /v1"),
        ({"status": 401}, "401: .*set OPENAI_API_KEY"),
        ({"status": 400}, "400: "),
    ],
)
def test_a_server_that_is_no_judge_is_told_in_one_line(
    manners: dict[str, object], told: str, serve: Serve, endpoint: Callable[..., Endpoint]
) -> None:
    with pytest.raises((ModelError, JudgeError), match=told) as caught:
        OpenAIReader(endpoint(serve(**manners)))
    assert "\n" not in str(caught.value)


def test_a_wrong_address_is_told(endpoint: Callable[..., Endpoint]) -> None:
    with pytest.raises(ModelError, match=r"at http://127\.0\.0\.1:9/v1, got Connection error"):
        OpenAIReader(endpoint(url="http://127.0.0.1:9/v1", retries=1))


def test_a_provider_that_changes_is_noticed(serve: Serve, endpoint: Callable[..., Endpoint]) -> None:
    server = serve()
    reader = OpenAIReader(endpoint(server))
    server.manners.logprobs = False
    with pytest.raises(JudgeError, match="expected log-probabilities from openai:judge"):
        reader.read([RUBRIC.messages("Q?", "A.", NUMBERS)], quiet)


def test_the_cache_holds_answers_in_plain_sight(
    serve: Serve, endpoint: Callable[..., Endpoint], tmp_path: Path
) -> None:
    import sqlite3

    endpoint(serve()).ask({"messages": [{"role": "user", "content": "hello"}]})
    ((answer,),) = sqlite3.connect(tmp_path / "answers.sqlite").execute("SELECT answer FROM answers").fetchall()
    assert json.loads(answer)[0] == "57"
