"""What a server keeps and counts: projections, steering and ids of every turn, text only by option; metrics."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from personavec.errors import ConfigError, DataError
from personavec.runs.progress import stage
from personavec.server.catalogue import Catalogue
from personavec.server.writing.elsewhere import RemoteEngine
from personavec.server.writing.engine import Engine

SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY, conversation TEXT NOT NULL, turn INTEGER NOT NULL, time REAL NOT NULL, finish TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, response_tokens INTEGER NOT NULL,
    steering TEXT NOT NULL, projections TEXT NOT NULL, alerts TEXT NOT NULL, messages TEXT, response TEXT
);
CREATE INDEX IF NOT EXISTS turns_of_a_conversation ON turns (conversation, turn, time);
CREATE INDEX IF NOT EXISTS turns_by_time ON turns (time);
"""
AS_JSON = ("steering", "projections", "alerts", "messages")
SWEEP = 3600
"""Seconds between two removals of what is older than the retention."""
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
SHARES = tuple(share / 10 for share in range(-10, 11))


@dataclass(frozen=True)
class LoggedTurn:
    """One reply of a conversation, as it is kept."""

    id: str
    conversation: str
    turn: int
    """Which question of the conversation it answers, from 1."""
    finish: str
    prompt_tokens: int
    response_tokens: int
    steering: list[dict[str, Any]]
    projections: dict[str, dict[str, Any]]
    """By vector: layer, prompt_last, response_avg."""
    alerts: list[dict[str, Any]]
    messages: list[dict[str, str]] | None = None
    response: str | None = None
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


