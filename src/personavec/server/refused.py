"""A request that is refused: what the client is told, and how."""

from starlette.responses import JSONResponse


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
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code or None}}

    def answer(self) -> JSONResponse:
        """The HTTP answer."""
        headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(self.status, {})
        return JSONResponse(self.body, self.status, headers)
