"""The paper's monitoring experiment: how well projections before the reply predict its trait score."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Unpack

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import ConfigError
from personavec.judges.load import Bench, bench_of
from personavec.judges.scoring import Judges, ScoredRow, column, keep, mean_score, scaled, score
from personavec.model.activations import read_rows
from personavec.model.chat_model import ChatModel
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Rule, Seed, Store, settings
from personavec.runs.run import Row, Run
from personavec.runs.show import ceiling_of, interval
from personavec.stats.intervals import ceiling, pearson, pearson_interval
from personavec.stats.nulls import adjust, null_battery, rounded
from personavec.steering.projection import Vectors, vector_inputs
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.steering.vector import PersonaVector
from personavec.traits.graded import graded_prompts
from personavec.traits.load import trait_of
from personavec.traits.trait import Trait
from personavec.verbs.monitor.monitor import with_layers

LEAST_SD = 1.0
"""Conditions whose scores differ less are left out within conditions. Source: arXiv 2507.21509, appendix C.2."""
EXEMPLAR_PAIRS = 2
"""Instruction pairs under which replies that show the trait are written, of which the better one is taken."""
FEWEST_QUESTIONS = 3
"""Two points always lie on a line."""
SHOTS = Rule(
    lambda value: len(set(value)) == len(value) and all(shots >= 0 for shots in value), "of 0 or more, each once"
)

Directions = Mapping[str, Float[ndarray, "1 d_model"]]


@dataclasses.dataclass(frozen=True, repr=False)
class MonitoringExperiment(Result):
    """How well projections at the last prompt token predict trait scores; `to_dict()` is what `--json` prints."""

    page = "monitor"

    @property
    def traits(self) -> Row:
        """By vector and kind of condition ("system", "shots"): r `overall` and `within`, `nulls`, `conditions`."""
        return dict(self.data["traits"])

    def lines(self) -> list[tuple[str, str]]:
        """R of every trait and kind of condition."""
        return [
            (
                f"{name}, {kind}",
                f"r {interval(r['overall'], 2)} overall, {interval(r['within'], 2)} within conditions, {ceiling_of(r)}",
            )
            for name, kinds in self.traits.items()
            for kind, r in kinds.items()
        ]


class Graded(NamedTuple):
    """A vector, its trait, and system prompts from the most of it to the least."""

    vector: PersonaVector
    trait: Trait
    prompts: tuple[str, ...]

    @property
    def layer(self) -> int:
        """Where the vector is read."""
        return self.vector.card.layer or 0


@dataclasses.dataclass(frozen=True)
class Trial:
    """The experiment on one vector, under way: who is asked what, and who scores it."""

    interview: Interview
    run: Run
    subject: Graded
    judges: Judges
    questions: int
    rollouts: int
    shots: tuple[int, ...]
    others: Directions
    """The other traits' directions at its layer, which are tried as well."""


