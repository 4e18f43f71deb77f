"""The base model's replies to the prompts of a data set: greedy, kept on disk, shared by all vectors and runs."""

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from personavec.errors import ConfigError, DataError
from personavec.model.chat_model import ChatModel
from personavec.model.endpoint import Answer, CallLimits, Endpoint, Failure
from personavec.model.engines.vllm import VllmEngine
from personavec.model.sampling import Sampling
from personavec.runs.fetch import cache_folder
from personavec.steering.generate import Reply, Request, batches, elsewhere, generate

ENGINES = "hf or openai:MODEL"
MEMORY = Path(":memory:")
"""For SQLite: a store that is kept nowhere."""
CHUNK = 64
"""Prompts that an engine other than ours is given at once: what a kill may cost."""

Row = Mapping[str, Any]
Group = list[tuple[int, Reply | Failure]]
"""Replies that came together, with the places of their rows."""


@dataclass
class LocalReplies:
    """`hf`: the model of the run itself, wherever that runs."""

    model: ChatModel
    sampling: Sampling
    batch_tokens: int
    id: str = "hf"

    def write(self, rows: Sequence[Row], missing: Collection[int]) -> Iterator[Group]:
        """Greedy replies to the rows that are missing.

        In this process a batch is written as a whole, also where some of it is there already; elsewhere each reply by
        itself.
        """
        requests = [Request(tuple(row["prompt_ids"])) for row in rows]
        if self.model.engine is not None:
            places = sorted(missing)
            for group in elsewhere(self.model.engine, [requests[place] for place in places], self.sampling):
                yield [(places[number], reply) for number, reply in group]
            return
        for batch in batches(requests, self.sampling.max_new_tokens, self.batch_tokens):
            if any(place in missing for place in batch):
                replies = generate(self.model, [requests[place] for place in batch], self.sampling)
                yield [pair for pair in zip(batch, replies, strict=True) if pair[0] in missing]


