"""The Responses API, for text: what the official client sends and reads, and the same replies as those of a chat."""

import json
from typing import Any

import openai
import pytest
from support.serving import Client, bad, good

TEXT = "Hi there"
PARTS = [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
EARLIER = [
    {"role": "user", "content": "Hi"},
    {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Yes?", "annotations": [], "logprobs": []}],
    },
    {"type": "message", "role": "user", "content": TEXT},
]


def ask(server: Client, **fields: Any) -> Any:
    asked = {"model": server.service.model.identity.id, "input": TEXT, "max_output_tokens": 8, "seed": 3}
    return server.post("/v1/responses", json=asked | fields)


def text(response: Any) -> str:
    (item,) = response["output"]
    (part,) = item["content"]
    assert (item["type"], item["role"], part["type"]) == ("message", "assistant", "output_text")
    return part["text"]


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({}, [("user", TEXT)]),
        ({"input": PARTS}, [("user", TEXT)]),
        ({"input": EARLIER}, [("user", "Hi"), ("assistant", "Yes?"), ("user", TEXT)]),
        ({"instructions": "Be kind."}, [("system", "Be kind."), ("user", TEXT)]),
        ({"input": [{"role": "developer", "content": "Be kind."}, *PARTS]}, [("system", "Be kind."), ("user", TEXT)]),
    ],
)
def test_replies_are_those_of_the_same_chat(server: Client, fields: Any, messages: Any) -> None:
    persona = {"steering": [{"vector": "tiny", "dose": 0.2}], "watch": ["tiny"], "conversation": "c1"}
    told = good(ask(server, temperature=0.7, top_p=0.9, persona=persona, **fields))
    chat = good(
        server.ask(
            messages=[{"role": role, "content": said} for role, said in messages],
            temperature=0.7,
            top_p=0.9,
            persona=persona,
        )
    )
    assert text(told) == chat["choices"][0]["message"]["content"]
    assert told["output"][0]["persona"]["pieces"] == chat["choices"][0]["persona"]["pieces"]
    read, wanted = (one["persona"]["projections"]["tiny"] for one in (told["output"][0], chat["choices"][0]))
    assert read["response_avg"] == pytest.approx(wanted["response_avg"], abs=1e-4)
    assert told["persona"] == chat["persona"]
    assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (
        chat["usage"]["prompt_tokens"],
        chat["usage"]["completion_tokens"],
    )
    finished = {"length": ("incomplete", {"reason": "max_output_tokens"}), "stop": ("completed", None)}
    assert (told["status"], told["incomplete_details"]) == finished[chat["choices"][0]["finish_reason"]]


def test_a_stream_has_the_official_events(server: Client) -> None:
    whole = good(ask(server))
    lines = ask(server, stream=True).text.split("\n\n")
    assert lines.pop() == ""
    events = [json.loads(line.partition("\ndata: ")[2]) for line in lines]
    assert [line.partition("\n")[0] for line in lines] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", whole["status"]),
    ]
    last = events[-1]["response"]
    assert "".join(event["delta"] for event in deltas) == events[-4]["text"] == text(last) == text(whole)
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    pieces = [piece for event in deltas for piece in event["persona"]["pieces"]]
    tokens = [value for event in deltas for value in event["persona"]["tokens"]["tiny"]]
    kept = last["output"][0]["persona"]
    assert pieces == kept["pieces"] and tokens == pytest.approx(kept["projections"]["tiny"]["tokens"])
    first = events[0]["response"]["persona"]["prompt_last"]["tiny"]
    assert first == pytest.approx(kept["projections"]["tiny"]["prompt_last"])


def test_the_official_client(server: Client) -> None:
    client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=server, max_retries=0)
    model = client.models.list().data[0].id
    create: Any = client.responses.create
    whole = create(model=model, input=TEXT, max_output_tokens=8, extra_body={"seed": 3})
    assert whole.output_text == text(good(ask(server))) and whole.usage.output_tokens <= 8
    *events, last = create(model=model, input=TEXT, max_output_tokens=8, stream=True, extra_body={"seed": 3})
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text == whole.output_text
    said = [{"role": "user", "content": TEXT}, *whole.output, {"role": "user", "content": "And?"}]
    assert create(model=model, input=said, max_output_tokens=4, store=False).status in ("completed", "incomplete")
    with pytest.raises(openai.BadRequestError, match="expected no previous_response_id"):
        create(model=model, input=TEXT, previous_response_id=whole.id)


LOGPROBS = "message.output_text.logprobs"


@pytest.mark.parametrize(
    ("fields", "most"), [({"include": [LOGPROBS]}, 0), ({"include": [LOGPROBS], "top_logprobs": 3}, 3)]
)
def test_log_probabilities_are_those_of_the_same_chat(server: Client, fields: Any, most: int) -> None:
    chat = good(server.ask(logprobs=True, top_logprobs=most))["choices"][0]["logprobs"]["content"]
    assert good(ask(server, top_logprobs=3))["output"][0]["content"][0]["logprobs"]
    for one in (each for entry in chat for each in (entry, *entry["top_logprobs"])):
        one["bytes"] = one["bytes"] or []  # the type of a chat has null, that of a response has not
    told = good(ask(server, **fields))
    openai.types.responses.Response.model_validate(told)
    assert told["output"][0]["content"][0]["logprobs"] == chat and told["top_logprobs"] == most
    assert good(ask(server))["output"][0]["content"][0]["logprobs"] == []
    client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=server, max_retries=0)
    create: Any = client.responses.create
    asked = {
        "model": server.service.model.identity.id,
        "input": TEXT,
        "max_output_tokens": 8,
        "extra_body": {"seed": 3},
    }
    events = [*create(stream=True, **asked, **fields)]
    deltas = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    done = [event for event in events if event.type == "response.output_text.done"]
    for logprobs in (deltas, done[0].logprobs, events[-1].response.output[0].content[0].logprobs):
        assert [one.logprob for one in logprobs] == [one["logprob"] for one in chat]
        assert [len(one.top_logprobs) for one in logprobs] == [most] * len(chat)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0"),
        ({"include": "message.output_text.logprobs"}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]}, "input.0.type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": [{"role": "user", "content": "x", "name": "bob"}]}, "input.0.name"),
        ({"max_output_tokens": 10_000}, "input"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(server: Client, fields: Any, param: str) -> None:
    answer = ask(server, **fields)
    bad(answer, 400, "expected")
    assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True, "metadata": {"a": "b"}, "user": "u", "service_tier": "auto", "parallel_tool_calls": True},
        {"tools": [], "tool_choice": "auto", "include": [], "background": False, "truncation": "disabled"},
        {"text": {"format": {"type": "text"}}, "reasoning": None, "instructions": None, "previous_response_id": None},
        {"stream_options": {"include_obfuscation": False}, "temperature": None, "top_logprobs": 0},
    ],
)
def test_what_changes_nothing_is_taken(server: Client, fields: Any) -> None:
    assert text(good(ask(server, **fields))) == text(good(ask(server)))
