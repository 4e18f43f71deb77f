"""A request under way, and what its replies tell."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from personavec.server.api.echo import Echo
from personavec.server.api.protocol import AskedBody
from personavec.server.catalogue import Applied, Seen
from personavec.server.reply import News
from personavec.server.writing.job import Job

GRACE = 5.0
"""Seconds after a deadline within which the engine ends a reply; later it is ended without it."""


@dataclass
class Exchange:
    """A request under way, and all its replies."""

    id: str
    body: AskedBody
    messages: list[dict[str, Any]]
    conversation: str
    turn: int
    applied: Applied
    watched: tuple[Seen, ...]
    prompts: list[list[Job]] = field(default_factory=list)
    """The replies to each prompt."""
    echoes: list[Echo] = field(default_factory=list)
    """Each prompt as the answer repeats it; none where it does not."""
    began: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    first_token: float | None = None
    closing: "asyncio.Task[list[dict[str, Any]]] | None" = None
    _news: "asyncio.Queue[tuple[int, News]]" = field(default_factory=asyncio.Queue)

    @cached_property
    def jobs(self) -> list[Job]:
        """All replies, in the order of their choices."""
        return [job for jobs in self.prompts for job in jobs]

    def prompt_of(self, index: int) -> int:
        """Which prompt a reply is to."""
        return index // self.body.n

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each once."""
        return sum(len(jobs[0].prompt) for jobs in self.prompts)

    @property
    def tokens_reused(self) -> int:
        """Those among them that an earlier conversation began with, so that they were not read again."""
        return sum(jobs[0].reused for jobs in self.prompts)

    def teller(self, index: int) -> Any:
        """What the engine's thread calls for a reply."""
        loop = asyncio.get_running_loop()

        def tell(news: News) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._news.put_nowait, (index, news))

        return tell

    async def news(self) -> AsyncIterator[tuple[int, News]]:
        """What the replies get, with the index of each, until all are over."""
        left = len(self.jobs)
        while left:
            try:
                index, news = await asyncio.wait_for(self._news.get(), max(1.0, self.latest - time.monotonic()))
            except TimeoutError:  # the engine is stuck: whoever waits is answered all the same
                if not self.expire():
                    return
                continue
            self.first_token = self.first_token or time.monotonic()
            left -= news.over
            yield index, news

    @property
    def latest(self) -> float:
        """When the engine has ended every reply, by the clock of `time.monotonic`."""
        return max(job.deadline for job in self.jobs) + GRACE

    def expire(self) -> bool:
        """End replies that the engine should have ended; whether there were any."""
        late = [job for job in self.jobs if job.reply.finish is None]
        for job in late:
            job.end("deadline")
        return bool(late)

    def cancel(self) -> None:
        """The client is gone."""
        for job in self.jobs:
            job.cancelled = True

    def shared(self) -> dict[str, Any]:
        """What an answer says of all replies."""
        return {
            "conversation": self.conversation,
            "turn": self.turn,
            "steering": self.applied.descriptions,
            "warnings": self.applied.warnings,
        }

    def projections(self, index: int) -> dict[str, dict[str, Any]]:
        """By vector what was read at a reply: layer, prompt_last, response_avg and tokens."""
        read = self.jobs[index].reply.read
        by_vector = {}
        for place, direction in enumerate(self.watched):
            # a steering that is far too large makes projections infinite, for which JSON has no word
            values = [row[place] if math.isfinite(row[place]) else None for row in read]
            tokens = [value for value in values[1:] if value is not None]
            by_vector[direction.key] = {
                "layer": direction.layer,
                "prompt_last": values[0] if values else None,
                "response_avg": sum(tokens) / len(tokens) if tokens else None,
                "tokens": values[1:],
            }
        return by_vector
