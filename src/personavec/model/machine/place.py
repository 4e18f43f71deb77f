"""Where a model goes and in which numbers, by the names that options give."""

import torch

from personavec.errors import ModelError

SPLIT = "split"
"""Names every device of this machine together: blocks are spread over them as they fit."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def pick_device(name: str) -> torch.device:
    """The device asked for; `auto` takes a GPU where there is one, and so does `split`, for the first blocks.

    Raises:
        ModelError: It is not there, or holds no numbers.
    """
    if name in ("auto", SPLIT):
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        probe = torch.ones(1, device=name)
        probe.cpu()  # a device that only pretends to hold numbers (meta) cannot give them
        return probe.device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"expected a usable device, got {name} ({reason}); pass --device cpu") from error


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype asked for; `auto` is bfloat16 where the hardware multiplies matrices of it, else float16 or float32.

    On a CPU that takes AMX: with the vector instructions of AVX512-BF16 alone, float32 is 1.6 times as fast.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
    native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16
