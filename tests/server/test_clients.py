"""Request bodies of well-known clients, as each sends them by default."""

from typing import Any

import pytest
from support.serving import Client, bad, good

CHAT = [{"role": "user", "content": "Hi there"}]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "LangChain ChatOpenAI": ("chat/completions", {"messages": CHAT, "stream": False, "temperature": 0.7}),
    "LangChain ChatOpenAI, streaming": (
        "chat/completions",
        {"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}, "n": 1},
    ),
    "LangChain OpenAI": (
        "completions",
        {"prompt": ["Once"], "max_tokens": 16, "temperature": 0.7, "top_p": 1, "frequency_penalty": 0}
        | {"presence_penalty": 0, "n": 1, "logit_bias": {}},
    ),
    "LangChain OpenAI, several": ("completions", {"prompt": ["Once"], "max_tokens": 4, "n": 2, "best_of": 2}),
    "litellm": (
        "chat/completions",
        {"messages": [{"role": "system", "content": "Be kind."}, *CHAT], "extra_body": {}, "user": "someone"}
        | {"max_completion_tokens": 8, "temperature": 0.2, "parallel_tool_calls": None, "tools": None},
    ),
    "Open WebUI": (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stream": True}
        | {"stream_options": {"include_usage": True}},
    ),
    "Open WebUI, title": ("chat/completions", {"messages": CHAT, "stream": False, "max_completion_tokens": 60}),
    "promptfoo": (
        "chat/completions",
        {"messages": CHAT, "max_tokens": 16, "temperature": 0, "top_p": 1, "presence_penalty": 0, "stop": []}
        | {"frequency_penalty": 0},
    ),
    "promptfoo, completion": (
        "completions",
        {"prompt": "Once", "max_tokens": 16, "temperature": 0, "top_p": 1, "best_of": 1, "seed": 0, "stop": []},
    ),
    "lm-eval local-completions": (
        "completions",
        {"prompt": [[40, 41, 42]], "max_tokens": 8, "temperature": 0.0, "stop": ["\n\n", "<end>"], "seed": 1234},
    ),
    "lm-eval local-chat-completions": (
        "chat/completions",
        {"messages": CHAT, "max_tokens": 8, "temperature": 0, "stop": ["Q:"], "seed": 1234, "type": None},
    ),
    "LiteLLM proxy, after a turn": (
        "chat/completions",
        {
            "messages": [
                *CHAT,
                {"role": "assistant", "content": "Hello", "tool_calls": None, "function_call": None, "refusal": None},
                *CHAT,
            ]
        },
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_of_clients_are_answered(server: Client, name: str) -> None:
    path, body = BODIES[name]
    body = {"max_tokens": 8} | body | {"model": server.service.model.identity.id}
    answer = server.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n") and '"usage"' in answer.text
    else:
        assert good(answer)["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("chat/completions", {"messages": CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ("chat/completions", {"messages": CHAT, "response_format": {"type": "json_object"}}, "response_format"),
        ("completions", {"prompt": "Hi", "best_of": 3}, "best_of"),
        ("completions", {"prompt": "Hi", "best_of": 3, "n": 2}, "best_of"),
        ("completions", {"prompt": "Hi", "suffix": "x"}, "suffix"),
    ],
)
def test_what_a_client_needs_and_cannot_have_is_named(server: Client, path: str, fields: Any, name: str) -> None:
    answer = server.post(f"/v1/{path}", json=fields | {"model": server.service.model.identity.id})
    bad(answer, 400, f"expected no {name}, got one that cannot be obeyed here")
    assert answer.json()["error"]["param"] == name