@dataclass
class RemoteReplies:
    """`openai:MODEL`: the same model behind an OpenAI-compatible server, which renders the chat template itself."""

    model: ChatModel
    endpoint: Endpoint
    system: str
    max_new_tokens: int
    id: str

    def write(self, rows: Sequence[Row], missing: Collection[int]) -> Iterator[Group]:
        """Replies to the rows that are missing as the server says them; their text is encoded here."""
        greedy, places = {"temperature": 0.0, "max_tokens": self.max_new_tokens}, sorted(missing)
        for chunk in (places[start : start + CHUNK] for start in range(0, len(places), CHUNK)):
            asked = [{"messages": self._messages(rows[place]["messages"])} | greedy for place in chunk]
            yield [
                (place, self._reply(answer)) for place, answer in zip(chunk, self.endpoint.ask_all(asked), strict=True)
            ]

    def _reply(self, answer: Answer | Failure) -> Reply | Failure:
        if isinstance(answer, Failure):
            return answer
        return Reply(self.model.reply_ids(answer.text), "length" if answer.finish == "length" else "stop")

    def _messages(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        if messages[0]["role"] == "system" or self.system == "template":
            return [*messages]
        return [{"role": "system", "content": "" if self.system == "none" else self.system}, *messages]


@dataclass
class BaseReplies:
    """A store of base replies, and the engine that fills it."""

    engine: LocalReplies | RemoteReplies
    path: Path
    """SQLite file; it belongs to one model, number format, engine and length. ":memory:" forgets them."""
    written_tokens: int = 0
    """Since this process began."""
    kept: int = 0
    """Replies that were there already."""

    def replies(self, rows: Sequence[Row], advance: Callable[[int], None] = lambda _: None) -> list[Reply | Failure]:
        """Base replies to rows with `prompt_ids` and `messages`; equal prompts are answered once.

        What is written together depends on the rows alone, so that a resumed run writes the same.

        Raises:
            DataError: The store cannot be used.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._replies(rows, advance)
        except (sqlite3.Error, OSError) as error:
            raise DataError(
                f"expected a store of base replies that can be written, got {self.path} ({error}); make room, delete "
                "that file, or set PERSONAVEC_CACHE to another folder"
            ) from error

    def _replies(self, rows: Sequence[Row], advance: Callable[[int], None]) -> list[Reply | Failure]:
        distinct = {_key(row["prompt_ids"]): row for row in rows}
        with closing(sqlite3.connect(self.path, timeout=60)) as store:
            store.execute("PRAGMA journal_mode=WAL")
            store.execute("PRAGMA synchronous=NORMAL")
            store.execute("CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, ids BLOB, finish TEXT)")
            replies: dict[bytes, Reply | Failure] = {
                key: reply for key in distinct if (reply := _stored(store, key)) is not None
            }
            self.kept += len(replies)
            advance(len(replies))
            keys = list(distinct)
            missing = {place for place, key in enumerate(keys) if key not in replies}
            for group in self.engine.write(list(distinct.values()), missing):
                fresh = {keys[place]: reply for place, reply in group}
                kept = {key: reply for key, reply in fresh.items() if isinstance(reply, Reply)}
                self.written_tokens += sum(len(reply.ids) for reply in kept.values())
                with store:
                    store.executemany(
                        "INSERT OR IGNORE INTO replies VALUES (?, ?, ?)",
                        [(key, _pack(reply.ids), reply.finish) for key, reply in kept.items()],
                    )
                replies |= fresh
                advance(len(fresh))
        return [replies[_key(row["prompt_ids"])] for row in rows]


def open_base_replies(
    model: ChatModel,
    spec: str = "hf",
    *,
    max_new_tokens: int = 64,
    batch_tokens: int = 12288,
    url: str | None = None,
    system: str = "template",
    **limits: Unpack[CallLimits],
) -> BaseReplies:
    """The store that belongs to a model and the way its replies are written.

    It lies in the cache folder, for all runs; in memory if the model runs elsewhere, and nobody knows its weights.

    Args:
        model: Whose replies.
        spec: Who writes them: hf (the model itself), or openai:MODEL, the same model behind another server.
        max_new_tokens: Longest reply.
        batch_tokens: Tokens in one batch, prompts included.
        url: Server of openai:MODEL; default OpenAI's.
        system: System prompt of rows that have none.
        limits: How a server may be asked.

    Raises:
        ConfigError: No such engine, one beside that of the model, or what it needs is not installed.
        ModelError: Its server cannot be used.
    """
    kind, _, name = spec.partition(":")
    engine: LocalReplies | RemoteReplies
    if spec == "hf":
        engine = LocalReplies(model, Sampling(max_new_tokens, temperature=0.0), batch_tokens)
    elif kind == "openai" and name and model.engine is not None:
        raise ConfigError(
            f"expected base replies by the model's own engine ({model.engine.name}), got {spec}; leave "
            "--base-replies out"
        )
    elif kind == "openai" and name:
        endpoint = Endpoint(name, url, cache_folder() / "answers.sqlite", **limits)
        engine = RemoteReplies(model, endpoint, system, max_new_tokens, f"openai:{name} at {url}, system {system}")
    else:
        raise ConfigError(f"expected base replies by {ENGINES}, got {spec}; correct --base-replies")
    what = f"{model.identity.revision} {model.numbers} {engine.id} {max_new_tokens}"
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    forgotten = isinstance(model.engine, VllmEngine) and model.engine.commit is None
    return BaseReplies(engine, MEMORY if forgotten else cache_folder() / "base-replies" / f"{name}.sqlite")


def _key(prompt: Sequence[int]) -> bytes:
    return hashlib.sha256(_pack(prompt)).digest()[:16]


def _pack(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


def _stored(store: sqlite3.Connection, key: bytes) -> Reply | None:
    row = store.execute("SELECT ids, finish FROM replies WHERE key = ?", (key,)).fetchone()
    return None if row is None else Reply(tuple(np.frombuffer(row[0], dtype=np.int32).tolist()), row[1])
