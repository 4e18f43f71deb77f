"""The final check: what is done to the model, and what it is compared with. `verdict` says what follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from personavec.judges.scoring import ScoredRow
from personavec.steering.rollouts import Interview, Plan
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.verbs.extract.sweep import Cell

Along = Literal["none", "vector", "random", "matched", "shuffled", "garbled"]


@dataclass(frozen=True)
class Arm:
    """One way to treat the model, or its replies, in the final check."""

    name: str
    direction: Along
    """What it is steered along; `garbled` are base replies with their words damaged."""
    share: float
    """Coefficient as a share of the chosen one."""


ARMS = (
    Arm("suppressed", "vector", -1),
    Arm("base", "none", 0),
    Arm("steered", "vector", 1),
    Arm("random", "random", 1),
    Arm("matched", "matched", 1),
    Arm("shuffled", "shuffled", 1),
    Arm("garbled", "garbled", 0),
)


def check_plans(
    interview: Interview,
    questions: Sequence[str],
    directions: Mapping[Along, Sequence[PersonaVector]],
    chosen: Cell,
    rollouts: int,
) -> list[Plan]:
    """Fresh replies of every steered arm, with the base replies' random numbers.

    Args:
        interview: Who is asked, and how.
        questions: What is asked.
        directions: By what an arm is steered along: one vector, or one for every reply in turn.
        chosen: Layer and coefficient.
        rollouts: Replies per question.
    """
    return [
        plan
        for arm in ARMS
        if arm.direction in directions
        for plan in interview.answers(
            questions,
            rollouts,
            draw="base",
            extra={"arm": arm.name, "layer": chosen.layer, "coef": arm.share * chosen.coef},
            steering=[(Steering(v, arm.share * chosen.coef, chosen.layer),) for v in directions[arm.direction]],
        )
    ]


def by_arm(rows: Sequence[ScoredRow]) -> dict[str, list[ScoredRow]]:
    """The replies of each arm."""
    return {arm.name: [row for row in rows if row["arm"] == arm.name] for arm in ARMS}
