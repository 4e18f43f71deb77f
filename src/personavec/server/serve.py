"""Serve: a model over OpenAI's API, steered and watched, until it is stopped."""

import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

import uvicorn

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.server.app import build
from personavec.server.service import Service, assemble
from personavec.server.terms import TermOptions, Terms
from personavec.steering.notation import Steers
from personavec.steering.vector import PersonaVector
from personavec.verbs.monitor.calibration import Calibration

SHUTDOWN_SECONDS = 30
"""How long replies under way may go on after the signal to stop."""


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
    server = uvicorn.Server(
        uvicorn.Config(
            build(service, pages),
            log_level="warning",
            access_log=False,
            http="h11",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    listening.listen()  # whoever reads the next line may connect
    vectors, name = ", ".join(service.catalogue.vectors) or "no vectors", service.model.identity.id
    tell(f"serving {name} on {service.model.device} at {url} with {vectors}; Ctrl-C stops")
    with _stoppable():
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
