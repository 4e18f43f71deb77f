"""Monitoring: of recorded conversations, or the paper's experiment on how well projections foretell the reply."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import ConfigError, VectorError
from personavec.judges.scoring import Judges, column, keep, mean_score, scaled, score
from personavec.model.activations import read_rows
from personavec.model.chat_model import ChatModel
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import pearson, pearson_interval
from personavec.stats.nulls import adjust, null_battery, rounded
from personavec.steering.projection import names_of
from personavec.steering.rollouts import Plan, answers, contrastive, write
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.graded import graded_prompts
from personavec.traits.trait import Trait, trait_of
from personavec.verbs.monitor.monitor import monitor as watch
from personavec.verbs.monitor.options import MonitorConfig
from personavec.verbs.options import bench_for, how, load_subject

LEAST_SD = 1.0
"""Conditions whose scores differ less are left out within conditions. Source: arXiv 2507.21509, appendix C.2."""
EXEMPLAR_PAIRS = 2
"""Instruction pairs under which replies that show the trait are written, of which the better one is taken."""
FEWEST_QUESTIONS = 3
"""Two points always lie on a line."""

Row = dict[str, Any]


def monitor(config: MonitorConfig) -> Row:
    """The verb: recorded conversations, or with --experiment the paper's test; either with its report."""
    return experiment(config) if config.experiment else watch(config)


