"""Where weights are: straight on a device, spread over several, and what meets a block's tensor goes where it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.far import FAR, TwoDevices, spread
from transformers import AutoModelForCausalLM

from personavec.errors import ModelError
from personavec.model import loading
from personavec.model.activations import activations, branches, token_projections
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.model.machine.place import pick_device, pick_dtype
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, Watch, generate, stream
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.verbs.analyse.contributions import written
from personavec.verbs.screen.screen import screen

PROMPTS = [tiny.prompt(9, 1), tiny.prompt(5, 2), tiny.prompt(12, 3)]
REPLIES = [tiny.prompt(4, 5), tiny.prompt(6, 6), tiny.prompt(3, 7)]
ROWS = [{"prompt_ids": list(p), "response_ids": list(r)} for p, r in zip(PROMPTS, REPLIES, strict=True)]
CHATS = [{"prompt": f"Question {i}?", "response": f"Answer number {i}."} for i in range(6)]


def everything(model: ChatModel, v: PersonaVector) -> dict[str, Any]:
    """What a model is asked for by any verb: writing steered and watched, reading, judging, taking apart."""
    steerings = [
        (Steering(v, 2.0, 1), Steering(v, -1.0, "all", "all")),
        (Steering(v, layer=2, op="ablate"), Steering(v, layer=3, op="cap", ceiling=0.1)),
        (Steering(v, 1.0, 3, above=-100.0),),
    ]
    requests = [Request(prompt, s, (i,)) for i, (prompt, s) in enumerate(zip(PROMPTS, steerings, strict=True))]
    watch = [Watch(layer, v.unit(layer)) for layer in (0, 3)]
    steps = list(stream(model, requests, Sampling(5, 0.8, 0.9), watch))
    spans = torch.ones((3, 1, 7))
    return {
        "tokens": [step.tokens.tolist() for step in steps],
        "seen": torch.cat([step.projections for step in steps]),
        "replies": [reply.ids for reply in generate(model, requests, Sampling(5, 0))],
        "logprobs": torch.cat(reply_logprobs(model, PROMPTS, REPLIES)),
        "means": torch.cat([means for _, means in activations(model, ROWS)]),
        "branches": branches(model, PROMPTS, REPLIES, [0, 1, 2], spans, [0, 3]),
        "projections": token_projections(model, PROMPTS, [0, 3], v.direction[[0, 3]])[0][:, :5],
        "contributions": torch.tensor(written(model, ROWS, 3, v.direction[[1]]).values),
    }


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
        else:
            assert found[name] == value, name


def test_blocks_on_a_second_device(model: ChatModel, v: PersonaVector) -> None:
    wanted = everything(model, v)
    with spread(model.hf, model.blocks, 2):
        found = everything(model, v)
    same(found, wanted)


def test_the_second_device_can_fail(model: ChatModel) -> None:
    with TwoDevices():
        there = torch.ones(3, device=FAR)
        assert there.device == FAR and (there + 1).device == FAR and there.cpu().device.type == "cpu"
        for mix in (lambda: there + torch.ones(3), lambda: torch.stack([there, torch.ones(3)])):
            with pytest.raises(RuntimeError, match="same device"):
                mix()
    with spread(model.hf, model.blocks, 2), pytest.raises(RuntimeError, match="same device"):
        model.blocks[3].mlp(torch.ones(1, 2, tiny.D_MODEL))


@contextmanager
def saved(model: ChatModel, folder: Path) -> Iterator[dict[str, Any]]:
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    places = {f"model.layers.{layer}": "disk" if layer in (1, 3) else "cpu" for layer in range(tiny.N_LAYERS)}
    others = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")}
    yield {"device_map": others | places, "offload_folder": str(folder / "offload"), "dtype": torch.float32}


def test_a_model_over_cpu_and_disk(model: ChatModel, v: PersonaVector, tmp_path: Path) -> None:
    with saved(model, tmp_path) as how:
        hf = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **how)
    parted = ChatModel(hf.eval(), tiny.tokenizer(), "tiny-llama")
    assert next(parted.blocks[1].parameters()).is_meta, "it waits on disk"
    assert parted.identity == model.identity and parted.placement == "split" and model.placement == "cpu"
    same(everything(parted, v), everything(model, v))
    means = [screen(each, CHATS, [v], layers=(1,)).to_dict()["projection_difference"] for each in (parted, model)]
    assert means[0] == means[1]


def test_weights_go_straight_to_their_device(saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    whole = loading.AutoModelForCausalLM.from_pretrained

    def watching(source: Any, **options: Any) -> Any:
        given.append(options["device_map"])
        return whole(source, **options)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", watching)
    one, all_of_them = (ChatModel.load(str(saved_model), device=device, dtype="float32") for device in ("cpu", "split"))
    assert given == [{"": torch.device("cpu")}, "auto"]
    assert one.identity == all_of_them.identity and one.chat("Hi?") == all_of_them.chat("Hi?")


@pytest.fixture
def saved_model(saved: tuple[Path, Path]) -> Path:
    return saved[0]


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "meta", "tpu", "xpu", "mps", "cpu:x", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match=f"^expected a usable device, got {name} .*; pass --device cpu$") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_a_gpu_without_bfloat16_multiplies_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for native, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert pick_dtype("auto", gpu) == wanted
    assert pick_dtype("float32", gpu) == torch.float32
