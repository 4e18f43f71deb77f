"""What can be asked of a server, as OpenAPI describes it, for programs that make clients and tests of it."""

from collections.abc import Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from personavec import __version__

NAMED = "#/components/schemas/{model}"


class Problem(BaseModel):
    """What is wrong with a request, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Wrong(BaseModel):
    """Body of every answer that is an error."""

    error: Problem


ERRORS: dict[int | str, dict[str, Any]] = {"default": {"description": "An error", "model": Wrong}}
"""For a route's `responses`."""


def taking(body: type[BaseModel]) -> dict[str, Any]:
    """For a route's `openapi_extra`: the body of its requests, which it reads by itself."""
    schema = {"$ref": NAMED.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def page(routes: Sequence[BaseRoute], *bodies: type[BaseModel]) -> dict[str, Any]:
    """The description of all routes, and of the bodies that some take."""
    _, named = models_json_schema([(body, "validation") for body in bodies], ref_template=NAMED)
    described = get_openapi(title="personavec", version=__version__, routes=routes)
    described["components"]["schemas"].update(named["$defs"])
    return described