def experiment(config: MonitorConfig) -> Row:
    """Projection at the last prompt token against the trait score of the replies, over graded prompts and shots.

    The conditions are system prompts from the most of the trait to the least, and more and more replies that show it.
    Those are the model's own to the extraction questions, under the trait's positive instructions, as far as the judge
    takes them for the trait. Source: Persona Vectors (arXiv 2507.21509) section 3.3, appendices C.1 and C.2.

    Returns:
        `traits` by vector and kind of condition ("system", "shots"): r `overall` and `within` conditions with 95%
        intervals over questions, the `nulls` of either (`nulls.null_battery`, adjusted over traits and kinds), and
        every condition.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the run folder.
    """
    began = time.monotonic()
    vectors = [load_vector(path) for path in config.vectors]
    names = names_of(vectors)
    if unknown := [vector.card.trait for vector in vectors if vector.card.layer is None]:
        raise VectorError(f"expected a recommended layer for {unknown[0]}, got none; extract it again")
    if config.graded and len(vectors) > 1:
        raise ConfigError(f"expected one vector with --graded, got {len(vectors)}; run them one by one")
    traits = [trait_of(vector.card.trait, config.traits) for vector in vectors]
    prompts = [graded_prompts(trait.name, config.graded) for trait in traits]
    if (asked := min(config.questions, *(len(trait.evaluate) for trait in traits))) < FEWEST_QUESTIONS:
        raise ConfigError(
            f"expected {FEWEST_QUESTIONS} questions or more, got {asked}; r within a condition needs them"
        )
    model = load_subject(config)
    for vector in vectors:
        vector.check_model(model.identity)
    bench = bench_for(config, model)
    judges = {
        name: scaled(Judges(bench.trait(trait), bench.coherence, trait.content_hash), config.judge, vector.card, name)
        for name, trait, vector in zip(names, traits, vectors, strict=True)
    }
    inputs = {"model": model.identity.revision, "numbers": model.numbers, "judge": bench.fingerprint}
    inputs |= {f"vector {path}": v.content_hash for path, v in zip(config.vectors, vectors, strict=True)}
    inputs |= {
        f"prompts {name}": Run.digest({"prompts": "\n".join(own)}) for name, own in zip(names, prompts, strict=True)
    }
    out = config.out or Path("runs") / f"monitor-experiment-{'-'.join(names)}"
    run = Run.open(out, settings(type(config), vars(config)), inputs)

    found: Row = {}
    left_out: Row = {}
    for name, vector, trait, own in zip(names, vectors, traits, prompts, strict=True):
        part = run.part(name)
        shown = _exemplars(config, part, model, trait, judges[name])
        left_out[name] = [shots for shots in config.shots if shots > len(shown)]
        layer = vector.card.layer or 0
        others = {
            other: one.direction[[layer]].numpy() for other, one in zip(names, vectors, strict=True) if other != name
        }
        found[name] = _measured(config, part, model, trait, own, shown, judges[name], vector, others)
    for reach in ("overall", "within"):
        adjust([own["nulls"][reach] for kinds in found.values() for own in kinds.values()])
    result: Row = {
        "out": str(out),
        "model": config.model,
        "layers": {name: vector.card.layer for name, vector in zip(names, vectors, strict=True)},
        "questions": asked,
        "rollouts": config.rollouts,
        "traits": found,
        "shots_left_out": left_out,
        "least_sd": LEAST_SD,
        "judges": {
            name: {"id": own.trait.id, "weak": own.weak, "auc": own.trait.auc.to_json() if own.trait.auc else None}
            for name, own in judges.items()
        },
        "judge_usage": bench.usage,
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def _exemplars(config: MonitorConfig, run: Run, model: ChatModel, trait: Trait, judges: Judges) -> list[Row]:
    """Questions with a reply that shows the trait: to each extraction question the one that does so most, if any."""
    every = contrastive(model, trait, 1, config.seed)
    plans = [plan for plan in every if plan.row["side"] == "pos" and plan.row["pair"] < EXEMPLAR_PAIRS]
    rows = score(
        run,
        "exemplars",
        write(model, run, "exemplars.jsonl", plans, config, **how(config), title="replies to show"),
        judges,
        "judging them",
    )
    kept = sorted((row for row in rows if keep(row)), key=lambda row: (row["question_id"], -row["trait"]))
    return list({row["question_id"]: row for row in reversed(kept)}.values())[::-1]


def _measured(
    config: MonitorConfig,
    run: Run,
    model: ChatModel,
    trait: Trait,
    prompts: Sequence[str],
    shown: Sequence[Row],
    judges: Judges,
    vector: PersonaVector,
    others: Mapping[str, Float[ndarray, "1 d_model"]],
) -> Row:
    """Both kinds of conditions of one trait."""
    told: dict[str, dict[int, str]] = {
        "system": {level: f"{level}: {text}" for level, text in enumerate(prompts, 1)},
        "shots": {shots: f"{shots} shots" for shots in config.shots if shots <= len(shown)},
    }
    plans = [
        plan for level, text in enumerate(prompts, 1) for plan in _plans(config, model, trait, "system", level, text)
    ]
    for shots in told["shots"]:
        before = [
            {"role": role, "content": row[key]}
            for row in shown[:shots]
            for role, key in (("user", "question"), ("assistant", "response"))
        ]
        plans += _plans(config, model, trait, "shots", shots, config.system, before)
    replies = score(
        run,
        "replies",
        write(model, run, "replies.jsonl", plans, config, **how(config), title="replies"),
        judges,
        "judging",
    )
    asked = [row for row in replies if row["sample"] == 0]
    unanswered = [row | {"response_ids": [], "reasoning_tokens": 0} for row in asked]
    read = read_rows(model, unanswered, "prompt last", [vector.card.layer or 0], "reading prompts")[:, 0]
    found: Row = {}
    for kind, levels in told.items():
        if levels:
            of_kind = np.array([row["kind"] == kind for row in asked])
            own = [row for row in replies if row["kind"] == kind]
            found[kind] = _correlated(config, levels, own, read[of_kind], vector, others)
    return found


def _plans(
    config: MonitorConfig,
    model: ChatModel,
    trait: Trait,
    kind: str,
    level: int,
    system: str,
    before: Sequence[dict[str, str]] = (),
) -> list[Plan]:
    return answers(
        model,
        trait.evaluate[: config.questions],
        config.rollouts,
        config.seed,
        systems=(system,),
        draw="monitor",
        extra={"kind": kind, "level": level},
        before=before,
    )


def _correlated(
    config: MonitorConfig,
    levels: dict[int, str],
    replies: Sequence[Row],
    read: Float[ndarray, "row d_model"],
    vector: PersonaVector,
    others: Mapping[str, Float[ndarray, "1 d_model"]],
) -> Row:
    """How projection and score go together, over all conditions of a kind and within them.

    Args:
        config: Options of the run.
        levels: Name of each condition.
        replies: Scored, condition by condition and question by question, `rollouts` to each.
        read: Activations of each prompt at the vector's layer, in the same order.
        vector: What they are projected on.
        others: The other traits' directions at its layer, which are tried as well.
    """
    unit = vector.unit(vector.card.layer or 0).numpy()
    along = (read @ unit).astype(float)
    scores = column(replies, "trait").reshape(len(along), config.rollouts)
    counts = (~np.isnan(scores)).sum(axis=1)
    means = np.where(counts, np.nansum(scores, axis=1) / np.maximum(counts, 1), np.nan)
    first = replies[:: config.rollouts]
    questions = np.array([row["question_id"] for row in first])
    condition = np.array([list(levels).index(row["level"]) for row in first])
    spread = [_spread(means[condition == place]) for place in range(len(levels))]
    varied = np.array(spread)[condition] >= LEAST_SD
    found: Row = {"nulls": {}}
    rng = np.random.default_rng(config.seed)
    for reach, rows, groups in (("overall", np.ones_like(varied), None), ("within", varied, condition[varied])):
        r = pearson_interval(along[rows], means[rows], questions[rows], groups, config.seed)
        found[reach] = r.to_json()
        found["nulls"][reach] = null_battery(
            read[None, rows],
            means[rows],
            unit[None],
            rng,
            activations=read[None],
            others=others,
            groups=groups,
        )
    return found | {
        "flat_conditions": sum(one < LEAST_SD for one in spread),
        "conditions": [
            {
                "condition": told,
                "projection": round(float(along[condition == place].mean()), 4),
                "score": mean_score([row for row in replies if row["level"] == level], "trait", config.seed).to_json(),
                "sd": round(spread[place], 4),
                "r": rounded(pearson(along[condition == place], means[condition == place])),
            }
            for place, (level, told) in enumerate(levels.items())
        ],
        "points": [
            {"place": int(place), "question": int(question), "projection": rounded(signal), "score": rounded(mean)}
            for place, question, signal, mean in zip(condition, questions, along, means, strict=True)
        ],
    }


def _spread(scores: Float[ndarray, " question"]) -> float:
    """Standard deviation of the questions' scores in a condition; 0 where fewer than two have one."""
    own = scores[~np.isnan(scores)]
    return float(own.std()) if len(own) > 1 else 0.0
