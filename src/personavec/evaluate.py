"""Evaluate: how strongly a model, an adapter or a steered model expresses a trait, and how coherent it stays."""

import dataclasses
import json
import re
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personavec.agreement import agreement, own_rollouts, second_scores, signal_agreement
from personavec.capability import capability, check_eval, neutral_texts, perplexity
from personavec.config import EvaluateConfig
from personavec.errors import ConfigError, JudgeError
from personavec.judges.load import Bench, load_bench
from personavec.judges.rubric import RubricJudge
from personavec.model import ChatModel
from personavec.notation import parse_steering
from personavec.progress import stage, tell
from personavec.proof import random_directions
from personavec.rollouts import answers, contrastive, write
from personavec.run import Run, sha256, versions, write_file
from personavec.scoring import (
    Judges,
    joined,
    learn_coherence,
    learn_trait,
    mean_difference,
    mean_score,
    score,
    unscored,
)
from personavec.sheet import score_sheet, sheet_files, write_sheet
from personavec.signals import SIGNALS, check_signals
from personavec.steer import Steering
from personavec.trait import Trait, load_trait
from personavec.vector import load_vector

Row = dict[str, Any]

CHANGES = ("adapter", "steer", "instruct", "judge_file", "inputs")
"""Options that leave the base arm as it is; of the inputs it depends on `BASE_INPUTS` alone."""
BASE_INPUTS = ("model", "numbers", "trait")
BASE = ("base.jsonl", "base.scores.jsonl", "capability-base-*.json")
"""Files of the base arm."""


