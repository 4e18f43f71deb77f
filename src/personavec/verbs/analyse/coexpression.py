"""Co-expression: steer along one vector, judge every trait; and how far each trait answers to the dose of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from personavec.judges.scoring import Judges, column, mean_difference, score
from personavec.model.chat_model import ChatModel
from personavec.runs.run import Run
from personavec.stats.intervals import clustered
from personavec.steering.projection import random_directions
from personavec.steering.rollouts import Plan, answers, write
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.traits.trait import Trait
from personavec.verbs.analyse.options import SpaceConfig
from personavec.verbs.options import how

Row = dict[str, Any]

DOSES = (-1.0, -0.5, 0.5, 1.0, 1.5)
"""Multiples of the coefficient that a card recommends; 0 is the base."""
BASE, RANDOM = "base", "random"


def coexpressed(
    config: SpaceConfig,
    run: Run,
    model: ChatModel,
    vectors: Mapping[str, PersonaVector],
    traits: Mapping[str, Trait],
    judges: Mapping[str, Judges],
) -> Row:
    """What steering along each vector does to each trait.

    Every trait's held-out questions are answered unsteered, steered along each vector as its card says, along its own
    at several doses, and along random directions as long as its own, another one for every reply; with the same random
    numbers.

    Returns:
        `effects[i][j]`: mean change of trait j under vector i with its 95% interval; `random[j]`; `coherence[i][j]`;
        `reach` of every trait: the change at each dose, the `slope` a coefficient, the `curvature`, both with
        intervals, and a `verdict`.
    """
    names = list(vectors)
    found: Row = {"traits": names, "effects": {name: {} for name in names}, "random": {}, "reach": {}}
    found["coherence"] = {name: {} for name in names}
    for trait in names:
        plans = [
            *_plans(config, model, traits[trait], BASE, 0.0, []),
            *(plan for name in names for plan in _steered(config, model, traits[trait], name, vectors[name], 1.0)),
            *(p for d in DOSES if d != 1 for p in _steered(config, model, traits[trait], trait, vectors[trait], d)),
            *_random(config, model, traits[trait], vectors[trait]),
        ]
        part = run.part(trait)
        replies = write(model, part, "replies.jsonl", plans, config, **how(config), title=f"{trait}: steered replies")
        rows = score(part, "replies", replies, judges[trait], f"{trait}: judging")
        base = [row for row in rows if row["along"] == BASE]

        def moved(along: str, times: float, kind: str = "trait", rows: Any = rows, base: Any = base) -> Row:
            own = [row for row in rows if (row["along"], row["times"]) == (along, times)]
            return mean_difference(own, base, kind, config.seed).to_json()

        for name in names:
            found["effects"][name][trait] = moved(name, 1.0)
            found["coherence"][name][trait] = moved(name, 1.0, "coherence")
        found["random"][trait] = moved(RANDOM, 1.0)
        found["reach"][trait] = _reach(config, [row for row in rows if row["along"] in (trait, BASE)]) | {
            "doses": [{"times": times, "change": moved(trait, times)} for times in DOSES]
        }
    return found


def _steered(
    config: SpaceConfig, model: ChatModel, trait: Trait, along: str, vector: PersonaVector, times: float
) -> list[Plan]:
    steering = (Steering(vector, times * (vector.card.coef or 0), vector.card.layer),)
    return _plans(config, model, trait, along, times, [steering])


def _random(config: SpaceConfig, model: ChatModel, trait: Trait, vector: PersonaVector) -> list[Plan]:
    drawn = random_directions(vector, config.rollouts * len(trait.evaluate), config.seed)
    steering = [(Steering(one, vector.card.coef or 0, vector.card.layer),) for one in drawn]
    return _plans(config, model, trait, RANDOM, 1.0, steering)


def _plans(
    config: SpaceConfig,
    model: ChatModel,
    trait: Trait,
    along: str,
    times: float,
    steering: Sequence[tuple[Steering, ...]],
) -> list[Plan]:
    return answers(
        model,
        trait.evaluate,
        config.rollouts,
        config.seed,
        systems=(config.system,),
        draw="space",
        extra={"along": along, "times": times},
        steering=steering or ((),),
    )


def _reach(config: SpaceConfig, rows: Sequence[Row]) -> Row:
    """Whether a trait's score grows with the multiple of its vector's coefficient, and whether in a straight line."""
    times = np.array([row["times"] for row in rows], dtype=float)
    scores = column(rows, "trait")
    questions = np.array([row["question_id"] for row in rows])
    good = ~np.isnan(scores)
    slope = clustered(_fitted(times[good], scores[good], 1), questions[good], config.seed)
    bent = clustered(_fitted(times[good], scores[good], 2), questions[good], config.seed)
    return {
        "slope": slope.to_json(),
        "curvature": bent.to_json(),
        "verdict": verdict(slope.low, slope.high, bent.low, bent.high),
    }


def verdict(slope_low: float, slope_high: float, bent_low: float, bent_high: float) -> str:
    """What a dose curve is, by the intervals of its slope and of its bend."""
    if np.isnan(slope_low):
        return "not measured"
    if not (slope_low > 0 or slope_high < 0):
        return "no response"
    falling = slope_high < 0
    if not (bent_low > 0 or bent_high < 0):
        return "linear, the wrong way" if falling else "linear"
    if falling:
        return "bent, the wrong way"
    return "saturates" if bent_high < 0 else "accelerates"


def _fitted(times: Float[ndarray, " row"], scores: Float[ndarray, " row"], degree: int) -> Any:
    """The highest coefficient of a least-squares polynomial, as a statistic of rows."""

    def of(rows: Int[ndarray, " row"]) -> float:
        if len(np.unique(times[rows])) <= degree:
            return float("nan")
        return float(np.polyfit(times[rows], scores[rows], degree)[0])

    return of
