"""Servers of one model: many calls at once, each where there is room, and again where a server was away."""

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

from personavec.errors import ModelError
from personavec.model.completion import passes
from personavec.runs.progress import tell

SLOTS = 512
"""Calls at once to each server: it plans its batches by itself, and more than it runs have to wait there."""
TRIES = 8
"""How often a call may fail whose server was away or busy."""
PATIENCE = 600.0
"""Seconds to wait while no server is there."""
TIMEOUT = 1800.0
"""Seconds for one call, the waiting in the server's queue included."""
SHORT = 20.0
"""Seconds for a call that finds out whether a server is there."""
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between looks at a server that is away; the last one is repeated."""
KEY = "VLLM_API_KEY"
OTHER_FILES = 512
"""Files that a process may have open besides its connections."""


class Away(Exception):
    """The server is not there, or not now."""


class ServerRefusal(ModelError):
    """The server is there and will not do it."""

    status = 0


class ModelServer:
    """One server, inside of an event loop."""

    def __init__(self, url: str) -> None:
        import openai

        self.url = url
        self.here = asyncio.Event()
        self.here.set()
        self.lock = asyncio.Lock()
        """For what is to be done once."""
        key = os.environ.get(KEY, "").strip() or "none"
        self.client = openai.AsyncOpenAI(api_key=key, base_url=url, timeout=TIMEOUT, max_retries=0)

    async def get(self, path: str) -> Any:
        """What the server answers.

        Raises:
            Away: It is not there.
            ServerRefusal: It is, and answers with an error.
        """
        return await self._answer(self.client.get(path, cast_to=object, options={"timeout": SHORT}))

    async def post(self, path: str, body: Mapping[str, Any] | bytes) -> Any:
        """What the server answers to an object, or to the bytes of a file; errors as of `get`."""
        sent: Any = {"content": body} if isinstance(body, bytes) else {"body": body}
        return await self._answer(self.client.post(path, cast_to=object, **sent))

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Any]:
        """The parts of an answer as they come; who leaves early ends it there, too; errors as of `get`."""
        import openai

        with self._told():
            stream_cls = openai.AsyncStream[object]
            stream = await self.client.post(path, cast_to=object, body=body, stream=True, stream_cls=stream_cls)
            async with stream:
                async for part in stream:
                    yield part

    async def _answer(self, call: Awaitable[Any]) -> Any:
        with self._told():
            return await call

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What a call says of why it failed, in our words."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            said = error.body.get("message") if isinstance(error.body, Mapping) else None
            reason = " ".join(f"{error.status_code}: {said or error.message}".split())[:300]
            if passes(error.status_code):
                raise Away(reason) from error
            advice = f"set {KEY}" if error.status_code in (401, 403) else "see its log"
            refused = ServerRefusal(f"expected {self.url} to do what it is asked, got {reason}; {advice}")
            refused.status = error.status_code
            raise refused from error
        except openai.APIError as error:  # no connection, too late, or broken off
            raise Away(" ".join(f"{error.message} {error.__cause__ or ''}".split())[:300]) from error


Job = Callable[[ModelServer], Coroutine[Any, Any, Any]]


class Servers:
    """Several servers that do the same."""

    def __init__(self, urls: Sequence[str], greet: Job) -> None:
        """Call nobody yet.

        Args:
            urls: Their addresses.
            greet: Raises ModelError where a server is not the one that is wanted; done again when one comes back.
        """
        self.urls, self._greet = tuple(urls), greet

    def each(self, job: Job) -> list[Any]:
        """What every server answers.

        Raises:
            ModelError: One of them is away, or refuses.
        """

        async def ask(url: str) -> Any:
            server = ModelServer(url)
            async with server.client:
                try:
                    return await job(server)
                except Away as error:
                    raise ModelError(
                        f"expected a server at {url}, got none ({error}); start it, or leave it out"
                    ) from error

        async def ask_all() -> list[Any]:
            return list(await asyncio.gather(*(ask(url) for url in self.urls)))

        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop, as in a notebook
            return thread.submit(asyncio.run, ask_all()).result()

    def answers(self, jobs: Sequence[Job], slots: int = SLOTS) -> Iterator[list[tuple[int, Any]]]:
        """Do jobs side by side; yields those that are done, each with its place.

        Raises:
            ModelError: No server comes back, or one refuses; what was yielded is good.
        """
        if not jobs:
            return
        came: SimpleQueue[tuple[int, Any] | BaseException] = SimpleQueue()
        loop = asyncio.new_event_loop()  # in a thread: this one may have a loop, as in a notebook
        task = loop.create_task(_Shift(self, jobs, slots, came.put).work())

        def run() -> None:
            try:
                loop.run_until_complete(task)
            except BaseException as error:
                came.put(error)
            finally:
                loop.close()

        thread = threading.Thread(target=run, name="personavec-engine", daemon=True)
        thread.start()
        left = len(jobs)
        try:
            while left:
                group = [came.get()]
                while not came.empty():
                    group.append(came.get())
                done = [answer for answer in group if isinstance(answer, tuple)]
                left -= len(done)
                if done:
                    yield done
                for error in group:
                    if isinstance(error, BaseException):
                        raise error
        finally:
            if left:
                with suppress(RuntimeError):  # the loop has ended by itself
                    loop.call_soon_threadsafe(task.cancel)
            thread.join()

    async def meet(self, server: ModelServer) -> None:
        """Make sure that a server that came back is the one that went."""
        await server.get("/health")
        await self._greet(server)


def _room(connections: int) -> float:
    """Share of so many connections that this process may have; its limit of open files is raised as far as it can."""
    try:
        import resource
    except ImportError:  # Windows counts no connections
        return 1.0
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if 0 <= limit < wanted:
        limit = wanted if most < 0 else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    return 1.0 if limit < 0 else min(1.0, max(0, limit - OTHER_FILES) / connections)


class _Shift:
    """One run of jobs, inside of an event loop."""

    def __init__(
        self, servers: Servers, jobs: Sequence[Job], slots: int, put: Callable[[tuple[int, Any]], None]
    ) -> None:
        self._all, self._jobs, self._put = servers, jobs, put
        self._left = len(jobs)
        self._slots = min(len(jobs), max(1, int(slots * _room(SLOTS * len(servers.urls)))))
        self._failures: Counter[int] = Counter()
        self._line: asyncio.Queue[int] = asyncio.Queue()
        for place in range(len(jobs)):
            self._line.put_nowait(place)

    async def work(self) -> None:
        """Until all is done.

        Raises:
            ModelError: It cannot be.
        """
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._servers = [ModelServer(url) for url in self._all.urls]
        self._tasks = [asyncio.create_task(self._slot(each)) for _ in range(self._slots) for each in self._servers]
        try:
            await self._over
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for server in self._servers:
                await server.client.close()

    async def _slot(self, server: ModelServer) -> None:
        """Does one job after the other, where the server is there."""
        try:
            while True:
                await server.here.wait()
                place = await self._line.get()
                if not server.here.is_set():
                    self._line.put_nowait(place)
                    continue
                try:
                    answer = await self._jobs[place](server)
                except Away as error:
                    self._again(place, server, error)
                    continue
                self._put((place, answer))
                self._left -= 1
                if not self._left and not self._over.done():
                    self._over.set_result(None)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _again(self, place: int, server: ModelServer, error: Away) -> None:
        self._failures[place] += 1
        if self._failures[place] > TRIES:
            raise self._hopeless(server, f"{TRIES + 1} failures of one call, the last: {error}")
        self._line.put_nowait(place)
        if server.here.is_set():
            server.here.clear()
            self._tasks.append(asyncio.create_task(self._wait_for(server, error)))

    async def _wait_for(self, server: ModelServer, reason: Away) -> None:
        """Look after a server that is away until it is there again."""
        began, look = time.monotonic(), 0
        try:
            while True:
                await asyncio.sleep(PAUSES[min(look, len(PAUSES) - 1)])
                try:
                    await self._all.meet(server)
                except Away as error:
                    if not look:
                        tell(f"{server.url} is away ({reason}); waiting for it")
                    look += 1
                    away = not any(each.here.is_set() for each in self._servers)
                    if away and time.monotonic() - began > PATIENCE:
                        raise self._hopeless(server, f"none for {PATIENCE:.0f} seconds ({error})") from error
                else:
                    if look:
                        tell(f"{server.url} is there again")
                    server.here.set()
                    return
        except Exception as error:
            self._fail(error)

    def _hopeless(self, server: ModelServer, reason: str) -> ModelError:
        return ModelError(
            f"expected a server at {server.url}, got {reason}; start it again, then run the same command: what was "
            "written is kept"
        )
