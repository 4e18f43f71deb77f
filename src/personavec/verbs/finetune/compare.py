"""Before and after: one data set, every method, and what each does to traits, coherence, ability and perplexity."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from personavec.data.dataset import open_dataset
from personavec.errors import ConfigError, JudgeError, VectorError
from personavec.judges.scoring import scored_rows
from personavec.runs.progress import tell
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import clustered_ratio
from personavec.steering.notation import parse_steering
from personavec.steering.projection import names_of
from personavec.steering.vector import load_vector
from personavec.traits.trait import load_trait, trait_of
from personavec.verbs.evaluate.capability import check_eval, neutral_texts
from personavec.verbs.evaluate.evaluate import evaluate
from personavec.verbs.evaluate.options import EvaluateConfig
from personavec.verbs.finetune.finetune import default_out, told_steering, usable_rows
from personavec.verbs.finetune.finetune import finetune as train
from personavec.verbs.finetune.methods import vectors_of
from personavec.verbs.finetune.options import FinetuneConfig, ReportConfig, ShiftConfig
from personavec.verbs.finetune.shift import shift
from personavec.verbs.finetune.supply import automatic
from personavec.verbs.options import Common, Judging, Writing, given, load_subject
from personavec.verbs.screen.options import ScreenConfig

Row = dict[str, Any]

JUDGED = ("judge_auc", "weak_judge")
"""What is told of a trait's judge."""


def finetune(config: ReportConfig) -> Row:
    """The verb: one training, or with --report all of them beside each other."""
    return before_after(config) if config.report else train(config.training)


@dataclass(frozen=True)
class TrainedArm:
    """A model to measure: what it is trained by, and what is done to its replies."""

    name: str
    method: str
    training: str
    """Folder of its training; arms without steering in training share that of `plain`, base has none."""
    scale: float | None = None
    """Multiple of the coefficients, in training or in replies."""
    reply: Row = field(default_factory=dict)
    """Options of `evaluate` that are the arm's own."""


