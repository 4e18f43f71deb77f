"""Calls to an OpenAI-compatible server: side by side, retried, answered from a disk cache, within a budget, counted."""

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from urllib.parse import urlsplit

from personavec.errors import ModelError
from personavec.model.completion import error_of, is_filtered, passes, status_of, text_of

RETRIES = 8
"""Of 429, 5xx, time-outs and broken connections, with exponential backoff: some forty seconds in all."""
HASTY_RETRIES = 2
TIMEOUT = 120.0
"""Seconds for one attempt."""
LONGEST_WAIT = 8.0
"""Seconds before a call is made again whose answer has an error in its body."""
GARBLED_RETRIES = 2
"""Of answers that are not what the protocol promises."""
HOPELESS = 10
"""Calls that may fail in a row before the server is asked something harmless, and given up if that fails too."""
HARMLESS = [{"role": "user", "content": "Say hello."}]
FILTER, REFUSAL = "content_filter", "refusal"
"""Why an answer ended that holds none: the provider kept it back, or the model declined in a field of its own."""
KEY = "OPENAI_API_KEY"

Request = Mapping[str, Any]
"""Parameters of one chat completion, without the model."""


class Unusable(ModelError):
    """The server cannot be used at all."""

    status: int | None = None
    """Of its last answer, if it answered."""


class Answer(NamedTuple):
    """What the server said."""

    text: str
    finish: str
    """Why it ended: stop, length, content_filter, refusal …"""
    top: list[tuple[str, float]] | None = None
    """Likeliest first tokens with their log-probabilities; None where the server gave none."""


class Failure(NamedTuple):
    """One request that could not be answered, while others can."""

    reason: str
    status: int | None = None


@dataclass
class Usage:
    """What was asked of the server since this process began, answers from the cache aside."""

    calls: int = 0
    """Retries included."""
    retries: int = 0
    failed: int = 0
    cached: int = 0
    tokens: int = 0
    """Prompt and answer, as the server counts them."""


class CallLimits(TypedDict, total=False):
    """How a server may be asked; fields of an `Endpoint`."""

    concurrency: int
    max_calls: int | None
    max_tokens: int | None
    timeout: float


