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
        message, param = _line(message), None if param is None else _line(param)
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code or None}}

    def answer(self) -> JSONResponse:
        """The HTTP answer."""
        headers = HEADERS.get(self.status, {})
        return JSONResponse(self.body, self.status, headers)


def _line(text: str) -> str:
    """One line of whole characters: a request can spell others, and an error says what it was."""
    return "".join(character if character.isprintable() else "?" for character in text)
