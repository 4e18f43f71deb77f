"""Weights of fewer bits: what `--quantise` names, and what a checkpoint that comes quantised needs."""

from importlib.util import find_spec
from typing import Any

import torch

from personavec.errors import ModelError

QUANTISED = {"torchao:int8": 8, "torchao:int4": 4, "bitsandbytes:8bit": 8, "bitsandbytes:4bit": 4}
"""What `--quantise` takes, and bits of a weight: weights alone are quantised, the stream is not."""
CHECKPOINTS = ("gptq", "awq")
"""Methods that quantise by data, once: their results are checkpoints."""
ON_A_CPU = ("torchao:int8", "torchao")
"""What runs without a GPU, of `QUANTISED` and of the methods of checkpoints."""


def quantisation(spec: str, device: torch.device) -> Any:
    """The `quantization_config` that a name stands for.

    Raises:
        ModelError: No such name, its package is not installed, or it does not run on this device.
    """
    if spec not in QUANTISED:
        advice = f"pass a checkpoint that was quantised by {spec} as --model" if spec in CHECKPOINTS else "choose one"
        raise ModelError(f"expected --quantise {', '.join(QUANTISED)}, got {spec}; {advice}")
    package, kind = spec.split(":")
    _check_device(spec, device)
    if find_spec(package) is None:
        raise ModelError(
            f"expected the package {package} for --quantise {spec}, got none; install it: pip install {package}"
        )
    import transformers

    if package == "bitsandbytes":
        numbers: dict[str, Any] = {"load_in_8bit": True}
        if kind == "4bit":  # as QLoRA has it
            numbers = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        return transformers.BitsAndBytesConfig(**numbers)  # type: ignore[no-untyped-call]
    from torchao import quantization  # type: ignore[import-not-found, unused-ignore]

    return transformers.TorchAoConfig(getattr(quantization, f"{kind.capitalize()}WeightOnlyConfig")())


def check_checkpoint(name: str, config: Any, device: torch.device) -> None:
    """Refuse a checkpoint whose quantised weights cannot be multiplied on this device.

    Raises:
        ModelError: It is of such a kind.
    """
    if method := method_of(config):
        _check_device(method, device, f" ({name})")


def method_of(config: Any) -> str:
    """How the weights of a model are quantised, by its configuration; empty where they are not."""
    told = getattr(config, "quantization_config", None)
    method = told.get("quant_method", "") if isinstance(told, dict) else getattr(told, "quant_method", "")
    return str(getattr(method, "value", method) or "")


def _check_device(what: str, device: torch.device, of: str = "") -> None:
    known = (*QUANTISED, *CHECKPOINTS, "bitsandbytes")
    if device.type == "cpu" and what in known and what not in ON_A_CPU:
        raise ModelError(
            f"expected a GPU for weights quantised by {what}{of}, got a CPU; pass --quantise {ON_A_CPU[0]} with the "
            "model's own weights, or load it where there is a GPU"
        )
