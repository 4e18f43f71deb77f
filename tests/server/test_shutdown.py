"""A signal ends the process in time, whoever is connected, and whoever still asks is told to ask elsewhere."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any
from urllib.parse import urlparse

import pytest
from support import tiny
from support.asking import Asked
from support.serving import ASKED, Client, Process, bad
from support.tiny import prompt

from personavec.server.writing.engine import Engine

HALVES = (
    b"POST /v1/chat/completions HT",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 99\r\n\r\n{",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",  # whole, and kept open
    b"",
)


def test_the_process_ends_in_time_whoever_is_connected(options: dict[str, Any]) -> None:
    running = Process(options, "--max-tokens", "250")
    port = urlparse(running.url).port
    connections = []
    for half in HALVES * 8:
        connections.append(socket.create_connection(("127.0.0.1", port)))
        connections[-1].sendall(half)
    body = json.dumps(ASKED | {"model": options["model"], "max_tokens": 200, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(8):  # streams that nobody reads
        connections.append(socket.create_connection(("127.0.0.1", port)))
        connections[-1].sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    time.sleep(0.5)
    began = time.monotonic()
    code, _, err = running.stop(signal.SIGTERM)
    assert time.monotonic() - began < 10
    assert code == 0 and "Traceback" not in err, err
    for connection in connections:
        connection.close()


def test_whoever_asks_a_server_that_stops_is_sent_elsewhere(server: Client) -> None:
    server.service.engine.close(1)
    answer = server.ask()
    bad(answer, 503, "expected a running server, got one that shuts down")
    assert answer.headers["Retry-After"] == "1" and answer.json()["error"]["code"] == "shutting_down"
    ready = server.get("/ready")
    assert ready.status_code == 503 and ready.headers["Retry-After"] == "1"
    assert server.get("/health").status_code == 200


def test_closing_does_not_wait_for_a_step_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, entered, free = Engine(tiny.build("llama"), rows=2), threading.Event(), threading.Event()

    def stuck(self: Engine, *_: Any) -> None:
        entered.set()
        assert free.wait(30)
        raise RuntimeError("gone on")

    monkeypatch.setattr(Engine, "_forward", stuck)
    asked = [Asked(engine.model, prompt(4), seed) for seed in range(5)]
    for one in asked:
        engine.submit([one.job])
    assert entered.wait(10)
    began = time.monotonic()
    engine.close(0.2)
    assert time.monotonic() - began < 3
    assert [one.job.reply.finish for one in asked] == ["deadline"] * 5
    free.set()
    engine._thread.join(10)
    assert [sum(news.over for news in one.news) for one in asked] == [1] * 5


@pytest.mark.slow
def test_the_server_can_be_imported_where_sockets_are_no_files() -> None:
    """As on Windows, which has no module `resource`."""
    code = "import sys; sys.modules['resource'] = None\nfrom personavec.server.serve import most_connections as most"
    told = subprocess.run([sys.executable, "-c", f"{code}\nprint(most())"], capture_output=True, text=True)
    assert told.stdout == "4096\n", told.stderr
