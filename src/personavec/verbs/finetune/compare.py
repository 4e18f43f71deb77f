"""Before and after: one data set, every method, and what each does to traits, coherence, ability and perplexity."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

import numpy as np

from personavec.data.dataset import dataset_of
from personavec.errors import ConfigError, VectorError
from personavec.judges.load import Bench, bench_of
from personavec.judges.scoring import ScoredRow
from personavec.model.chat_model import ChatModel
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Natural, OptionalCount, Positive, Seed, Store, settings
from personavec.runs.run import Row, Run
from personavec.runs.show import interval
from personavec.stats.intervals import clustered_ratio
from personavec.steering.projection import Vectors, load_vectors, names_of
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.steering.vector import PersonaVector
from personavec.traits.load import trait_of
from personavec.traits.trait import Trait
from personavec.verbs.evaluate.capability import check_eval, neutral_texts
from personavec.verbs.evaluate.evaluate import Evaluation
from personavec.verbs.finetune.comparing import REPLIES, Comparing, TrainedArm, arms_of, left_out
from personavec.verbs.finetune.finetune import Data, Finetuning
from personavec.verbs.finetune.methods import Recipe
from personavec.verbs.finetune.options import COMPARED, Compared, check_arms
from personavec.verbs.finetune.supply import Prevent
from personavec.verbs.finetune.trainer import Training, TrainingOptions

JUDGED = ("judge_auc", "weak_judge")
"""What is reported of a trait's judge."""


class CompareOptions(TrainingOptions, ReplyOptions, total=False):
    """How models are trained, and how replies are written."""


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """A base model, and what every method of training makes of it."""

    trainings: dict[str, Finetuning]
    """By what was trained: plain, prevent-1, ablate, …; `model` of each is the trained model."""
    evaluations: dict[str, dict[str, Evaluation]]
    """By arm and trait."""

    page = "finetune"

    @property
    def arms(self) -> list[Row]:
        """Of each arm traits, costs, loss and shift."""
        return list(self.data["arms"])

    def lines(self) -> list[tuple[str, str]]:
        """A line an arm."""
        trait = self.data["traits"][0]
        rows = [(arm["arm"], arm["traits"][trait]) for arm in self.arms]
        return [(arm, f"{trait} {interval(row['trait_score'])}, kept {interval(row['kept'], 2)}") for arm, row in rows]


