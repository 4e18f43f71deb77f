"""Finetune: train an adapter (or all weights) on a data set by one method, and say what was done in a run card."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

from personavec.data.dataset import Dataset, dataset_of
from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.runs.rules import Positive, Seed, Store, settings
from personavec.runs.run import Row, Run
from personavec.runs.show import interval
from personavec.stats.intervals import clustered_mean
from personavec.steering.projection import Vectors
from personavec.steering.steer import Steering
from personavec.traits.trait import Trait
from personavec.verbs.finetune.methods import Recipe
from personavec.verbs.finetune.options import Method
from personavec.verbs.finetune.supply import Prevent
from personavec.verbs.finetune.trainer import (
    Training,
    TrainingOptions,
    arguments,
    reply_losses,
    share_out,
    train,
    trainable,
)
from personavec.verbs.finetune.training_rows import mixed_in

Data = str | Path | Iterable[Mapping[str, Any]] | Dataset

SMALL_MODEL = 1_000_000_000
"""Parameters."""
SMALL_RATE = 1e-4
"""Learning rate from which on adapters of small models learn what the rows hold."""


@dataclass(frozen=True, repr=False)
class Finetuning(Result):
    """A trained model, what it was trained on and by, and the loss before and after."""

    losses: list[Row]
    """What was logged at every step."""
    skipped: list[Row]
    """Rows that could not be used, with the reason."""
    made: Callable[[], ChatModel]
    """Gives the trained model; `model` has it."""

    @property
    def tuned(self) -> Path | None:
        """Folder of the adapter, or of the whole model; none without a store."""
        return Path(self.data["tuned"]) if self.data.get("tuned") else None

    @cached_property
    def model(self) -> ChatModel:
        """The trained model. An adapter stands on a twin: the weights are those of the model that was given."""
        return self.made()

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        shown = {
            "model": data["model"],
            "method": data["method"] + " along a random direction" * data["random"],
            "along": ", ".join(_shown(row) for row in data["steering"]) or "–",
            "rows": f"{data['rows']:,}, {data['skipped']:,} skipped",
            **({"benign": f"{data['benign']['sequences']:,}"} if data.get("benign") else {}),
            "loss": f"{data['loss']['first']:.3f} → {data['loss']['last']:.3f} in {data['steps']:,} steps",
        }
        held_out = data["held_out"] or {}
        losses = {f"held-out loss, {name}": interval(held_out[name], 3) for name in ("base", "tuned") if held_out}
        return [*(shown | losses | {"trained": data["tuned"] or "in memory"}).items()]


def finetune(
    model: ChatModel,
    data: Data,
    *,
    prevent: Prevent = (),
    method: Method | None = None,
    vectors: Vectors = (),
    random: bool = False,
    positions: Literal["all", "response"] = "all",
    penalty: Positive = 1.0,
    benign: Data | None = None,
    benign_share: Positive = 0.25,
    held_out: Data | None = None,
    traits: Sequence[str | Path | Trait] = (),
    seed: Seed = 0,
    store: Store = None,
    **training: Unpack[TrainingOptions],
) -> Finetuning:
    """Train on every row of a data set, with a loss on the assistant's replies.

    The model object is left as it was found, also after an exception: the adapter stands on a twin that shares its
    weights. With `full=True` the weights of the object itself are trained.

    Args:
        model: Trained from; without an adapter of its own.
        data: A path or name, a `datasets.Dataset`, or any iterable of rows.
        prevent: Added in training: `vector.at(coef=…)`, (vector, "auto") to find the coefficient from data that
            pull toward the trait, (vector, "-auto") from data that pull against it, the command line's
            VEC:COEF[@LAYER] or VEC:auto, or several of them.
        method: plain, prevent, ablate, penalty, kl, features or inoculate; default prevent with `prevent`, else plain.
        vectors: Of the methods other than prevent.
        random: The control: a random direction as long as each vector in its place.
        positions: Where all of `prevent` is added: at all tokens, or those whose output predicts a token with a loss.
        penalty: Weight of the term of the loss that penalty (per squared natural difference), kl (per nat) or features
            (per squared share of the activation's length) adds.
        benign: Harmless rows to train on among those of the data, with any method.
        benign_share: How many of them, drawn at random, for each row of the data.
        held_out: Rows that are not trained on: the loss on them before and after.
        traits: Traits of vectors whose trait is not built in (inoculate).
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it. Several processes need one.
        training: How: fields of `Training`.

    Returns:
        The trained model, what was trained on and skipped, the loss at every step and on held-out rows, and how the
        method's coefficients were found. Processes of `accelerate launch` other than the first get no figures.

    Raises:
        PersonavecError: Bad input, or nothing that the data supply to prevent; what was done so far stays in the store.
    """
    began = time.monotonic()
    chosen = settings(finetune, locals())
    how = Training(seed=seed, **training)
    more: Row = {"random": random, "positions": positions, "penalty": penalty, "full": how.full}
    recipe = Recipe.of(method, prevent, vectors, traits, **more)
    rows_of, unseen_of = dataset_of(data), None if held_out is None else dataset_of(held_out, "held-out rows")
    harmless = None if benign is None else dataset_of(benign, "benign rows")
    first = not int(os.environ.get("RANK", 0))
    if store is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("expected a store with several processes, got none; pass store=FOLDER")
    if model.adapted:
        raise ConfigError("expected a model without an adapter to train, got one with; merge_and_unload() it first")
    recipe.check_model(model)
    chosen |= how.options | {"prevent": [each.text for each in recipe.preventions]}
    inputs = rows_of.fingerprint() | (unseen_of.fingerprint() if unseen_of else {})
    inputs |= {f"benign {name}": content for name, content in harmless.fingerprint().items()} if harmless else {}
    inputs |= {"model": model.identity.revision, "numbers": model.numbers} | recipe.inputs
    run = Run.open(store, chosen, inputs) if first else Run(Path(store or ""))
    place = "model" if how.full else "adapter"
    if run.done("result.json"):
        if first:
            tell(f"{run.folder} is trained already and kept; another --out trains anew")
            run.finish()
        losses, skipped = list(run.rows("loss.jsonl")), list(run.rows("skipped.jsonl"))
        return Finetuning(run.read_json("result.json"), losses, skipped, lambda: _kept(model, run.path(place), how))

    args = arguments(how, model, run.path(place))
    if run.kept:  # else trackers draw a name from the seed, the same for every training
        args.run_name = f"{run.shown()}-{Run.digest(inputs | {'options': str(chosen)})}"
    rows, skipped = how.rows(model, rows_of, recipe.instruction)
    unseen, unusable = how.rows(model, unseen_of) if unseen_of else ([], [])
    among, unusable_benign = how.rows(model, harmless) if harmless else ([], [])
    among = mixed_in(rows, among, benign_share, seed) if harmless else []
    share_out(args, how, len(rows) + len(among))
    added = recipe.prepare(model, rows_of, how)
    if model.hf.num_parameters() < SMALL_MODEL and how.rate < SMALL_RATE and not how.full:
        tell(
            f"learning rate {how.rate:g}, which suits models of billions of parameters: {model.identity.id} may learn "
            f"next to nothing from it; small models need --rate {SMALL_RATE:g} or more"
        )
    before = reply_losses(model, unseen) if unseen and first else None
    with trainable(model, how) as subject:
        losses = train(subject, [*rows, *among], args, added.callbacks, added.trainer, **added.options(subject))
        after = reply_losses(subject, unseen) if before else None
    if not first:
        return Finetuning({}, losses, skipped, lambda: subject)
    if how.full:
        subject = ChatModel(model.hf, model.tokenizer, model.identity.id)
    elif run.kept:
        subject.adapter = run.path(place)
    run.write_rows("loss.jsonl", losses)
    run.write_rows("skipped.jsonl", [*skipped, *unusable_benign])
    result = {
        "out": run.shown(),
        "tuned": run.shown(place),
        "model": model.identity.id,
        "method": recipe.method,
        "random": random,
        "steering": [steering_row(each, recipe.method) for each in added.steerings],
        "automatic": added.automatic,
        "rows": len({row["row"] for row in rows}),
        "sequences": len(rows),
        "skipped": len(skipped),
        "benign": {"sequences": len(among), "skipped": len(unusable_benign)} if harmless else None,
        "tokens": sum(len(row["input_ids"]) for row in [*rows, *among]),
        "steps": len(losses),
        "loss": {"first": losses[0]["loss"], "last": losses[-1]["loss"]},
        "held_out": {"skipped": len(unusable)} | _held_out(before, after, len(unseen)) if before else None,
    }
    run.complete(result, began)
    return Finetuning(result, losses, skipped, lambda: subject)


def _kept(model: ChatModel, folder: Path, how: Training) -> ChatModel:
    """The model that an earlier call trained."""
    if not how.full:
        return model.with_adapter(folder)
    return ChatModel.load(str(folder), dtype=str(model.dtype).removeprefix("torch."), device=model.placement)


def steering_row(steering: Steering, method: str) -> Row:
    """A direction and how it is used, as the result has it."""
    card, layer = steering.vector.card, steering.single_layer
    row: Row = {"trait": card.trait, "hash": steering.vector.content_hash}
    if method != "inoculate":
        row["layer"] = steering.layer
    if method == "prevent":
        measured = layer is not None and card.activation_norms
        dose = round(steering.vector.dose(layer, steering.coef), 4) if measured else None  # type: ignore[arg-type]
        row |= {"coef": steering.coef, "dose": dose, "positions": steering.positions}
    return row


def _shown(row: Row) -> str:
    amount = f" coef {row['coef']:.3g}" if "coef" in row else ""
    return f"{row['trait']}{amount}" + (f" at layer {row['layer']}" if "layer" in row else "")


def _held_out(before: Any, after: Any, count: int) -> Row:
    """Loss per reply token on rows that were not trained on; the difference is paired by token."""
    (base, places), (tuned, _) = before, after
    losses = {"base": base, "tuned": tuned, "difference": tuned - base}
    return {"rows": count} | {name: clustered_mean(loss, places).to_json() for name, loss in losses.items()}
