"""Clients that say half of something, in a real process."""

import json
import signal
import socket
import time
import urllib.request
from typing import Any

import pytest
from support.serving import Process

HALF_HEAD = b"GET /health HTTP/1.1\r\nHost: local"
HALF_BODY = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HALF_BODY += b"Content-Length: 100\r\n\r\n{"


@pytest.mark.slow
def test_half_open_connections_stop_nobody(options: dict[str, Any]) -> None:
    """More of them than the server has descriptors; then half bodies, which do not hold up its end."""
    running = Process(options, descriptors=256)
    port = int(running.url.rpartition(":")[2])

    def half(what: bytes) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", port), timeout=20)
        made.sendall(what)
        return made

    kept = [half(HALF_HEAD) for _ in range(300)]
    for _ in range(3):
        with urllib.request.urlopen(f"{running.url}/health", timeout=20) as answer:
            assert json.load(answer) == {"status": "alive"}
    model = running.openai.models.list().data[0].id
    create: Any = running.openai.chat.completions.create
    assert create(model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=3).choices
    with half(b"This is no HTTP\r\n\r\n") as stranger:
        told = b"".join(iter(lambda: stranger.recv(4096), b""))
    assert told.startswith(b"HTTP/1.1 400") and b'"invalid_request_error"' in told
    with urllib.request.urlopen(f"{running.url}/metrics", timeout=20) as answer:
        assert 'personavec_requests_total{path="other",status="400"} 1.0' in answer.read().decode()
    kept += [half(HALF_BODY) for _ in range(20)]
    time.sleep(0.5)
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.stdout is not None and running.process.stdout.readline()
    assert time.monotonic() - began < 10  # that Python then takes torch apart is not the server's
    _, err = running.process.communicate(timeout=120)
    assert running.process.returncode == 0, err
    assert "Traceback" not in err and len(err) < 5000, err
    assert err.count("more than 64 connections") == 1, err
    for one in kept:
        one.close()
