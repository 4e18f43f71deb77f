"""Evaluate: how strongly a model, an adapter or a steered model expresses a trait, and how coherent it stays."""

import dataclasses
import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np

from personavec.data.sheet import sheet_files, write_extremes
from personavec.errors import ConfigError, JudgeError
from personavec.judges.lessons import BASE_ROLLOUTS, Lessons, lessons
from personavec.judges.load import Bench, bench_of
from personavec.judges.rubric import RubricJudge
from personavec.judges.scoring import (
    Judges,
    ScoredRow,
    joined,
    learn_coherence,
    learn_trait,
    mean_difference,
    mean_score,
    score,
    unscored,
)
from personavec.model.chat_model import ChatModel
from personavec.runs.files import sha256, write_file
from personavec.runs.json_files import read_json
from personavec.runs.progress import stage, tell
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Natural, OptionalCount, Seed, Store, settings
from personavec.runs.run import Run, versions
from personavec.runs.show import interval
from personavec.steering.notation import Steers, steerings
from personavec.steering.projection import random_directions
from personavec.steering.rollouts import Interview, ReplyOptions, ReplyRow
from personavec.steering.steer import Steering
from personavec.steering.vector import load_vector
from personavec.traits.load import load_trait
from personavec.traits.trait import Side, Trait
from personavec.verbs.evaluate.agreement import agreement as agree
from personavec.verbs.evaluate.agreement import first_scores, second_scores, signal_agreement
from personavec.verbs.evaluate.capability import capability, check_eval, neutral_texts
from personavec.verbs.evaluate.capability import perplexity as perplexity_of
from personavec.verbs.evaluate.signals import SIGNALS, check_signals

Json = dict[str, Any]

CHANGES = ("adapter", "steer", "instruct", "judge_file", "inputs")
"""Options that leave the base arm as it is; of the inputs it depends on `BASE_INPUTS` alone."""
BASE_INPUTS = ("model", "numbers", "trait")
BASE = ("base.jsonl", "base.scores.jsonl", "capability-base-*.json")
"""Files of the base arm."""


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """Trait expression and coherence of a model, with the plain model's beside them."""

    replies: dict[str, list[ScoredRow]]
    """Scored replies by arm: base, and where something was changed, changed and random."""

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        steered = ", ".join([*([data["adapter"]] if data["adapter"] else []), *data["steer"]])
        shown = {
            "trait": data["trait"],
            "model": f"{data['model']}{steered and f' with {steered}'}",
            "trait score": interval(data["trait_score"]),
            "coherence": interval(data["coherence"]),
            "base": interval(data["base"]["trait"]),
            "difference": interval(data["difference"]["trait"]),
        }
        control = {"random direction": interval(data["random_control"])} if data["random_control"] else {}
        return list((shown | control | {"judge": data["judge"]}).items())


@dataclasses.dataclass(frozen=True)
class Evaluating:
    """An evaluation under way: who is asked what, and who scores it."""

    interview: Interview
    run: Run
    trait: Trait
    judges: Judges
    rollouts: int
    questions: int | None
    instruct: Side | None


