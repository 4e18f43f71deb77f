"""`echo` of /v1/completions: the prompt and what the model says of its tokens, as lm-eval asks for likelihoods."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.asking import Asked
from support.serving import Client, bad, good
from support.tiny import prompt

from personavec.model.chat_model import ChatModel
from personavec.server.api.echo import echo
from personavec.server.writing.engine import Engine
from personavec.steering.steer import Steering, steer

PROMPTS = ["Hi there", "Once", "Once upon a time, <|im_start|> she said"]
SCORING: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}


def complete(server: Client, prompt: Any, **fields: Any) -> Any:
    return server.ask("/v1/completions", messages=None, prompt=prompt, **fields)


def wanted(model: ChatModel, ids: tuple[int, ...], steering: tuple[Steering, ...] = ()) -> torch.Tensor:
    """Log-probabilities of all tokens behind each token, by one pass of transformers."""
    with torch.inference_mode(), steer(model, [steering], [len(ids)]):
        return model.hf(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_each_token_of_each_prompt_is_scored(server: Client, as_ids: bool, n: int) -> None:
    model = server.service.model
    ids = [model.encode(text) for text in PROMPTS]
    asked = [list(each) for each in ids] if as_ids else PROMPTS
    plain = good(complete(server, asked, n=n, max_tokens=1, temperature=0, logprobs=2))["choices"]
    told = good(complete(server, asked, n=n, **SCORING))["choices"]
    assert [choice["index"] for choice in told] == list(range(n * len(PROMPTS)))
    for place, (choice, other) in enumerate(zip(told, plain, strict=True)):
        own, text, scores = ids[place // n], PROMPTS[place // n], choice["logprobs"]
        assert choice["text"] == text + other["text"]
        logs = wanted(model, own)
        values = [logs[number, token].item() for number, token in enumerate(own[1:])]
        assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
        assert scores["token_logprobs"][1 : len(own)] == pytest.approx(values, abs=1e-4)
        behind = other["logprobs"]
        assert scores["tokens"][len(own) :] == behind["tokens"]
        assert scores["token_logprobs"][len(own) :] == pytest.approx(behind["token_logprobs"], abs=1e-4)
        for number, tops in enumerate(scores["top_logprobs"][1 : len(own)]):
            assert max(tops.values()) == pytest.approx(logs[number].max().item(), abs=1e-4)
            assert scores["token_logprobs"][number + 1] in tops.values() and 2 <= len(tops) <= 3
        lengths = {len(rest) for rest in scores.values()}
        assert lengths == {len(own) + len(behind["tokens"])}
        offsets = scores["text_offset"]
        assert offsets == sorted(offsets) and offsets[len(own) :] == [
            len(text) + offset for offset in behind["text_offset"]
        ]


def test_a_long_prompt_in_parts_beside_others_of_other_lengths(model: ChatModel, engine: Engine) -> None:
    """Two parts of the widest are 128 tokens wide; others in its batch are not scored, and read the same."""
    sizes, scored = (200, 1, 33, 200), (True, True, True, False)
    jobs = [
        Asked(model, prompt(size), size, top_logprobs=3, scores_prompt=wants)
        for size, wants in zip(sizes, scored, strict=True)
    ]
    for asked in [[one.job] for one in jobs], [[one.job] for one in reversed(jobs[:1])]:
        if asked[0][0].reply.finish is None:
            engine.submit(*asked)
    for size, wants, one in zip(sizes, scored, jobs, strict=True):
        one.wait()
        told = one.job.prompt_logprobs
        assert len(told) == (size if wants else 0)
        logs = wanted(model, prompt(size))
        for number, token in enumerate(told[1:]):
            assert token.token == prompt(size)[number + 1]
            assert token.logprob == pytest.approx(logs[number, token.token].item(), abs=1e-4)
            assert [id for id, _ in token.top] == logs[number].topk(3).indices.tolist()
    alone = Asked(model, prompt(200), 200, top_logprobs=3)
    engine.submit([alone.job])
    assert alone.wait().job.reply.ids == jobs[0].job.reply.ids == jobs[3].job.reply.ids


def test_a_prompt_that_was_read_before_is_scored_whole(server: Client) -> None:
    first, again = (good(complete(server, "Once upon a time " * 4, **SCORING)) for _ in range(2))
    assert first["choices"][0]["logprobs"] == again["choices"][0]["logprobs"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_steering_of_the_prompt_is_in_its_scores_and_one_of_the_response_is_said_not_to_be(server: Client) -> None:
    model, vectors = server.service.model, server.service.catalogue.vectors
    ids = model.encode(PROMPTS[0])

    def scores(**steering: Any) -> tuple[list[float], list[str]]:
        told = good(complete(server, PROMPTS[0], persona={"steering": [{"vector": "tiny"} | steering]}, **SCORING))
        return told["choices"][0]["logprobs"]["token_logprobs"][1 : len(ids)], told["persona"]["warnings"]

    def expected(*steering: Steering) -> Any:
        logs = wanted(model, ids, steering)
        return pytest.approx([logs[place, token].item() for place, token in enumerate(ids[1:])], abs=1e-4)

    everywhere, quiet = scores(coef=1.0, positions="all")
    assert everywhere == expected(Steering(vectors["tiny"], 1.0, positions="all")) != expected()
    assert quiet == []
    behind, warned = scores(coef=1.0)
    assert behind == expected() and "positions" in warned[0]


def test_a_stream_tells_the_prompt_first(server: Client) -> None:
    whole = good(complete(server, PROMPTS, n=2, **SCORING | {"max_tokens": 4}))
    events = server.events(path="/v1/completions", messages=None, prompt=PROMPTS, n=2, **SCORING | {"max_tokens": 4})
    texts, scores = [""] * 6, [dict[str, Any]() for _ in range(6)]
    for event in events:
        for choice in event["choices"]:
            if not texts[choice["index"]]:
                assert choice["text"] == PROMPTS[choice["index"] // 2]
            texts[choice["index"]] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                scores[choice["index"]].setdefault(name, []).extend(values)
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert scores == [choice["logprobs"] for choice in whole["choices"]]


def test_a_prompt_alone(server: Client) -> None:
    """Without a reply, as those ask who only want scores; and without scores."""
    told = good(complete(server, PROMPTS[0], **SCORING | {"max_tokens": 0}))
    (choice,) = told["choices"]
    assert choice["text"] == PROMPTS[0] and told["usage"]["completion_tokens"] == 0
    assert len(choice["logprobs"]["tokens"]) == told["usage"]["prompt_tokens"]
    assert choice["finish_reason"] == "length"
    (plain,) = good(complete(server, PROMPTS[0], echo=True, max_tokens=2))["choices"]
    assert plain["text"].startswith(PROMPTS[0]) and plain["logprobs"] is None
    context = server.service.model.context
    assert good(complete(server, [[5] * context], **SCORING | {"max_tokens": 0}))["usage"]["total_tokens"] == context


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"echo": "yes please"}, "echo"),
        ({"echo": True, "logprobs": 21}, "logprobs"),
    ],
)
def test_what_cannot_be_is_refused_by_name(server: Client, fields: Any, param: str) -> None:
    answer = complete(server, "Hi", **fields)
    bad(answer, 400, "expected")
    assert answer.json()["error"]["param"] == param


def test_a_chat_has_no_echo(server: Client) -> None:
    bad(server.ask(echo=True), 400, "expected no echo")
    good(server.ask(echo=False))


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_offsets_are_where_tokens_begin(model: ChatModel, text: str) -> None:
    backend = model.tokenizer.backend_tokenizer
    ids = list(model.encode(text))
    for told in (echo(text, backend), echo(ids, backend)):
        assert len(told.offsets) == len(ids) and told.offsets == sorted(told.offsets)
        assert all(0 <= offset <= len(told.text) for offset in told.offsets)
    assert echo(text, backend).text == text
