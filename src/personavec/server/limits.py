"""What every request must pass before anything reads it: host, key, kind of body, size."""

import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personavec.server.refused import Refused

OPEN = ("/static/", "/health", "/ready", "/reports/")
"""What needs no key, besides the page itself. Links of reports cannot be guessed."""


class Limits:
    """ASGI middleware.

    Args:
        app: What is protected.
        key: That requests must name; None lets everybody in.
        hosts: Names by which the server may be called; None allows any. Keeps pages of other sites from reaching a
            server on this machine under a name of theirs.
        body_bytes: Longest body.
    """

    def __init__(self, app: ASGIApp, key: str | None, hosts: Collection[str] | None, body_bytes: int) -> None:
        self.app, self.key, self.hosts, self.body_bytes = app, key, hosts, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size, answered = 0, False

        async def measured() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.body_bytes:
                raise self._too_large(size)
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "HEAD":  # a GET whose answer has no body
                await self.app({**scope, "method": "GET"}, measured, lambda message: noted(_without_body(message)))
            else:
                await self.app(scope, measured, noted)
        except Refused as error:
            if answered:
                raise
            await error.answer()(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = {name: value for name, value in scope["headers"]}
        path = scope["path"]
        host = headers.get(b"host", b"").decode("latin-1").partition("]")[0].strip("[")  # [::1]:8000
        host = host if host.count(":") > 1 else host.partition(":")[0]
        if self.hosts is not None and host not in self.hosts:
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


def _without_body(message: Message) -> Message:
    return {**message, "body": b""} if message["type"] == "http.response.body" else message