def experiment(
    model: ChatModel,
    vectors: Vectors,
    *,
    judge: Free[str | Bench] = "panel",
    questions: Count = 20,
    rollouts: Count = 10,
    shots: Annotated[Sequence[int], SHOTS] = (0, 5, 10, 15, 20),
    traits: Free[Sequence[str | Path | Trait]] = (),
    graded: Free[Sequence[str] | str | Path | None] = None,
    seed: Seed = 0,
    store: Store = None,
    **writing: Unpack[ReplyOptions],
) -> MonitoringExperiment:
    """Projection at the last prompt token against the trait score of the replies, over graded prompts and shots.

    The conditions are system prompts from the most of the trait to the least, and more and more replies that show it.
    Those are the model's own to the extraction questions, under the trait's positive instructions, as far as the judge
    takes them for the trait.

    Args:
        model: Who is asked.
        vectors: Persona vectors of the model, or their files.
        judge: Who scores replies: a spec as for `--judge`, or what `load_bench` made.
        questions: Held-out questions that every condition is tried on.
        rollouts: Replies per question, 10 as in the paper: with few of them noise between replies hides every r
            within a condition, and with one its ceiling is not known.
        shots: How many replies that show the trait come before the question.
        traits: Traits of vectors whose trait is not built in, or their files.
        graded: System prompts, most of the trait first, or a JSON file of them; built-in traits have some.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it.
        writing: How replies are written: fields of `Interview`.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.

    Source: Persona Vectors (arXiv 2507.21509) section 3.3, appendices C.1 and C.2.
    """
    began = time.monotonic()
    chosen = settings(experiment, locals())
    subjects = subjects_of(vectors, traits, graded, questions)
    named = {name: subject.vector for name, subject in subjects.items()}
    for vector in named.values():
        vector.check_model(model.identity)
    interview = Interview(model, seed=seed, **writing)
    bench = bench_of(judge, interview)
    inputs = {"model": model.identity.revision, "numbers": model.numbers, "judge": bench.fingerprint}
    inputs |= vector_inputs(vectors)
    inputs |= {
        f"prompts {name}": Run.digest({"prompts": "\n".join(subject.prompts)}) for name, subject in subjects.items()
    }
    judges = {}
    for name, (vector, trait, _) in subjects.items():
        scoring = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
        judges[name] = scaled(scoring, bench.spec, vector.card, name)
    run = Run.open(store, chosen | interview.options, inputs)

    measured: Row = {}
    left_out: Row = {}
    for name, subject in subjects.items():
        others = {other: v.direction[[subject.layer]].numpy() for other, v in named.items() if other != name}
        trial = Trial(interview, run.part(name), subject, judges[name], questions, rollouts, tuple(shots), others)
        exemplars = _exemplars(trial)
        left_out[name] = [count for count in shots if count > len(exemplars)]
        measured[name] = _measured(trial, exemplars)
    for reach in ("overall", "within"):
        adjust([r["nulls"][reach] for kinds in measured.values() for r in kinds.values()])
    result: Row = {
        "out": run.shown(),
        "model": model.identity.id,
        "layers": {name: vector.card.layer for name, vector in named.items()},
        "questions": _shared_questions(subjects, questions),
        "rollouts": rollouts,
        "traits": measured,
        "shots_left_out": left_out,
        "least_sd": LEAST_SD,
        "judges": {
            name: {"id": each.trait.id, "weak": each.weak, "auc": each.auc.to_json() if each.auc else None}
            for name, each in judges.items()
        },
        "judge_usage": bench.usage,
    }
    run.complete(result, began)
    return MonitoringExperiment(result)


def subjects_of(
    vectors: Vectors,
    traits: Sequence[str | Path | Trait],
    graded: Sequence[str] | str | Path | None,
    questions: int,
) -> dict[str, Graded]:
    """What the experiment is about, by vector; all that can be wrong before a model is loaded.

    Raises:
        PersonavecError: A vector, trait or system prompt is missing or bad, or there are too few questions.
    """
    named = with_layers(vectors)
    if graded and len(named) > 1:
        raise ConfigError(f"expected one vector with --graded, got {len(named)}; run them one by one")
    known = [trait_of(vector.card.trait, traits) for vector in named.values()]
    subjects = {
        name: Graded(vector, trait, graded_prompts(trait.name, graded))
        for (name, vector), trait in zip(named.items(), known, strict=True)
    }
    if (count := _shared_questions(subjects, questions)) < FEWEST_QUESTIONS:
        raise ConfigError(
            f"expected {FEWEST_QUESTIONS} questions or more, got {count}; r within a condition needs them"
        )
    return subjects


def _shared_questions(subjects: Mapping[str, Graded], questions: int) -> int:
    return min(questions, *(len(subject.trait.check) for subject in subjects.values()))


def _exemplars(trial: Trial) -> list[ScoredRow]:
    """Questions with a reply that shows the trait: to each extraction question the one that does so most, if any."""
    every = trial.interview.contrastive(trial.subject.trait, 1)
    plans = [plan for plan in every if plan.row["side"] == "pos" and plan.row["pair"] < EXEMPLAR_PAIRS]
    replies = trial.interview.write(plans, "replies to show", run=trial.run, name="exemplars")
    rows = score(replies, trial.judges, "judging them", run=trial.run, name="exemplars")
    kept = sorted((row for row in rows if keep(row)), key=lambda row: (row["question_id"], -(row["trait"] or 0)))
    return list({row["question_id"]: row for row in reversed(kept)}.values())[::-1]


