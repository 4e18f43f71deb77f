"""The final check: arms on both signs, controls of the same norm, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from personavec.judges.scoring import Judges
from personavec.stats.intervals import Interval
from personavec.steering.rollouts import Interview, Plan
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.verbs.extract.sweep import Cell

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to steer in the final check."""

    name: str
    direction: str
    """"none", "vector", "random" or "shuffled"."""
    share: float
    """Coefficient as a share of the chosen one."""
    decides: bool = True
    """Whether the verdict asks for it; the others are there to be looked at."""


ARMS = (
    Arm("suppressed", "vector", -1),
    Arm("half_suppressed", "vector", -0.5, decides=False),
    Arm("base", "none", 0),
    Arm("half_steered", "vector", 0.5, decides=False),
    Arm("steered", "vector", 1),
    Arm("random", "random", 1),
    Arm("shuffled", "shuffled", 1, decides=False),
)


def check_plans(
    interview: Interview,
    questions: Sequence[str],
    directions: Mapping[str, Sequence[PersonaVector]],
    chosen: Cell,
    rollouts: int,
) -> list[Plan]:
    """Fresh replies of every arm but the base, with the base replies' random numbers.

    Args:
        interview: Who is asked, and how.
        questions: What is asked.
        directions: By what an arm is steered along: one vector, or one for every reply in turn.
        chosen: Layer and coefficient.
        rollouts: Replies per question; the arms that decide nothing get half as many.
    """
    return [
        plan
        for arm in ARMS
        if arm.direction != "none"
        for plan in interview.answers(
            questions,
            rollouts if arm.decides else (rollouts + 1) // 2,
            draw="base",
            extra={"arm": arm.name, "layer": chosen.layer, "coef": arm.share * chosen.coef},
            steering=[(Steering(v, arm.share * chosen.coef, chosen.layer),) for v in directions[arm.direction]],
        )
    ]


def verdict(arms: dict[str, Row], judges: Judges, floor: float) -> list[Row]:
    """The conditions of a proof, each with its figures and whether it holds."""
    trait = {name: arm["trait"] for name, arm in arms.items()}
    base, steered, suppressed, random = (trait[name] for name in ("base", "steered", "suppressed", "random"))
    up, down = (arms[name]["coherence"] for name in ("steered", "suppressed"))
    auc = judges.trait.auc or Interval(np.nan, np.nan, np.nan, 0)
    return [
        {"text": f"Suppressed lies below base: {_ci(suppressed)} < {_ci(base)}", "holds": suppressed.high < base.low},
        {"text": f"Steered lies above base: {_ci(steered)} > {_ci(base)}", "holds": steered.low > base.high},
        {
            "text": f"Random directions of the same norm do not move it: {_ci(random)} covers {base.mean:.1f}",
            "holds": random.low <= base.mean <= random.high,
        },
        {
            "text": f"Replies stay coherent: {_ci(up)} steered, {_ci(down)} suppressed, floor {floor:g}",
            "holds": up.mean >= floor and down.mean >= floor,
        },
        {
            "text": f"The judge separates the sides it never saw: AUC {auc.mean:.2f} [{auc.low:.2f}, {auc.high:.2f}]",
            "holds": not judges.weak,
        },
    ]


def _ci(value: Interval) -> str:
    return f"{value.mean:.1f} [{value.low:.1f}, {value.high:.1f}]"
