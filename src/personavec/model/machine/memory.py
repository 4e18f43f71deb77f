"""What a model takes of memory, from its configuration alone, and whether that fits."""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from personavec.errors import ModelError
from personavec.model.machine.limits import cache_bytes
from personavec.model.machine.quantise import ON_A_CPU, QUANTISED

GB = 1e9
WORTH_TELLING = 1 * GB
"""Weights that take a while to load."""


@dataclass(frozen=True)
class Need:
    """What a model takes of memory, in bytes."""

    parameters: float
    """How many numbers its weights are."""
    weights: float
    cache: float
    """Keys and values of a token, where every layer attends."""
    logits: float
    """Logits of a token."""

    def __str__(self) -> str:
        return (
            f"{self.weights / GB:.1f} GB of weights, {self.cache / 1e6:.2f} MB of keys and values and "
            f"{self.logits / 1e6:.2f} MB of logits a token"
        )


def laid_out(config: Any, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> Any:
    """The model of a configuration without its weights; None of one that cannot be laid out so."""
    families: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
    for family in families:
        try:
            with torch.device("meta"):
                return family.from_config(config, trust_remote_code=trust_remote_code, dtype=dtype)
        except Exception:  # of any kind: loading says what is wrong with it
            continue
    return None


def need_of(config: Any, itemsize: int, bits: int | None = None) -> Need | None:
    """What the model of a configuration takes; None of one that cannot be laid out without its weights.

    Args:
        config: Of transformers.
        itemsize: Bytes of a number.
        bits: Of a weight of a linear layer, the head aside, where those are quantised.
    """
    hf = laid_out(config)
    if hf is None:
        return None
    head = hf.get_output_embeddings()
    packed = [part.weight for part in hf.modules() if bits and isinstance(part, nn.Linear) and part is not head]
    saved = sum(weight.numel() * (itemsize - (bits or 0) / 8) for weight in packed)
    text = config.get_text_config()
    parameters = sum(weight.numel() for weight in hf.parameters())
    return Need(parameters, parameters * itemsize - saved, cache_bytes(text, itemsize), text.vocab_size * itemsize)


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil  # takes a while, and few need it

    return float(psutil.virtual_memory().available)


def check_room(name: str, config: Any, dtype: torch.dtype, device: torch.device, quantise: str | None = None) -> None:
    """See before loading whether a model fits, and say what a large one takes.

    Raises:
        ModelError: Its weights are larger than what is free.
    """
    need = need_of(config, dtype.itemsize, QUANTISED[quantise] if quantise else None)
    if need is None:
        return
    free, numbers = free_memory(device), str(dtype).removeprefix("torch.")
    if need.weights > free:
        raise ModelError(
            f"expected a model that fits into the {free / GB:.1f} GB free on {device}, got {need.weights / GB:.1f} GB "
            f"of weights ({name} in {quantise or numbers}); {_what_would(config, dtype, device, quantise, free)}"
        )
    if need.weights >= WORTH_TELLING:
        print(f"Loading {name}: {need}; {free / GB:.1f} GB free on {device}.", file=sys.stderr)


def _what_would(config: Any, dtype: torch.dtype, device: torch.device, quantise: str | None, free: float) -> str:
    """What to pass so that it fits, as far as anything would."""
    ways: list[tuple[str, int, int | None]] = []
    if dtype == torch.float32:
        ways += [("--dtype bfloat16", 2, None)]
    if not quantise:
        specs = [spec for spec in QUANTISED if device.type != "cpu" or spec in ON_A_CPU]
        ways += [(f"--quantise {spec}", dtype.itemsize, QUANTISED[spec]) for spec in specs]
    for option, itemsize, bits in ways:
        need = need_of(config, itemsize, bits)
        if need and need.weights <= free:
            return f"pass {option} ({need.weights / GB:.1f} GB), --device split, or a smaller --model"
    return "pass --device split where there are more devices, or a smaller --model"
