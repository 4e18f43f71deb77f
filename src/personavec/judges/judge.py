"""What every judge offers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Score:
    """One judgement."""

    value: float | None
    """0 to 100; None when the reply was refused, empty, or could not be scored."""
    judge: str
    """Id of the judge; scores of different judges are never mixed."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What the value was computed from."""


class Judge(Protocol):
    """Scores replies to questions, many at a time."""

    @property
    def id(self) -> str:
        """Name that goes beside every figure."""

    @property
    def basis(self) -> str:
        """What its scale depends on besides the trait; a scale is only taken over where this is equal."""

    @property
    def steps(self) -> int:
        """How often `progress` hears of each reply: forward passes over it."""

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        """Score each answer to its question.

        Raises:
            JudgeError: The judge cannot work at all; single failures are scores without a value.
        """