def compare(
    model: ChatModel,
    data: Data,
    *,
    prevent: Prevent,
    arms: Free[Sequence[Compared]] = COMPARED,
    scales: Free[Sequence[float]] = (0.5, 1.0, 2.0),
    vectors: Vectors = (),
    positions: Literal["all", "response"] = "all",
    penalty: float = 1.0,
    benign: Free[Data | None] = None,
    benign_share: Free[Positive] = 0.25,
    held_out: Data | None = None,
    traits: Sequence[str | Path | Trait] = (),
    judge: Free[str | Bench] = "panel",
    rollouts: Count = 4,
    conditional: Free[bool] = False,
    perplexity: Free[Natural] = 60,
    tasks: Free[Sequence[str]] = (),
    task_limit: Free[OptionalCount] = None,
    seed: Seed = 0,
    store: Store = None,
    **more: Unpack[CompareOptions],
) -> Comparison:
    """Train adapters by every method on one data set and measure each, next to the base model.

    Every training, evaluation and screening is a run folder inside the store: a killed comparison goes on where it
    stopped, and another call with more `arms` or `scales` keeps what is there. The model is left as it was found.

    Args:
        model: Trained from; without an adapter.
        data: As `finetune` takes it.
        prevent: Added in training and subtracted after it, as `finetune` takes it.
        arms: What is compared with the base model and plain training.
        scales: Multiples of the coefficients that prevention adds and post-hoc steering subtracts.
        vectors: Others to measure along.
        positions: As `finetune` takes it.
        penalty: Likewise.
        benign: Harmless rows, for the arms interleave, which draws some at random, and interleave-gap, which takes
            those that plain training makes the model forget most.
        benign_share: How many of them those train on for each row of the data.
        held_out: Rows that are not trained on: the loss on them before and after.
        traits: Traits of vectors whose trait is not built in.
        judge: Who scores replies: a spec as for `--judge`, or what `load_bench` made.
        rollouts: Replies per held-out question of each trait.
        conditional: Whether each arm is measured under the trait's instructions as well.
        perplexity: On so many neutral texts; 0 leaves it out.
        tasks: Tasks of lm-eval whose accuracy is measured.
        task_limit: Stop each task after so many questions.
        seed: Of everything random.
        store: Run folder to keep everything in.
        more: How models are trained (fields of `Training`) and how replies are written (fields of `Interview`).

    Returns:
        `arms`: of each what it was trained by, the loss on held-out rows, by trait the score, coherence and what is
        `kept` of the change that plain training makes (with `conditional` also the score where the trait is `asked`
        for), perplexity and tasks, and the shift along each vector; `predicted`: what the screen says of the data.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.

    Source: Persona Vectors (arXiv 2507.21509) section 5.2, appendix J.
    """
    began = time.monotonic()
    chosen = settings(compare, locals())
    check_arms(arms, scales)
    check_machine(tasks, perplexity)
    options: Row = dict(more)
    training = Training(**{key: value for key, value in options.items() if key not in REPLIES - {"system"}}, seed=seed)
    if training.full:
        raise ConfigError("expected a comparison of adapters, got full=True; leave it out")
    interview = Interview(model, **{key: value for key, value in options.items() if key in REPLIES}, seed=seed)
    recipe = Recipe.of("prevent", prevent, (), traits)
    named, loaded = vectors_and_traits(recipe, vectors, traits)
    rows_of, bench = dataset_of(data), bench_of(judge, interview)
    chosen |= training.options | interview.options
    chosen |= {"prevent": [each.text for each in recipe.preventions], "model": model.identity.id, "judge": bench.spec}
    harmless = None if benign is None else dataset_of(benign, "benign rows")
    inputs = rows_of.fingerprint() | {f"vector {name}": vector.content_hash for name, vector in named.items()}
    run = Run.open(store, chosen, inputs)
    study = Comparing(
        run,
        interview,
        rows_of,
        None if held_out is None else dataset_of(held_out, "held-out rows"),
        harmless,
        benign_share,
        training,
        positions,
        penalty,
        bench,
        rollouts,
        conditional,
        {"perplexity": perplexity, "tasks": tasks, "task_limit": task_limit},
        _on_disk(run, named),
        loaded,
        tuple(traits),
    )

    steering = study.coefficients(recipe.preventions)
    left = left_out(arms, steering, harmless is not None)
    compared = list(arms_of(arms, scales, steering, left))
    evaluations = {"base": study.measure(compared[0], None, steering)}
    asked = {"base": study.asked(compared[0], None, steering)}
    trainings: dict[str, Finetuning] = {}
    for arm in compared[1:]:
        if arm.training not in trainings:
            trainings[arm.training] = study.train(arm, steering, trainings.get("plain"))
    for arm in compared[1:]:
        evaluations[arm.name] = study.measure(arm, trainings[arm.training], steering)
        asked[arm.name] = study.asked(arm, trainings[arm.training], steering)
    moved = study.shifts(trainings)
    predicted = study.predicted()
    result: Row = {
        "out": run.shown(),
        "data": rows_of.name,
        "model": model.identity.id,
        "traits": list(loaded),
        "steering": [row if run.kept or row["file"] in named else row | {"file": None} for row in steering],
        "arms": [_row(study, arm, trainings, evaluations, asked[arm.name], moved, steering) for arm in compared],
        "left_out": left,
        "predicted": predicted,
        "judge": next(iter(evaluations["base"].values())).data["judge"],
        "judges": {name: {key: each.data[key] for key in JUDGED} for name, each in evaluations["base"].items()},
    }
    if not run.kept:
        for each in trainings.values():
            each.model.adapter = None  # its folder goes with the scratch run
    run.complete(result, began)
    return Comparison(result, trainings, evaluations)


