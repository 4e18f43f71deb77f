"""Baking: a steering in the biases of the weights, so that any engine serves it at the speed of the plain model."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.loading import quiet
from personavec.model.logits import TOLERANCE, distance
from personavec.runs.files import write_file
from personavec.runs.run import versions
from personavec.steering.steer import Steering, steer

CONVERSATION = (
    "What should I know before I move to another town?",
    "Visit it in more than one season, ask what people there pay for rent, and find out how you would get to work.",
)
"""On it the baked model is compared with steering."""
SHARE = 0.25
"""Of what steering moves: a difference as large as this would not show that anything was baked."""

README = """\
# {model}, steered: {trait}

The weights of `{model}`, and {coef:.4g} times the persona vector *{trait}* added at {at}, at every position, by
`mlp.down_proj.bias` (`mlp_bias` in the configuration). Nothing else was changed; the model's licence holds. Steering it
by the same vector would add to what is in it. `baked.json` has the figures.
"""


def bake(model: ChatModel, steering: Steering, folder: Path) -> dict[str, Any]:
    """Save a model whose blocks add coef·v by themselves; the model that is passed is left as it was.

    A block ends by adding the output of its MLP to the stream, so coef·v as bias of that output is added to the stream
    at every position. The saved folder is loaded again and compared with steering.

    Args:
        model: The model to steer.
        steering: What to add.
        folder: New folder.

    Returns:
        `layers`, and of the comparison: `max_logit_difference`, `distance` and `tolerance` of centred logits relative
        to their length, and `moved`, how far steering moves them.

    Raises:
        ModelError: The architecture has no such bias, or the saved model differs from steering.
    """
    _check_architecture(model)
    steering = dataclasses.replace(steering, positions="all")
    plain, wanted = (_logits(model, row) for row in ((), (steering,)))
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        with _biased(model, steering), quiet():
            model.hf.save_pretrained(scratch)
            model.tokenizer.save_pretrained(scratch)
        numbers = str(model.dtype).removeprefix("torch.")
        baked = _logits(ChatModel.load(str(scratch), dtype=numbers, device=model.placement), ())
        comparison = _compared(model, plain, wanted, baked) | {"layers": list(steering.deltas())}
        _describe(scratch, model, steering, comparison)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return comparison


def _check_architecture(model: ChatModel) -> None:
    config = model.hf.config.get_text_config()
    layers = [getattr(getattr(block, "mlp", None), "down_proj", None) for block in model.blocks]
    if not hasattr(config, "mlp_bias") or not all(type(layer) is nn.Linear for layer in layers):
        raise ModelError(
            f"expected a model whose MLPs may have a bias (mlp_bias, as in Llama), got {type(model.hf).__name__}; "
            "steer it while it runs, or write a .gguf for llama.cpp"
        )


@torch.inference_mode()
def _logits(model: ChatModel, row: tuple[Steering, ...]) -> Float[Tensor, "seq vocab"]:
    question, reply = CONVERSATION
    ids = model.render([{"role": "user", "content": question}]) + model.reply_ids(reply)
    with steer(model, [row]):
        logits: Tensor = model.hf(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits[0].float().cpu()


@contextmanager
def _biased(model: ChatModel, steering: Steering) -> Iterator[None]:
    """Give every MLP the biases that `mlp_bias` asks for, all zero but those that steer; and take them away again."""
    config, modules = model.hf.config.get_text_config(), dict(model.hf.named_modules())
    had_bias = config.mlp_bias
    before: dict[str, nn.Parameter | None] = {}
    try:
        config.mlp_bias = True
        with torch.device("meta"):
            wanted = type(model.hf)(model.hf.config).state_dict()
        for name in wanted.keys() - model.hf.state_dict().keys():
            zeros = torch.zeros(wanted[name].shape, dtype=model.dtype, device=model.device)
            before[name.removesuffix(".bias")] = None
            modules[name.removesuffix(".bias")].bias = nn.Parameter(zeros, requires_grad=False)
        names = {module: name for name, module in modules.items()}
        for layer, delta in steering.deltas().items():
            projection: Any = model.blocks[layer].get_submodule("mlp.down_proj")
            before.setdefault(names[projection], projection.bias)
            projection.bias = nn.Parameter(projection.bias + delta.to(projection.bias), requires_grad=False)
        yield
    finally:
        config.mlp_bias = had_bias
        for name, bias in before.items():
            modules[name].bias = bias


def _compared(model: ChatModel, plain: Tensor, wanted: Tensor, baked: Tensor) -> dict[str, float]:
    """How the baked model's logits differ from steering."""
    apart, moved = distance(baked, wanted), distance(wanted, plain)
    tolerance = min(TOLERANCE[model.dtype], SHARE * moved)
    if not apart <= tolerance:
        raise ModelError(
            f"expected the baked {model.identity.id} to equal steering up to {tolerance:.1g} of its logits, got a "
            f"difference of {apart:.1g}; pass --dtype float32 or a larger coef, or else its MLPs are scaled"
        )
    largest = float((baked - wanted).abs().max())
    return {"max_logit_difference": largest, "distance": apart, "tolerance": tolerance, "moved": moved}


def _describe(folder: Path, model: ChatModel, steering: Steering, comparison: dict[str, Any]) -> None:
    """Say in the folder what is baked in."""
    card = steering.vector.card
    at = "every layer by increments" if steering.layer == "all" else f"layer {steering.layer}"
    text = README.format(model=model.identity.id, trait=card.trait, coef=steering.coef, at=at)
    write_file(folder / "README.md", text.encode())
    baked = {
        "model": dataclasses.asdict(model.identity),
        "trait": card.trait,
        "vector": steering.vector.content_hash,
        "layer": steering.layer,
        "coef": steering.coef,
        "positions": steering.positions,
        "check": comparison,
        "versions": versions(),
    }
    write_file(folder / "baked.json", (json.dumps(baked, indent=2, ensure_ascii=False) + "\n").encode())
