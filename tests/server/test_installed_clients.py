"""Clients of others against a running server, where they are installed; the bodies they send are in test_clients.py."""

import os
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.serving import Process

from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs

TURNS = [("system", "Be kind."), ("user", "Hi there")]
STEERED = {"persona": {"steering": [{"vector": "tiny", "dose": 0.2}]}}


NODE = os.environ.get("PERSONAVEC_NODE")
"""A folder in which `npm install openai` was run."""


def installed(module: str, what: str) -> pytest.MarkDecorator:
    """Skipped, before a server is started, where a client is not installed."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"needs {what}")


@pytest.fixture
def running(options: dict[str, Any]) -> Iterator[Process]:
    process = Process(options, "--max-tokens", "200", "--dtype", "float32")
    yield process
    assert process.stop()[0] == 0


def own(running: Process, model: str, **fields: Any) -> str:
    """The reply as the official client gets it."""
    create: Any = running.openai.chat.completions.create
    messages = [{"role": role, "content": text} for role, text in TURNS]
    return str(create(model=model, messages=messages, max_tokens=8, seed=3, **fields).choices[0].message.content)


@installed("langchain_openai", "pip install langchain-openai")
def test_langchain(running: Process, options: dict[str, Any]) -> None:
    import langchain_openai as langchain

    asked = {"base_url": f"{running.url}/v1", "api_key": "none", "model": options["model"], "max_retries": 0}
    chat = langchain.ChatOpenAI(**asked, max_tokens=8, seed=3)
    reply = chat.invoke(TURNS)
    assert reply.content == own(running, options["model"])
    assert "".join(chunk.content for chunk in chat.stream(TURNS)) == reply.content
    assert chat.bind(extra_body=STEERED).invoke(TURNS).content == own(running, options["model"], extra_body=STEERED)
    assert chat.invoke([*TURNS, reply, ("user", "And?")]).usage_metadata["output_tokens"] <= 8
    responses = langchain.ChatOpenAI(**asked, max_tokens=8, use_responses_api=True)
    first = responses.invoke(TURNS)
    assert responses.invoke([*TURNS, first, ("user", "And?")]).usage_metadata["output_tokens"] <= 8
    assert "".join(chunk.text for chunk in responses.stream(TURNS))
    completion = langchain.OpenAI(**asked, max_tokens=4, n=2, best_of=2)
    assert [len(replies) for replies in completion.generate(["Once", "Twice"]).generations] == [2, 2]


@installed("litellm", "pip install litellm")
def test_litellm(running: Process, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it would fetch one
    import litellm

    asked = {"api_base": f"{running.url}/v1", "api_key": "none", "num_retries": 0}
    messages = [{"role": role, "content": text} for role, text in TURNS]
    chat = asked | {"model": f"openai/{options['model']}", "messages": messages, "max_tokens": 8, "seed": 3}
    reply = litellm.completion(**chat).choices[0].message
    assert reply.content == own(running, options["model"])
    chunks = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**chat, stream=True)]
    assert "".join(chunks) == reply.content
    again = chat | {"messages": [*messages, reply.model_dump(), messages[-1]]}
    assert litellm.completion(**again).usage.completion_tokens <= 8
    told = litellm.text_completion(
        **asked, model=f"text-completion-openai/{options['model']}", prompt=["Once", "Twice"], max_tokens=4
    )
    assert len(told.choices) == 2
    with pytest.raises(litellm.BadRequestError, match="expected temperature"):
        litellm.completion(**chat | {"temperature": 5})


@installed("lm_eval", "the extra eval")
def test_lm_eval(running: Process, options: dict[str, Any]) -> None:
    """Its tasks of likelihoods: what it computes from answers is what the model says."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    asked = LocalCompletionsAPI(
        base_url=f"{running.url}/v1/completions", model=options["model"], tokenizer=options["model"], batch_size=2
    )
    model = ChatModel.load(options["model"], dtype="float32", device="cpu")
    pairs = [("Hi there", " Anna"), ("Once upon", " a time"), ("x", "y"), ("Once upon", " another")]
    told = asked.loglikelihood([Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)])
    for (context, more), (value, greedy) in zip(pairs, told, strict=True):
        prompt, whole = asked.tok_encode(context), asked.tok_encode(context + more)
        (logprobs,) = reply_logprobs(model, [tuple(prompt)], [tuple(whole[len(prompt) :])])
        assert value == pytest.approx(logprobs.sum().item(), abs=1e-3)
        assert greedy is False


@pytest.mark.skipif(NODE is None, reason="needs node, and PERSONAVEC_NODE, a folder where npm install openai was run")
def test_the_official_javascript_client(running: Process) -> None:
    script = Path(__file__).with_name("openai_client.mjs")
    told = subprocess.run(["node", script, f"{running.url}/v1"], cwd=NODE, capture_output=True, text=True)
    assert told.stdout == "all well\n", told.stderr
