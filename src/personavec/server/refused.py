"""A request that is refused: what the client is told, and how."""

from starlette.responses import JSONResponse

HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
"""By status."""


class Refused(Exception):
    """A request that gets an error of OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str = "",
    ) -> None:
        message, param = _whole(message), None if param is None else _whole(param)
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code or None}}

    def answer(self) -> JSONResponse:
        """The HTTP answer."""
        headers = HEADERS.get(self.status, {})
        return JSONResponse(self.body, self.status, headers)


def _whole(text: str) -> str:
    """Without half surrogate pairs, which a client's JSON can spell and an answer cannot."""
    return text.encode("utf-8", "replace").decode()
