"""Vectors in the file forms of other tools: the reference's `.pt`, GGUF control vectors, lm-eval's steered models."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from personavec.data.readers import short
from personavec.errors import VectorError
from personavec.model.chat_model import BlockModel
from personavec.model.identity import ModelIdentity
from personavec.model.layout.gguf_files import BoundedReader
from personavec.runs.files import replacing
from personavec.steering.steer import Steering

CONTROL_VECTOR = "controlvector"
"""Architecture that a GGUF control vector states."""
INCREMENTS = "personavec.increments"
"""Metadata key: the tensors are what each layer adds, so that the direction at a layer is their running sum."""

Directions = tuple[Float[Tensor, "layer d_model"], tuple[int, ...]]
"""A direction for every layer, and the layers that the file does not hold: theirs repeat the layer before."""


def from_reference(path: Path, model: ModelIdentity) -> Directions:
    """Read the `.pt` file of the paper's code, [n_layers + 1, d_model], by weights only.

    Row l is the output of block l − 1. The last row was taken after the final norm, so it is no layer of ours and is
    left out: the last layer is absent.
    Source: Persona Vectors (arXiv 2507.21509), released code.

    Raises:
        VectorError: No such file, code in it, or a tensor of another shape or of zeros.
    """
    table = _read(path, lambda: torch.load(path, map_location="cpu", weights_only=True))
    wanted = (model.n_layers + 1, model.d_model)
    if not isinstance(table, Tensor) or tuple(table.shape) != wanted or not table.is_floating_point():
        got = f"{table.dtype} of {tuple(table.shape)}" if isinstance(table, Tensor) else f"a {type(table).__name__}"
        raise VectorError(
            f"expected a tensor of floating-point numbers of shape {wanted} for {model.id}, got {got} in {path}; "
            "pass the --model it is of"
        )
    return _filled({layer: table[layer + 1].float() for layer in range(model.n_layers - 1)}, model)


def from_gguf(path: Path, model: ModelIdentity) -> Directions:
    """Read a GGUF control vector, as llama.cpp, repeng or `to_gguf` write it: `direction.N` is our layer N.

    Raises:
        VectorError: No such file, no control vector, or tensors of another form or width or of zeros.
    """
    fields, tensors = _read(path, lambda: _gguf(path))
    if (architecture := fields.get("general.architecture")) != CONTROL_VECTOR:
        raise VectorError(
            f"expected a GGUF control vector, got the architecture {architecture} in {path}; a model goes to --model"
        )
    rows = {_layer(tensor, path, model): torch.tensor(np.array(tensor.data)) for tensor in tensors}
    if not rows:
        raise VectorError(f"expected tensors direction.N, got none in {path}; write the file again")
    direction, absent = _filled(rows, model)
    if fields.get(INCREMENTS):
        adds = [rows.get(layer, torch.zeros(model.d_model)) for layer in range(model.n_layers)]
        direction = torch.stack(adds).cumsum(dim=0)
    return direction, absent


def to_gguf(steering: Steering, architecture: str, path: Path) -> tuple[int, ...]:
    """Write what a steering adds as a GGUF control vector, coef included; returns the layers.

    llama.cpp adds `direction.N` to the output of block N, counted from 0, at every position, and has no
    `direction.0`. Of a steering of all layers, layer 1 therefore adds what layers 0 and 1 would.

    Args:
        steering: What to add.
        architecture: Of the model, as its configuration calls it: a hint that llama.cpp does not read.
        path: File to write.

    Raises:
        VectorError: It steers layer 0 alone.
    """
    deltas = steering.deltas()
    first = deltas.pop(0, None)
    if not deltas:
        raise VectorError(
            "expected a layer from 1 on for llama.cpp, got 0, which it cannot steer; choose another layer"
        )
    if first is not None:
        deltas[1] = deltas[1] + first
    card = steering.vector.card
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, CONTROL_VECTOR)
        writer.add_name(card.trait)
        writer.add_description(f"{steering.coef:g} times the persona vector {steering.vector.content_hash}")
        writer.add_string(f"{CONTROL_VECTOR}.model_hint", architecture)
        writer.add_uint32(f"{CONTROL_VECTOR}.layer_count", len(deltas))
        writer.add_bool(INCREMENTS, True)
        for layer, delta in deltas.items():
            writer.add_tensor(f"direction.{layer}", delta.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return tuple(deltas)


def to_lm_eval(steering: Steering, model: BlockModel, path: Path) -> tuple[int, ...]:
    """Write what a steering adds as the file of lm-eval's `--model steered`; returns the layers.

    The coef is in the vectors, so that lm-eval rounds them as we do. It adds them at every position, padding included.

    Args:
        steering: What to add.
        model: lm-eval finds blocks by their names in its `base_model`.
        path: File to write.
    """
    names = {module: name for name, module in model.hf.base_model.named_modules()}
    deltas = steering.deltas()
    add = {"steering_coefficient": 1.0, "action": "add", "bias": None, "head_index": None}
    with replacing(path) as temporary:
        torch.save({names[model.blocks[k]]: {"steering_vector": delta} | add for k, delta in deltas.items()}, temporary)
    return tuple(deltas)


def _read(path: Path, read: Callable[[], Any]) -> Any:
    if not path.is_file():
        raise VectorError(f"expected a vector file, got no file at {path}; correct the path")
    try:
        return read()
    except Exception as error:  # of many kinds: damaged, another format, code where tensors should be
        raise VectorError(
            f"expected a vector file of tensors alone, got {path} ({short(error) or type(error).__name__}); "
            "pass another file"
        ) from error


def _gguf(path: Path) -> tuple[dict[str, Any], list[gguf.ReaderTensor]]:
    """Metadata and tensors of a GGUF file."""
    reader = BoundedReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, reader.tensors


def _layer(tensor: Any, path: Path, model: ModelIdentity) -> int:
    """The layer of a tensor of a control vector."""
    match = re.fullmatch(r"direction\.([1-9]\d*)", tensor.name)
    shape, kind = tuple(tensor.shape.tolist()), tensor.tensor_type
    if match and int(match[1]) < model.n_layers and shape == (model.d_model,) and kind == gguf.GGMLQuantizationType.F32:
        return int(match[1])
    raise VectorError(
        f"expected tensors direction.1 to direction.{model.n_layers - 1} of {model.d_model} float32 numbers for "
        f"{model.id}, got {tensor.name} of {shape} {kind.name} in {path}; pass the --model it is of"
    )


def _filled(rows: Mapping[int, Float[Tensor, " d_model"]], model: ModelIdentity) -> Directions:
    """One row a layer: an absent one repeats the layer before, so that steering all layers adds nothing there."""
    if not any(row.any() for row in rows.values()):
        raise VectorError("expected a direction, got zeros at every layer; steering along it would change nothing")
    filled = [torch.zeros(model.d_model)]
    for layer in range(model.n_layers):
        filled.append(rows.get(layer, filled[-1]))
    return torch.stack(filled[1:]), tuple(layer for layer in range(model.n_layers) if layer not in rows)
