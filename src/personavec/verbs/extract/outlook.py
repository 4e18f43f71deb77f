"""How long an extraction takes here: told before it begins, and again after each of its parts."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from personavec.model.logits import reply_logprobs
from personavec.runs.progress import tell
from personavec.steering.generate import generate
from personavec.steering.rollouts import Interview

PROBE_QUESTIONS, PROBE_REPLIES = 3, 8
"""Questions that the probe asks, and replies to each: as many as share a prompt when they are judged."""


class Load(NamedTuple):
    """What a part of an extraction has to do."""

    replies: int
    """To write."""
    readings: int
    """Of replies: a judge reads each several times."""


def speed(interview: Interview, questions: Sequence[str]) -> tuple[float, float]:
    """Seconds to write a reply and to read one, here; the very first reply does not count."""
    plans = interview.answers(questions[:PROBE_QUESTIONS], PROBE_REPLIES, draw="probe", extra={})
    requests = [plan.request for plan in plans]
    generate(interview.model, requests[:1], interview.sampling)
    began = time.monotonic()
    replies = generate(interview.model, requests, interview.sampling)
    written = time.monotonic()
    reply_logprobs(interview.model, [request.prompt for request in requests], [reply.ids for reply in replies])
    return (written - began) / len(requests), (time.monotonic() - written) / len(requests)


class Outlook:
    """The time ahead: parts that are done correct the estimate of the rest."""

    def __init__(self, parts: Mapping[str, Load], interview: Interview, questions: Sequence[str]) -> None:
        self._ahead: dict[str, float] = {}
        self._estimated = 0.0
        if not parts or interview.model.engine is not None:  # how much is done at once elsewhere, nobody here knows
            return
        reply, reading = speed(interview, questions)
        self._ahead = {name: work.replies * reply + work.readings * reading for name, work in parts.items()}
        self._began = time.monotonic()
        work = Load(*(sum(column) for column in zip(*parts.values(), strict=True)))
        tell(
            f"about {_minutes(sum(self._ahead.values()))} here: {work.replies:,} replies to write, and "
            f"{work.readings:,} readings of replies to judge them and to find the vector"
        )

    def done(self, part: str) -> None:
        """Tell how much is left after a part; silent after the last, and of parts that were there before."""
        if part in self._ahead:
            self._estimated += self._ahead.pop(part)
            slower = (time.monotonic() - self._began) / self._estimated
            if self._ahead:
                tell(f"{part} done; in all about {_minutes(sum(self._ahead.values()) * slower)} to go")


def _minutes(seconds: float) -> str:
    """A time as people say it."""
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