@dataclass
class Endpoint:
    """A model behind an OpenAI-compatible server.

    Answers are kept on disk by the content of the request, so that a killed run does not pay twice; the failures are
    not. The key comes from the environment alone.
    """

    model: str
    url: str | None
    """Base address, usually ending in /v1; None is OpenAI's."""
    cache: Path
    """SQLite file."""
    concurrency: int = 32
    max_calls: int | None = None
    """Budget of this process."""
    max_tokens: int | None = None
    """Budget of this process."""
    timeout: float = TIMEOUT
    """Seconds for one attempt."""
    retries: int = RETRIES
    usage: Usage = field(default_factory=Usage)
    _uncounted: bool = field(default=False, init=False)
    """Whether an answer came without its tokens counted."""

    def __post_init__(self) -> None:
        self.url = self.url or os.environ.get("OPENAI_BASE_URL") or None
        self._secret = os.environ.get(KEY, "").strip()
        if not (self.url or self._secret):
            raise ModelError(
                f"expected a key in the environment variable {KEY}, got none; set it, or pass the address of a server "
                "that needs none (--judge-url, --writer-url)"
            )
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise ModelError(f"expected a key of plain characters in {KEY}, got others; copy it again")
        if self.url is not None:
            check_url(self.url)
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._no_cache(error) from error

    def first(self, request: Request) -> Answer | Failure:
        """A call that finds out whether the server is there: a wrong address is told at once, a busy server waited for.

        Raises:
            ModelError: As `ask_all`.
        """
        try:
            return dataclasses.replace(self, retries=HASTY_RETRIES).ask(request)
        except Unusable as error:
            if error.status is None or error.status < 429:
                raise
            return self.ask(request)

    def ask(self, request: Request) -> Answer | Failure:
        """One call; see `ask_all`."""
        return self.ask_all([request])[0]

    def ask_all(
        self, requests: Sequence[Request], progress: Callable[[int], None] = lambda _: None
    ) -> list[Answer | Failure]:
        """Answers in the order of the requests; equal requests are asked once.

        Raises:
            ModelError: The server cannot be used at all, or the budget is spent. What was answered is kept.
        """
        try:
            return self._ask_stored(requests, progress)
        except (sqlite3.Error, OSError) as error:
            raise self._no_cache(error) from error

    def _ask_stored(self, requests: Sequence[Request], progress: Callable[[int], None]) -> list[Answer | Failure]:
        whats = (json.dumps([self.url, self.model, each], sort_keys=True, ensure_ascii=False) for each in requests)
        keys = [hashlib.sha256(what.encode()).hexdigest() for what in whats]
        with closing(sqlite3.connect(self.cache, timeout=60, check_same_thread=False)) as store:
            store.execute("PRAGMA journal_mode=WAL")
            store.execute("PRAGMA synchronous=NORMAL")
            store.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
            answers = dict(_stored(store, keys))
            times = Counter(keys)
            self.usage.cached += (cached := sum(times[key] for key in answers))
            progress(cached)
            todo = {key: request for key, request in zip(keys, requests, strict=True) if key not in answers}
            if todo:

                def keep(key: str, answer: Answer | Failure) -> None:
                    answers[key] = answer
                    if isinstance(answer, Answer):
                        with store:
                            store.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
                    progress(times[key])

                _run(lambda: self._ask(todo, keep))
        return [answers[key] for key in keys]

    async def _ask(self, todo: Mapping[str, Request], keep: Callable[[str, Answer | Failure], None]) -> None:
        import openai

        client = openai.AsyncOpenAI(
            api_key=self._secret or "none",
            base_url=self.url,
            timeout=self.timeout,
            max_retries=self.retries,
        )
        waiting = iter(todo.items())
        stopped: list[ModelError] = []
        in_a_row = 0

        async def work() -> None:
            nonlocal in_a_row
            for key, request in waiting:
                if stopped:  # the others finish what they have paid for, and it is kept
                    return
                try:
                    self._check_budget()
                    answer = await self._call(client, request)
                except ModelError as error:
                    stopped.append(error)
                    return
                keep(key, answer)
                in_a_row = in_a_row + 1 if isinstance(answer, Failure) else 0
                if isinstance(answer, Failure):
                    self.usage.failed += 1
                    if in_a_row >= HOPELESS:
                        in_a_row = 0
                        stopped.extend(await self._given_up(client, request, answer))

        async with client:
            await asyncio.gather(*(work() for _ in range(min(self.concurrency, len(todo)))))
        if stopped:
            raise stopped[0]

    async def _given_up(self, client: Any, request: Request, failed: Failure) -> list[ModelError]:
        """The error of a server that does not answer the same request about something harmless either; else none."""
        try:
            self._check_budget()
            answer = await self._call(client, {**request, "messages": HARMLESS})
        except ModelError as error:
            return [error]
        if isinstance(answer, Answer):  # what failed was the matter of those requests
            return []
        return [self.unusable(f"{HOPELESS} failures in a row, the last: {failed.reason}")]

    async def _call(self, client: Any, request: Request) -> Answer | Failure:
        import openai

        reason, garbled, waits = "", 0, iter(range(self.retries))
        # what begins with "_" only tells one request from another in the cache
        sent = {name: value for name, value in request.items() if not name.startswith("_")}
        while garbled <= GARBLED_RETRIES:
            self.usage.calls += 1
            if self.max_calls is not None:
                client = client.with_options(max_retries=max(0, min(self.retries, self.max_calls - self.usage.calls)))
            try:
                raw = await client.chat.completions.with_raw_response.create(model=self.model, **sent)
            except openai.APIStatusError as error:
                self._retried(client.max_retries if passes(error.status_code) else 0)
                return self._denied(error.status_code, error.message, error.body)
            except openai.APIConnectionError as error:  # time-outs too
                self._retried(client.max_retries)
                raise self.unusable(f"{error.message} {self._short(error.__cause__ or '')}".strip()) from error
            self._retried(raw.retries_taken)
            try:
                body = json.loads(raw.http_response.content)
                if not (told := error_of(body)):
                    return self._read(body)
                status, reason = (
                    status_of(told),
                    f"{self._short(told.get('message') or told)} (in an answer of status 200)",
                )
                if passes(status) and client.max_retries and (wait := next(waits, None)) is not None:
                    self.usage.retries += 1
                    await asyncio.sleep(min(LONGEST_WAIT, 0.5 * 2**wait))
                    continue
                if status or is_filtered(told):
                    return self._denied(status, reason, told)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"an answer that is no chat completion ({type(error).__name__}: {self._short(error)})"
            garbled += 1
        return Failure(reason)

    def _denied(self, status: int | None, said: str, told: object) -> Answer | Failure:
        """What becomes of a request that was turned down: the answer that was kept back, or a failure.

        Raises:
            Unusable: It is the server, the key or the account that is in the way.
        """
        reason = f"{status}: {self._short(said)}" if status else self._short(said)
        if status not in (401, 402, 404, 405, 422, 429) and is_filtered(told):
            return Answer("", FILTER)
        if status in (401, 403):
            raise self.unusable(f"{reason}; set {KEY}", status)
        if status in (402, 404, 405, 429):
            raise self.unusable(reason, status)
        return Failure(reason, status)

    def _read(self, body: Any) -> Answer:
        choice = body["choices"][0]
        tokens = int((body.get("usage") or {}).get("total_tokens") or 0)
        self.usage.tokens += tokens
        self._uncounted = not tokens
        message = choice["message"]
        content = (choice.get("logprobs") or {}).get("content") or []
        top = (
            [(str(token["token"]), float(token["logprob"])) for token in content[0]["top_logprobs"]]
            if content
            else None
        )
        text, declined = text_of(message.get("content")), str(message.get("refusal") or "")
        finish = REFUSAL if declined and not text else str(choice.get("finish_reason"))
        (text + declined).encode()  # half a surrogate pair, which JSON can spell, could not be kept: a ValueError
        return Answer(text or declined, finish, top)

    def _retried(self, times: int) -> None:
        self.usage.calls += times
        self.usage.retries += times

    def _check_budget(self) -> None:
        spent = f"{self.usage.calls:,} calls and {self.usage.tokens:,} tokens"
        if self.max_calls is not None and self.usage.calls >= self.max_calls:
            raise ModelError(
                f"expected at most {self.max_calls:,} calls to {self.model}, spent {spent}; raise --api-calls and run "
                "the same command again: what was answered is kept"
            )
        if self.max_tokens is not None and self._uncounted:
            raise ModelError(
                f"expected {self.model} to count its tokens, got answers without usage; use --api-calls instead of "
                "--api-tokens"
            )
        if self.max_tokens is not None and self.usage.tokens >= self.max_tokens:
            raise ModelError(
                f"expected at most {self.max_tokens:,} tokens of {self.model}, spent {spent}; raise --api-tokens and "
                "run the same command again: what was answered is kept"
            )

    def unusable(self, reason: str, status: int | None = None) -> Unusable:
        """The error of a server that cannot be used."""
        error = Unusable(
            f"expected an OpenAI-compatible server that answers as {self.model} at {self.url or 'OpenAI'}, got "
            f"{reason}; check the address (it usually ends in /v1), the model's name and the server, then run the same "
            "command again: what was answered is kept"
        )
        error.status = status
        return error

    def _no_cache(self, error: Exception) -> ModelError:
        return ModelError(
            f"expected a cache of answers that can be written at {self.cache}, got {error}; set PERSONAVEC_CACHE to "
            "another folder, or remove that file"
        )

    def _short(self, what: object) -> str:
        """In one short line, and without the key."""
        text = str(what).replace(self._secret, "…") if self._secret else str(what)
        return " ".join(text.split())[:200]


def check_url(url: str) -> None:
    """Raise ModelError where no server can be at an address."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port, or an unfinished IPv6 address
        good = False
    shown = re.sub(r"//[^/]*@", "//…@", url)
    if not good:
        raise ModelError(f"expected the address of a server, such as http://localhost:8000/v1, got {shown}; correct it")
    if shown != url:  # an address stands in results, cards and caches
        raise ModelError(f"expected an address without a name or password, got {shown}; set {KEY} to the key instead")


def _stored(store: sqlite3.Connection, keys: Sequence[str]) -> Iterator[tuple[str, Answer | Failure]]:
    for key in dict.fromkeys(keys):
        row = store.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        if row:
            text, finish, top = json.loads(row[0])
            yield key, Answer(text, finish, None if top is None else [(token, logprob) for token, logprob in top])


def _run(make: Callable[[], Any]) -> None:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(make())
    else:
        ThreadPoolExecutor(1).submit(lambda: asyncio.run(make())).result()
