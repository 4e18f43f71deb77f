"""Interop with objects in memory, as a researcher holds them."""

from pathlib import Path

import pytest
import torch
from support import tiny

from personavec.errors import ConfigError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.interop.interop import interop


def test_objects_in_memory(v: PersonaVector, tmp_path: Path) -> None:
    model = tiny.build("llama")
    rows = [tiny.prompt(9)]
    plain = tiny.forward(model, rows)[1]
    handed = interop(v.at(coef=0.5, layer=2), tmp_path / "v.gguf", model)
    taken = interop(tmp_path / "v.gguf", tmp_path / "v.safetensors", model, trait="calm")
    torch.testing.assert_close(taken.vector.direction[2], 0.5 * v.direction[2])
    assert load_vector(tmp_path / "v.safetensors") == taken.vector and taken.vector.card.trait == "calm"
    assert (handed.data["kind"], taken.data["kind"], taken.data["layers"]) == ("gguf", "vector", [2])
    assert "calm" in repr(taken) and "gguf" in handed._repr_html_()
    before = {name: id(value) for name, value in model.hf.named_parameters()}
    interop(v.at(coef=0.7, layer=1), tmp_path / "baked", model)
    assert torch.equal(tiny.forward(model, rows)[1], plain), "the model that was baked is as it was"
    assert {name: id(value) for name, value in model.hf.named_parameters()} == before
    assert not model.hf.config.mlp_bias and tiny.hooks(model) == 0


def test_bad_objects_are_one_line(model: ChatModel, v: PersonaVector, tmp_path: Path) -> None:
    for source, out, told in (
        (v.at(coef=0.0, layer=1), "v.gguf", "expected a coef other than 0"),
        (v.at(coef=1.0, layer=1), "v.safetensors", "expected .pt or .gguf to .safetensors"),
        (Steering(v, layer=1, op="ablate"), "v.gguf", "expected a steering that adds"),
        (Steering(v, 1.0, 1, above=0.0), "v.pt", "expected a steering that adds"),
    ):
        with pytest.raises(ConfigError) as error:
            interop(source, tmp_path / out, model)
        assert told in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(VectorError, match="extract it from this model"):
        interop(tiny.vector(tiny.build(seed=3)).at(coef=1.0, layer=1), tmp_path / "v.gguf", model)
    assert not list(tmp_path.iterdir())
