"""How much one pass holds: what stays in a CPU's caches, or what fits into a GPU's memory."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Habits:
    """What runs fast on a kind of device."""

    padding: int
    """Columns that are always padding: with a mask that is not all ones, CPU attention takes a kernel that decodes 1.5
    times faster; on a GPU it would forbid the fast one."""
    draw_rows: int
    """Rows drawn at once: on a CPU their probabilities stay in its cache, four times as fast as all at once."""
    nucleus: int
    """Tokens that are sorted first for top-p: mostly they are enough, but to see that a GPU has to be waited for."""


ALL = 2**30
HABITS = {"cpu": Habits(1, 8, 128)}
ON_A_GPU = Habits(0, ALL, ALL)


def habits(device: torch.device) -> Habits:
    """Of a device."""
    return HABITS.get(device.type, ON_A_GPU)


@dataclass
class Limit:
    """How much of something a pass may hold; halved when memory runs out, for all later passes as well."""

    most: float

    def halve(self) -> None:
        """From here on half as much."""
        self.most /= 2


@dataclass(frozen=True)
class PassLimits:
    """What a pass of one model may hold."""

    read: Limit
    """Tokens of a pass that reads activations, padding included."""
    screened: Limit
    """The same where many rows are read along few directions."""
    cached: Limit
    """Tokens of a pass that keeps a cache, or the logits at their ends."""
    logits: Limit
    """Logits of a pass that keeps them at every token."""


def cpu_limits() -> PassLimits:
    """Larger passes fall out of a CPU's caches."""
    return PassLimits(Limit(2048), Limit(1024), Limit(8192), Limit(75_000_000))


SHARE = 0.25
"""Of the free memory that a pass is planned for: fragments, masks and what a family does besides take of it as well."""
LARGEST = 32_768
"""Tokens; beyond, nothing gets faster."""


def limits_on(devices: Collection[torch.device], text: Any, itemsize: int, free: float | None = None) -> PassLimits:
    """What one pass may hold on some devices together, never less than on a CPU.

    Args:
        devices: Where the model is.
        text: Its configuration of text.
        itemsize: Bytes of a number of the stream.
        free: Bytes of free memory; default what the fullest GPU has now. Without one they are treated as a CPU.
    """
    small = cpu_limits()
    gpus = [device for device in devices if device.type == "cuda"]
    if free is None:
        if not gpus:
            return small
        free = min(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    width = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * width
    inner = max(inner) if isinstance(inner, Sequence) else inner  # of each layer
    # what a block holds at once: its streams, both sides of the gate, and a copy of the stream in float32
    token = itemsize * (10 * width + 3 * inner) + 16 * width
    read = SHARE * free / token
    kept = SHARE * free / (token + cache_bytes(text, itemsize))
    logits = SHARE * free / (itemsize + 4)
    sized = (min(read, LARGEST), min(read, LARGEST), min(kept, LARGEST), logits)
    return PassLimits(
        *(
            Limit(max(wanted, least.most))
            for wanted, least in zip(sized, (small.read, small.screened, small.cached, small.logits), strict=True)
        )
    )


def cache_bytes(text: Any, itemsize: int) -> int:
    """Bytes that keys and values of one token take, if every layer attends; 0 of a model without attention."""
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 0
    shared = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * int(text.num_hidden_layers * shared * size * itemsize)


def in_parts(batch: Sequence[T], work: Callable[[Sequence[T]], R], *limits: Limit) -> Iterator[tuple[Sequence[T], R]]:
    """What a function gives for a batch; where a GPU's memory runs out, for parts of it, half as large every time.

    Args:
        batch: What is given to it.
        work: The function.
        limits: Halved along, so that later batches are smaller from the start.

    Raises:
        torch.OutOfMemoryError: One row alone does not fit.
    """
    size = len(batch)
    done = 0
    while done < len(batch):
        part = batch[done : done + size]
        results = []
        try:
            results.append(work(part))
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
        if results:  # outside of the handler: its traceback would hold what is to be freed
            yield part, results[0]
            done += len(part)
            continue
        size = math.ceil(len(part) / 2)
        for limit in limits:
            limit.halve()
        torch.cuda.empty_cache()