def evaluate(
    model: ChatModel,
    trait: str | Trait,
    *,
    steer: Steers = (),
    instruct: Literal["pos", "neg"] | None = None,
    judge: Free[str | Bench] = "panel",
    judge_file: Free[str | Path | None] = None,
    questions: OptionalCount = None,
    rollouts: Count = 3,
    agreement: Free[str | Bench] = "",
    signals: Free[Sequence[str]] = (),
    perplexity: Free[Natural] = 0,
    tasks: Free[Sequence[str]] = (),
    task_limit: Free[OptionalCount] = None,
    seed: Seed = 0,
    store: Store = None,
    **writing: Unpack[ReplyOptions],
) -> Evaluation:
    """Trait expression and coherence on the held-out questions, with the plain model's beside them.

    The judge always reads with the plain weights: neither steering nor adapter can bend it. The base arm is the
    model without steering and adapter, drawn with the same random numbers, so that the difference is paired.

    Args:
        model: The model, perhaps wrapped by PEFT: its adapter is what is evaluated.
        trait: A built-in trait's name, a trait file's path or a `Trait`.
        steer: What steers the replies: `vector.at(…)`, the command line's VEC:COEF[@LAYER], or several of either.
        instruct: Ask for the trait ("pos") or against it ("neg"), by each of its instructions in turn.
        judge: Who scores replies: a spec as for `--judge`, or what `load_bench` made.
        judge_file: A judge.json, or a vector, whose scale is used; of a run that is alike the base replies too.
        questions: Ask only the first so many of the held-out questions.
        rollouts: Replies per held-out question.
        agreement: A second judge: how far both agree on the same replies.
        signals: Signals beside the scores: "vader", "relevance".
        perplexity: Also the perplexity on so many neutral texts.
        tasks: Also the accuracy on tasks of lm-eval.
        task_limit: Stop each task after so many questions.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it.
        writing: How replies are written: fields of `Interview`.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.
    """
    began = time.monotonic()
    chosen = settings(evaluate, locals())
    chosen.pop("steer", None)  # an input
    check_signals(signals)
    if tasks:
        check_eval()
    if (tasks or perplexity) and model.engine is not None:
        what = "--tasks" if tasks else "--perplexity"
        raise ConfigError(f"expected no {what} with a model behind servers, got some; measure that with --engine hf")
    trait = trait if isinstance(trait, Trait) else load_trait(trait)
    applied = steerings(steer, model.identity)
    steering = tuple(each for _, each in applied)
    interview = Interview(model, seed=seed, **writing)
    bench = bench_of(judge, interview)
    second = bench_of(agreement, interview) if agreement else None
    judges = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
    at_hand = _scale_at_hand(judge_file, judges, steering)
    inputs = {"model": model.identity.revision, "numbers": model.numbers, f"trait {trait.name}": trait.content_hash}
    inputs |= {f"vector {text}": each.vector.content_hash for text, each in applied} | adapter_inputs(model)
    if judge_file is not None:
        inputs["judge file"] = sha256(Path(judge_file))
    run = Run.open(store, chosen | interview.options, inputs)
    _take_base(judge_file, run)
    study = Evaluating(interview, run, trait, judges, rollouts, questions, instruct)

    with model.without_adapter():
        base = _write(study, "base")
        if not run.done("judge.json"):
            run.write_json("judge.json", at_hand or _learn(study))
        judges.restore(run.read_json("judge.json"), str(run.path("judge.json")))
    changed = bool(steering or model.adapted or instruct)
    replies = {"base": base}
    if changed:
        replies["changed"] = _write(study, "changed", [steering])
    if steering:
        replies["random"] = _write(study, "random", _randomised(steering, len(base), seed))
    costly = {"perplexity": perplexity, "tasks": tuple(tasks), "task_limit": task_limit}
    with model.without_adapter():
        scored = {arm: score(rows, judges, f"judging {arm}", run=run, name=arm) for arm, rows in replies.items()}
        agreed = _agree(study, second, replies, scored) if second else {}
        costs = {"base": _costs(study, "base", costly)}
    if changed and not instruct:  # neutral texts and tasks are read without the instruction
        costs["changed"] = _costs(study, "changed", costly, steering)

    arm = "changed" if changed else "base"
    subject = scored[arm]
    kinds: tuple[Literal["trait", "coherence"], ...] = ("trait", "coherence")
    result: Json = {
        "trait": trait.name,
        "model": model.identity.id,
        "adapter": (str(model.adapter) if model.adapter else "PEFT adapter") if model.adapted else None,
        "steer": [text for text, _ in applied],
        "instruct": instruct,
        "trait_score": mean_score(subject, "trait").to_json(),
        "coherence": mean_score(subject, "coherence").to_json(),
        "base": {kind: mean_score(scored["base"], kind).to_json() for kind in kinds},
        "difference": {kind: mean_difference(subject, scored["base"], kind).to_json() for kind in kinds},
        "random_control": mean_score(scored["random"], "trait").to_json() if steering else None,
        "judge": judges.trait.id,
        "judge_auc": judges.auc.to_json() if judges.auc else None,
        "judge_aucs": {name: auc.to_json() for name, auc in judges.trait.aucs.items()},
        "weak_judge": judges.weak,
        "replies": len(subject),
        "unscored": {arm: {kind: unscored(rows, kind) for kind in kinds} for arm, rows in scored.items()},
        "judge_usage": bench.usage,
        **agreed,
        **({"capability": costs} if costs["base"] else {}),
        **(_signals(run, scored, signals) if signals else {}),
        "truncated": sum(row["finish"] == "length" for row in subject),
        "table": run.shown(f"{arm}.jsonl"),
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return Evaluation(result, scored)


def adapter_inputs(model: ChatModel) -> dict[str, str]:
    """What identifies the adapter on a model: its files, or where it is in memory alone, its weights."""
    if model.adapter is not None:
        files = sorted(path for path in model.adapter.iterdir() if path.is_file())
        return {f"adapter {path.name}": sha256(path) for path in files}
    if not model.adapted:
        return {}
    digest = hashlib.sha256()
    for name, weight in sorted(model.hf.named_parameters()):
        if model.hf.base_model.prefix in name:
            digest.update(weight.detach().float().cpu().numpy().tobytes())
    return {"adapter": digest.hexdigest()}


def _write(study: Evaluating, arm: str, steering: Sequence[tuple[Steering, ...]] = ((),)) -> list[ReplyRow]:
    trait, side = study.trait, study.instruct
    pairs = range(len(trait.pairs)) if side and arm != "base" else ()
    instructions = [trait.system_prompt(pair, side) for pair in pairs] if side else []
    plans = study.interview.answers(
        trait.check[: study.questions],
        study.rollouts,
        draw="base",
        extra={"arm": arm},
        systems=instructions,
        steering=steering,
    )
    return study.interview.write(plans, f"{arm} replies", run=study.run, name=arm)


def _take_base(judge_file: str | Path | None, run: Run) -> None:
    """The base replies and their scores of the run that a judge file is of, where this one would write the same."""
    earlier = Run(Path(judge_file).parent) if judge_file else run
    if earlier is run or not (earlier.done("config.json") and earlier.done("result.json")):
        return
    there, here = (
        {key: value for key, value in options.items() if key not in CHANGES}
        | {key: value for key, value in options["inputs"].items() if key.split()[0] in BASE_INPUTS}
        for options in (each.read_json("config.json") for each in (earlier, run))
    )
    if here.items() <= there.items():
        files = sorted(path for name in BASE for path in earlier.folder.glob(name) if not run.done(path.name))
        for path in files:
            write_file(run.path(path.name), path.read_bytes())
        if files:
            tell(f"{', '.join(path.name for path in files)}: taken over from {earlier.folder}")


def _randomised(steering: Sequence[Steering], count: int, seed: int) -> list[tuple[Steering, ...]]:
    """The same steering along directions without meaning, as many as there are replies."""
    random = [random_directions(each.vector, count, seed + index) for index, each in enumerate(steering)]
    return [
        tuple(dataclasses.replace(each, vector=vector) for each, vector in zip(steering, drawn, strict=True))
        for drawn in zip(*random, strict=True)
    ]


def _agree(
    study: Evaluating, second: Bench, replies: dict[str, list[ReplyRow]], scored: dict[str, list[ScoredRow]]
) -> Json:
    """Both judges on the same replies and rollouts, and a sheet of them for readers."""
    run, trait, judges, seed = study.run, study.trait, study.judges, study.interview.seed
    known = _lessons(study)
    first = [row for row in joined(known.rows, first_scores(run, known, judges)) if "side" in row]
    first += [row for rows in scored.values() for row in rows]
    other = Judges(second.trait(trait), second.coherence, trait.content_hash)
    part = run.part("agreement-" + re.sub(r"[^\w.-]+", "_", second.spec))
    scores = second_scores(part, other, known, replies, seed)
    same = (judges.coherence.id, judges.coherence.basis) == (other.coherence.id, other.coherence.basis)
    ids = judges.trait.id, other.trait.id
    agreed: Json = {"agreement": agree(ids, first, scores, same_coherence=same)}
    if not run.done("sheet.json"):
        run.write_json("sheet.json", write_extremes(run.path("sheet.csv"), first, trait.adjective, seed))
    agreed["sheet"] = run.read_json("sheet.json") | sheet_files(run.path("sheet.csv"))
    part.write_json("agreement.json", agreed)
    return agreed


def _costs(study: Evaluating, arm: str, costly: Json, steering: Sequence[Steering] = ()) -> Json:
    """What an arm still can: its perplexity and accuracies, in a file of their own."""
    texts, tasks = costly["perplexity"], costly["tasks"]
    if not (texts or tasks):
        return {}
    run, model, seed = study.run, study.interview.model, study.interview.seed
    name = f"capability-{arm}-{Run.digest({key: str(value) for key, value in costly.items()})}.json"
    if not run.done(name):
        costs: Json = {}
        if texts:
            neutral = neutral_texts(texts)
            with stage(f"{arm}: perplexity", len(neutral)) as advance:
                costs["perplexity"] = perplexity_of(model, neutral, steering, advance).to_json()
        accuracies = capability(model, tasks, costly["task_limit"], steering, seed) if tasks else {}
        run.write_json(name, costs | {task: accuracy.to_json() for task, accuracy in accuracies.items()})
    return dict(run.read_json(name))


def _signals(run: Run, scored: dict[str, list[ScoredRow]], names: Sequence[str]) -> Json:
    """Independent signals of every arm, in files of their own, and how they correlate with the scores."""
    means: Json = {}
    together: dict[str, list[float]] = {name: [] for name in names}
    for arm, rows in scored.items():
        questions, replies = [row["question"] for row in rows], [row["response"] for row in rows]
        values = {name: SIGNALS[name][0](questions, replies).tolist() for name in names}
        table: list[Json] = [
            {**row, **{name: None if np.isnan(column[at]) else column[at] for name, column in values.items()}}
            for at, row in enumerate(rows)
        ]
        run.write_rows(f"{arm}.signals.jsonl", [{key: row[key] for key in ("id", *values)} for row in table])
        means[arm] = {name: mean_score(table, name).to_json() for name in values}
        for name, column in values.items():
            together[name] += column
    every = [row for rows in scored.values() for row in rows]
    kinds: dict[str, str] = {name: SIGNALS[name][1] for name in names}
    columns = {name: np.array(values) for name, values in together.items()}
    signals = {"signals": {"means": means, "agreement": signal_agreement(columns, every, kinds)}}
    run.write_json("signals.json", signals)
    return signals


def _scale_at_hand(judge_file: str | Path | None, judges: Judges, steering: Sequence[Steering]) -> Json | None:
    """The judge's scale from a judge file, else from a steering vector's card."""
    if judge_file is not None:
        judges.restore(_read(Path(judge_file)), str(judge_file))
        return judges.to_json()
    for each in steering:
        learned = each.vector.card.details.get("judge", {})
        bases = [learned.get(name, {}).get("basis") for name in ("trait", "coherence")]
        if learned.get("trait_hash") == judges.trait_hash and bases == [judges.trait.basis, judges.coherence.basis]:
            judges.restore(learned, f"the card of {each.vector.card.trait}")
            return judges.to_json()
    return None


def _learn(study: Evaluating) -> Json:
    """The judge's scale from new rollouts, where it has to be learned."""
    judges, seed = study.judges, study.interview.seed
    if not isinstance(judges.trait, RubricJudge):
        known = _lessons(study)
        learn_coherence(judges.coherence, known.base, seed)
        study.run.write_rows("rollouts.scores.jsonl", learn_trait(judges, known))
    return judges.to_json()


def _lessons(study: Evaluating) -> Lessons:
    interview, run, trait = study.interview, study.run, study.trait
    rollouts = interview.write(interview.contrastive(trait, 1), "rollouts for the judge", run=run, name="rollouts")
    plans = interview.answers(trait.extract, BASE_ROLLOUTS, draw="base", extra={"arm": "base"})
    base = interview.write(plans, "base replies for the judge", run=run, name="unsteered")
    return lessons(interview, trait, rollouts, base, run)


def _read(path: Path) -> Json:
    """The scales of a judge.json, or of a vector's card."""
    if path.suffix == ".safetensors":
        return dict(load_vector(path).card.details.get("judge", {}))
    try:
        scales = read_json(path, strict=False)  # the bounds of an AUC may be NaN
    except ValueError as error:
        raise JudgeError(f"expected a judge.json, got {path} ({error}); pass the one of an earlier run") from error
    if not isinstance(scales, dict):
        raise JudgeError(f"expected the scales of a judge in {path}, got other JSON; pass the judge.json of a run")
    return scales
