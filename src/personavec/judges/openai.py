"""`openai:MODEL`: a judge behind any OpenAI-compatible server, asked in the best way that the server allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from personavec.errors import JudgeError
from personavec.judges.judge import Progress, Score
from personavec.judges.rubric import LETTERS, NUMBERS, Message, Scale, expectation, parse
from personavec.model.endpoint import Answer, Endpoint, Failure, Request

TOP = 20
"""Log-probabilities asked for: the most that OpenAI gives."""
SAMPLES = 5
"""Answers whose mean is the score where there are no log-probabilities."""
ANSWER_TOKENS = 16
"""Room for a number in words such as "Score: 85"."""


@dataclass(frozen=True)
class Mode:
    """How a server is asked, decided once by trying."""

    kind: Literal["expected", "samples", "number"]
    """expected: from log-probabilities. samples: mean of some answers. number: one answer."""
    scale: Scale
    limit: str = "max_tokens"
    """Name of the parameter that bounds the answer: newer models refuse the older one."""

    @property
    def name(self) -> str:
        """As judge.json and every table show it."""
        told = {"expected": "expected value", "samples": f"mean of {SAMPLES} samples", "number": "one number"}
        return f"{told[self.kind]} on {self.scale.name}"

    def requests(self, messages: list[Message]) -> list[Request]:
        """What to ask of one reply."""
        if self.kind == "number":  # reasoning models take neither temperature nor a short limit
            return [{"messages": messages}]
        if self.kind == "samples":
            shared = {"messages": messages, "temperature": 1.0, self.limit: ANSWER_TOKENS}
            return [shared | {"seed": seed} for seed in range(SAMPLES)]
        return [_expected(messages, self.limit)]

    def read(self, answers: Sequence[Answer | Failure], judge: str) -> Score:
        """The score that the answers make."""
        failed = [answer.reason for answer in answers if isinstance(answer, Failure)]
        if failed:
            return Score(None, judge, {"error": failed[0]}, "failed")
        given = [answer for answer in answers if isinstance(answer, Answer)]
        if self.kind == "expected":
            if given[0].top is None:
                raise JudgeError(
                    f"expected log-probabilities from {judge}, as it gave at first, got none; its server has changed: "
                    "run again into another --out"
                )
            value, why, mass = expectation(given[0].top, self.scale)
            return Score(value, judge, {"mass": round(mass, 6)}, why)
        parsed = [parse(answer.text) for answer in given]
        values = [value for value, _ in parsed if value is not None]
        if 2 * len(values) > len(parsed):
            return Score(fmean(values), judge, {"samples": values})
        refused = sum(why == "refused" for _, why in parsed)
        return Score(
            None,
            judge,
            {"samples": values, "said": given[0].text[:200]},
            "refused" if 2 * refused > len(parsed) else "unparseable",
        )


def probe(endpoint: Endpoint) -> Mode:
    """Find out how a server can be asked: with log-probabilities where every label is one token, else in words.

    Raises:
        ModelError: The server cannot be used at all.
        JudgeError: It answers, but to no way of asking.
    """
    limits = ("max_tokens", "max_completion_tokens")
    reason = ""
    for limit in limits:
        for scale in (NUMBERS, LETTERS):
            answers = [endpoint.first(_expected(_say(label), limit)) for label in scale.probes]
            tops = [answer.top if isinstance(answer, Answer) else None for answer in answers]
            if not all(tops):
                break  # no log-probabilities on one scale: on none
            if all(
                label in {token.strip() for token, _ in top or ()}
                for label, top in zip(scale.probes, tops, strict=True)
            ):
                return Mode("expected", scale, limit)
    for mode in (*(Mode("samples", NUMBERS, limit) for limit in limits), Mode("number", NUMBERS)):
        answer = endpoint.first(mode.requests(_say("57"))[0])
        if isinstance(answer, Answer):
            return mode
        reason = answer.reason
    raise JudgeError(
        f"expected {endpoint.model} to answer a chat, got {reason}; check --judge-url and the model's name"
    )


class OpenAIReader:
    """A rubric judge's reader behind a server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._mode = endpoint, probe(endpoint)
        self.id = f"openai:{endpoint.model}"
        self.scale = self._mode.scale
        self.basis = f"{endpoint.model} at {endpoint.url or 'OpenAI'}, {self._mode.name}"

    def read(self, conversations: Sequence[list[Message]], progress: Progress) -> list[Score]:
        """Score what is asked in each conversation."""
        asked = [self._mode.requests(messages) for messages in conversations]
        each = len(asked[0]) if asked else 1
        calls = 0

        def tell(answered: int) -> None:
            nonlocal calls
            before, calls = calls, calls + answered
            progress(calls // each - before // each)

        said = self._endpoint.ask_all([request for requests in asked for request in requests], tell)
        return [self._mode.read(said[start : start + each], self.id) for start in range(0, len(said), each)]


def _expected(messages: list[Message], limit: str) -> Request:
    return {"messages": messages, "temperature": 0.0, "seed": 0, "logprobs": True, "top_logprobs": TOP, limit: 1}


def _say(label: str) -> list[Message]:
    return [{"role": "user", "content": f"Answer with exactly this and nothing else: {label}"}]
