"""What a piece of work takes on a device: memory, tokens, hours and money, from the model's configuration alone."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from personavec.errors import ModelError
from personavec.model.machine.accelerators import MEASUREMENT, Accelerator
from personavec.model.machine.memory import GB, Need, need_of
from personavec.model.machine.quantise import QUANTISED
from personavec.runs.result import Result


@dataclass(frozen=True)
class Shares:
    """What plain transformers reaches of a device's figures."""

    reading: float
    """Of its multiplications."""
    writing: float
    """Of its memory's bandwidth."""
    training: float
    """Of its multiplications."""


PROMISED = Shares(0.35, 0.5, 0.3)
"""Of what a device's maker says: assumed, nothing here measured it on a GPU."""
REACHED = Shares(0.8, 0.65, 0.7)
"""Of what `accelerators` measures, which is no promise. The first two were measured on one core of a Xeon, with
SmolLM2 in float32: 0.84 to 0.86, 0.64 to 0.75."""
BLOCK_SECONDS = 0.0008
"""Assumed for starting a block's kernels once, from Python: small models wait for nothing else."""
STREAMS = 34
"""Bytes that training in 16 bits keeps of a token, per block and number of the stream, attention scores aside. Source:
Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1."""
ADAM = 16
"""Bytes of a trained weight: itself and its gradient in float32, and two moments."""


@dataclass(frozen=True)
class PlannedWork:
    """What is to be done, in tokens."""

    replies: int = 0
    """To write."""
    new_tokens: int = 0
    """Of each reply, at most."""
    prompt_tokens: int = 0
    """Of all replies' prompts together, each counted as if it were read for its reply alone."""
    batch_tokens: int = 0
    """In one batch of replies, prompts included."""
    read_tokens: int = 0
    """Read besides: by judges, and to find activations."""
    trained_tokens: int = 0
    """All passes over the data together."""


@dataclass(frozen=True)
class Trainable:
    """What training holds besides the model's weights."""

    weights: float
    """How many are trained."""
    tokens: int
    """Of one pass, padding included."""
    all_weights: bool
    recomputed: bool
    """Activations are not kept but computed again."""
    logits: int = 1
    """How many models' logits are held."""


@dataclass(frozen=True, repr=False)
class MachinePlan(Result):
    """What a verb would take, before anything is loaded."""

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        memory = ", ".join(f"{name} {size:.1f}" for name, size in data["memory_gb"].items())
        tokens = ", ".join(f"{count:,} {name}" for name, count in data["tokens"].items() if count)
        device, count = data["device"]["name"], data["device"]["count"]
        shown = {
            "model": data["model"],
            "device": f"{count} × {device}" if count > 1 else device,
            "memory": f"{sum(data['memory_gb'].values()):.1f} of {data['memory_there_gb']:.1f} GB ({memory})",
            "fits": "yes" if data["fits"] else "no",
            "tokens": tokens,
            "time": f"about {hours:.1f} hours" if (hours := data["hours"]) >= 2 else f"about {60 * hours:.1f} minutes",
        }
        if data["price"] is not None:
            shown["price"] = f"about {data['price']:,.2f}"
        return [*shown.items(), *(("assumed", note) for note in data["assumed"])]


