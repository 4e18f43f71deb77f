"""/v1/completions: one prompt or many, as texts or as token ids."""

import re
from typing import Any

import pytest
from support.serving import Client, bad, client, good

from personavec.model.spelling import Spelling
from personavec.server.options import ServeConfig

PROMPTS = ["Hi there", "Once", "Once upon a time"]


def complete(server: Client, prompt: Any, **fields: Any) -> Any:
    return server.ask("/v1/completions", messages=None, prompt=prompt, **fields)


@pytest.mark.parametrize("n", [1, 2])
def test_several_prompts_are_replied_to_as_each_alone(server: Client, n: int) -> None:
    """LangChain's OpenAI always sends a list."""
    together = good(complete(server, PROMPTS, n=n))
    assert [choice["index"] for choice in together["choices"]] == list(range(3 * n))
    alone = [good(complete(server, prompt, n=n)) for prompt in PROMPTS]
    texts = [choice["text"] for whole in alone for choice in whole["choices"]]
    assert [choice["text"] for choice in together["choices"]] == texts
    for kind in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][kind] == sum(whole["usage"][kind] for whole in alone)


def test_ids_are_prompts_too(server: Client) -> None:
    ids = [list(server.service.model.encode(prompt)) for prompt in PROMPTS]
    texts = [choice["text"] for choice in good(complete(server, PROMPTS))["choices"]]
    assert [choice["text"] for choice in good(complete(server, ids))["choices"]] == texts
    assert [choice["text"] for choice in good(complete(server, ids[1]))["choices"]] == texts[1:2]
    assert good(complete(server, PROMPTS[:1]))["choices"][0]["text"] == texts[0]


def test_a_stream_of_several_prompts_is_the_whole(server: Client) -> None:
    whole = good(complete(server, PROMPTS, n=2, max_tokens=5))
    events = server.events(
        path="/v1/completions",
        messages=None,
        prompt=PROMPTS,
        n=2,
        max_tokens=5,
        stream_options={"include_usage": True},
    )
    texts = [""] * 6
    for event in events[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in whole["choices"]] and events[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ([], "prompt"),
        ("", "prompt"),
        (["Hi", ""], "prompt.1"),
        (["Hi", 5], "prompt.1"),
        ([[1], []], "prompt.1"),
        ([1, -1], "prompt.1"),
        ([[1], [10**6]], "ids below"),
        ({"text": "Hi"}, "prompt"),
        (["Hi"] * 65, "at most 64 prompts"),
        (["Hi", "x" * 300], "expected prompt and reply to fit into 256 tokens"),
    ],
)
def test_prompts_that_cannot_be_are_refused_by_name(server: Client, prompt: Any, match: str) -> None:
    answer = complete(server, prompt, max_tokens=1)
    bad(answer, 400, match)
    assert re.fullmatch(r"prompt(\.\d+)*|max_tokens", answer.json()["error"]["param"])


def test_the_tokens_that_nobody_asked_for_are_shared(options: dict[str, Any]) -> None:
    """Without max_tokens many prompts are replied to all the same."""
    with client(ServeConfig(**options | {"max_tokens": 64})) as server:
        told = good(complete(server, ["Hi"] * 16, max_tokens=None))
        assert len(told["choices"]) == 16 and told["usage"]["completion_tokens"] <= 64


def test_log_probabilities_of_the_old_form_are_exact(server: Client) -> None:
    """Three keys for each token, the chosen one with its value, whatever they are spelled like."""
    told = good(complete(server, "Hi", logprobs=3, max_tokens=30, temperature=0))["choices"][0]
    logprobs = told["logprobs"]
    for token, value, tops in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert len(tops) == 3 and tops[token] == value == max(tops.values())
    ends = [*logprobs["text_offset"][1:], len(told["text"])]
    assert [told["text"][begin:end] for begin, end in zip(logprobs["text_offset"], ends, strict=True)] == told[
        "persona"
    ]["pieces"]


def test_tokens_that_are_spelled_alike_are_kept_apart(server: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spelling, "_text", lambda *_: "\ufffd\ufffd")
    told = good(complete(server, "Hi", logprobs=5, max_tokens=8, temperature=2))["choices"][0]["logprobs"]
    for token, value, tops in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert 5 <= len(tops) <= 6 and tops[token] == value