def before_after(config: ReportConfig) -> Row:
    """Train by every method on one data set and measure each, beside the base model.

    Every training and evaluation is a run folder of its own inside: a killed report goes on where it stopped, and one
    with more `compare` or `scales` keeps what is there.

    Returns:
        `arms`: of each what it was trained by, the loss on held-out rows, by trait the score, coherence and what is
        `kept` of the change that plain training makes, perplexity and tasks, and the shift along each vector;
        `predicted`: what the screen says of the data; the path of the `report`.

    Raises:
        PersonavecError: Bad input; what was done so far stays.

    Source: Persona Vectors (arXiv 2507.21509) section 5.2, appendix J.
    """
    began = time.monotonic()
    _check(config)
    vectors = vectors_of(config.training) | {str(path): load_vector(path) for path in config.vectors}
    names_of(list(vectors.values()))
    traits = {vector.card.trait: trait_file(vector.card.trait, config) for vector in vectors.values()}
    cards = {vector.card.trait: Path(path) for path, vector in vectors.items()}
    if unknown := [vector.card.trait for vector in vectors.values() if vector.card.layer is None]:
        raise VectorError(f"expected a recommended layer for {unknown[0]}, got none; extract it again")
    out = config.out or Path(f"{default_out(config.training)}-report")
    inputs = open_dataset(config.data).fingerprint() | {f"vector {p}": v.content_hash for p, v in vectors.items()}
    run = Run.open(out, settings(type(config), vars(config)), inputs)

    supplied = _coefficients(config, run)
    steering = supplied["steering"]
    arms = list(_arms(config, steering))
    measured = {"base": _measure(config, run, arms[0], None, traits, steering, cards)}
    trained: dict[str, Row] = {}
    for arm in arms[1:]:
        if arm.training not in trained:
            trained[arm.training] = _train(config, run, arm.training, **_method(arm, steering))
    for arm in arms[1:]:
        measured[arm.name] = _measure(config, run, arm, trained[arm.training], traits, steering)
    moved = _shift(config, run, {name: own["tuned"] for name, own in trained.items()}, tuple(map(Path, vectors)))
    found = screened(config, config.data, tuple(map(Path, vectors)), run.path("screen"))
    judged = next(iter(measured["base"].values()))
    result: Row = {
        "out": str(out),
        "data": config.data,
        "model": config.model,
        "traits": list(traits),
        **supplied,
        "arms": [_told(config, arm, trained, measured, moved, steering) for arm in arms],
        "left_out": _left_out(config, steering),
        "predicted": {name: found[name] for name in ("projection_difference", "random_control", "layers")},
        "judge": judged["judge"],
        "judges": {trait: {key: own[key] for key in JUDGED} for trait, own in measured["base"].items()},
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def _check(config: ReportConfig) -> None:
    """What would stop the report hours later."""
    if not config.data:
        raise ConfigError("expected training data, got none; pass a file, a folder or a Hugging Face data set")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(
            "expected one process with --report, got several; train with accelerate launch, without --report"
        )
    if config.tasks:
        check_eval()
    if config.perplexity:
        neutral_texts(config.perplexity)


def _coefficients(config: ReportConfig, run: Run) -> Row:
    """What prevention adds at scale 1, `auto` looked up in the data once.

    Raises:
        ConfigError: Nothing is to be added.
    """
    if not run.done("steering.json"):
        model = load_subject(config)
        usable_rows(config.training, model)
        texts, found = zip(*(automatic(text, model, config.training) for text in config.prevent), strict=True)
        steerings = [replace(parse_steering(text), positions=config.positions) for text in texts]
        for one in steerings:
            one.vector.check_model(model.identity)
        told = [
            told_steering(one, "prevent") | {"file": text.rpartition(":")[0], "automatic": row}
            for text, one, row in zip(texts, steerings, found, strict=True)
        ]
        if not any(one["coef"] for one in told):
            raise ConfigError(
                f"expected a coef other than 0, got 0{' from auto' * any(found)}: nothing to prevent; pass a coef"
            )
        run.write_json("steering.json", {"steering": told})
    return dict(run.read_json("steering.json"))


def _arms(config: ReportConfig, steering: list[Row]) -> Iterator[TrainedArm]:
    """Base and plain, and what is compared with them, in the order of the report."""
    yield TrainedArm("base", "base", "")
    yield TrainedArm("plain", "plain", "plain")
    for method in config.compare:
        if method in ("prevent", "posthoc"):
            for scale in config.scales:
                if method == "prevent":
                    yield TrainedArm(f"prevent ×{scale:g}", method, f"prevent-{scale:g}", scale)
                else:
                    yield TrainedArm(
                        f"post-hoc ×{scale:g}", method, "plain", scale, {"steer": _steer(steering, -scale)}
                    )
        elif method == "random":
            yield TrainedArm("prevent, a random direction", method, "prevent-random", 1)
        elif method == "negative-prompt":
            yield TrainedArm("negative prompt", method, "plain")
        elif method not in _left_out(config, steering):
            yield TrainedArm(method, method, method)


def _left_out(config: ReportConfig, steering: list[Row]) -> dict[str, str]:
    """Arms that make no sense here, and why."""
    if "inoculate" in config.compare and any(one["coef"] < 0 for one in steering):
        return {"inoculate": "it asks for the trait in training, and here its opposite is to be prevented"}
    return {}


def _steer(steering: list[Row], scale: float) -> tuple[str, ...]:
    """The vectors at a multiple of their coefficients, as options take them."""
    return tuple(f"{one['file']}:{scale * one['coef']:.6g}@{one['layer']}" for one in steering)


def _method(arm: TrainedArm, steering: list[Row]) -> Row:
    """Options of an arm's training."""
    if arm.method in ("prevent", "random"):
        return {"prevent": _steer(steering, arm.scale or 1), "random": arm.method == "random"}
    vectors = () if arm.training == "plain" else tuple(Path(one["file"]) for one in steering)
    return {"method": arm.training, "prevent": (), "vectors": vectors}


def _train(config: ReportConfig, run: Run, name: str, **changes: Any) -> Row:
    tell(f"training {run.path(name)}")
    return train(replace(config.training, out=run.path(name), **changes))


def _measure(
    config: ReportConfig,
    run: Run,
    arm: TrainedArm,
    training: Row | None,
    traits: Mapping[str, str],
    steering: list[Row],
    cards: Mapping[str, Path] | None = None,
) -> dict[str, Row]:
    """The evaluation of an arm for every trait; its perplexity and tasks are measured along with the first."""
    found = {}
    opposite = {one["trait"] for one in steering if one["coef"] < 0}
    for place, (trait, file) in enumerate(traits.items()):
        options: Row = {"trait": file, "rollouts": config.rollouts, **given(config, Judging, Writing, Common)}
        if not place:
            options |= {"perplexity": config.perplexity, "tasks": config.tasks, "task_limit": config.task_limit}
        if training:
            judge = run.path(f"base-{trait}") / "judge.json"
            options |= {"adapter": Path(training["tuned"]), "judge_file": judge, **arm.reply}
        if arm.method == "negative-prompt":
            options["instruct"] = "pos" if trait in opposite else "neg"
        folder = arm_folder(run.folder, arm.name, trait)
        tell(f"measuring {folder}")
        found[trait] = evaluate_on_card(EvaluateConfig(**options, out=folder), cards[trait] if cards else None)
    return found


def arm_folder(out: Path, arm: str, trait: str) -> Path:
    """Where an arm's evaluation for a trait is, in the report's folder."""
    return out / f"{arm.replace(', ', '-').replace(' ', '-').replace('×', '')}-{trait}"


def evaluate_on_card(config: EvaluateConfig, card: Path | None) -> Row:
    """Evaluate with the scale of a vector's card, where that is of this judge."""
    if card is None:
        return evaluate(config)
    try:
        return evaluate(replace(config, judge_file=card))
    except JudgeError as error:
        tell(f"a scale is learned anew ({error})")
        return evaluate(config)


def _shift(config: ReportConfig, run: Run, tuned: Mapping[str, str], vectors: tuple[Path, ...]) -> dict[str, Row]:
    options: Row = {**given(config, Common), "system": config.system, "traits": config.traits, "vectors": vectors}
    mark = Run.digest(tuned)  # another report in this folder may have other arms
    found = shift(ShiftConfig(**options, tuned=tuple(tuned.values()), out=run.path(f"shift-{mark}")))
    moved = {row["tuned"]: row for row in found["tuned"]}  # checkpoints too: the curve is in its result.json
    return {name: moved[place] for name, place in tuned.items()}


def screened(config: FinetuneConfig, data: str, vectors: tuple[Path, ...], out: Path) -> Row:
    """What could be known of a data set before training on it."""
    options: Row = {**given(config, Common), "system": config.system, "on_error": config.on_error}
    return ScreenConfig(**options, data=data, vectors=vectors, turn="last", cost="full", out=out).run().to_dict()


def trait_file(name: str, config: FinetuneConfig) -> str:
    """What `evaluate` takes for a trait: a file that was given, or the name of a built-in one."""
    trait_of(name, config.traits)
    return next((str(path) for path in config.traits if load_trait(path).name == name), name)


def _told(
    config: ReportConfig,
    arm: TrainedArm,
    trained: Mapping[str, Row],
    measured: Mapping[str, Mapping[str, Row]],
    moved: Mapping[str, Row],
    steering: list[Row],
) -> Row:
    """An arm's line of the result."""
    own, training = measured[arm.name], trained.get(arm.training)
    first = next(iter(own.values()))
    costs = first.get("capability", {})
    empty = dict.fromkeys(costs.get("base", {}))
    return {
        "arm": arm.name,
        "method": arm.method,
        "coef": None if arm.scale is None else arm.scale * steering[0]["coef"],
        "trained": training["tuned"] if training else None,
        "rows": training["rows"] if training else None,
        "skipped": training["skipped"] if training else None,
        "seconds": training["seconds"] if training else None,
        "loss": (training["held_out"] or {}).get("tuned") if training else _before(trained["plain"]),
        "traits": {
            trait: {
                **{key: row[key] for key in ("trait_score", "coherence", "difference", "random_control")},
                "unscored": row["unscored"]["changed" if training else "base"],
                "truncated": row["truncated"],
                "kept": _kept(row, measured["plain"][trait], config.seed),
            }
            for trait, row in own.items()
        },
        "costs": empty | costs.get("changed" if training else "base", {}),
        "shift": moved[arm.training]["shift"] if training else None,
        "shift_random": moved[arm.training]["random_control"] if training else None,
    }


def _before(plain: Row) -> Row | None:
    return dict(plain["held_out"]["base"]) if plain["held_out"] else None


def _kept(own: Row, plain: Row, seed: int) -> Row | None:
    """What is left of the change that plain training makes, as a share; none where that is not shown to be a change."""
    low, high = plain["difference"]["trait"]["ci"]
    if low is None or low <= 0 <= high:
        return None
    table = Path(plain["table"])
    base, after, mine = map(_scores, (table.with_name("base.jsonl"), table, Path(own["table"])))
    columns = np.array([[arm.get(reply, np.nan) for reply in sorted(base)] for arm in (base, after, mine)])
    questions = np.array([question for question, _ in sorted(base)])
    return clustered_ratio(columns[2] - columns[0], columns[1] - columns[0], questions, seed).to_json()


def _scores(table: Path) -> dict[tuple[int, int], float]:
    """Trait scores of an arm of an evaluation, by question and sample; nan where there is none."""
    rows = scored_rows(Run(table.parent), table.stem)
    return {(row["question_id"], row["sample"]): np.nan if row["trait"] is None else row["trait"] for row in rows}
