"""GGUF files: what they declare is held against what they have, and their rotary scaling is taken over."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import ModelError

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Rotary scaling of all Llama 3.1, 3.2 and 3.3 models; only the factor differs. Source: their config.json."""


class BoundedReader(gguf.GGUFReader):
    """A reader that ends with the file, whatever lengths and counts the file declares."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        end, size = int(offset) + int(count) * np.dtype(dtype).itemsize, len(self.data)
        if end > size:
            raise ValueError(f"it declares {end:,} bytes or more, and has {size:,}")
        return super()._get(int(offset), dtype, int(count), override_order)


def read_gguf(path: Path) -> BoundedReader:
    """Metadata and tensors of a GGUF file, mapped into memory.

    Raises:
        ModelError: It is none, or cut short.
    """
    try:
        reader = BoundedReader(path)
        for name, field in reader.fields.items():
            if name.endswith(".block_count") and int(field.contents()) > len(reader.tensors):
                raise ValueError(f"it declares {field.contents():,} blocks, and has {len(reader.tensors):,} tensors")
        return reader
    except Exception as error:  # of many kinds: damaged, another version, another format
        raise ModelError(f"expected a GGUF file, got {path} ({reason_of(error)}); copy it again") from error


def take_over_rope(path: Path, config: Any) -> None:
    """Set the rotary scaling that a GGUF file states in a configuration that lacks it.

    Raises:
        ModelError: The file states a scaling that cannot be taken over.
    """
    reader = read_gguf(path)
    fields = {name: field for name, field in reader.fields.items() if ".rope." in name}
    stated = {name.split(".rope.")[1]: field.contents() for name, field in fields.items()}
    text = config.get_text_config()
    rope = dict(getattr(text, "rope_parameters", None) or {})
    kind = stated.get("scaling.type", "none")
    factors = [tensor for tensor in reader.tensors if tensor.name.startswith(("rope_freqs", "rope_factors"))]
    if kind in ("none", None) and not factors:
        return
    if rope.get("rope_type", "default") != "default":  # transformers read it
        return
    factor = stated.get("scaling.factor", stated.get("scale_linear"))
    if kind == "linear" and not factors and factor:
        text.rope_parameters = rope | {"rope_type": "linear", "factor": float(factor)}
    elif (
        kind in ("none", None) and [tensor.name for tensor in factors] == ["rope_freqs.weight"] and "rope_theta" in rope
    ):
        values = np.array(factors[0].data, dtype=np.float64)
        largest = float(values.max())
        if values.ndim != 1 or not np.allclose(values, _llama3(len(values), rope["rope_theta"], largest), rtol=1e-3):
            raise _refusal(path, "rope_freqs.weight of another kind than Llama 3's")
        text.rope_parameters = rope | LLAMA3 | {"rope_type": "llama3", "factor": largest}
    else:
        raise _refusal(path, f"{kind} with {', '.join(tensor.name for tensor in factors) or 'no tensor of factors'}")


def _llama3(count: int, theta: float, factor: float) -> Float[ndarray, " count"]:
    """By how much Llama 3 lowers each frequency: slow ones by the factor, fast ones by 1, smoothly in between."""
    turns = LLAMA3["original_max_position_embeddings"] * theta ** (-np.arange(count) / count) / (2 * math.pi)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _refusal(path: Path, got: str) -> ModelError:
    return ModelError(
        f"expected a GGUF model whose rotary scaling can be taken over (linear, Llama 3's), got {got} in {path}; pass "
        "the model's Hugging Face folder"
    )


def reason_of(error: Exception) -> str:
    """Why a file cannot be loaded, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "weights of other shapes than config.json says" if "ignore_mismatched_sizes" in text else text[:200]
