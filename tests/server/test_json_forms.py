"""Replies that are held to a JSON schema, beside others that are not."""

import json
from typing import Any

import openai
import pytest
from support.serving import Client, bad, good

from personavec.server.api import forms
from personavec.server.api.forms import DEEPEST, LONGEST, check
from personavec.server.refused import Refused

WORD = {"type": "string", "maxLength": 4}
CITY = {
    "type": "object",
    "properties": {"name": WORD, "size": {"enum": ["big", "small"]}, "old": {"type": "boolean"}},
    "required": ["name", "size", "old"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    CITY,
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"const": "yes"}, {"const": "no"}]},
    {"$ref": "#/$defs/pair", "$defs": {"pair": {"type": "array", "items": WORD, "minItems": 2, "maxItems": 2}}},
]


def asked(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


def holds(schema: Any, value: Any) -> bool:
    """Of these schemas, whether a value is one."""
    schema = schema["$defs"]["pair"] if "$ref" in schema else schema
    if "anyOf" in schema:
        return value in ("yes", "no")
    if schema["type"] == "array":
        right = int if schema["items"].get("type") == "integer" else str
        return schema["minItems"] <= len(value) <= schema["maxItems"] and all(type(one) is right for one in value)
    return set(value) == set(CITY["properties"]) and value["size"] in ("big", "small") and len(value["name"]) <= 4


@pytest.fixture
def installed() -> None:
    pytest.importorskip("xgrammar", reason="needs pip install -e '.[structured]'")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("schema", SCHEMAS)
def test_replies_are_of_their_schema(server: Client, schema: Any) -> None:
    for seed in range(3):
        told = good(server.ask(response_format=asked(schema), max_tokens=64, n=1, seed=seed, temperature=1.5))
        choice = told["choices"][0]
        if choice["finish_reason"] == "stop":
            assert holds(schema, json.loads(choice["message"]["content"])), choice["message"]["content"]
        else:  # a reply of its length is cut, as OpenAI's are
            assert choice["message"]["content"][0] in '{["'
    greedy = good(server.ask(response_format=asked(schema), max_tokens=64, temperature=0))
    assert greedy["choices"][0]["message"]["content"][0] in '{["'


@pytest.mark.usefixtures("installed")
def test_a_stream_and_a_response_say_the_same(server: Client) -> None:
    fields = {"max_tokens": 64, "seed": 1, "response_format": asked(SCHEMAS[2])}
    whole = good(server.ask(**fields))["choices"][0]["message"]["content"]
    assert json.loads(whole) in ("yes", "no")
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in server.events(**fields)]
    assert "".join(pieces) == whole
    client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=server, max_retries=0)
    create: Any = client.responses.create
    text = {"format": {"type": "json_schema", "name": "it", "schema": SCHEMAS[2], "strict": True}}
    model = server.service.model.identity.id
    said = create(model=model, input="Hi there", max_output_tokens=64, text=text, extra_body={"seed": 1})
    assert said.output_text == whole and said.text.format.type == "json_schema"
    anything = create(model=model, input="Hi", max_output_tokens=8, text={"format": {"type": "json_object"}})
    assert anything.output_text.startswith("{")


@pytest.mark.usefixtures("installed")
def test_batch_mates_do_not_notice(server: Client) -> None:
    """In one request, where they are drawn together: a form of n replies, and log-probabilities of the model itself."""
    plain = good(server.ask(logprobs=True, top_logprobs=2, max_tokens=1, temperature=0))["choices"][0]
    held = good(
        server.ask(logprobs=True, top_logprobs=2, max_tokens=1, temperature=0, response_format=asked(SCHEMAS[0]), n=3)
    )["choices"]
    tops = [choice["logprobs"]["content"][0]["top_logprobs"] for choice in (plain, *held)]
    assert all(top == tops[0] for top in tops)
    assert [choice["message"]["content"] for choice in held] == ["{"] * 3


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("schema", "place", "match"),
    [
        ({"type": "nonsense"}, "", "expected a JSON schema, got one that is not"),
        ({"$ref": "#/$defs/none"}, "", "expected a JSON schema, got one that is not"),
        ({"type": "string", "pattern": "a*"}, ".pattern", "cannot be held to"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, ".properties.a.not", "cannot be held to"),
        ({"type": "array", "minItems": "2"}, ".minItems", "another value"),
        ([], "", "to be an object"),
        ({"enum": ["x" * LONGEST]}, "", "at most 16,384 bytes"),
        ({"properties": {f"p{number}": {} for number in range(300)}}, "", "100 objects"),
    ],
)
def test_what_a_reply_cannot_be_held_to_is_named(server: Client, schema: Any, place: str, match: str) -> None:
    answer = server.ask(response_format=asked(schema))
    bad(answer, 400, match)
    assert answer.json()["error"]["param"] == f"response_format.json_schema.schema{place}"


def test_without_the_package_it_is_refused_by_name(server: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "xgrammar", None)
    for form in ({"type": "json_object"}, asked(CITY)):
        answer = server.ask(response_format=form)
        bad(answer, 400, "without pip install -e '.[structured]' in a clone")
        assert answer.json()["error"]["param"] == "response_format"
    assert server.ask(response_format={"type": "text"}).status_code == 200


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "it"}}, "response_format.json_schema.schema"),
        ({"type": "grammar"}, "response_format.type"),
        ({"type": "json_object", "grammar": "x"}, "response_format.grammar"),
        ("json", "response_format"),
    ],
)
def test_a_form_that_is_none_is_named(server: Client, form: Any, param: str) -> None:
    answer = server.ask(response_format=form)
    bad(answer, 400, "expected")
    assert answer.json()["error"]["param"] == param, answer.text


def deep(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        deep(DEEPEST + 1),
        deep(900),
        {"$ref": "http://example.com/schema"},
        {"$ref": "#/$defs/a", "maxLength": 3},
        {"anyOf": [{}], "type": "string"},
        {"enum": [1], "minLength": 1},
        {"minItems": -1},
        {"anyOf": []},
        {"type": []},
        {"required": ["a"], "properties": {"b": {}}},
        {"required": [["a"]], "properties": "a"},
        {"maxLength": True},
    ],
)
def test_what_would_not_be_obeyed_is_refused(schema: Any) -> None:
    with pytest.raises(Refused, match="expected"):
        check(schema, "schema")


@pytest.mark.parametrize("schema", [*SCHEMAS, {}, True, deep(DEEPEST), {"title": "x", "type": ["string", "null"]}])
def test_what_is_obeyed_is_taken(schema: Any) -> None:
    check(schema, "schema")
