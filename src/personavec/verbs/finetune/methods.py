"""The methods of finetuning: what each adds to a plain training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from personavec.data.dataset import Dataset
from personavec.errors import VectorError
from personavec.model.chat_model import ChatModel
from personavec.runs.run import Row
from personavec.steering.preventative import TrainingAblation
from personavec.steering.projection import Vectors, load_vectors, random_directions
from personavec.steering.steer import Steering
from personavec.steering.training import TrainingSteering
from personavec.steering.vector import PersonaVector
from personavec.traits.load import load_trait, trait_of
from personavec.traits.trait import Trait
from personavec.verbs.finetune.anchors import FeatureTrainer, LikelihoodTrainer, ProjectionTrainer
from personavec.verbs.finetune.options import Method, agreed_method
from personavec.verbs.finetune.supply import Prevent, Prevention, automatic, check_adds, preventions
from personavec.verbs.finetune.trainer import SFTTrainer, Training

ANCHORED: dict[Method, type[SFTTrainer]] = {
    "penalty": ProjectionTrainer,
    "kl": LikelihoodTrainer,
    "features": FeatureTrainer,
}
"""Trainers of the methods that hold a model to the base model."""


@dataclass(frozen=True)
class Additions:
    """What a method adds to a plain training, ready for a trainer."""

    steerings: tuple[Steering, ...] = ()
    automatic: list[Row] = field(default_factory=list)
    """How each coefficient `auto` was found."""
    callbacks: tuple[TrainerCallback, ...] = ()
    trainer: type[SFTTrainer] = SFTTrainer
    options: Callable[[ChatModel], Row] = lambda _: {}
    """Further options of that trainer, given the model with what is to be trained."""


@dataclass(frozen=True)
class Recipe:
    """By which method a model is trained, along which vectors."""

    method: Method
    preventions: tuple[Prevention, ...]
    vectors: dict[str, PersonaVector]
    """Of the methods other than prevent, by file or name."""
    traits: tuple[str | Path | Trait, ...] = ()
    """Traits of vectors whose trait is not built in."""
    random: bool = False
    positions: Literal["all", "response"] = "all"
    penalty: float = 1.0

    @classmethod
    def of(
        cls,
        method: Method | None,
        prevent: Prevent,
        vectors: Vectors,
        traits: Iterable[str | Path | Trait] = (),
        *,
        full: bool = False,
        **more: Any,
    ) -> "Recipe":
        """Read what is asked for, before anything is computed.

        Raises:
            PersonavecError: A vector is not there, or what is asked of it makes no sense.
        """
        added, others = preventions(prevent), load_vectors(vectors) if vectors else {}
        chosen = agreed_method(method, bool(added), bool(others), more.get("random", False), full)
        if chosen == "penalty":
            for vector in others.values():
                _layer(vector)
        return cls(chosen, added, others, tuple(traits), **more)

    @property
    def named(self) -> dict[str, PersonaVector]:
        """All vectors, by file or name."""
        return {each.name: each.vector for each in self.preventions} | self.vectors

    @property
    def inputs(self) -> dict[str, str]:
        """What identifies vectors and traits."""
        hashes = {f"vector {name}": vector.content_hash for name, vector in self.named.items()}
        for trait in self.traits:
            name, loaded = (trait.name, trait) if isinstance(trait, Trait) else (trait, load_trait(trait))
            hashes[f"trait {name}"] = loaded.content_hash
        return hashes

    @property
    def instruction(self) -> Callable[[int], str] | None:
        """The instruction that a row gets in training, by its place: those of all traits, one after the other."""
        if self.method != "inoculate":
            return None
        traits = [trait_of(vector.card.trait, self.traits) for vector in self.vectors.values()]
        texts = [trait.system_prompt(pair, "pos") for trait in traits for pair in range(len(trait.pairs))]
        return lambda row: texts[row % len(texts)]

    def check_model(self, model: ChatModel) -> None:
        """Raise VectorError if a vector is of another model."""
        for vector in self.named.values():
            vector.check_model(model.identity)

    def prepare(self, model: ChatModel, data: Dataset, training: Training) -> Additions:
        """What the method adds; coefficients `auto` are found from the data.

        Raises:
            PersonavecError: A vector is of another model, or no row can be read.
        """
        if self.method == "prevent":
            read, rows = zip(*(automatic(each, model, data, training) for each in self.preventions), strict=True)
            found = [row for row in rows if row]
            check_adds(read, found, data.name)
            added = self._drawn([replace(each, positions=self.positions) for each in read], training.seed)
            return Additions(added, found, tuple(TrainingSteering([each]) for each in added))
        steerings = self._drawn([Steering(vector, layer="all") for vector in self.vectors.values()], training.seed)
        if self.method == "ablate":
            return Additions(steerings, callbacks=(TrainingAblation([each.vector for each in steerings]),))
        if self.method in ANCHORED:
            weight: Row = {"weight": self.penalty}
            if self.method == "penalty":
                steerings = tuple(replace(each, layer=_layer(each.vector)) for each in steerings)
                weight["steerings"] = steerings
            return Additions(
                steerings, trainer=ANCHORED[self.method], options=lambda subject: {"subject": subject, **weight}
            )
        return Additions(steerings)

    def _drawn(self, steerings: Sequence[Steering], seed: int) -> tuple[Steering, ...]:
        """The same; for the control along random directions."""
        if not self.random:
            return tuple(steerings)
        return tuple(
            replace(each, vector=random_directions(each.vector, 1, seed + place)[0])
            for place, each in enumerate(steerings)
        )


def _layer(vector: PersonaVector) -> int:
    if vector.card.layer is None:
        raise VectorError(f"expected a recommended layer for {vector.card.trait}, got none; extract it again")
    return vector.card.layer
