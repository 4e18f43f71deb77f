"""What connections and requests must pass before anything reads them: number, time, host, key, kind, size."""

import asyncio
import hmac
import logging
import re
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, cast

import h11
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from personavec.server.refused import Refused

OPEN = ("/static/", "/health", "/ready", "/reports/")
"""What needs no key, besides the page itself. Links of reports cannot be guessed."""
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::\d*)?", re.IGNORECASE)
"""A Host header: a name or an address, and a port."""
ARRIVE_SECONDS = 20.0
"""Within which a request must have arrived, and a client must take what it is sent."""
DROPPED = 8
"""How many times the longest body is read and dropped of a longer one."""
GONE = 499
"""Counted for requests whose client left before it was answered."""
STATUS = "personavec.status"
"""Key of a scope: the status that was sent by someone else."""
LOG = logging.getLogger("personavec.server")


class Limits:
    """ASGI middleware. Every request is counted once, whoever answered it and however it ended.

    Args:
        app: What is protected.
        key: That requests must name; None lets everybody in.
        hosts: Names by which the server may be called; None allows any. Keeps pages of other sites from reaching a
            server on this machine under a name of theirs.
        body_bytes: Longest body.
        count: What is called with the scope and the status of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        hosts: Collection[str] | None,
        body_bytes: int,
        count: Callable[[Scope, int], None],
    ) -> None:
        self.app, self.key, self.hosts, self.body_bytes, self.count = app, key, hosts, body_bytes, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size, arrived, status = 0, False, 0
        until = asyncio.get_running_loop().time() + ARRIVE_SECONDS

        async def measured() -> Message:
            nonlocal size, arrived
            try:
                async with asyncio.timeout_at(None if arrived else until):
                    message = await receive()
            except TimeoutError:
                problem = f"expected the whole body within {ARRIVE_SECONDS:g} seconds, got {size:,} bytes of it"
                raise Refused(408, problem, kind="timeout_error") from None
            size, arrived = size + len(message.get("body", b"")), not message.get("more_body", False)
            if size > self.body_bytes:
                raise self._too_large(size)
            return message

        async def drop_rest() -> None:
            """Or a client that still sends would not read its answer."""
            nonlocal size, arrived
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    while not arrived and size <= DROPPED * self.body_bytes:
                        message = await receive()
                        size, arrived = size + len(message.get("body", b"")), not message.get("more_body", False)

        async def noted(message: Message) -> None:
            nonlocal status
            if not arrived:
                await drop_rest()
            status = message.get("status", status)
            without = scope["method"] == "HEAD" and message["type"] == "http.response.body"
            await send({**message, "body": b""} if without else message)

        try:
            self._check(scope)
            # a HEAD is a GET whose answer has no body
            await self.app({**scope, "method": "GET"} if scope["method"] == "HEAD" else scope, measured, noted)
        except ClientDisconnect:
            pass
        except Exception as error:  # nobody may see the inside, and whoever runs the server must
            if not isinstance(error, Refused):
                LOG.error("a request failed", exc_info=error)
                error = Refused(
                    500, "expected to answer, got an error of this server; its log says which", kind="server_error"
                )
            if not status:
                await error.answer()(scope, receive, noted)
        finally:
            self.count(scope, status or scope.get(STATUS, GONE))

    def _check(self, scope: Scope) -> None:
        headers = {name: value for name, value in scope["headers"]}
        path = scope["path"]
        host = HOST.fullmatch(headers.get(b"host", b"").decode("latin-1"))
        if self.hosts is not None and (host is None or (host[1] or host[2]).lower() not in self.hosts):
            raise Refused(421, f"expected one of the hosts {', '.join(sorted(self.hosts))}, got another name")
        given = headers.get(b"authorization", b"")
        if self.key is not None and path != "/" and not path.startswith(OPEN):
            scheme, _, key = given.partition(b" ")  # schemes have no letter case (RFC 9110)
            if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.key.encode()):
                raise Refused(
                    401,
                    "expected the key of this server as «Authorization: Bearer KEY», got another or none",
                    code="invalid_api_key",
                )
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Refused(
                    415, f"expected content of type application/json, got {kind.decode('latin-1')[:100] or 'none'}"
                )
            coding = headers.get(b"content-encoding", b"identity").strip().lower()
            if coding != b"identity":
                name = coding.decode("latin-1")[:100]
                raise Refused(415, f"expected a body without Content-Encoding, got {name}; send it as it is")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.body_bytes:
            raise self._too_large(int(length[:20]))

    def _too_large(self, size: int) -> Refused:
        return Refused(413, f"expected a body of at most {self.body_bytes:,} bytes, got {size:,} or more")


class Connection(H11Protocol):
    """A connection of uvicorn's that must bring a request in time, and makes room for others until it has.

    Args:
        most: Connections that may be open; one more takes the place of the one that has waited longest for its client.
        count: Is called for what is no HTTP at all.
    """

    def __init__(self, *args: Any, most: int, count: Callable[[str, int], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.most, self.count = most, count
        self._since = 0.0
        self._timer: TimerHandle | None = None
        """Until the client must have gone on."""

    @property
    def waiting(self) -> bool:
        """Whether the client has to go on, and not the server."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Wait for a request, in the place of another connection if there are too many."""
        super().connection_made(transport)
        self._wait()
        others = [other for other in self.connections if not other.transport.is_closing()]
        if len(others) > self.most:
            waiting = [other for other in others if isinstance(other, Connection) and other.waiting]
            LOG.warning("more than %d connections; the one that waits longest is closed", self.most)
            min(waiting, key=lambda other: other._since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait until the client takes what it was sent."""
        super().pause_writing()
        self._stop_timer()
        self._timer = self.loop.call_later(ARRIVE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._stop_timer()
        if self.waiting:
            self._wait()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._stop_timer()
        self._since = self.loop.time()
        self._timer = self.loop.call_later(ARRIVE_SECONDS, self._late)

    def _late(self) -> None:
        if self.cycle is None or self.cycle.response_complete:  # bodies are waited for by `Limits`
            self.transport.abort()

    def send_400_response(self, _: str) -> None:
        """Answer what is no HTTP in the form of all errors."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        answer = Refused(400, "expected a request of HTTP/1.1, got something else").answer()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if under_way:
            cast(dict[str, Any], self.scope)[STATUS] = 400
        else:
            self.count("other", 400)

    def shutdown(self) -> None:
        """Finish what is under way; nothing is lost with a request that has not arrived."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
            self.transport.abort()
        else:
            super().shutdown()
