"""`openai:MODEL`: a judge behind any OpenAI-compatible server, asked in the best way that the server allows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Literal

from personavec.errors import JudgeError
from personavec.judges.judge import Progress, Score, Why
from personavec.judges.rubric import LETTERS, NUMBERS, Message, Scale, expectation, parse
from personavec.model.endpoint import FILTER, REFUSAL, Answer, Endpoint, Failure, Request
from personavec.runs.progress import tell

TOPS = (20, 8, 5)
"""Log-probabilities asked for: the most that OpenAI gives, and the most of servers that give fewer."""
LIMITS = ("max_tokens", "max_completion_tokens")
WITHHELD: dict[str, Why] = {FILTER: "filtered", REFUSAL: "refused"}
"""How an answer ended that holds no score, whatever it says."""
ASKED = "57"
"""The number that a server is tried with."""
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
    seeded: bool = True
    """Whether the server takes a seed."""
    top: int = TOPS[0]
    """Log-probabilities that it gives."""

    @property
    def name(self) -> str:
        """As judge.json and every table show it."""
        expected = "expected value" + f" over {self.top} tokens" * (self.top < TOPS[0])
        ways = {"expected": expected, "samples": f"mean of {SAMPLES} samples", "number": "one number"}
        return f"{ways[self.kind]} on {self.scale.name}"

    @property
    def lacks(self) -> list[str]:
        """What was given up against the best way, in words."""
        return {
            "expected": [f"no more than {self.top} log-probabilities"] * (self.top < TOPS[0]),
            "samples": [f"no log-probabilities of labels, so {SAMPLES} calls a reply"],
            "number": ["no log-probabilities and no temperature, so one answer as the provider draws it"],
        }[self.kind] + ["no seed, so that scores differ from run to run"] * (not self.seeded and self.kind != "number")

    def requests(self, messages: list[Message]) -> list[Request]:
        """What to ask of one reply."""
        if self.kind == "number":  # reasoning models take neither temperature nor a short limit
            return [{"messages": messages}]
        if self.kind == "samples":
            shared = {"messages": messages, "temperature": 1.0, self.limit: ANSWER_TOKENS}
            # a name with "_" is not sent: it tells the draws apart
            return [shared | {"seed" if self.seeded else "_draw": draw} for draw in range(SAMPLES)]
        seed = {"seed": 0} if self.seeded else {}
        logprobs = {"logprobs": True, "top_logprobs": self.top}
        return [{"messages": messages, "temperature": 0.0, self.limit: 1} | seed | logprobs]

    def read(self, answers: Sequence[Answer | Failure], judge: str) -> Score:
        """The score that the answers make."""
        failed = [answer.reason for answer in answers if isinstance(answer, Failure)]
        if failed:
            return Score(None, judge, {"error": failed[0]}, "failed")
        given = [answer for answer in answers if isinstance(answer, Answer)]
        if self.kind == "expected":
            return self._expectation(given[0], judge)
        parsed = [(None, why) if (why := WITHHELD.get(answer.finish)) else parse(answer.text) for answer in given]
        values = [value for value, _ in parsed if value is not None]
        if 2 * len(values) > len(parsed):
            return Score(fmean(values), judge, {"samples": values})
        whys = Counter(why for _, why in parsed if why)
        return Score(None, judge, {"samples": values, "said": given[0].text[:200]}, whys.most_common(1)[0][0])

    def _expectation(self, answer: Answer, judge: str) -> Score:
        if answer.top is not None:
            value, why, mass = expectation(answer.top, self.scale)
            return Score(value, judge, {"mass": round(mass, 6)}, why)
        if answer.finish in ("stop", "length"):
            raise JudgeError(
                f"expected log-probabilities from {judge}, as it gave at first, got none; its server has changed: run "
                "again into another --out"
            )
        said = {"said": answer.text[:200], "finish": answer.finish}
        return Score(None, judge, said, WITHHELD.get(answer.finish, "unparseable"))


def probe(endpoint: Endpoint) -> Mode:
    """Find out how a server can be asked: with log-probabilities where every label is one token, else in words.

    Of the ways that it accepts the best one is taken, by what it answers: it has to say what it was asked to say.

    Raises:
        ModelError: The server cannot be used at all.
        JudgeError: It answers, but to no way of asking.
    """
    if mode := _expected(endpoint):
        return mode
    reason = ""
    numbers: list[tuple[Mode, str]] = []
    for mode in (*(Mode("samples", NUMBERS, *way) for way in product(LIMITS, (True, False))), Mode("number", NUMBERS)):
        answer = endpoint.first(mode.requests(_say(ASKED))[0])
        if isinstance(answer, Failure):
            reason = answer.reason
            continue
        value, _ = parse(answer.text)
        if value == float(ASKED):
            return mode
        reason = f"{answer.text[:80]!r} (ended by {answer.finish}) when asked to say {ASKED}"
        if value is not None:
            numbers.append((mode, answer.text))
    if numbers:  # it names numbers, if not the one asked for
        return numbers[0][0]
    raise JudgeError(
        f"expected {endpoint.model} to answer a chat with a number, got {reason}; check --judge-url and the name"
    )


def _expected(endpoint: Endpoint) -> Mode | None:
    """The best way to log-probabilities that a server takes, on the scale whose labels are tokens of its model."""
    for top, seeded, limit in product(TOPS, (True, False), LIMITS):
        for scale in (NUMBERS, LETTERS):
            mode = Mode("expected", scale, limit, seeded, top)
            answers = [endpoint.first(mode.requests(_say(scale.probes[0]))[0])]
            if isinstance(answers[0], Failure):
                break  # this way is refused
            answers += [endpoint.first(mode.requests(_say(label))[0]) for label in scale.probes[1:]]
            tops = [{token.strip() for token, _ in each.top or ()} for each in answers if isinstance(each, Answer)]
            if all(label in told for label, told in zip(scale.probes, tops, strict=False)) and len(tops) == len(
                answers
            ):
                return mode
            if not all(tops):
                return None  # it takes the request, and gives none
        else:
            return None
    return None


class OpenAIReader:
    """A rubric judge's reader behind a server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._mode = endpoint, probe(endpoint)
        if lacks := self._mode.lacks:
            tell(f"{endpoint.model} is asked for {self._mode.name}: it gives {'; '.join(lacks)}")
        self.id = f"openai:{endpoint.model}"
        self.scale = self._mode.scale
        self.basis = f"{endpoint.model} at {endpoint.url or 'OpenAI'}, {self._mode.name}"

    def read(self, conversations: Sequence[list[Message]], progress: Progress) -> list[Score]:
        """Score what is asked in each conversation."""
        asked = [self._mode.requests(messages) for messages in conversations]
        each = len(asked[0]) if asked else 1
        calls = 0

        def count(answered: int) -> None:
            nonlocal calls
            before, calls = calls, calls + answered
            progress(calls // each - before // each)

        said = self._endpoint.ask_all([request for requests in asked for request in requests], count)
        return [self._mode.read(said[start : start + each], self.id) for start in range(0, len(said), each)]


def _say(label: str) -> list[Message]:
    return [{"role": "user", "content": f"Answer with exactly this and nothing else: {label}"}]
