"""What stands before the application: how requests are counted, and how those end that are never whole."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from support.serving import Client, bad, client, good
from uvicorn.server import ServerState

from personavec.server import limits
from personavec.server.limits import GONE, HOST, Connection, Limits
from personavec.server.options import ServeConfig
from personavec.server.serve import SAME_SECONDS, Sparing, most_connections


def counted(server: Client, path: str, status: int) -> float:
    """What /metrics says of a route and a status."""
    start = f'personavec_requests_total{{path="{path}",status="{status}"}} '
    lines = server.service.metrics.text().decode().splitlines()
    return sum(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def test_every_request_is_counted_once_whoever_answers_it(options: dict[str, Any]) -> None:
    chat = "/v1/chat/completions"
    with client(ServeConfig(**options, api_key="secret", max_request_bytes=500)) as server:
        for _ in range(25):
            bad(server.ask(), 401, "expected the key")
        server.headers["authorization"] = "Bearer secret"
        for _ in range(5):
            bad(server.post(chat, content="{}", headers={"content-type": "text/plain"}), 415, "application/json")
        for _ in range(6):
            bad(server.get("/v1/models", headers={"host": "evil.example"}), 421, "hosts")
        for _ in range(7):
            bad(server.ask(user="x" * 600), 413, "at most 500 bytes")
        bad(server.ask(n=0), 400, "n")
        bad(server.get("/v1/conversations?limit=x"), 400, "limit")
        bad(server.get("/nowhere"), 404, "expected a path")
        bad(server.get(chat), 405, "expected a path and method")
        good(server.ask())
        assert len(server.events()) > 1
        assert server.head("/health").status_code == 200
        good(server.get("/v1/models"))
        wanted = {401: 25, 415: 5, 413: 7, 400: 1, 405: 1, 200: 2}
        assert {status: counted(server, chat, status) for status in wanted} == wanted
        assert (counted(server, "/v1/models", 421), counted(server, "/v1/models", 200)) == (6, 1)
        assert (counted(server, "other", 404), counted(server, "/health", 200)) == (1, 1)
        assert counted(server, "/v1/conversations", 400) == 1
        assert server.service.metrics.total == sum(wanted.values()) + 6 + 1 + 1 + 1 + 1


def test_the_mean_of_projections_can_be_had(server: Client) -> None:
    averages = [
        good(server.ask(seed=seed))["choices"][0]["persona"]["projections"]["tiny"]["response_avg"] for seed in (1, 2)
    ]
    lines = dict(line.rsplit(" ", 1) for line in server.get("/metrics").text.splitlines() if line[0] != "#")
    total, count = (float(lines[f'personavec_projection_share_{end}{{vector="tiny"}}']) for end in ("sum", "count"))
    assert count == 2 and total == pytest.approx(sum(averages) / 10)  # the card's activation norm is 10


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost:8000", "localhost"),
        ("[::1]:8000", "::1"),
        ("[::1]", "::1"),
        ("127.0.0.1:", "127.0.0.1"),
        ("[::1].evil.example", None),
        ("[::1]evil", None),
        ("::1", None),
        ("localhost:80:80", None),
        ("localhost:80.evil.example", None),
        ("localhost@evil.example", "localhost@evil.example"),
        ("[localhost]", None),
        ("", ""),
    ],
)
def test_hosts_are_read_strictly(given: str, name: str | None) -> None:
    found = HOST.fullmatch(given)
    assert (found and (found[1] or found[2]).lower()) == name


class Raw:
    """A request by hand, to an application that does what is asked of it."""

    def __init__(self, *messages: Message, then: str = "stall") -> None:
        self.messages, self.then = list(messages), then
        self.sent: list[Message] = []
        self.counted: list[int] = []

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        if self.then == "stall":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def ask(self, app: Any) -> "Raw":
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        made = Limits(app, None, None, 1000, lambda _, status: self.counted.append(status))
        asyncio.run(made(scope, self.receive, self.send))
        return self


async def reads(scope: Scope, receive: Receive, send: Send) -> None:
    from starlette.requests import Request

    await Request(scope, receive).body()
    raise AssertionError


HALF = {"type": "http.request", "body": b"{", "more_body": True}


def test_a_client_that_leaves_before_its_body_is_whole_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    raw = Raw(HALF, then="leave").ask(reads)
    assert (raw.sent, raw.counted, caplog.text) == ([], [GONE], "")


def test_a_body_that_never_comes_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARRIVE_SECONDS", 0.05)
    raw = Raw(HALF).ask(reads)
    assert raw.counted == [408] and raw.sent[0]["status"] == 408
    assert b"expected the whole body" in raw.sent[1]["body"]


def test_an_early_answer_comes_after_the_body() -> None:
    """A client that sends all of it before it reads would be cut off; one that never ends is."""
    for more in (20, 10**6):
        parts = [{"type": "http.request", "body": b"x" * 100, "more_body": number < more} for number in range(100)]
        raw = Raw(*parts, then="leave").ask(reads)
        assert raw.counted == [413] and len(raw.messages) == (79 if more == 20 else 19)


async def pours(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(200):
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: local", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b""])
def test_a_client_that_does_not_go_on_is_left(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """It says half of a request, or takes nothing of its answer."""
    monkeypatch.setattr(limits, "ARRIVE_SECONDS", 0.3)

    async def run() -> None:
        config, state = uvicorn.Config(pours, ws="none", log_level="critical"), ServerState()
        config.load()
        options: dict[str, Any] = {"config": config, "server_state": state, "app_state": {}}
        make = partial(Connection, **options, most=9, count=lambda *_: None)
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        made = socket.create_connection(server.sockets[0].getsockname())
        made.sendall(said)
        async with asyncio.timeout(20):
            while not state.connections:
                await asyncio.sleep(0.01)
            while state.connections or state.tasks:
                await asyncio.sleep(0.01)
        made.close()
        server.close()

    asyncio.run(run())


def test_an_error_of_the_server_shows_nothing_of_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ARRIVE_SECONDS", 0.05)

    async def breaks(_: Scope, __: Receive, ___: Send) -> None:
        raise KeyError("secret_name")

    raw = Raw().ask(breaks)
    assert raw.counted == [500] and b"secret_name" not in raw.sent[1]["body"] and b'"type"' in raw.sent[1]["body"]
    assert "secret_name" in caplog.text


def test_a_log_says_the_same_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("personavec.server.serve.time", SimpleNamespace(monotonic=lambda: now[0]))
    sparing, lines = Sparing(), []

    def say(text: str, *args: object, **options: Any) -> None:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, text, args, options.get("exc_info"))
        if sparing.filter(record):
            lines.append(logging.Formatter().format(record))

    for number in range(1000):
        say("too many (%d)", number)
    say("another")
    error = ValueError("bad")
    say("Exception in ASGI application\n", exc_info=(ValueError, error, None))
    now[0] = SAME_SECONDS
    say("too many (%d)", 7)
    assert lines == [
        "too many (0)",
        "another",
        "Exception in ASGI application (ValueError: bad)",
        "too many (7); 999 more like it before",
    ]


def test_connections_leave_descriptors_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, wanted in ((1024, 832), (100, 16), (10**6, 4096)):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, soft))
        assert most_connections() == wanted


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Path]:
    page = tmp_path / "report.html"
    page.write_text("<p>A report")
    yield page


def test_a_report_that_became_a_link_is_not_followed(options: dict[str, Any], page: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    with client(ServeConfig(**options), {"run": page}) as server:
        (listed,) = good(server.get("/v1/reports"))["data"]
        assert server.get(listed["url"]).text == "<p>A report"
        page.write_text("<p>A newer report")
        assert server.get(listed["url"]).text == "<p>A newer report"
        page.unlink()
        bad(server.get(listed["url"]), 404, "expected a report that is where it was")
        page.symlink_to(secret)
        bad(server.get(listed["url"]), 404, "expected a report that is where it was")