def _measured(trial: Trial, exemplars: Sequence[ScoredRow]) -> Row:
    """Both kinds of conditions of one trait."""
    interview, (_, trait, prompts) = trial.interview, trial.subject
    questions = trait.check[: trial.questions]
    conditions: dict[str, dict[int, str]] = {
        "system": {level: f"{level}: {text}" for level, text in enumerate(prompts, 1)},
        "shots": {shots: f"{shots} shots" for shots in trial.shots if shots <= len(exemplars)},
    }
    plans = []
    for level, text in enumerate(prompts, 1):
        extra = {"kind": "system", "level": level}
        plans += interview.answers(questions, trial.rollouts, draw="monitor", extra=extra, systems=(text,))
    for shots in conditions["shots"]:
        before = [
            {"role": role, "content": row[part]}  # type: ignore[literal-required]
            for row in exemplars[:shots]
            for role, part in (("user", "question"), ("assistant", "response"))
        ]
        extra = {"kind": "shots", "level": shots}
        plans += interview.answers(questions, trial.rollouts, draw="monitor", extra=extra, before=before)
    written = interview.write(plans, "replies", run=trial.run, name="replies")
    replies = score(written, trial.judges, "judging", run=trial.run, name="replies")
    first = [row for row in replies if row["sample"] == 0]
    unanswered: list[Row] = [{**row, "response_ids": [], "reasoning_tokens": 0} for row in first]
    layers = [trial.subject.layer]
    read = read_rows(interview.model, unanswered, "prompt last", layers, "reading prompts")[:, 0]
    correlations: Row = {}
    for kind, levels in conditions.items():
        if levels:
            of_kind = np.array([row["kind"] == kind for row in first])
            rows = [row for row in replies if row["kind"] == kind]
            correlations[kind] = _correlated(trial, levels, rows, read[of_kind])
    return correlations


def _correlated(
    trial: Trial, levels: dict[int, str], replies: Sequence[ScoredRow], read: Float[ndarray, "row d_model"]
) -> Row:
    """How projection and score correlate, over all conditions of a kind and within them.

    Intervals take questions and conditions as drawn. Shuffled are the conditions' scores as a whole, and within
    conditions the questions' alike in each, as a question keeps its character from one to the next; a question without
    a score in some condition is left out of that. An r within conditions above its `ceiling` is not measurable.

    Args:
        trial: What is tried.
        levels: Name of each condition.
        replies: Scored, condition by condition and question by question, `rollouts` to each.
        read: Activations of each prompt at the vector's layer, in the same order.
    """
    seed = trial.interview.seed
    unit = trial.subject.vector.unit(trial.subject.layer).numpy()
    along = (read @ unit).astype(float)
    scores = column(replies, "trait").reshape(len(along), trial.rollouts)
    counts = (~np.isnan(scores)).sum(axis=1)
    means = np.where(counts, np.nansum(scores, axis=1) / np.maximum(counts, 1), np.nan)
    first = replies[:: trial.rollouts]
    questions = np.array([row["question_id"] for row in first])
    condition = np.array([list(levels).index(int(row["level"])) for row in first])
    spread = [_spread(means[condition == place]) for place in range(len(levels))]
    varied = np.array(spread)[condition] >= LEAST_SD
    correlations: Row = {"nulls": {}}
    rng = np.random.default_rng(seed)
    known = ~np.isnan(means.reshape(len(levels), -1))
    scored = np.asarray(known.any(axis=1))
    complete = (scored[:, None] & known[scored].all(axis=0)).ravel()
    for reach, rows, groups, blocks in (
        ("overall", np.ones_like(varied), None, condition),
        ("within", varied, condition[varied], questions),
    ):
        r = pearson_interval(along[rows], means[rows], questions[rows], groups, condition[rows])
        correlations[reach] = r.to_json()
        correlations["nulls"][reach] = null_battery(
            read[None, rows],
            np.where(complete, means, np.nan)[rows],
            unit[None],
            rng,
            activations=read[None],
            others=trial.others,
            groups=groups,
            blocks=blocks[rows],
        )
    highest = ceiling(scores[varied], condition[varied])
    unknown = np.isnan(highest.mean) or np.isnan(r.mean)
    correlations["within"]["measurable"] = None if unknown else bool(highest.mean >= abs(r.mean) and highest.mean > 0)
    return correlations | {
        "ceiling": highest.to_json(),
        "flat_conditions": sum(sd < LEAST_SD for sd in spread),
        "conditions": [
            {
                "condition": name,
                "projection": round(float(along[condition == place].mean()), 4),
                "score": mean_score([row for row in replies if row["level"] == level], "trait").to_json(),
                "sd": round(spread[place], 4),
                "r": rounded(pearson(along[condition == place], means[condition == place])),
            }
            for place, (level, name) in enumerate(levels.items())
        ],
        "points": [
            {"place": int(place), "question": int(question), "projection": rounded(signal), "score": rounded(mean)}
            for place, question, signal, mean in zip(condition, questions, along, means, strict=True)
        ],
    }


def _spread(scores: Float[ndarray, " question"]) -> float:
    """Standard deviation of the questions' scores in a condition; 0 where fewer than two have one."""
    known = scores[~np.isnan(scores)]
    return float(known.std()) if len(known) > 1 else 0.0
