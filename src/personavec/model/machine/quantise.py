"""Weights of fewer bits: what `--quantise` names, and what a checkpoint that comes quantised needs."""

from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, get_hf_quantizer

from personavec.errors import ModelError

QUANTISED = {"torchao:int8": 8, "torchao:int4": 4, "bitsandbytes:8bit": 8, "bitsandbytes:4bit": 4}
"""What `--quantise` takes, and bits of a weight: weights alone are quantised, the stream is not."""
KINDS = {kind.removesuffix("_4bit").removesuffix("_8bit") for kind in AUTO_QUANTIZATION_CONFIG_MAPPING}
"""Kinds of quantised weights that transformers reads, as checkpoints name them."""
CHECKPOINTS = ("gptq", "awq")
"""Methods that quantise by data, once: their results are checkpoints."""
ON_A_CPU = ("torchao:int8", "torchao", "bitsandbytes:8bit")
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


def check_checkpoint(name: str, config: Any, device: torch.device, place: Any = None) -> bool:
    """Refuse, before its weights are fetched, a checkpoint whose quantised weights cannot be loaded on this device.

    Args:
        name: What it is called.
        config: Of transformers.
        device: Where inputs would go.
        place: The `device_map`; default this device.

    Raises:
        ModelError: It is of such a kind, of one that transformers does not know, or needs a package that is not there.

    Returns:
        Whether weights stay packed: some kinds are unpacked where nothing multiplies them.
    """
    if getattr(config, "quantization_config", None) is None and not method_of(config):
        return False
    method = method_of(config)
    if method not in KINDS:
        raise ModelError(
            f"expected weights that are quantised in a way transformers knows, got {method or 'none by name'} "
            f"({name}); pass a checkpoint of the model's own weights"
        )
    _check_device(f"{method}:{_bits(config)}bit" if method == "bitsandbytes" else method, device, f" ({name})")
    try:
        quantizer, *_ = get_hf_quantizer(  # type: ignore[no-untyped-call]
            deepcopy(config), None, place or {"": device}, weights_only=True, user_agent={}
        )
    except Exception as error:  # of many kinds: a package, its version, the device, a field of the configuration
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"expected all that weights quantised by {method} need ({name}), got: {reason}; see to that, or pass a "
            "checkpoint of the model's own weights"
        ) from error
    return not getattr(quantizer.quantization_config, "dequantize", False)


def method_of(config: Any) -> str:
    """How the weights of a model are quantised, by its configuration; empty where they are not."""
    method = "bitsandbytes" if _bits(config) else _told(config, "quant_method")
    return str(getattr(method, "value", method) or "")


def _bits(config: Any) -> int:
    """Of bitsandbytes' weights; 0 of other ones."""
    return 4 if _told(config, "load_in_4bit") else 8 if _told(config, "load_in_8bit") else 0


def _told(config: Any, name: str) -> Any:
    """A field of what a configuration says of quantised weights, of a model of text and images perhaps of its text."""
    parts = (config, config.get_text_config(decoder=True))
    told = next((got for part in parts if (got := getattr(part, "quantization_config", None)) is not None), None)
    return told.get(name) if isinstance(told, dict) else getattr(told, name, None)


def _check_device(what: str, device: torch.device, of: str = "") -> None:
    known = (*QUANTISED, *CHECKPOINTS)
    if device.type == "cpu" and what in known and what not in ON_A_CPU:
        raise ModelError(
            f"expected a GPU for weights quantised by {what}{of}, got a CPU; pass --quantise {ON_A_CPU[0]} with the "
            "model's own weights, or load it where there is a GPU"
        )
