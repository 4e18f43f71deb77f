"""Serve: a model over OpenAI's API, steered and watched, until it is stopped."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Unpack

import uvicorn

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.server.app import build
from personavec.server.limits import LOG, Connection
from personavec.server.service import Service, assemble
from personavec.server.terms import TermOptions, Terms
from personavec.steering.notation import Steers
from personavec.steering.vector import PersonaVector
from personavec.verbs.monitor.calibration import Calibration

SHUTDOWN_SECONDS = 6.0
"""How long replies under way may go on after the signal to stop; containers are killed ten seconds after it."""
BACKLOG = 64
"""Connections that are taken in one go."""
RESERVED = 128
"""Descriptors that are kept for files, and for connections on their way in and out."""
MOST_CONNECTIONS = 4096
SAME_SECONDS = 60.0
"""Between two lines of the same kind."""


def serve(
    model: ChatModel,
    *,
    vectors: Sequence[str | Path | PersonaVector] = (),
    steer: Steers = (),
    watch: Sequence[str] = ("all",),
    calibration: str | Path | Calibration | None = None,
    log: str | Path = "runs/serve/turns.db",
    retention_days: float | None = 30.0,
    reports: Sequence[str | Path] = (),
    port: int = 8000,
    **terms: Unpack[TermOptions],
) -> Result:
    """Serve a model over OpenAI's API until SIGINT or SIGTERM.

    Args:
        model: Who answers.
        vectors: What requests may name by its trait: vectors, their files, or folders of runs.
        steer: What steers every reply whose request does not ask for another steering.
        watch: Vectors that are read for every request that does not name others: all, none, or traits.
        calibration: What `monitor` makes of benign traffic: usual ranges, and alerts beyond them.
        log: SQLite file of every turn: projections, steering, ids.
        retention_days: Days after which a turn is removed from the log.
        reports: Run folders whose pages the dashboard lists.
        port: Where it listens; 0 takes a free port.
        terms: Who may ask, how much, and what is kept: fields of `Terms`.

    Returns:
        What was served: `url`, `requests`, `turns` in the log.

    Raises:
        PersonavecError: A vector, the log or the port cannot be used.
    """
    began, granted = time.monotonic(), Terms(**terms)
    with listen(granted.host, port) as listening:
        pages = find_pages(reports)
        service = assemble(
            model,
            granted,
            vectors=vectors,
            steer=steer,
            watch=watch,
            calibration=calibration,
            log=log,
            retention_days=retention_days,
        )
        return run(service, listening, pages, began)


def run(service: Service, listening: socket.socket, pages: Mapping[str, Path], began: float) -> Result:
    """Serve at a socket until SIGINT or SIGTERM."""
    url = f"http://{service.terms.host}:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        build(service, pages),
        log_level="warning",
        access_log=False,
        http=partial(Connection, most=most_connections(), count=service.metrics.request),  # type: ignore[arg-type]
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=ceil(SHUTDOWN_SECONDS + 1),
    )
    server = TimelyServer(config, service)
    listening.listen(BACKLOG)  # whoever reads the next line may connect
    vectors, name = ", ".join(service.catalogue.vectors) or "no vectors", service.model.identity.id
    where = service.model.engine.name if service.model.engine else service.model.device
    tell(f"serving {name} on {where} at {url} with {vectors}; Ctrl-C stops")
    with _stoppable(), _sparing(LOG.name, "uvicorn.error", "asyncio"):
        server.run(sockets=[listening])
    return Result(
        {
            "url": url,
            "model": name,
            "requests": service.metrics.total,
            "turns": service.logged,
            "log": str(service.log.path),
            "seconds": round(time.monotonic() - began, 1),
        }
    )


class TimelyServer(uvicorn.Server):
    """Ends replies in time when it is stopped, and their streams properly."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and wait for what is under way."""
        ending = asyncio.create_task(asyncio.to_thread(self.service.engine.close, SHUTDOWN_SECONDS))
        await super().shutdown(sockets)
        await ending


class Sparing(logging.Filter):
    """Of lines that say the same, lets one a minute through, and says how many there were; no stack traces."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        now, kind = time.monotonic(), str(record.msg)
        last, held = self._told.get(kind, (-SAME_SECONDS, 0))
        if now - last < SAME_SECONDS:
            self._told[kind] = last, held + 1
            return False
        self._told[kind] = now, 0
        text = record.getMessage().split("\n")[0]
        if record.exc_info and not os.environ.get("PERSONAVEC_DEBUG"):
            text += f" ({record.exc_info[0].__name__ if record.exc_info[0] else 'error'}: {record.exc_info[1]})"
            record.exc_info = None
        record.msg, record.args = text[:500] + f"; {held} more like it before" * (held > 0), ()
        return True


def most_connections() -> int:
    """Connections that leave descriptors for everything else."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are no files
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED - BACKLOG))


@contextmanager
def _sparing(*names: str) -> Iterator[None]:
    sparing = Sparing()
    for name in names:
        logging.getLogger(name).addFilter(sparing)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeFilter(sparing)


def listen(host: str, port: int) -> socket.socket:
    """The socket, before anything slow is done.

    Raises:
        ConfigError: The address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named asyncio sets TCP_NODELAY; without it every answer waits 40 ms for an acknowledgement
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"expected a free address, got {host}:{port} ({error.strerror}); choose another --port"
        ) from error
    return listening


@contextmanager
def _stoppable() -> Iterator[None]:
    """Uvicorn stops at a signal and then raises it again, which would end the process before it can tell anything."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_pages(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Pages of run folders, by the name they are listed under.

    Raises:
        ConfigError: A folder has none.
    """
    listed: dict[str, Path] = {}
    for folder in map(Path, folders):
        pages = sorted([*folder.rglob("report.html"), *folder.rglob("index.html")])
        if not pages:
            raise ConfigError(f"expected report.html or index.html below {folder}, got none; name the folder of a run")
        listed |= {str(page.parent.relative_to(folder.parent)): page for page in pages}
    return listed
