"""What providers do to a judge: filters, refusals, errors under a status of 200, ways of asking that they forbid."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.served import Planted, Server

from personavec.errors import JudgeError, ModelError
from personavec.judges.openai import SAMPLES, OpenAIReader, probe
from personavec.judges.rubric import NUMBERS, Rubric
from personavec.model import endpoint as module
from personavec.model.endpoint import Answer, Endpoint, Failure

RUBRIC = Rubric("Rate how warm the reply is.", refusable=True)
Answering = Callable[[dict[str, Any], str], Response | None]


class Provider(Server):
    """A server whose answers a test decides: by the body of the request and what it asks; None is the usual one."""

    answering: Answering = staticmethod(lambda body, asked: None)

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.seen[json.dumps(body, sort_keys=True)] += 1
        if (answer := self.answering(body, body["messages"][-1]["content"])) is not None:
            return answer
        return JSONResponse(self._answer(body))

    @property
    def calls(self) -> int:
        return sum(self.seen.values())


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider(Planted(words=lambda asked, seed: "57" if "exactly" in asked else "40"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def at(provider: Provider, tmp_path: Path) -> Callable[..., Endpoint]:
    return lambda **options: Endpoint("judge", provider.url, tmp_path / "a.sqlite", timeout=5.0, **options)


def said(content: Any, finish: str | None = "stop", **message: Any) -> Response:
    told = {"role": "assistant", "content": content, **message}
    return JSONResponse({"choices": [{"message": told, "finish_reason": finish}], "usage": {"total_tokens": 9}})


def denied(status: int, **error: Any) -> Response:
    return JSONResponse({"error": {"message": "no", **error}}, status)


def ask(reader: OpenAIReader, replies: list[str]) -> list[tuple[float | None, str | None]]:
    scores = reader.read([RUBRIC.messages("Q?", reply, reader.scale) for reply in replies], lambda _: None)
    return [(score.value, score.why) for score in scores]


def wordy(body: dict[str, Any]) -> Response | None:
    """No log-probabilities are given."""
    return denied(400, message="unsupported parameter") if "logprobs" in body else None


def test_a_reasoning_model_is_asked_for_one_number_without_a_limit(
    provider: Provider, at: Callable[..., Endpoint]
) -> None:
    def answering(body: dict[str, Any], asked: str) -> Response | None:
        short = body.get("max_tokens") or body.get("max_completion_tokens")
        return wordy(body) or (said("", "length") if short and short < 50 else None)

    provider.answering = answering
    reader = OpenAIReader(at())
    assert "one number" in reader.basis and ask(reader, ["a", "b"]) == [(40.0, None)] * 2


def test_a_server_that_names_no_number_is_no_judge(provider: Provider, at: Callable[..., Endpoint]) -> None:
    provider.answering = lambda body, asked: wordy(body) or said("I would rather not.")
    with pytest.raises(JudgeError, match="to answer a chat with a number, got 'I would rather not"):
        probe(at())


FILTERS = [
    (400, {"code": "content_filter", "message": "The response was filtered"}),
    (400, {"code": "invalid_prompt", "message": "flagged"}),
    (400, {"type": "invalid_request_error", "code": None, "message": "Output blocked by content filtering policy"}),
    (403, {"code": 403, "message": "This model requires moderation. Your input was flagged for violence"}),
    (400, {"code": "data_inspection_failed"}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "error"), FILTERS)
@pytest.mark.parametrize("mode", ["expected", "samples"])
def test_a_filtered_reply_costs_itself_alone_on_every_run(
    provider: Provider, at: Callable[..., Endpoint], status: int, error: dict[str, Any], mode: str
) -> None:
    """Two neighbours of twenty: five samples each are ten failures in a row."""

    def answering(body: dict[str, Any], asked: str) -> Response | None:
        if "terrible" in asked:
            return denied(status, **error)
        return wordy(body) if mode == "samples" else None

    provider.answering = answering
    replies = [f"reply {n}" + " terrible" * (n in (9, 10)) for n in range(20)]
    for _ in range(3):
        whys = [why for _, why in ask(OpenAIReader(at(concurrency=1)), replies)]
        assert [n for n, why in enumerate(whys) if why == "filtered"] == [9, 10] and "failed" not in whys
    calls = provider.calls
    ask(OpenAIReader(at()), replies)
    assert provider.calls - calls <= 13, "only ways that are refused are tried again: a filter's word is final"


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 24), max_size=24), st.sampled_from([400, 413, 422, 500]))
def test_requests_that_fail_for_what_they_hold_do_not_stop_the_others(
    provider: Provider, tmp_path: Path, bad: set[int], status: int
) -> None:
    """Whatever the code, and wherever they stand: next to each other in a second run, as the others are kept."""
    provider.answering = lambda body, asked: denied(status) if asked.endswith("!") else None
    asked = [{"messages": [{"role": "user", "content": f"{n}{'!' * (n in bad)}"}], "n": len(bad)} for n in range(25)]
    for _ in range(2):
        at = Endpoint("judge", provider.url, tmp_path / "a.sqlite", concurrency=3, retries=0)
        answers = at.ask_all(asked)
        assert {n for n, answer in enumerate(answers) if isinstance(answer, Failure)} == bad


def test_a_server_that_answers_nothing_stops_the_run(provider: Provider, at: Callable[..., Endpoint]) -> None:
    provider.answering = lambda body, asked: denied(400, message="no such parameter: max_tokens")
    asked = [{"messages": [{"role": "user", "content": str(n)}], "max_tokens": 9} for n in range(40)]
    with pytest.raises(ModelError, match=r"10 failures in a row, the last: 400: .*no such parameter"):
        at(concurrency=1).ask_all(asked)
    assert provider.calls == 11


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: said(None, "content_filter"), "filtered"),
        (lambda: said("", "content_filter"), "filtered"),
        (lambda: said(None, "stop", refusal="I cannot judge this."), "refused"),
        (lambda: said(None, "tool_calls"), "unparseable"),
        (lambda: said("57", None), "unparseable"),
    ],
)
@pytest.mark.parametrize("mode", ["expected", "samples"])
def test_an_answer_that_holds_no_score_is_one_reply_without(
    provider: Provider, at: Callable[..., Endpoint], answer: Callable[[], Response], why: str, mode: str
) -> None:
    def answering(body: dict[str, Any], asked: str) -> Response | None:
        if "terrible" in asked:
            return answer()
        return wordy(body) if mode == "samples" else None

    provider.answering = answering
    scores = ask(OpenAIReader(at()), ["fine", "terrible", "good"])
    expected = [(57.0, None)] if (mode, why) == ("samples", "unparseable") and answer().body.count(b"57") else []
    assert scores[1] in [(None, why), *expected] and all(why != "failed" for _, why in scores)


def test_log_probabilities_that_end_without_a_reason_are_an_error(
    provider: Provider, at: Callable[..., Endpoint]
) -> None:
    reader = OpenAIReader(at())
    provider.answering = lambda body, asked: said("57")
    with pytest.raises(JudgeError, match="its server has changed"):
        ask(reader, ["fine"])


@pytest.mark.parametrize("code", [402, "402", 401, 404])
def test_an_error_under_status_200_is_quoted_and_taken_for_what_it_is(
    provider: Provider, at: Callable[..., Endpoint], code: Any
) -> None:
    error = {"message": "Insufficient credits. Add more at https://example.org", "code": code}
    provider.answering = lambda body, asked: JSONResponse({"error": error})
    with pytest.raises(ModelError, match=rf"got {code}: Insufficient credits") as caught:
        probe(at())
    assert provider.calls == 1 and "KeyError" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["body", "choice"])
def test_a_busy_server_that_says_so_under_status_200_is_waited_for(
    provider: Provider, at: Callable[..., Endpoint], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.01)
    busy = {"error": {"message": "try later", "code": 503}}
    body = busy if place == "body" else {"choices": [busy | {"message": {"content": ""}, "finish_reason": "error"}]}
    provider.answering = lambda _, asked: JSONResponse(body) if provider.calls < 4 else None
    usage = (made := at()).usage
    assert isinstance(made.ask({"messages": [{"role": "user", "content": "hi"}]}), Answer) and usage.retries == 3
    provider.answering = lambda _, asked: JSONResponse(body)
    failed = at(retries=2).ask({"messages": [{"role": "user", "content": "you"}]})
    assert isinstance(failed, Failure) and failed.reason.startswith("503: try later")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "thinking", "thinking": "At least 50"}, {"type": "text", "text": ""}], ""),
        ([{"type": "thinking", "text": "50"}, {"type": "text", "text": "8"}, {"type": "text", "text": "5"}], "85"),
        ([{"type": "reasoning", "text": "50"}, {"type": "output_text", "text": "85"}], "85"),
        (["8", {"text": "5"}], "85"),
        ([], ""),
        (None, ""),
    ],
)
def test_of_content_in_parts_the_text_alone_counts(
    provider: Provider, at: Callable[..., Endpoint], content: Any, text: str
) -> None:
    provider.answering = lambda body, asked: said(content)
    answer = at().ask({"messages": [{"role": "user", "content": "hi"}]})
    assert isinstance(answer, Answer) and answer.text == text


@pytest.mark.parametrize(
    ("forbidden", "name", "lacks"),
    [
        ({}, "expected value on 0-100", []),
        ({"top_logprobs": 5}, "expected value over 5 tokens on 0-100", ["no more than 5 log-probabilities"]),
        ({"top_logprobs": 10}, "expected value over 8 tokens on 0-100", ["no more than 8"]),
        ({"seed": 0}, "expected value on 0-100", ["no seed"]),
        ({"seed": 0, "logprobs": 0}, f"mean of {SAMPLES} samples on 0-100", ["no log-probabilities", "no seed"]),
        ({"seed": 0, "max_tokens": 0, "top_logprobs": 5}, "expected value over 5 tokens on 0-100", ["no seed"]),
        ({"temperature": 0}, "one number on 0-100", ["as the provider draws it"]),
    ],
)
def test_the_best_way_that_is_allowed_is_taken_and_what_is_lost_is_said(
    provider: Provider,
    at: Callable[..., Endpoint],
    forbidden: dict[str, int],
    name: str,
    lacks: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answering(body: dict[str, Any], asked: str) -> Response | None:
        beyond = [each for each, most in forbidden.items() if each in body and (not most or body[each] > most)]
        return denied(422, message="Unprocessable") if beyond else None

    provider.answering = answering
    reader = OpenAIReader(at())
    assert name in reader.basis
    told = capsys.readouterr().err
    assert all(each in told for each in lacks) and bool(told) == bool(lacks)
    assert all(why is None or why in ("refused", "unparseable") for _, why in ask(reader, ["a", "b"]))
    if "seed" in forbidden and "samples" in name:
        assert provider.seen[max(provider.seen, key=lambda each: provider.seen[each])] >= SAMPLES, "each is a draw"
    assert NUMBERS is reader.scale
