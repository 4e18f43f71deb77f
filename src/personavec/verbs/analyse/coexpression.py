"""Co-expression: steer along one vector, judge every trait; and how far each trait answers to the dose of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from personavec.judges.scoring import Judges, Rows, column, mean_difference, score
from personavec.runs.run import Row, Run
from personavec.stats.intervals import clustered
from personavec.steering.projection import random_directions
from personavec.steering.rollouts import Interview
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.traits.trait import Trait

DOSES = (-1.0, -0.5, 0.5, 1.0, 1.5)
"""Multiples of the coefficient that a card recommends; 0 is the base."""
BASE, RANDOM = "base", "random"


class Expressed(NamedTuple):
    """A vector, its trait, and who scores that."""

    name: str
    vector: PersonaVector
    trait: Trait
    judges: Judges

    def steering(self, times: float) -> list[tuple[Steering, ...]]:
        """The vector as its card recommends, times a factor."""
        return [(Steering(self.vector, times * (self.vector.card.coef or 0), self.vector.card.layer),)]


def coexpressed(interview: Interview, run: Run, subjects: Sequence[Expressed], rollouts: int) -> Row:
    """What steering along each vector does to each trait.

    Every trait's held-out questions are answered unsteered, steered along each vector as its card says, along its own
    at several doses, and along random directions as long as that, another one for every reply; with the same random
    numbers.

    Returns:
        `effects[i][j]`: mean change of trait j under vector i with its 95% interval; `random[j]`; `coherence[i][j]`;
        `reach` of every trait: the change of its score at each dose, the `slope` of its evidence a coefficient, the
        `curvature`, both with intervals, and a `verdict`.
    """
    names, seed = [subject.name for subject in subjects], interview.seed
    table: Row = {"traits": names, "effects": {name: {} for name in names}, "random": {}, "reach": {}}
    table["coherence"] = {name: {} for name in names}
    for subject in subjects:
        questions, trait = subject.trait.check, subject.name
        drawn = random_directions(subject.vector, rollouts * len(questions), seed)
        card = subject.vector.card
        arms: list[tuple[str, float, list[tuple[Steering, ...]]]] = [
            (BASE, 0.0, [()]),
            *((other.name, 1.0, other.steering(1.0)) for other in subjects),
            *((trait, times, subject.steering(times)) for times in DOSES if times != 1),
            (RANDOM, 1.0, [(Steering(vector, card.coef or 0, card.layer),) for vector in drawn]),
        ]
        plans = [
            plan
            for along, times, steering in arms
            for plan in interview.answers(
                questions, rollouts, draw="space", extra={"along": along, "times": times}, steering=steering
            )
        ]
        part = run.part(trait)
        replies = interview.write(plans, f"{trait}: steered replies", run=part, name="replies")
        scored: Rows = score(replies, subject.judges, f"{trait}: judging", run=part, name="replies")
        by_arm: dict[tuple[str, float], list[Any]] = {}
        for row in scored:
            by_arm.setdefault((row["along"], row["times"]), []).append(row)
        base = by_arm[BASE, 0.0]
        moved = {arm: mean_difference(rows, base, "trait").to_json() for arm, rows in by_arm.items()}
        for name in names:
            table["effects"][name][trait] = moved[name, 1.0]
            table["coherence"][name][trait] = mean_difference(by_arm[name, 1.0], base, "coherence").to_json()
        table["random"][trait] = moved[RANDOM, 1.0]
        table["reach"][trait] = reach_of([row for row in scored if row["along"] in (trait, BASE)]) | {
            "doses": [{"times": times, "change": moved[trait, times]} for times in DOSES]
        }
    return table


def reach_of(rows: Rows) -> Row:
    """Whether a trait's evidence grows with the multiple of its vector's coefficient, and whether in a straight line.

    A score is the evidence bent to lie between 0 and 100: of a straight line it makes one that accelerates and then
    saturates.
    """
    times = np.array([row["times"] for row in rows], dtype=float)
    scores = evidence(rows)
    questions = np.array([row["question_id"] for row in rows])
    good = ~np.isnan(scores)
    slope = clustered(_fitted(times[good], scores[good], 1), questions[good])
    bent = clustered(_fitted(times[good], scores[good], 2), questions[good])
    return {
        "slope": slope.to_json(),
        "curvature": bent.to_json(),
        "verdict": verdict(slope.low, slope.high, bent.low, bent.high),
    }


def evidence(rows: Rows) -> Float[ndarray, " row"]:
    """The log odds of each score, within ±6.9: the weighed evidence that a judge with a logistic scale made it of."""
    share = np.clip(column(rows, "trait") / 100, 0.001, 0.999)
    return np.asarray(np.log(share / (1 - share)))


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
