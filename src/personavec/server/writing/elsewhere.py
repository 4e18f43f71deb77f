"""Replies that a model elsewhere writes: its servers batch them by themselves, so here they only wait for room."""

import asyncio
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.engines.servers import Away, ModelServer
from personavec.model.engines.vllm import VllmEngine
from personavec.server.reply import Logprobs
from personavec.server.writing.engine import STUCK
from personavec.server.writing.job import Full, Job, reason
from personavec.server.writing.prefixes import Prefixes
from personavec.steering.orders import make_orders

LOOK = 0.05
"""Seconds between looks at who has left, or waits too long."""
LATE = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Pauses before each look for the readings of a reply that was ended here: its server may still be at work on it."""


class RemoteEngine:
    """The interface of `Engine`, for a model behind servers.

    What was read of a reply comes when it is over. A server that is away before the first token of a reply leaves it to
    another one; later than that, the reply ends with an error.
    """

    holds_forms = False
    """Whether replies can be held to a form."""

    def __init__(self, model: ChatModel, rows: int = 16, queue: int = 64) -> None:
        """Start the thread.

        Args:
            model: One with an engine, see `connect`.
            rows: Most replies that are written at once.
            queue: Most replies that may wait.

        Raises:
            ModelError: It has none that serves.
        """
        if not isinstance(model.engine, VllmEngine):
            raise ModelError(f"expected a model behind vLLM's servers, got {model.placement}; pass --engine vllm:URL")
        self.model, self.rows, self.queue = model, rows, queue
        self.prefixes = Prefixes(0)
        self.most, self.out_of_memory = rows, 0
        self.running = self.queued = 0
        self._elsewhere = model.engine
        self._jobs: set[Job] = set()
        self._lock, self._closing = threading.Lock(), False
        self._loop = asyncio.new_event_loop()
        self._servers: list[ModelServer] = []
        self._load: Counter[str] = Counter()
        self._away: set[str] = set()
        self._room = asyncio.Semaphore(rows)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._closing

    def submit(self, *prompts: Sequence[Job]) -> None:
        """Queue replies, all or none.

        Raises:
            Full: Ask again later, or elsewhere.
        """
        jobs = [job for each in prompts for job in each]
        with self._lock:
            if self._closing:
                raise Full("expected a running server, got one that shuts down; ask another one")
            if self.queued + len(jobs) > self.queue:
                raise Full(f"expected room in the queue of {self.queue}, got {self.queued} waiting; ask later")
            self.queued += len(jobs)
            self._jobs.update(jobs)
        for job in jobs:
            asyncio.run_coroutine_threadsafe(self._serve(job), self._loop)

    def close(self, seconds: float) -> None:
        """Take no more requests, give those under way so many seconds, and end the rest."""
        with self._lock:
            self._closing = True
            jobs = [*self._jobs]
        until = time.monotonic() + seconds
        for job in jobs:
            job.deadline = min(job.deadline, until)
        while self._jobs and time.monotonic() < until + STUCK:
            time.sleep(LOOK)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STUCK)
        for job in jobs:
            job.end("deadline")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _serve(self, job: Job) -> None:
        """See a reply to its end, whatever that is."""
        task = asyncio.create_task(self._take(job))
        try:
            while not (await asyncio.wait({task}, timeout=LOOK))[0]:
                if job.cancelled or time.monotonic() > job.deadline:
                    task.cancel()
            if not task.cancelled() and (error := task.exception()) is not None:
                job.end("error", reason(error))
            job.end("cancelled" if job.cancelled else "deadline")
        finally:
            with self._lock:
                self._jobs.discard(job)

    async def _take(self, job: Job) -> None:
        """Wait for room, then for a server that is there."""
        waits = True
        try:
            async with self._room:
                self._count(waiting=-1, running=1)
                waits = False
                try:
                    await self._write_somewhere(job)
                finally:
                    self._count(running=-1)
        finally:
            if waits:
                self._count(waiting=-1)

    def _count(self, waiting: int = 0, running: int = 0) -> None:
        with self._lock:
            self.queued += waiting
            self.running += running

    async def _write_somewhere(self, job: Job) -> None:
        """By the server with the fewest replies; by the next one if that is away.

        Raises:
            ModelError: All of them are away, or one went in the middle of the reply.
        """
        if not self._servers:
            self._servers = [ModelServer(url) for url in self._elsewhere.servers.urls]
        failed: Away | None = None
        for server in sorted(self._servers, key=lambda each: (each.url in self._away, self._load[each.url])):
            self._load[server.url] += 1
            try:
                if server.url in self._away:
                    await self._elsewhere.servers.meet(server)
                    self._away.discard(server.url)
                await self._write(job, server)
                return
            except Away as error:
                self._away.add(server.url)
                failed = error
                if job.reply.ids:
                    break
            finally:
                self._load[server.url] -= 1
        raise ModelError(f"expected a server that writes the reply, got none ({failed}); ask again later")

    async def _write(self, job: Job, server: ModelServer) -> None:
        """One reply by one server."""
        reply, name = job.reply, uuid.uuid4().hex
        (order,) = make_orders([(job.prompt, job.steering, job.seed)])
        if job.scores_prompt:
            top = job.top_logprobs or 0
            job.prompt_logprobs = _of_prompt(job.prompt, await self._elsewhere.prompt_logprobs(server, order, top), top)
        watch = [(direction.vector, direction.layer) for direction in job.watch]
        parts = self._elsewhere.stream(server, order, job.sampling, watch, job.top_logprobs, name)
        async with aclosing(parts):
            async for part in parts:
                if ended := part["finish_reason"]:
                    await self._read(job, server, name)
                told = _logprobs(part, job.top_logprobs)
                for token, logprobs in zip(part["token_ids"], told, strict=True):
                    reply.add(token, logprobs)
                    if reply.finish:
                        break
                if reply.finish or ended:
                    break
                job.tell(reply.news())
        if reply.finish is None:
            raise Away(f"a reply that ended by {ended}")
        if not ended:  # a stop text, of which servers know nothing
            await self._read(job, server, name)
        # what was read to draw each token, an end of turn included; where steps overlap there may be more
        del reply.read[max(1, len(reply.ids) + (token in self.model.stop_ids)) :]
        job.tell(reply.news())

    async def _read(self, job: Job, server: ModelServer, name: str) -> None:
        """Take over the projections of a reply that is over; none if its server has lost them."""
        for pause in LATE if job.watch else ():
            await asyncio.sleep(pause)
            if (read := await self._elsewhere.projections(server, name)) is not None:
                job.reply.read = read
                return


def _logprobs(part: dict[str, Any], top: int | None) -> list[Logprobs | None]:
    """Of each token of a part, as far as they were asked for."""
    if top is None:
        return [None] * len(part["token_ids"])
    return [
        Logprobs(
            each["token_id"],
            each["logprob"],
            tuple((other["token_id"], other["logprob"]) for other in _ranked(each["top_logprobs"])[:top]),
        )
        for each in part["logprobs"]["content"]
    ]


def _of_prompt(prompt: Sequence[int], told: Sequence[dict[int, float]], top: int) -> list[Logprobs]:
    """Of each token; at the first one there is nothing to tell."""
    scores = [Logprobs(prompt[0], math.nan, ())]
    for token, at in zip(prompt[1:], told, strict=True):
        ranked = sorted(at.items(), key=lambda one: -one[1])
        scores.append(Logprobs(token, at[token], tuple(ranked[:top])))
    return scores


def _ranked(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The drawn token comes first in what vLLM tells, whatever its rank."""
    return sorted(told, key=lambda each: -each["logprob"])
