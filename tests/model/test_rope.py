"""Rotary scaling that a GGUF file states is the converted model's, or is refused by its name."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from personavec.errors import ModelError
from personavec.model.layout.gguf_files import take_over_rope

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def config(rope: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=rope)


def plain() -> LlamaConfig:
    return config({"rope_type": "default", "rope_theta": 500000.0})


def factors() -> np.ndarray[Any, Any]:
    """As llama.cpp stores them: what each frequency is divided by."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config(LLAMA3), None)
    return np.asarray(500000.0 ** (-np.arange(32) / 32) / scaled.numpy(), dtype=np.float32)


def written(path: Path, kind: str = "", tensors: dict[str, Any] | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_rope_freq_base(500000.0)
    if kind:
        writer.add_string("llama.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(4.0)
    for name, values in {"x": np.zeros(32, dtype=np.float32), **(tensors or {})}.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_scaling_is_taken_over(tmp_path: Path) -> None:
    taken = plain()
    take_over_rope(written(tmp_path / "none.gguf"), taken)
    assert taken.rope_parameters["rope_type"] == "default"
    take_over_rope(written(tmp_path / "linear.gguf", "linear"), taken)
    assert (taken.rope_parameters["rope_type"], taken.rope_parameters["factor"]) == ("linear", 4.0)
    taken = plain()
    take_over_rope(written(tmp_path / "3.gguf", tensors={"rope_freqs.weight": factors()}), taken)
    assert dict(taken.rope_parameters) == pytest.approx(LLAMA3)


@pytest.mark.parametrize(
    ("kind", "tensors", "name"),
    [
        ("yarn", {}, "yarn"),
        ("", {"rope_freqs.weight": np.linspace(1, 3, 32, dtype=np.float32)}, "rope_freqs.weight of another kind"),
        ("longrope", {"rope_factors_long.weight": np.ones(32, dtype=np.float32)}, "longrope with rope_factors_long"),
    ],
)
def test_scaling_that_cannot_be_taken_over_is_named(
    kind: str, tensors: dict[str, Any], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"rotary scaling can be taken over .*got {name}"):
        take_over_rope(written(tmp_path / "m.gguf", kind, tensors), plain())
