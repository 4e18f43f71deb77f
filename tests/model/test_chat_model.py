"""A model object of the caller's own: plain, edited, under an adapter, spread over places, or none at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from support import tiny
from support.tiny import hooks
from torch import nn

from personavec.errors import ModelError, VectorError
from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.machine.place import pick_dtype
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering
from personavec.verbs.evaluate.verify import verify

PROMPTS = (tiny.prompt(9, 1), tiny.prompt(5, 2))


def read(model: ChatModel) -> torch.Tensor:
    rows = [{"prompt_ids": list(prompt), "response_ids": [9, 10, 11]} for prompt in PROMPTS]
    return torch.cat([found for _, found in activations(model, rows)])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "peft"])
def test_a_model_whose_weights_wait_elsewhere(family: str, place: str, tmp_path: Path) -> None:
    """As `device_map` spreads it: weights are brought to a block when it runs."""
    whole = tiny.build(family)
    v = tiny.vector(whole)
    requests = [Request(prompt, (Steering(v, 2.0, 1),)) for prompt in PROMPTS]
    wanted = [reply.ids for reply in generate(whole, requests, Sampling(6, 0))]
    activation = read(whole)
    spread = tiny.build(family).hf
    if place == "cpu":
        cpu_offload(spread, torch.device("cpu"))
    else:
        disk_offload(spread, str(tmp_path), torch.device("cpu"))
    model = ChatModel(spread, tiny.tokenizer(), whole.identity.id)
    assert model.device == torch.device("cpu")
    assert [reply.ids for reply in generate(model, requests, Sampling(6, 0))] == wanted
    torch.testing.assert_close(read(model), activation)
    assert verify(model).data["passed"]
    assert ChatModel(spread, tiny.tokenizer(), "another").identity.revision == whole.identity.revision


def test_the_name_is_where_it_came_from(tmp_path: Path) -> None:
    hf = tiny.build().hf
    assert ChatModel(hf, tiny.tokenizer(), "mine").identity.id == "mine"
    assert ChatModel(hf, tiny.tokenizer()).identity.id == "LlamaForCausalLM"
    hf.config.name_or_path = "org/model"
    assert ChatModel(hf, tiny.tokenizer()).identity.id == "org/model"


def test_an_edited_model_is_another_model() -> None:
    model = tiny.build()
    v = tiny.vector(model)
    with torch.no_grad():
        model.hf.model.layers[0].mlp.up_proj.weight[:1] += 1
    edited = ChatModel(model.hf, tiny.tokenizer())
    with pytest.raises(VectorError, match="extract it from this model"):
        generate(edited, [Request(PROMPTS[0], (Steering(v, 1.0, 1),))], Sampling(2))
    assert verify(edited, tiny.vector(edited)).data["passed"]


def test_an_adapter_of_the_callers_own() -> None:
    model = tiny.build()
    v = tiny.vector(model)
    adapted = ChatModel(tiny.lora(model.hf), tiny.tokenizer())
    assert adapted.adapted and not ChatModel(tiny.build().hf, tiny.tokenizer()).adapted
    with adapted.without_adapter():
        plain = generate(adapted, [Request(PROMPTS[0])], Sampling(6, 0))
    assert plain == generate(tiny.build(), [Request(PROMPTS[0])], Sampling(6, 0))
    assert generate(adapted, [Request(PROMPTS[0], (Steering(v, 1.0, 1),))], Sampling(6, 0)), "the vector is its own"


class NoModel:
    """Has nothing that a language model has."""


@pytest.mark.parametrize("thing", [NoModel(), nn.Linear(2, 2), None, "gpt2", 3])
def test_what_is_no_causal_language_model(thing: Any) -> None:
    with pytest.raises(
        ModelError, match=f"^expected a causal language model of transformers, got {type(thing).__name__}; load"
    ):
        ChatModel(thing, tiny.tokenizer())


def test_a_model_without_a_head_is_none() -> None:
    hf = tiny.build().hf
    with pytest.raises(ModelError, match="expected a causal language model of transformers, got LlamaModel"):
        ChatModel(hf.model, tiny.tokenizer())


@pytest.mark.parametrize("thing", [None, "tokenizer", object()])
def test_what_is_no_tokenizer(thing: Any) -> None:
    with pytest.raises(ModelError, match=r"^expected a tokenizer with a chat template, got"):
        ChatModel(tiny.build().hf, thing)


def test_a_tokenizer_without_a_chat_template() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="expected a tokenizer with a chat template, got none in that of tiny; "):
        ChatModel(tiny.build().hf, tokenizer, "tiny")


def test_a_model_that_was_closed_is_said_so() -> None:
    model = tiny.build()
    model.hf.to("meta")
    with pytest.raises(ModelError, match="expected tiny-llama with its weights, got one without; load it again"):
        model.chat("Hi?")
    model = tiny.build()
    del model.hf
    with pytest.raises(ModelError, match="expected tiny-llama with its weights, got one without; load it again"):
        model.chat("Hi?")
    assert hooks(tiny.build()) == 0


@pytest.mark.parametrize(("amx", "taken"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_taken_where_it_is_the_faster_one(
    amx: bool, taken: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert pick_dtype("auto", torch.device("cpu")) == taken
    assert pick_dtype("float16", torch.device("cpu")) == torch.float16
