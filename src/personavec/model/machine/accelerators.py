"""Devices that a plan may be made for: what their makers say of them, and what is measured of the one that is here."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from personavec.errors import ConfigError
from personavec.model.machine.memory import GB, free_memory
from personavec.model.machine.place import pick_device


@dataclass(frozen=True)
class Accelerator:
    """What a plan goes by: one device, or several of a kind."""

    name: str
    memory: float
    """Bytes, of each."""
    flops: float
    """Multiplications and additions a second, of 16-bit numbers, of each."""
    bandwidth: float
    """Bytes a second between memory and chip, of each."""
    measured: bool = False
    """Here, and not said by its maker."""
    count: int = 1


KNOWN = {
    "t4": (16, 65, 320),
    "v100": (32, 125, 900),
    "a10": (24, 125, 600),
    "a100": (80, 312, 2039),
    "l4": (24, 121, 300),
    "l40s": (48, 362, 864),
    "rtx3090": (24, 71, 936),
    "rtx4090": (24, 165, 1008),
    "h100": (80, 989, 3350),
    "h200": (141, 989, 4800),
    "b200": (180, 2250, 8000),
    "mi300x": (192, 1307, 5300),
}
"""GB of memory, dense 16-bit TFLOPS, GB a second. Source: the makers' data sheets (the larger V100 and A100, SXM if
there is one)."""
SIDE, MEASURED_BYTES = 1024, 2**27
"""Of the matrices that are multiplied, and of what is copied, to measure a device."""
MEASUREMENT = f"measured here (two matrices of {SIDE:,} columns multiplied, {MEASURED_BYTES // 2**20} MiB copied)"


def accelerator(name: str | None, device: str = "auto", dtype: torch.dtype = torch.bfloat16) -> Accelerator:
    """The device that a name such as h100 or a100x8 stands for, or the one that is here.

    Args:
        name: Of `KNOWN`, with the number of devices after an x; None for what is here.
        device: Which of those that are here, as options name it.
        dtype: In which it is measured, where its maker's figures are not known.

    Raises:
        ConfigError: No such name.
        ModelError: No such device here.
    """
    if name is None:
        return _here(pick_device(device), dtype)
    kind, count = re.fullmatch(r"(.*?)(?:x(\d+))?", name.lower()).groups()  # type: ignore[union-attr]
    if kind not in KNOWN or count == "0":
        raise ConfigError(
            f"expected a device to plan for, {', '.join(KNOWN)}, several as h100x8, got {name}; choose one, or leave "
            "it out for the device that is here"
        )
    return _known(kind, int(count or 1))


def _known(kind: str, count: int = 1) -> Accelerator:
    memory, flops, bandwidth = KNOWN[kind]
    return Accelerator(kind, memory * GB, flops * 1e12, bandwidth * 1e9, count=count)


def _here(device: torch.device, dtype: torch.dtype) -> Accelerator:
    if device.type == "cuda":
        words = re.findall(r"[a-z0-9]+", torch.cuda.get_device_name(device).lower())
        named = {*words, *map("".join, pairwise(words))}  # RTX 4090 is two
        if kinds := [kind for kind in KNOWN if kind in named]:
            return replace(_known(kinds[0]), memory=free_memory(device))
    one = torch.ones((SIDE, SIDE), device=device, dtype=dtype)
    store = torch.empty(MEASURED_BYTES, dtype=torch.uint8, device=device)
    multiplied = _seconds(lambda: one @ one, device)
    copied = _seconds(store.clone, device)
    return Accelerator(
        device.type, free_memory(device), 2 * SIDE**3 / multiplied, 2 * MEASURED_BYTES / copied, measured=True
    )


def _seconds(work: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """The fastest of several runs after a first one."""
    took = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
    return min(took[1:])