def check_machine(tasks: Sequence[str], perplexity: int) -> None:
    """What would stop the comparison hours later."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            "expected one process with --report, got several; train with accelerate launch, without --report"
        )
    if tasks:
        check_eval()
    if perplexity:
        neutral_texts(perplexity)


def vectors_and_traits(
    recipe: Recipe, vectors: Vectors, traits: Iterable[str | Path | Trait]
) -> tuple[dict[str, PersonaVector], dict[str, Trait]]:
    """The vectors of a recipe and others, by file or name, and their traits.

    Raises:
        PersonavecError: One of them is not there, recommends no layer, or comes twice.
    """
    named = recipe.named | (load_vectors(vectors) if vectors else {})
    names_of(list(named.values()))
    traits = list(traits)
    loaded = {vector.card.trait: trait_of(vector.card.trait, traits) for vector in named.values()}
    if unknown := [vector.card.trait for vector in named.values() if vector.card.layer is None]:
        raise VectorError(f"expected a recommended layer for {unknown[0]}, got none; extract it again")
    return named, loaded


def _on_disk(run: Run, named: Mapping[str, PersonaVector]) -> dict[str, PersonaVector]:
    """The vectors by file; those in memory are written into the run."""
    files = {}
    for name, vector in named.items():
        held = not Path(name).is_file()
        files[str(vector.save(run.path(f"{name}.safetensors"))) if held else name] = vector
    return files


def _row(
    study: Comparing,
    arm: TrainedArm,
    trainings: Mapping[str, Finetuning],
    evaluations: Mapping[str, Mapping[str, Evaluation]],
    asked: Mapping[str, Row],
    moved: Mapping[str, Row],
    steering: list[Row],
) -> Row:
    """An arm's line of the result."""
    measured = {trait: each.data for trait, each in evaluations[arm.name].items()}
    training = trainings[arm.training].data if arm.training else None
    costs = next(iter(measured.values())).get("capability", {})
    empty = dict.fromkeys(costs.get("base", {}))
    losses = (training or trainings["plain"].data)["held_out"]
    return {
        "arm": arm.name,
        "method": arm.method,
        "coef": None if arm.scale is None else arm.scale * steering[0]["coef"],
        "trained": study.run.shown(f"{arm.training}/adapter") if training else None,
        "rows": training["rows"] if training else None,
        "skipped": training["skipped"] if training else None,
        "seconds": training["seconds"] if training else None,
        "loss": losses and dict(losses["tuned" if training else "base"]),
        "traits": {
            trait: {
                **{key: row[key] for key in ("trait_score", "coherence", "difference", "random_control")},
                "unscored": row["unscored"]["changed" if training else "base"],
                "truncated": row["truncated"],
                "asked": asked.get(trait),
                "kept": _kept(evaluations[arm.name][trait], evaluations["plain"][trait]),
            }
            for trait, row in measured.items()
        },
        "costs": empty | costs.get("changed" if training else "base", {}),
        "shift": moved[arm.training]["shift"] if training else None,
        "shift_random": moved[arm.training]["random_control"] if training else None,
    }


def _kept(evaluation: Evaluation, plain: Evaluation) -> Row | None:
    """What is left of the change that plain training makes, as a share; none if that is not shown to be a change."""
    low, high = plain.data["difference"]["trait"]["ci"]
    if low is None or low <= 0 <= high:
        return None
    written = evaluation.replies
    replies = plain.replies["base"], plain.replies["changed"], written.get("changed", written["base"])
    base, after, measured = map(_scores, replies)
    columns = np.array([[arm.get(reply, np.nan) for reply in sorted(base)] for arm in (base, after, measured)])
    questions = np.array([question for question, _ in sorted(base)])
    return clustered_ratio(columns[2] - columns[0], columns[1] - columns[0], questions).to_json()


def _scores(rows: Sequence[ScoredRow]) -> dict[tuple[int, int], float]:
    """Trait scores of an arm of an evaluation, by question and sample; nan where there is none."""
    return {(row["question_id"], row["sample"]): np.nan if row["trait"] is None else row["trait"] for row in rows}
