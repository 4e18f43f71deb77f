"""A comparison of methods under way: the arms, what each is trained by and how it is measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from personavec.data.dataset import Dataset, dataset_of
from personavec.errors import JudgeError
from personavec.judges.load import Bench
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import tell
from personavec.runs.run import Row, Run
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.traits.trait import Trait
from personavec.verbs.evaluate.evaluate import Evaluation, evaluate
from personavec.verbs.finetune.finetune import Finetuning, finetune, steering_row
from personavec.verbs.finetune.options import UNAIMED, Compared
from personavec.verbs.finetune.shift import shift
from personavec.verbs.finetune.supply import Prevention, automatic, check_adds
from personavec.verbs.finetune.trainer import Training, TrainingOptions, reply_losses
from personavec.verbs.finetune.training_rows import mixed_in
from personavec.verbs.screen.screen import screen

REPLIES = {*ReplyOptions.__annotations__}
"""Options of an `Interview`."""


@dataclass(frozen=True)
class TrainedArm:
    """A model to measure: what it is trained by, and what is done to its replies."""

    name: str
    method: str
    training: str
    """Folder of its training; arms without steering in training share that of `plain`, base has none."""
    scale: float | None = None
    """Multiple of the coefficients, in training or in replies."""
    steer: tuple[str, ...] = ()
    """What steers its replies."""


@dataclass(frozen=True)
class Comparing:
    """A comparison under way: who is trained on what, and who measures it."""

    run: Run
    interview: Interview
    data: Dataset
    held_out: Dataset | None
    benign: Dataset | None
    benign_share: float
    training: Training
    positions: Literal["all", "response"]
    penalty: float
    bench: Bench
    rollouts: int
    conditional: bool
    costs: Row
    """What is measured besides traits: options of `evaluate`."""
    vectors: dict[str, PersonaVector]
    """By file."""
    traits: dict[str, Trait]
    given_traits: tuple[str | Path | Trait, ...]

    @property
    def model(self) -> ChatModel:
        """The base model."""
        return self.interview.model

    def coefficients(self, preventions: Sequence[Prevention]) -> list[Row]:
        """What prevention adds at scale 1, `auto` looked up in the data once.

        Raises:
            ConfigError: Nothing is to be added.
        """
        if not self.run.done("steering.json"):
            learned, *others = (
                data and self.training.rows(self.model, data)[0] for data in (self.data, self.benign, self.held_out)
            )
            if learned and others[0]:
                mixed_in(learned, others[0], self.benign_share, self.training.seed)
            rows: list[Row] = []
            steerings: list[Steering] = []
            for prevention, file in zip(preventions, self.vectors, strict=False):
                steering, row = automatic(prevention, self.model, self.data, self.training)
                steerings.append(steering)
                place = {"file": file, "automatic": row}
                rows.append(steering_row(replace(steering, positions=self.positions), "prevent") | place)
            check_adds(steerings, [row["automatic"] for row in rows if row["automatic"]], self.data.name)
            self.run.write_json("steering.json", {"steering": rows})
        return list(self.run.read_json("steering.json")["steering"])

    def train(self, arm: TrainedArm, steering: list[Row], plain: Finetuning | None) -> Finetuning:
        """The training of an arm; that by perplexity gap looks at what plain training made."""
        what: Row = {"method": arm.training}
        if arm.method == "interleave-gap" and plain:
            benign, share = self._gapped(plain)
            what = {"method": "plain", "benign": benign, "benign_share": share}
        elif arm.method in ("prevent", "random"):
            what = {"prevent": _steer(steering, arm.scale or 1), "random": arm.method == "random"}
        elif arm.method == "interleave":
            what = {"method": "plain", "benign": self.benign, "benign_share": self.benign_share}
        elif arm.training not in UNAIMED:
            what |= {"vectors": [Path(row["file"]) for row in steering]}
        what |= {"positions": self.positions, "penalty": self.penalty, "traits": self.given_traits}
        how = {name: getattr(self.training, name) for name in TrainingOptions.__annotations__}
        store = self.run.path(arm.training)
        tell(f"training {store}")
        where: Row = {"held_out": self.held_out, "seed": self.training.seed, "store": store}
        return finetune(self.model, self.data, **where, **what, **how)

    def _gapped(self, plain: Finetuning) -> tuple[Dataset, float]:
        """The benign rows whose loss plain training raised most, and the share that takes all of them.

        Source: In-Training Defenses against Emergent Misalignment (arXiv 2508.06249).
        """
        assert self.benign is not None
        rows, _ = self.training.rows(self.model, self.benign)
        (after, places), (before, _) = reply_losses(plain.model, rows), reply_losses(self.model, rows)
        owners = np.array([row["row"] for row in rows])[places]
        gaps = np.bincount(owners, weights=after - before) / np.maximum(np.bincount(owners), 1)
        sizes = np.bincount([row["row"] for row in rows])
        order = [row for row in np.argsort(-gaps, kind="stable") if sizes[row]]
        wanted = round(self.benign_share * plain.data["sequences"])
        chosen = order[: 1 + int(np.searchsorted(np.cumsum(sizes[order]), wanted))]
        held = [raw.value for place, raw in enumerate(self.benign.rows()) if place in {*chosen}]
        return dataset_of(held, "benign rows by gap"), float(sizes[chosen].sum() / plain.data["sequences"])

    def measure(self, arm: TrainedArm, training: Finetuning | None, steering: list[Row]) -> dict[str, Evaluation]:
        """The evaluation of an arm for every trait; its perplexity and tasks are measured along with the first."""
        files = {vector.card.trait: file for file, vector in self.vectors.items()}
        evaluations = {}
        for place, (name, trait) in enumerate(self.traits.items()):
            options: Row = {} if place else dict(self.costs)
            if training:
                options |= {"judge_file": self.run.path(f"base-{name}") / "judge.json", "steer": arm.steer}
            if arm.method == "negative-prompt":
                options["instruct"] = _side(name, steering, prevented=False)
            options |= self._how(arm, name)
            model = training.model if training else self.model
            evaluations[name] = evaluate_on_card(model, trait, None if training else Path(files[name]), **options)
        return evaluations

    def asked(self, arm: TrainedArm, training: Finetuning | None, steering: list[Row]) -> dict[str, Row]:
        """Trait scores of an arm's replies under the instructions for what is to be prevented, if those are wanted.

        The negative prompt is an instruction itself, and has none.
        """
        if not self.conditional or arm.method == "negative-prompt":
            return {}
        model, found = training.model if training else self.model, {}
        for name, trait in self.traits.items():
            options: Row = {"judge_file": self.run.path(f"base-{name}") / "judge.json", "steer": arm.steer}
            options |= self._how(arm, f"asked-{name}") | {"instruct": _side(name, steering, prevented=True)}
            found[name] = evaluate(model, trait, **options).data["trait_score"]
        return found

    def _how(self, arm: TrainedArm, name: str) -> Row:
        """How an arm is measured, and where that is kept."""
        folder = self.run.path(f"{arm.name.replace(', ', '-').replace(' ', '-').replace('×', '')}-{name}")
        tell(f"measuring {folder}")
        how = {"judge": self.bench, "rollouts": self.rollouts, "seed": self.interview.seed, "store": folder}
        return how | {key: getattr(self.interview, key) for key in REPLIES}

    def shifts(self, trainings: Mapping[str, Finetuning]) -> dict[str, Row]:
        """How far each training moved the model along every vector."""
        tuned = {name: str(self.run.path(f"{name}/adapter")) for name in trainings}
        mark = Run.digest(tuned)  # another report in this folder may have other arms
        moved = shift(
            self.model,
            list(tuned.values()),
            list(map(Path, self.vectors)),
            traits=self.given_traits,
            system=self.training.system,
            seed=self.training.seed,
            store=self.run.path(f"shift-{mark}"),
        )
        rows = {row["tuned"]: row for row in moved.tuned}  # checkpoints too: the curve is in its result.json
        return {name: rows[place] for name, place in tuned.items()}

    def predicted(self) -> Row:
        """What could be known of the data set before training on it."""
        how = self.training
        screening = screen(
            self.model,
            self.data,
            list(map(Path, self.vectors)),
            turn="last",
            cost="full",
            on_error=how.on_error,
            system=how.system,
            seed=how.seed,
            store=self.run.path("screen"),
        ).to_dict()
        return {name: screening[name] for name in ("projection_difference", "random_control", "layers")}


def arms_of(
    compared: Sequence[Compared], scales: Sequence[float], steering: list[Row], left: Mapping[str, str]
) -> Iterator[TrainedArm]:
    """Base and plain, and what is compared with them, in the order of the report."""
    yield TrainedArm("base", "base", "")
    yield TrainedArm("plain", "plain", "plain")
    for method in compared:
        if method == "prevent":
            for scale in scales:
                yield TrainedArm(f"prevent ×{scale:g}", method, f"prevent-{scale:g}", scale)
        elif method == "posthoc":
            for scale in scales:
                yield TrainedArm(f"post-hoc ×{scale:g}", method, "plain", scale, _steer(steering, -scale))
        elif method == "random":
            yield TrainedArm("prevent, a random direction", method, "prevent-random", 1)
        elif method == "negative-prompt":
            yield TrainedArm("negative prompt", method, "plain")
        elif method not in left:
            yield TrainedArm(method, method, method)


def left_out(compared: Sequence[Compared], steering: list[Row], benign: bool) -> dict[str, str]:
    """Arms that make no sense here, and why."""
    left = {}
    if any(row["coef"] < 0 for row in steering):
        left["inoculate"] = "it asks for the trait in training, and here its opposite is to be prevented"
    if not benign:
        why = "it trains on harmless rows as well, and --benign names none"
        left |= {"interleave": why, "interleave-gap": why}
    return {method: why for method, why in left.items() if method in compared}


def _side(trait: str, steering: list[Row], *, prevented: bool) -> Literal["pos", "neg"]:
    """Instructions for what is to be prevented, or against it; with a negative coefficient that is the opposite."""
    opposite = any(row["trait"] == trait and row["coef"] < 0 for row in steering)
    return "pos" if prevented != opposite else "neg"


def _steer(steering: list[Row], scale: float) -> tuple[str, ...]:
    """The vectors at a multiple of their coefficients, as options take them."""
    return tuple(f"{row['file']}:{scale * row['coef']:.6g}@{row['layer']}" for row in steering)


def evaluate_on_card(model: ChatModel, trait: str | Trait, card: Path | None, **options: Any) -> Evaluation:
    """Evaluate with the scale of a vector's card, if that is of this judge."""
    if card is None:
        return evaluate(model, trait, **options)
    try:
        return evaluate(model, trait, judge_file=card, **options)
    except JudgeError as error:
        tell(f"a scale is learned anew ({error})")
        return evaluate(model, trait, **options)
