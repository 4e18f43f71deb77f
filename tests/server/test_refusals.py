"""What is wrong with a request is said in words of the API, with a path in the request."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.serving import ASKED, Client, bad

from personavec.server.api.protocol import ChatBody, CompletionBody, read
from personavec.server.refused import Refused

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
INSIDE = re.compile(
    r"function-|validator|pydantic|0x[0-9a-f]{4}|<|\bstr\b|constrained|literal\[|_Part|ChatBody|codec|sys\."
)


def refusal(body: Any, kind: Any = ChatBody) -> Refused:
    with pytest.raises(Refused) as refused:
        read(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    assert not INSIDE.search(str(refused.value)), str(refused.value)
    return refused.value


def asked(**fields: Any) -> dict[str, Any]:
    return ASKED | fields


def turn(content: Any = "Hi", role: str = "user", **fields: Any) -> dict[str, Any]:
    return asked(messages=[{"role": "user", "content": "Hi"}, {"role": role, "content": content, **fields}])


@pytest.mark.parametrize(
    ("body", "param", "match"),
    [
        (turn([{"type": "text", "text": "What is it?"}, IMAGE]), "messages.1.content.1.type", '"image_url"'),
        (turn([IMAGE]), "messages.1.content.0.type", "'text', got \"image_url\""),
        (turn([{"type": "input_audio", "input_audio": {}}]), "messages.1.content.0.type", "input_audio"),
        (turn([{"type": "text"}]), "messages.1.content.0.text", "got none"),
        (turn(["Hi"]), "messages.1.content.0", "an object"),
        (turn(None), "messages.1.content", "a valid string or a valid list, got null"),
        (turn(5), "messages.1.content", "a valid string or a valid list, got 5"),
        (turn("\ud800"), "messages.1.content", "half a surrogate pair"),
        (turn(role="tool"), "messages.1", "with a tool_call_id"),
        (turn(role="robot"), "messages.1.role", '"robot"'),
        (turn(None, "assistant", tool_calls=[{"id": "a"}]), "messages.1.tool_calls.0.function", "got none"),
        (turn(tool_call_id="a"), "messages.1", "without elsewhere"),
        (turn(None, "assistant", function_call={"name": "a"}), "messages.1.function_call", "cannot be obeyed"),
        (turn(None, "assistant", refusal="No."), "messages.1.refusal", "cannot be obeyed"),
        (turn("x", "assistant", reasoning_content="So"), "messages.1.reasoning_content", "cannot be obeyed"),
        (turn(name="Ann"), "messages.1.name", "cannot be obeyed"),
        (turn([{"type": "text", "text": "x", "annotations": [1]}]), "messages.1.content.0.annotations", "obeyed"),
        (asked(messages="Hi"), "messages", 'a valid list, got "Hi"'),
        (asked(messages=["Hi"]), "messages.0", "an object"),
        (asked(messages=[]), "messages", "at least 1 item"),
        ({"max_tokens": 4}, "messages", "expected messages, got none"),
        (asked(stop=5), "stop", "a valid string or a valid list, got 5"),
        (asked(stop=["a", 5]), "stop.1", "a valid string, got 5"),
        (asked(temperature="hot"), "temperature", "a valid number"),
        (asked(temperature=float("nan")), "temperature", "NaN"),
        (asked(top_p=float("nan")), "top_p", "NaN"),
        (asked(tools=[{"type": "web_search"}]), "tools.0.type", "'function'"),
        (asked(tools=[{"type": "function", "function": {"name": "a b"}}]), "tools.0.function.name", "pattern"),
        (asked(tool_choice="required"), "tool_choice", "to be 'none' or 'auto', got \"required\""),
        (asked(tool_choice={"type": "function", "function": {"name": "f"}}), "tool_choice", "to be 'none' or 'auto'"),
        (
            asked(response_format={"type": "grammar"}),
            "response_format.type",
            "to be 'text', 'json_object' or 'json_schema'",
        ),
        (asked(persona={"steering": [{"vector": "v", "coef": 1, "layer": "al"}]}), "persona.steering.0.layer", "'all'"),
        (asked(persona={"steering": [{"coef": 1}]}), "persona.steering.0.vector", "got none"),
        (asked(persona={"watch": [5]}), "persona.watch.0", "an object"),
        (asked(persona=[]), "persona", "an object"),
        (asked(persona={"steer": 1}), "persona.steer", "expected no persona.steer"),
        ([], None, "expected the body to be an object, got a list"),
        ("text", None, 'expected the body to be an object, got "text"'),
        (b'{"seed": ' + b"9" * 9999 + b"}", None, "a number of too many digits"),
        (b'{"model": "\xff"}', None, "its byte 11 is not UTF-8"),
        (b"[" * 99999, None, "nested too deep"),
        (b"{,}", None, "line 1, column 2"),
    ],
)
def test_the_field_and_the_cause_are_named(body: Any, param: str | None, match: str) -> None:
    error = refusal(body).body["error"]
    assert (error["param"], match in error["message"]) == (param, True), error


def test_what_an_answer_brought_is_taken_back() -> None:
    """An assistant's turn as the official client dumps it, and fields that change nothing."""
    empty = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls", "annotations", "name"))
    body = read(json.dumps(turn("Hello", "assistant", **empty | {"annotations": []})).encode(), ChatBody)
    assert body.said[1] == {"role": "assistant", "content": "Hello"}
    cached = [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]
    assert read(json.dumps(turn(cached)).encode(), ChatBody).said[1]["content"] == "Hi"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({*ChatBody.model_fields, *CompletionBody.model_fields})


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(NAMES), JSON, st.sampled_from([ChatBody, CompletionBody]))
def test_no_value_of_any_field_shows_the_inside(name: str, value: Any, kind: Any) -> None:
    body = {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
    kept = {key: given for key, given in body.items() if key in kind.model_fields}
    try:
        read(json.dumps(kept | {name: value}).encode(), kind)
    except Refused as refused:
        error = refused.body["error"]
        assert not re.search(r"function-|validator|0x[0-9a-f]{5}|constrained|literal\[|_Part|Body\b", error["message"])
        assert error["param"] == name or error["param"].startswith(f"{name}.")
        json.dumps(error, ensure_ascii=False).encode()


@pytest.mark.parametrize("fields", [{"model": "\ud800"}, {"\ud800": 1}, {"persona": {"\ud800": 1}}])
def test_half_a_surrogate_pair_is_answered(server: Client, fields: dict[str, Any]) -> None:
    content = json.dumps(asked(**fields))
    answer = server.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    bad(answer, 400, "" if "\ud800" in fields else "half a surrogate pair")
