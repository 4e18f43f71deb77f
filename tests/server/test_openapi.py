"""A server describes what can be asked of it."""

import json
import re

import pytest
from support.serving import Client, bad, good


def test_the_page_describes_every_route_and_the_bodies_that_are_read(server: Client) -> None:
    page = good(server.get("/openapi.json"))
    served = {route.path for route in server.app.routes} - {"/openapi.json"}  # type: ignore[attr-defined]
    assert page["paths"].keys() == {path.replace(":path", "") for path in served}
    named = page["components"]["schemas"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        schema = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"max_tokens", "temperature", "stream", "persona"} <= named[schema["$ref"].rpartition("/")[2]][
            "properties"
        ].keys()
    references = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(page))
    assert {*references} <= named.keys()


@pytest.mark.parametrize("path", ["/v1/models/a%0Ab", "/v1/conversations/a%00%0A%E2%80%A8b", "/nowhere/%1B[2J"])
def test_an_error_is_one_line_whatever_a_path_spells(path: str, server: Client) -> None:
    answer = server.get(path)
    bad(answer, 404, "expected")
    assert answer.json()["error"]["message"].isprintable()
