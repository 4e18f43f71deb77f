"""Serve: a model over OpenAI's API, steered and watched, until it is told to stop."""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.server.terms import LOG, Terms
from personavec.steering.notation import Steers
from personavec.steering.vector import PersonaVector
from personavec.verbs.monitor.calibration import Calibration

SHUTDOWN_SECONDS = 30
"""How long replies under way may go on after the server was told to stop."""


class Served(Result):
    """A server that has ended: where it was, and how much it answered."""


def serve(
    model: ChatModel | Callable[[], ChatModel],
    *,
    vectors: Sequence[str | Path | PersonaVector] = (),
    steer: Steers = (),
    watch: Sequence[str] = ("all",),
    calibration: str | Path | Calibration | None = None,
    log: str | Path = LOG,
    reports: Sequence[str | Path] = (),
    terms: Terms | None = None,
) -> Served:
    """Serve a model over OpenAI's API, steered and watched, until SIGINT or SIGTERM.

    Args:
        model: What answers, or a function that loads it once the address is known to be free.
        vectors: Vectors that requests may name by their trait, their files, or folders of runs.
        steer: What steers every reply whose request does not ask for another steering.
        watch: Vectors that are read for every request that does not name others: "all", "none", or traits.
        calibration: Usual ranges and alerts, of `monitor`.
        log: SQLite file of every turn.
        reports: Run folders whose pages the dashboard lists.
        terms: Address, bounds and what is kept.

    Returns:
        What was served: `url`, `requests`, `turns` in the log.

    Raises:
        PersonavecError: A vector, the model, the log or the port cannot be used.
    """
    installed()
    import uvicorn

    from personavec.server.app import build
    from personavec.server.service import assemble

    began = time.monotonic()
    terms = terms or Terms()
    pages = _reports(reports)
    listening = _listen(terms)
    service = assemble(model, vectors=vectors, steer=steer, watch=watch, calibration=calibration, log=log, terms=terms)
    url = f"http://{terms.host}:{listening.getsockname()[1]}"
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
    named = ", ".join(service.catalogue.vectors) or "no vectors"
    name = service.model.identity.id
    tell(f"serving {name} on {service.model.device} at {url} with {named}; Ctrl-C stops")
    with _stoppable():
        server.run(sockets=[listening])
    return Served(
        {
            "url": url,
            "model": name,
            "requests": service.metrics.total,
            "turns": service.logged,
            "log": str(log),
            "seconds": round(time.monotonic() - began, 1),
        }
    )


def installed() -> None:
    """Raise ConfigError unless the server's packages are there."""
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise ConfigError(f'expected the server\'s packages, got none ({missing[0]}); pip install "personavec[serve]"')


def _listen(terms: Terms) -> socket.socket:
    """The socket, before anything slow is done."""
    family = socket.AF_INET6 if ":" in terms.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((terms.host, terms.port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"expected a free address, got {terms.host}:{terms.port} ({error.strerror}); choose another --port"
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


def _reports(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Pages of run folders, by the name they are listed under.

    Raises:
        ConfigError: A folder has none.
    """
    pages: dict[str, Path] = {}
    for folder in map(Path, folders):
        files = sorted([*folder.rglob("report.html"), *folder.rglob("index.html")])
        if not files:
            raise ConfigError(f"expected report.html or index.html below {folder}, got none; name the folder of a run")
        pages |= {str(page.parent.relative_to(folder.parent)): page for page in files}
    return pages
