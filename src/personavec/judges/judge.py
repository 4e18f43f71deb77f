"""What every judge offers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from personavec.judges.scale import LogisticScale
from personavec.stats.intervals import Interval

Progress = Callable[[int], None]
Why = Literal["empty", "refused", "unparseable", "failed"]
"""What kept a judge from scoring a reply: no text, a refusal in it, an answer that names no value, an error."""


@dataclass(frozen=True)
class Score:
    """One judgement."""

    value: float | None
    """0 to 100, or None."""
    judge: str
    """Id of the judge; scores of different judges are never mixed."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What the value was computed from."""
    why: Why | None = None
    """Why there is no value."""


@runtime_checkable
class Judge(Protocol):
    """Scores replies to questions, many at a time."""

    id: str
    """Name that goes beside every figure."""
    basis: str
    """What its scale depends on besides the trait; a scale is only taken over where this is equal."""
    steps: int
    """How often `progress` hears of each reply: readings of it."""
    calibration: LogisticScale | None
    """The scale, of judges that have to learn one."""
    auc: Interval | None
    """How well it separates replies whose side is known; None until it has seen such."""

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        """Score each answer to its question.

        Raises:
            JudgeError: The judge cannot work at all; single failures are scores without a value.
        """


@runtime_checkable
class TraitJudge(Judge, Protocol):
    """A judge of one trait."""

    def score_rollouts(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        sides: Sequence[str],
        pairs: Sequence[int],
        seed: int,
        progress: Progress,
    ) -> list[Score]:
        """Score contrastive rollouts without letting the judge see which side wrote a reply; sets `auc`.

        Args:
            questions: What was asked.
            answers: What was replied.
            sides: "pos" or "neg" instruction behind each reply.
            pairs: Instruction pair behind each reply.
            seed: Of the interval.
            progress: Told of every reading.

        Raises:
            JudgeError: Too few replies on a side.
        """
