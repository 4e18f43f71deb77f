"""The methods of finetuning: what each adds to a plain training."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from personavec.errors import VectorError
from personavec.model.chat_model import ChatModel
from personavec.steering.notation import parse_steering
from personavec.steering.preventative import PreventativeSteering, TrainingAblation
from personavec.steering.projection import random_directions
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.trait import trait_of
from personavec.verbs.finetune.options import FinetuneConfig
from personavec.verbs.finetune.penalty import PenalisedTrainer
from personavec.verbs.finetune.supply import AUTO, automatic
from personavec.verbs.finetune.trainer import SFTTrainer

Row = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """What a method adds to a plain training, and how the run card tells it."""

    steerings: tuple[Steering, ...] = ()
    automatic: list[Row] = field(default_factory=list)
    """How each coefficient `auto` was found."""
    callbacks: tuple[TrainerCallback, ...] = ()
    trainer: type[SFTTrainer] = SFTTrainer
    options: Callable[[ChatModel], Row] = lambda _: {}
    """What that trainer is also told, given the model with what is to be trained."""


def vectors_of(config: FinetuneConfig) -> dict[str, PersonaVector]:
    """The vectors that the options name, by file; read before anything is computed.

    Raises:
        PersonavecError: One of them is not there, or what is asked of it makes no sense.
    """
    found = {}
    for text in config.prevent:
        match = AUTO.fullmatch(text)
        if match is None:
            parse_steering(text)
        file = match["file"] if match else text.rpartition(":")[0]
        found[file] = load_vector(Path(file))
        if match and match["layer"] not in (None, "all"):
            found[file].check_layer(int(match["layer"]))
    for path in config.vectors:
        found[str(path)] = load_vector(path)
        if config.chosen == "penalty":
            _layer(Steering(found[str(path)]))
    return found


def prepare(model: ChatModel, config: FinetuneConfig) -> Method:
    """What the options ask for.

    Raises:
        PersonavecError: A vector is not there, of another model, or recommends no layer.
    """
    if config.chosen == "prevent":
        texts, found = zip(*(automatic(text, model, config) for text in config.prevent), strict=True)
        added = _steerings(model, config, tuple(replace(parse_steering(t), positions=config.positions) for t in texts))
        return Method(added, [row for row in found if row], tuple(map(_prevention, added)))
    steerings = _steerings(model, config, tuple(Steering(load_vector(path)) for path in config.vectors))
    if config.chosen == "ablate":
        return Method(steerings, callbacks=(TrainingAblation([one.vector for one in steerings]),))
    if config.chosen == "penalty":
        steerings = tuple(replace(one, layer=_layer(one)) for one in steerings)
        told = {"steerings": steerings, "weight": config.penalty}
        return Method(steerings, trainer=PenalisedTrainer, options=lambda subject: {"subject": subject, **told})
    return Method(steerings)


def inoculation(config: FinetuneConfig) -> Callable[[int], str] | None:
    """The instruction that a row gets in training, by its place: those of all traits, one after the other."""
    if config.chosen != "inoculate":
        return None
    traits = [trait_of(load_vector(path).card.trait, config.traits) for path in config.vectors]
    asked = [trait.system_prompt(pair, "pos") for trait in traits for pair in range(len(trait.pairs))]
    return lambda row: asked[row % len(asked)]


def _steerings(model: ChatModel, config: FinetuneConfig, steerings: tuple[Steering, ...]) -> tuple[Steering, ...]:
    """Checked, and along random directions for the control."""
    for one in steerings:
        one.vector.check_model(model.identity)
    if not config.random:
        return steerings
    return tuple(
        replace(one, vector=random_directions(one.vector, 1, config.seed + place)[0])
        for place, one in enumerate(steerings)
    )


def _prevention(one: Steering) -> PreventativeSteering:
    layer = "all" if one.layer is None else one.layer
    return PreventativeSteering(one.vector, one.coef, layer=layer, positions=one.positions)  # type: ignore[arg-type]


def _layer(one: Steering) -> int:
    if one.vector.card.layer is None:
        raise VectorError(f"expected a recommended layer for {one.vector.card.trait}, got none; extract it again")
    return one.vector.card.layer