def machine_plan(
    model: Any,
    work: PlannedWork,
    device: Accelerator,
    *,
    quantise: str | None = None,
    trained: Trainable | None = None,
    price_per_hour: float | None = None,
    counted: Mapping[str, Any] | None = None,
) -> MachinePlan:
    """Memory, tokens, hours and price of some work.

    Args:
        model: A `ChatModel`, its weights loaded or not.
        work: What is to be done.
        device: On what.
        quantise: How its weights would be quantised, one of `QUANTISED`.
        trained: What training holds.
        price_per_hour: Of all devices together.
        counted: Further counts of the verb.

    Raises:
        ModelError: The model cannot be laid out from its configuration.
    """
    config, itemsize = model.hf.config, model.dtype.itemsize
    need = need_of(config, itemsize, QUANTISED[quantise] if quantise else None)
    if need is None:
        raise ModelError(f"expected a configuration to plan by, got one of {config.model_type}; run without --plan")
    memory = _memory(config, work, need, itemsize, trained)
    total = sum(memory.values())
    fits_one, fits = total <= device.memory, total <= device.memory * device.count
    together = device.count if trained and fits_one else 1
    seconds = _seconds(model, need, work, device, trained) / together
    share = _shares(device)
    several = f"{device.count} devices hold the model together (--device split) and take turns"
    if fits_one:
        several = "they share the rows (accelerate launch)" if trained else "one of them does it all"
    return MachinePlan(
        {
            "model": model.identity.id,
            "device": asdict(device),
            "memory_gb": {name: round(size / GB, 6) for name, size in memory.items()},
            "memory_there_gb": round(device.memory * device.count / GB, 1),
            "fits": fits,
            "tokens": {
                "of prompts": work.prompt_tokens,
                "written at most": work.replies * work.new_tokens,
                "read besides": work.read_tokens,
                "trained on": work.trained_tokens,
            },
            "replies": work.replies,
            "hours": round(seconds / 3600, 4),
            "price": price_of(seconds, price_per_hour),
            **(counted or {}),
            "assumed": [
                f"speed and bandwidth of the device are {MEASUREMENT if device.measured else 'its data sheet’s'}",
                f"of them reading reaches {share.reading:.0%}, writing {share.writing:.0%} and training "
                f"{share.training:.0%}; "
                f"a block starts in {1000 * BLOCK_SECONDS * (not device.measured):.1f} ms",
                *([several] if device.count > 1 else []),
            ],
        }
    )


def price_of(seconds: float | None, per_hour: float | None) -> float | None:
    """What a time costs; None where one of the two is not known."""
    return None if seconds is None or per_hour is None else round(per_hour * seconds / 3600, 2)


def _shares(device: Accelerator) -> Shares:
    return REACHED if device.measured else PROMISED


def _memory(config: Any, work: PlannedWork, need: Need, itemsize: int, trained: Trainable | None) -> dict[str, float]:
    """Bytes, by what holds them, at the fullest moment."""
    memory = {"weights": need.weights}
    if work.replies:
        memory["keys and values"] = work.batch_tokens * need.cache
    if trained is None:
        return memory
    text = config.get_text_config()
    if trained.all_weights:
        memory["weights"] = 0.0
    memory["trained weights, gradients and moments"] = ADAM * trained.weights
    kept = STREAMS * text.hidden_size * itemsize / 2
    blocks = 1 if trained.recomputed else text.num_hidden_layers
    inputs = itemsize * text.hidden_size * text.num_hidden_layers if trained.recomputed else 0
    memory["activations"] = trained.tokens * (kept * blocks + inputs)
    logit = itemsize + 8  # with a copy and a gradient in float32
    memory["logits"] = trained.logits * trained.tokens * text.vocab_size * logit
    return memory


def _seconds(model: Any, need: Need, work: PlannedWork, device: Accelerator, trained: Trainable | None) -> float:
    operations, share = 2 * need.parameters, _shares(device)  # a multiplication and an addition for each weight
    starting = 0.0 if device.measured else BLOCK_SECONDS * model.n_layers
    seconds = operations * (work.prompt_tokens + work.read_tokens) / (share.reading * device.flops)
    if work.replies:
        size = work.prompt_tokens / work.replies + work.new_tokens
        rows = min(work.replies, max(1, work.batch_tokens // math.ceil(size)))
        moved = (need.weights + rows * size * need.cache) / (share.writing * device.bandwidth)
        step = max(moved, rows * operations / (share.reading * device.flops)) + starting
        seconds += math.ceil(work.replies / rows) * work.new_tokens * step
    if trained:  # forward, backward to the stream, and to the weights where all are trained
        passes = 2 + trained.all_weights + trained.recomputed
        seconds += passes * operations * work.trained_tokens / (share.training * device.flops)
        seconds += work.trained_tokens / trained.tokens * 3 * starting
    return seconds