def evaluate(config: EvaluateConfig) -> Row:
    """Trait expression and coherence on the held-out questions, with the plain model's beside them.

    The judge always reads with the plain weights: neither steering nor adapter can bend it. The base arm is the
    model without steering and adapter, drawn with the same random numbers, so that the difference is paired.

    Returns:
        `trait_score` and `coherence` of what was asked about, `base` of the plain model, their `difference`, and
        with steering the trait score of the `random_control`. With a second judge the `agreement` and a `sheet` for
        people, with signals the `signals`. Of a filled-in sheet its score alone.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the run folder.
    """
    began = time.monotonic()
    if config.sheet is not None:
        return score_sheet(config.sheet)
    check_signals(config.signals)
    if config.tasks:
        check_eval()
    if not config.trait:
        raise ConfigError("expected a trait, got none; for example: personavec evaluate optimistic")
    trait = load_trait(config.trait)
    steering = tuple(parse_steering(text) for text in config.steer)
    model = ChatModel.from_config(config)
    for one in steering:
        one.vector.check_model(model.identity)
    bench = load_bench(config.judge, model, config.system, config, config)
    second = None
    if config.agreement:
        second = load_bench(
            config.agreement, model, config.system, config, config, url=config.agreement_url, beside=bench
        )
    judges = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
    at_hand = _scale_at_hand(config, judges, steering)
    run = Run.open(
        config.out or _default_out(config, trait),
        dataclasses.asdict(config),
        _inputs(config, model, trait, steering),
    )
    _take_base(config, run)

    with model.without_adapter():
        base = _write(config, run, model, trait, "base")
        if not run.done("judge.json"):
            run.write_json("judge.json", at_hand or _learn(config, run, model, trait, judges, base))
        judges.restore(run.read_json("judge.json"), str(run.path("judge.json")))
    changed = bool(steering or config.adapter or config.instruct)
    rows = {"base": base}
    if changed:
        rows["changed"] = _write(config, run, model, trait, "changed", [steering])
    if steering:
        rows["random"] = _write(config, run, model, trait, "random", _randomised(steering, len(base), config.seed))
    with model.without_adapter():
        scored = {arm: score(run, arm, replies, judges, f"judging {arm}") for arm, replies in rows.items()}
        agreed = _agree(config, run, model, trait, judges, second, rows, scored) if second else {}
        costs = {"base": _capability(config, run, model, "base")}
    if changed and not config.instruct:  # neutral texts and tasks are read without the instruction
        costs["changed"] = _capability(config, run, model, "changed", steering)

    subject = scored["changed" if changed else "base"]
    result: Row = {
        "trait": trait.name,
        "model": config.model,
        "adapter": str(config.adapter) if config.adapter else None,
        "steer": list(config.steer),
        "instruct": config.instruct,
        "trait_score": mean_score(subject, "trait", config.seed).to_json(),
        "coherence": mean_score(subject, "coherence", config.seed).to_json(),
        "base": {kind: mean_score(scored["base"], kind, config.seed).to_json() for kind in ("trait", "coherence")},
        "difference": {
            kind: mean_difference(subject, scored["base"], kind, config.seed).to_json()
            for kind in ("trait", "coherence")
        },
        "random_control": mean_score(scored["random"], "trait", config.seed).to_json() if steering else None,
        "judge": judges.trait.id,
        "judge_auc": judges.trait.auc.to_json() if judges.trait.auc else None,
        "weak_judge": judges.weak,
        "replies": len(subject),
        "unscored": {
            arm: {kind: unscored(replies, kind) for kind in ("trait", "coherence")} for arm, replies in scored.items()
        },
        "judge_usage": bench.usage,
        **agreed,
        **({"capability": costs} if costs["base"] else {}),
        **(_signals(config, run, scored) if config.signals else {}),
        "truncated": sum(row["finish"] == "length" for row in subject),
        "table": str(run.path(f"{'changed' if changed else 'base'}.jsonl")),
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def _write(
    config: EvaluateConfig,
    run: Run,
    model: ChatModel,
    trait: Trait,
    arm: str,
    steering: Sequence[tuple[Steering, ...]] = ((),),
) -> list[Row]:
    asked = [trait.system_prompt(pair, config.instruct) for pair in range(len(trait.pairs))] if config.instruct else []
    plans = answers(
        model,
        trait.evaluate[: config.questions],
        config.rollouts,
        config.seed,
        systems=(config.system,) if arm == "base" else asked or (config.system,),
        draw="base",
        extra={"arm": arm},
        steering=steering,
    )
    return write(model, run, f"{arm}.jsonl", plans, config, f"{arm} replies")


def _take_base(config: EvaluateConfig, run: Run) -> None:
    """The base replies and their scores of the run that --judge-file is of, where this one would write the same."""
    earlier = Run(config.judge_file.parent) if config.judge_file else run
    if earlier is run or not (earlier.done("config.json") and earlier.done("result.json")):
        return
    there, here = (
        {key: value for key, value in own.items() if key not in CHANGES}
        | {key: value for key, value in own["inputs"].items() if key.split()[0] in BASE_INPUTS}
        for own in (one.read_json("config.json") for one in (earlier, run))
    )
    if there == here:
        found = sorted(path for name in BASE for path in earlier.folder.glob(name) if not run.done(path.name))
        for path in found:
            write_file(run.path(path.name), path.read_bytes())
        if found:
            tell(f"{', '.join(path.name for path in found)}: taken over from {earlier.folder}")


def _randomised(steering: Sequence[Steering], count: int, seed: int) -> list[tuple[Steering, ...]]:
    """The same steering along directions without meaning, as many as there are replies."""
    random = [random_directions(one.vector, count, seed + index) for index, one in enumerate(steering)]
    return [
        tuple(dataclasses.replace(one, vector=vector) for one, vector in zip(steering, drawn, strict=True))
        for drawn in zip(*random, strict=True)
    ]


def _agree(
    config: EvaluateConfig,
    run: Run,
    model: ChatModel,
    trait: Trait,
    judges: Judges,
    second: Bench,
    rows: dict[str, list[Row]],
    scored: dict[str, list[Row]],
) -> Row:
    """Both judges on the same replies and rollouts, and a sheet of them for people."""
    rollouts = _rollouts(config, run, model, trait)
    first = joined(rollouts, own_rollouts(run, rollouts, judges, config.seed))
    first += [row for replies in scored.values() for row in replies]
    other = Judges(second.trait(trait), second.coherence, trait.content_hash)
    part = run.part("agreement-" + re.sub(r"[^\w.-]+", "_", config.agreement))
    scores = second_scores(part, other, rollouts, rows, config.seed)
    same = (judges.coherence.id, judges.coherence.basis) == (other.coherence.id, other.coherence.basis)
    ids = judges.trait.id, other.trait.id
    found = {"agreement": agreement(ids, first, scores, config.seed, same_coherence=same)}
    if not run.done("sheet.json"):  # else people may have filled it in
        run.write_json("sheet.json", write_sheet(run.path("sheet.csv"), first, trait.adjective, config.seed))
    found["sheet"] = run.read_json("sheet.json") | sheet_files(run.path("sheet.csv"))
    part.write_json("agreement.json", found)
    return found


def _capability(config: EvaluateConfig, run: Run, model: ChatModel, arm: str, steering: Sequence[Steering] = ()) -> Row:
    """What an arm still can: its perplexity and accuracies, in a file of their own."""
    if not (config.perplexity or config.tasks):
        return {}
    asked = {name: str(getattr(config, name)) for name in ("perplexity", "tasks", "task_limit")}
    name = f"capability-{arm}-{Run.digest(asked)}.json"
    if not run.done(name):
        found: Row = {}
        if config.perplexity:
            texts = neutral_texts(config.perplexity)
            with stage(f"{arm}: perplexity", len(texts)) as advance:
                found["perplexity"] = perplexity(model, texts, config.seed, steering, advance).to_json()
        accuracies = capability(model, config.tasks, config.task_limit, steering, config.seed) if config.tasks else {}
        run.write_json(name, found | {task: own.to_json() for task, own in accuracies.items()})
    return dict(run.read_json(name))


def _signals(config: EvaluateConfig, run: Run, scored: dict[str, list[Row]]) -> Row:
    """Independent signals of every arm, in files of their own, and how they go along with the scores."""
    means: Row = {}
    together: dict[str, list[float]] = {name: [] for name in config.signals}
    for arm, rows in scored.items():
        asked, said = [row["question"] for row in rows], [row["response"] for row in rows]
        values = {name: SIGNALS[name][0](asked, said).tolist() for name in config.signals}
        table = [
            row | {name: None if np.isnan(column[at]) else column[at] for name, column in values.items()}
            for at, row in enumerate(rows)
        ]
        run.write_rows(f"{arm}.signals.jsonl", [{key: row[key] for key in ("id", *values)} for row in table])
        means[arm] = {name: mean_score(table, name, config.seed).to_json() for name in values}
        for name, column in values.items():
            together[name] += column
    every = [row for rows in scored.values() for row in rows]
    kinds: dict[str, str] = {name: SIGNALS[name][1] for name in config.signals}
    columns = {name: np.array(values) for name, values in together.items()}
    found = {"signals": {"means": means, "agreement": signal_agreement(columns, every, kinds, config.seed)}}
    run.write_json("signals.json", found)
    return found


def _scale_at_hand(config: EvaluateConfig, judges: Judges, steering: Sequence[Steering]) -> Row | None:
    """The judge's scale from --judge-file, else from a steering vector's card."""
    if config.judge_file is not None:
        judges.restore(_read(config.judge_file), str(config.judge_file))
        return judges.to_json()
    for one in steering:
        learned = one.vector.card.details.get("judge", {})
        bases = [learned.get(name, {}).get("basis") for name in ("trait", "coherence")]
        if learned.get("trait_hash") == judges.trait_hash and bases == [judges.trait.basis, judges.coherence.basis]:
            judges.restore(learned, f"the card of {one.vector.card.trait}")
            return judges.to_json()
    return None


def _learn(
    config: EvaluateConfig, run: Run, model: ChatModel, trait: Trait, judges: Judges, base: Sequence[Row]
) -> Row:
    """The judge's scale from new rollouts, where it has to be learned."""
    learn_coherence(judges.coherence, base, config.seed)
    if isinstance(judges.trait, RubricJudge):
        return judges.to_json()
    rollouts = _rollouts(config, run, model, trait)
    run.write_rows("rollouts.scores.jsonl", learn_trait(judges, rollouts, config.seed))
    return judges.to_json()


def _rollouts(config: EvaluateConfig, run: Run, model: ChatModel, trait: Trait) -> list[Row]:
    plans = contrastive(model, trait, 1, config.seed)
    return write(model, run, "rollouts.jsonl", plans, config, "rollouts for the judge")


def _read(path: Path) -> Row:
    """The scales of a judge.json, or of a vector's card."""
    if path.suffix == ".safetensors":
        return dict(load_vector(path).card.details.get("judge", {}))
    try:
        scales = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise JudgeError(f"expected a judge.json, got {path} ({error}); pass the one of an earlier run") from error
    if not isinstance(scales, dict):
        raise JudgeError(f"expected the scales of a judge in {path}, got other JSON; pass the judge.json of a run")
    return scales


def _default_out(config: EvaluateConfig, trait: Trait) -> Path:
    """A folder of its own for what is evaluated, so that one evaluation does not meet the run of another."""
    what = [*config.steer, *(str(what) for what in (config.adapter, config.judge_file, config.instruct) if what)]
    what += [config.judge] * (config.judge != EvaluateConfig.judge)
    mark = f"-{zlib.crc32(' '.join(what).encode()):08x}" if what else ""
    return Path("runs") / f"evaluate-{trait.name}{mark}"


def _inputs(config: EvaluateConfig, model: ChatModel, trait: Trait, steering: Sequence[Steering]) -> dict[str, str]:
    inputs = {"model": model.identity.revision, "numbers": model.numbers, f"trait {trait.name}": trait.content_hash}
    inputs |= {f"vector {text}": one.vector.content_hash for text, one in zip(config.steer, steering, strict=True)}
    if config.adapter is not None:
        inputs |= {f"adapter {path.name}": sha256(path) for path in sorted(config.adapter.iterdir()) if path.is_file()}
    if config.judge_file is not None:
        inputs["judge file"] = sha256(config.judge_file)
    return inputs
