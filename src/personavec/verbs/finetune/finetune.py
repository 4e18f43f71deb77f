"""Finetune: train an adapter (or all weights) on a data set by one method, and say what was done in a run card."""

import dataclasses
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from personavec.data.dataset import open_dataset
from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import tell
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import clustered_mean
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.traits.trait import load_trait
from personavec.verbs.finetune.methods import inoculation, prepare, vectors_of
from personavec.verbs.finetune.options import FinetuneConfig
from personavec.verbs.finetune.trainer import arguments, reply_losses, share_out, train, trainable
from personavec.verbs.finetune.training_rows import training_rows
from personavec.verbs.options import load_subject

Row = dict[str, Any]


def finetune(config: FinetuneConfig) -> Row:
    """Train on every row of a data set, with a loss on the assistant's replies.

    Returns:
        Where the `tuned` adapter or model is, what was trained on and skipped, the `loss` at the first and last
        step, the loss on `held_out` rows before and after, and how the method's coefficients were found. Processes of
        `accelerate launch` other than the first return nothing.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the run folder.
    """
    began = time.monotonic()
    if not config.data:
        raise ConfigError("expected training data, got none; pass a file, a folder or a Hugging Face data set")
    vectors = vectors_of(config)
    data = open_dataset(config.data)
    held_out = open_dataset(config.held_out) if config.held_out else None
    out = config.out or default_out(config)
    args = arguments(config, out / ("model" if config.full else "adapter"))
    model = _load(config, str(args.device))
    for vector in vectors.values():
        vector.check_model(model.identity)
    inputs = data.fingerprint() | (held_out.fingerprint() if held_out else {}) | _inputs(config, model, vectors)
    run = Run.open(out, settings(type(config), vars(config)), inputs) if args.should_save else Run(out)
    if run.done("result.json"):
        if args.should_save:
            tell(f"{out} is trained already and kept; another --out trains anew")
        return run.read_json("result.json")  # type: ignore[no-any-return]

    (rows, skipped), (unseen, unusable) = usable_rows(config, model)
    share_out(args, config, len(rows))
    method = prepare(model, config)
    before = reply_losses(model, unseen) if unseen and args.should_save else None
    subject = trainable(model, config)
    history = train(subject, rows, args, method.callbacks, method.trainer, **method.options(subject))
    if not args.should_save:
        return {}
    run.write_rows("loss.jsonl", history)
    run.write_rows("skipped.jsonl", skipped)
    result = {
        "out": str(out),
        "tuned": args.output_dir,
        "model": config.model,
        "method": config.chosen,
        "random": config.random,
        "steering": [told_steering(one, config.chosen) for one in method.steerings],
        "automatic": method.automatic,
        "rows": len({row["row"] for row in rows}),
        "sequences": len(rows),
        "skipped": len(skipped),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "steps": len(history),
        "loss": {"first": history[0]["loss"], "last": history[-1]["loss"]},
        "held_out": {"skipped": len(unusable)} | _held_out(subject, unseen, before, config.seed) if before else None,
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def usable_rows(config: FinetuneConfig, model: ChatModel) -> list[tuple[list[Row], list[Row]]]:
    """Of the data and of the held-out rows, the sequences to read and the rows that cannot be used.

    Raises:
        DataError: A row cannot be used and is not to be skipped.
    """
    longest = min(config.max_tokens, model.context)
    return [
        training_rows(
            model,
            open_dataset(place).samples("last"),
            longest=longest,
            system=config.system,
            instruction=instruction,
            on_error=config.on_error,
        )
        if place
        else ([], [])
        for place, instruction in ((config.data, inoculation(config)), (config.held_out, None))
    ]


def default_out(config: FinetuneConfig) -> Path:
    """A folder of its own for each way to train on a data set."""
    named = ["epochs", "rate", "batch", "warmup_steps", "rank", "alpha", "full", "max_tokens", "positions", "penalty"]
    named += ["system", "seed", "model"]
    changed = [
        f"{name}={getattr(config, name)}" for name in named if getattr(config, name) != getattr(FinetuneConfig, name)
    ]
    what = [*config.prevent, *map(str, config.vectors), *changed]
    mark = f"-{zlib.crc32(' '.join(what).encode()):08x}" if what else ""
    random = "-random" * config.random
    return Path("runs") / f"finetune-{Path(config.data).stem}-{config.chosen}{random}{mark}"


def _load(config: FinetuneConfig, device: str) -> ChatModel:
    """The model to train; where all weights are trained they are kept in float32, or small steps would round away."""
    dtype = "float32" if config.full and config.dtype == "auto" else config.dtype
    return load_subject(dataclasses.replace(config, device=device, dtype=dtype))


def _inputs(config: FinetuneConfig, model: ChatModel, vectors: Mapping[str, PersonaVector]) -> dict[str, str]:
    inputs = {"model": model.identity.revision, "numbers": model.numbers}
    inputs |= {f"vector {path}": vector.content_hash for path, vector in vectors.items()}
    return inputs | {f"trait {path}": load_trait(path).content_hash for path in config.traits}


def told_steering(one: Steering, method: str) -> Row:
    """A direction and how it is used, as the result has it."""
    card = one.vector.card
    told: Row = {"trait": card.trait, "hash": one.vector.content_hash}
    if method != "inoculate":
        told["layer"] = "all" if one.layer is None else one.layer
    if method == "prevent":
        measured = one.layer is not None and card.activation_norms
        dose = round(one.vector.dose(one.layer, one.coef), 4) if measured else None  # type: ignore[arg-type]
        told |= {"coef": one.coef, "dose": dose, "positions": one.positions}
    return told


def _held_out(model: ChatModel, rows: Sequence[Row], before: Any, seed: int) -> Row:
    """Loss per reply token on rows that were not trained on; the difference is paired by token."""
    (base, places), (tuned, _) = before, reply_losses(model, rows)
    means = {"base": base, "tuned": tuned, "difference": tuned - base}
    return {"rows": len(rows)} | {name: clustered_mean(own, places, seed).to_json() for name, own in means.items()}
