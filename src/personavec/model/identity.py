"""Which model a vector belongs to: name, fingerprint of the weights, depth and width."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from torch import Tensor, nn


def _fingerprint(hf: Any, blocks: nn.ModuleList) -> str:
    """Sha256 over the shape of the model and a sample of its weights: cheap, and equal for equal models.

    The sample is rounded so far that no dtype shows in it, except float16 for weights stored in float32. Adapters
    are left out, and so are the copies that one trains: what they stand for is read. Weights that are not here as
    numbers (quantised; partitioned by ZeRO-3 or FSDP; not loaded; moved into an adapter in part) are left out too, and
    the result then says that it is partial. Those that accelerate keeps on the CPU or on disk are fetched.
    """
    text = hf.config.get_text_config()
    digest = hashlib.sha256(json.dumps([text.model_type, len(blocks), text.hidden_size, text.vocab_size]).encode())
    adapter = getattr(hf.base_model, "prefix", "lora_")
    begun = {getattr(config, "init_lora_weights", True) for config in getattr(hf, "peft_config", {}).values()}
    moved = any(str(way).startswith(MOVING) for way in begun)
    partial = ""
    for block in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
        samples = {re.sub(r"\boriginal_module\.", "", n): sample for n, sample in _samples(block)}
        for name, sample in sorted(samples.items(), key=lambda item: item[0].replace("base_layer.", "")):
            if adapter in name or "modules_to_save." in name:
                continue
            if sample is None or (moved and "base_layer." in name):
                partial = PARTIAL
                continue
            digest.update((sample * 2**14).round().int().numpy().tobytes())
    return digest.hexdigest() + partial


MOVING = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Ways to begin a LoRA by which the weights below it lose what the adapter begins with; of both the sum is the same."""


def _samples(block: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """The first numbers of each weight of a block, in bfloat16's precision; None of one that is not here as numbers."""
    for place, part in block.named_modules():
        with align_module_device(part):
            for name, weight in part.named_parameters(recurse=False):
                plain = type(weight) in (nn.Parameter, Tensor) and weight.numel() > 0 and not weight.is_meta
                whole = plain and weight.is_floating_point() and weight.itemsize > 1  # in 16 bits or more
                sample = weight.detach().flatten()[:64].to("cpu", torch.bfloat16).float() if whole else None
                yield f"{place}.{name}".removeprefix("."), sample


PARTIAL = " (partial)"
"""Ends the revision of a model whose weights could not all be read as numbers: quantised, or spread over processes."""


@dataclass(frozen=True)
class ModelIdentity:
    """What a vector must match before it may steer or read a model."""

    id: str
    """Name the model was loaded under."""
    revision: str
    """sha256 over the shape and a sample of the weights; equal for equal models. May end with `PARTIAL`."""
    n_layers: int
    """Number of decoder blocks."""
    d_model: int
    """Width of the residual stream."""

    def by_name(self, commit: str | None) -> "ModelIdentity":
        """This model where nobody has read its weights: what tells it from others of its shape is its name.

        Args:
            commit: Of its weights on the Hub; None where that is not known.
        """
        named = f"{self.revision} {self.id} {commit}"
        return replace(self, revision=hashlib.sha256(named.encode()).hexdigest() + PARTIAL)
