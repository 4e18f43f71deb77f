"""Before and after: one data set, every method, and what each does to traits, coherence, ability and perplexity."""

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from personavec.capability import check_eval, neutral_texts
from personavec.config import EvaluateConfig, ScreenConfig, ShiftConfig
from personavec.config_finetune import FinetuneConfig, ReportConfig
from personavec.dataset import open_dataset
from personavec.errors import ConfigError
from personavec.evaluate import evaluate
from personavec.finetune import default_out
from personavec.finetune import finetune as train
from personavec.options import Common, Judging, Writing
from personavec.progress import tell
from personavec.report.finetuning import write_before_after
from personavec.run import Run, versions
from personavec.screen import screen
from personavec.shift import shift
from personavec.trait import load_trait, trait_of
from personavec.vector import load_vector

Row = dict[str, Any]


def finetune(config: ReportConfig) -> Row:
    """The verb: one training, or with --report all of them beside each other."""
    return before_after(config) if config.report else train(config.training)


@dataclass(frozen=True)
class Arm:
    """A model to measure: what it is trained by, and what is done to its replies."""

    name: str
    method: str
    training: str | None
    """Folder of its training; arms without steering in training share that of `plain`."""
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
    files = dict.fromkeys([*(Path(text.rpartition(":")[0]) for text in config.prevent), *config.vectors])
    vectors = {path: load_vector(path) for path in files}
    traits = {vector.card.trait: trait_file(vector.card.trait, config) for vector in vectors.values()}
    out = config.out or Path(f"{default_out(config.training)}-report")
    inputs = open_dataset(config.data).fingerprint() | {f"vector {p}": v.content_hash for p, v in vectors.items()}
    run = Run.open(out, dataclasses.asdict(config), inputs)

    trained = {"plain": _train(config, run, "plain", method="plain", prevent=())}
    trained["prevent"] = _train(config, run, "prevent")
    steering = trained["prevent"]["steering"]
    if not any(one["coef"] for one in steering):
        raise ConfigError(
            "expected data that supplies the trait, got coef 0 from auto: nothing to prevent; pass a coef"
        )
    texts = [text.rpartition(":")[0] for text in config.prevent]
    arms = list(_arms(config, texts, steering))
    for arm in arms:
        if arm.training and arm.training not in trained:
            trained[arm.training] = _train(config, run, arm.training, **_method(arm, texts, steering))
    measured = {arm.name: _measure(config, run, arm, trained, traits) for arm in arms}
    moved = _shift(config, run, {name: own["tuned"] for name, own in trained.items()}, tuple(files))
    result: Row = {
        "out": str(out),
        "data": config.data,
        "model": config.model,
        "traits": list(traits),
        "steering": steering,
        "automatic": trained["prevent"]["automatic"],
        "arms": [_told(arm, trained, measured, moved, list(traits), steering) for arm in arms],
        "left_out": _left_out(config, steering),
        "predicted": _screen(config, run, tuple(files)),
        "rows": trained["plain"]["rows"],
        "skipped": trained["plain"]["skipped"],
        "judge": next(iter(measured["base"].values()))["judge"],
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return write_before_after(result)


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


def _arms(config: ReportConfig, texts: list[str], steering: list[Row]) -> Iterator[Arm]:
    """Base and plain, and what is compared with them, in the order of the report."""
    yield Arm("base", "base", None)
    yield Arm("plain", "plain", "plain")
    for method in config.compare:
        if method in ("prevent", "posthoc"):
            for scale in config.scales:
                if method == "prevent":
                    yield Arm(f"prevent ×{scale:g}", method, "prevent" if scale == 1 else f"prevent-{scale:g}", scale)
                else:
                    steer = _steer(texts, steering, -scale)
                    yield Arm(f"post-hoc ×{scale:g}", method, "plain", scale, {"steer": steer})
        elif method == "random":
            yield Arm("prevent, random direction", method, "prevent-random", 1)
        elif method == "negative-prompt":
            side = "neg" if steering[0]["coef"] > 0 else "pos"
            yield Arm("negative prompt", method, "plain", reply={"instruct": side})
        elif method not in _left_out(config, steering):
            yield Arm(method, method, method)


def _left_out(config: ReportConfig, steering: list[Row]) -> dict[str, str]:
    """Arms that make no sense here, and why."""
    if "inoculate" in config.compare and any(one["coef"] < 0 for one in steering):
        return {"inoculate": "it asks for the trait in training, and here its opposite is to be prevented"}
    return {}


def _steer(texts: list[str], steering: list[Row], scale: float) -> tuple[str, ...]:
    """The vectors as `prevent` used them, at a multiple of their coefficients."""
    return tuple(f"{text}:{scale * one['coef']:.6g}@{one['layer']}" for text, one in zip(texts, steering, strict=True))


def _method(arm: Arm, texts: list[str], steering: list[Row]) -> Row:
    """Options of an arm's training."""
    if arm.method in ("prevent", "random"):
        return {"prevent": _steer(texts, steering, arm.scale or 1), "random": arm.method == "random"}
    return {"method": arm.method, "prevent": (), "vectors": tuple(map(Path, texts))}


def _train(config: ReportConfig, run: Run, name: str, **changes: Any) -> Row:
    own: Row = {"vectors": (), "out": run.path(name), **changes}
    tell(f"training {run.path(name)}")
    return train(replace(config.training, **own))


def _measure(
    config: ReportConfig, run: Run, arm: Arm, trained: Mapping[str, Row], traits: Mapping[str, str]
) -> dict[str, Row]:
    """The evaluation of an arm for every trait; its perplexity and tasks are measured along with the first."""
    found = {}
    for place, (trait, file) in enumerate(traits.items()):
        base = run.path(f"base-{trait}")
        options: Row = {"trait": file, "rollouts": config.rollouts, **options_of(config, Judging, Writing, Common)}
        if not place:
            options |= {"perplexity": config.perplexity, "tasks": config.tasks, "task_limit": config.task_limit}
        if arm.training:
            options |= {"adapter": Path(trained[arm.training]["tuned"]), "judge_file": base / "judge.json"}
        folder = run.path(f"{arm.name.replace(', ', '-').replace(' ', '-').replace('×', '')}-{trait}")
        tell(f"measuring {folder}")
        found[trait] = evaluate(EvaluateConfig(**options | arm.reply, out=folder))
    return found


def _shift(config: ReportConfig, run: Run, tuned: Mapping[str, str], vectors: tuple[Path, ...]) -> dict[str, Row]:
    options: Row = {**options_of(config, Common), "system": config.system, "traits": config.traits, "vectors": vectors}
    mark = Run.digest(tuned)  # another report in this folder may have other arms
    found = shift(ShiftConfig(**options, tuned=tuple(tuned.values()), out=run.path(f"shift-{mark}")))
    moved = {row["tuned"]: row for row in found["tuned"]}  # checkpoints too: the curve is in its result.json
    return {name: moved[place] for name, place in tuned.items()}


def _screen(config: ReportConfig, run: Run, vectors: tuple[Path, ...]) -> Row:
    """What could be known before training."""
    options: Row = {**options_of(config, Common), "system": config.system, "on_error": config.on_error}
    found = screen(
        ScreenConfig(**options, data=config.data, vectors=vectors, turn="last", cost="full", out=run.path("screen"))
    )
    return {name: found[name] for name in ("projection_difference", "random_control", "layers")}


def options_of(config: FinetuneConfig, *kinds: type) -> Row:
    """The options of these kinds, as they were given."""
    return {one.name: getattr(config, one.name) for kind in kinds for one in fields(kind)}


def trait_file(name: str, config: FinetuneConfig) -> str:
    """What `evaluate` takes for a trait: a file that was given, or the name of a built-in one."""
    trait_of(name, config.traits)
    return next((str(path) for path in config.traits if load_trait(path).name == name), name)


def _told(
    arm: Arm,
    trained: Mapping[str, Row],
    measured: Mapping[str, Mapping[str, Row]],
    moved: Mapping[str, Row],
    traits: list[str],
    steering: list[Row],
) -> Row:
    """An arm's line of the result."""
    own, training = measured[arm.name], trained[arm.training] if arm.training else None
    changed = "changed" if training else "base"
    return {
        "arm": arm.name,
        "method": arm.method,
        "coef": None if arm.scale is None else arm.scale * steering[0]["coef"],
        "trained": training["tuned"] if training else None,
        "seconds": training["seconds"] if training else None,
        "loss": (training["held_out"] or {}).get("tuned") if training else _before(trained["plain"]),
        "traits": {
            trait: {
                **{key: own[trait][key] for key in ("trait_score", "coherence", "difference", "random_control")},
                "kept": _kept(own[trait], measured["plain"][trait]),
            }
            for trait in traits
        },
        **own[traits[0]].get("capability", {}).get(changed, {}),
        "shift": moved[arm.training]["shift"] if arm.training else None,
        "shift_random": moved[arm.training]["random_control"] if arm.training else None,
    }


def _before(plain: Row) -> Row | None:
    return dict(plain["held_out"]["base"]) if plain["held_out"] else None


def _kept(own: Row, plain: Row) -> float | None:
    """What is left of the change that plain training makes, as a share; none where that is not shown to be a change."""
    change = plain["difference"]["trait"]
    if change["mean"] is None or own["difference"]["trait"]["mean"] is None or change["ci"][0] * change["ci"][1] <= 0:
        return None
    return round(float(own["difference"]["trait"]["mean"] / change["mean"]), 3)
