"""Serve: a model over OpenAI's API, steered and watched, until it is told to stop."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from personavec.errors import ConfigError
from personavec.runs.progress import tell
from personavec.server.options import ServeConfig

SHUTDOWN_SECONDS = 30
"""How long replies under way may go on after the server was told to stop."""


def serve(config: ServeConfig) -> dict[str, Any]:
    """Serve until SIGINT or SIGTERM, or export the log.

    Returns:
        What was served: `url`, `requests`, `turns` in the log; or what was exported.

    Raises:
        PersonavecError: A vector, the model, the log or the port cannot be used.
    """
    try:
        import uvicorn

        from personavec.server.app import build
        from personavec.server.log import export
        from personavec.server.service import assemble
    except ImportError as error:
        raise ConfigError(
            f'expected the server\'s packages, got none ({error.name}); pip install "personavec[serve]"'
        ) from error
    if config.export is not None:
        return {"rows": export(config.log, config.export), "out": str(config.export)}
    began = time.monotonic()
    listening = _listen(config)
    service = assemble(config)
    url = f"http://{config.host}:{listening.getsockname()[1]}"
    server = uvicorn.Server(
        uvicorn.Config(
            build(service, _reports(config)),
            log_level="warning",
            access_log=False,
            http="h11",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    listening.listen()  # whoever reads the next line may connect
    vectors = ", ".join(service.catalogue.vectors) or "no vectors"
    tell(f"serving {config.model} on {service.model.device} at {url} with {vectors}; Ctrl-C stops")
    with _stoppable():
        server.run(sockets=[listening])
    return {
        "url": url,
        "model": config.model,
        "requests": service.metrics.total,
        "turns": service.logged,
        "log": str(config.log),
        "seconds": round(time.monotonic() - began, 1),
    }


def _listen(config: ServeConfig) -> socket.socket:
    """The socket, before anything slow is done."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"expected a free address, got {config.host}:{config.port} ({error.strerror}); choose another --port"
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


def _reports(config: ServeConfig) -> dict[str, Path]:
    """Pages of the run folders, by the name they are listed under.

    Raises:
        ConfigError: A folder has none.
    """
    found: dict[str, Path] = {}
    for folder in config.reports:
        pages = sorted([*folder.rglob("report.html"), *folder.rglob("index.html")])
        if not pages:
            raise ConfigError(f"expected report.html or index.html below {folder}, got none; name the folder of a run")
        found |= {str(page.parent.relative_to(folder.parent)): page for page in pages}
    return found