class Log:
    """A file of turns. What `add` returned from is on the disk and outlives a kill."""

    def __init__(self, path: Path, retention_days: float | None = None) -> None:
        """Open or create it.

        Raises:
            ConfigError: It cannot be written, or is something else.
        """
        self.path, self.retention_days = path, retention_days
        self._lock, self._swept, self._failed = threading.Lock(), 0.0, False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE")
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"expected a log that can be written, got {path} ({error}); choose another --log"
            ) from None
        self._sweep()

    def add(self, turns: Sequence[LoggedTurn]) -> None:
        """Keep turns, all or none."""
        rows = [asdict(turn) for turn in turns]
        for row in rows:
            row |= {name: json.dumps(row[name], ensure_ascii=False) for name in AS_JSON if row[name] is not None}
        values = [tuple(row.values()) for row in rows]
        names, places = ", ".join(rows[0]), ", ".join("?" * len(rows[0]))
        self._failed = True
        with self._lock, self._db:
            self._db.executemany(f"INSERT INTO turns ({names}) VALUES ({places})", values)
        self._failed = False
        if time.time() - self._swept > SWEEP:
            self._sweep()

    def writable(self) -> bool:
        """Whether turns can be kept; after one could not, it is tried again."""
        if self._failed:
            with suppress(sqlite3.Error), self._lock, self._db:
                self._db.execute(f"PRAGMA user_version = {int(time.time()) % 2**31}")
                self._failed = False
        return not self._failed

    def _sweep(self) -> None:
        """Remove what is older than the retention."""
        self._swept = time.time()
        if self.retention_days is not None:
            with self._lock, self._db:
                self._db.execute("DELETE FROM turns WHERE time < ?", (self._swept - 86400 * self.retention_days,))

    def conversations(self, limit: int, only_alerts: bool = False) -> list[dict[str, Any]]:
        """The latest conversations, newest first: id, turns, times, alerts, and whether any turn was steered."""
        having = "HAVING SUM(json_array_length(alerts)) > 0" if only_alerts else ""
        with self._lock:
            rows = self._db.execute(
                "SELECT conversation AS id, COUNT(DISTINCT turn) AS turns, MIN(time) AS first, MAX(time) AS last, "
                "SUM(json_array_length(alerts)) AS alerts, MAX(steering <> '[]') AS steered FROM turns "
                f"GROUP BY conversation {having} ORDER BY last DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [dict(row) | {"steered": bool(row["steered"])} for row in rows]

    def turns(self, conversation: str) -> list[dict[str, Any]]:
        """The turns of a conversation in their order."""
        query = "SELECT * FROM turns WHERE conversation = ? ORDER BY turn, time, id"
        with self._lock:
            return [_row(row) for row in self._db.execute(query, (conversation,)).fetchall()]

    def rows(self) -> Iterator[dict[str, Any]]:
        """All turns, oldest first."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            for row in db.execute("SELECT * FROM turns ORDER BY time, id"):
                yield _row(row)

    def count(self) -> int:
        """Turns that are kept."""
        with self._lock:
            return int(self._db.execute("SELECT COUNT(*) FROM turns").fetchone()[0])

    def close(self) -> None:
        """Write everything into a single file."""
        with self._lock:
            self._db.close()


def _row(row: sqlite3.Row) -> dict[str, Any]:
    return {
        name: json.loads(value) if name in AS_JSON and value is not None else value
        for name, value in ((name, row[name]) for name in row.keys())
    }


def export(log: Path, out: Path) -> int:
    """Write a log to Parquet, one row for each turn and vector that was read in it; returns how many.

    Raises:
        DataError: There is no log.
        ConfigError: `out` is there already.
    """
    if not log.is_file():
        raise DataError(f"expected the log of a server, got no file at {log}; serve with --log first")
    if out.exists():
        raise ConfigError(f"expected a new file, got {out}, which is there; choose another --export")
    text = ("id", "conversation", "finish", "steering", "alerts", "messages", "response", "vector")
    types = [(name, pa.string()) for name in text]
    types += [(name, pa.int64()) for name in ("turn", "prompt_tokens", "response_tokens", "layer")]
    types += [("time", pa.timestamp("ms", "UTC")), ("prompt_last", pa.float64()), ("response_avg", pa.float64())]
    schema, opened, written = pa.schema(types), Log(log), 0
    partial = out.with_name(f".{out.name}.tmp")
    with stage("export", opened.count()) as advance, pq.ParquetWriter(partial, schema) as writer:
        turns = opened.rows()
        while some := list(islice(turns, 1000)):
            rows = [row for turn in some for row in _flat(turn)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            written += len(rows)
            advance(len(some))
    partial.rename(out)
    opened.close()
    return written


def _flat(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each vector that was read in a turn, or one without a vector."""
    kept = {name: json.dumps(turn[name], ensure_ascii=False) for name in AS_JSON if turn[name] is not None}
    flat = turn | kept | {"time": round(turn["time"] * 1000)}
    return [flat | {"vector": name} | read for name, read in turn["projections"].items()] or [flat]


class OutOfMemory(Collector):
    """How many times an engine ran out of memory; it counts itself."""

    def __init__(self, engine: Engine | RemoteEngine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """The counter as it stands."""
        told = "Times that memory ran out; the replies went on, fewer at once"
        yield CounterMetricFamily("personavec_out_of_memory", told, value=self.engine.out_of_memory)


class Metrics:
    """Counters of a server, which Prometheus may ask for, in a separate registry."""

    def __init__(self, engine: Engine | RemoteEngine, catalogue: Catalogue) -> None:
        self._norms = {name: vector.card.activation_norms for name, vector in catalogue.vectors.items()}
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("personavec_requests", "Requests by outcome", ["path", "status"], registry=registry)
        self.total = 0
        timed = partial(Histogram, buckets=SECONDS, registry=registry)
        self.first_token = timed("personavec_first_token_seconds", "Seconds to the first token")
        self.latency = timed("personavec_request_seconds", "Seconds of a whole request")
        self.tokens = Counter("personavec_tokens", "Tokens read, reused and written", ["kind"], registry=registry)
        self.alerts = Counter("personavec_alerts", "Alerts raised", ["vector", "kind"], registry=registry)
        self.projections = Histogram(
            "personavec_projection",
            "Projections of a reply's mean, as a share of the usual activation norm at its layer",
            ["vector"],
            buckets=SHARES,
            registry=registry,
        )
        # a histogram whose buckets are negative is given no sum
        told = "The same shares, for their mean: sum divided by count"
        self.shares = Summary("personavec_projection_share", told, ["vector"], registry=registry)
        running = Gauge("personavec_running", "Replies that are being written", registry=registry)
        running.set_function(lambda: engine.running)
        queued = Gauge("personavec_queued", "Replies that wait", registry=registry)
        queued.set_function(lambda: engine.queued)
        kept = Gauge("personavec_prefix_bytes", "Memory of what was read of conversations", registry=registry)
        kept.set_function(lambda: engine.prefixes.bytes)
        most = Gauge("personavec_rows", "Most replies that are written at once", registry=registry)
        most.set_function(lambda: engine.most)
        registry.register(OutOfMemory(engine))

    def request(self, path: str, status: int) -> None:
        """Count a request that was answered."""
        self.total += 1
        self.requests.labels(path, status).inc()

    def reply(self, projections: Mapping[str, Mapping[str, Any]], alerts: list[dict[str, Any]]) -> None:
        """Count what was read at a reply."""
        for name, read in projections.items():
            norms = self._norms.get(name)
            if norms and read["response_avg"] is not None:
                share = read["response_avg"] / norms[read["layer"]]
                self.projections.labels(name).observe(share)
                self.shares.labels(name).observe(share)
        for alert in alerts:
            self.alerts.labels(alert["vector"], alert["kind"]).inc()

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)
