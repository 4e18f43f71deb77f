"""What every judge offers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from personavec.judges.lessons import Lessons
from personavec.judges.scale import LogisticScale
from personavec.stats.intervals import Interval

Progress = Callable[[int], None]
Why = Literal["empty", "refused", "filtered", "unparseable", "failed"]
"""What kept a judge from scoring a reply: no text, a refusal in it or of the judge, an answer that its provider kept
back, one that names no value, an error."""


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
    aucs: dict[str, Interval]
    """How well it tells replies apart of which it is known what they are, by what they were told from; may be empty."""

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        """Score each answer to its question.

        Raises:
            JudgeError: The judge cannot work at all; single failures are scores without a value.
        """


@runtime_checkable
class TraitJudge(Judge, Protocol):
    """A judge of one trait."""

    def learn(self, lessons: Lessons, progress: Progress) -> list[Score]:
        """Score replies of which it is known who wrote them, without letting the judge see it; sets `aucs`.

        A judge whose scale is learned learns it; a lesson's score comes from a fit without its question and its
        instruction.

        Args:
            lessons: The trait's rollouts and all that they must not be mistaken for.
            progress: Told of every reading.

        Raises:
            JudgeError: Too few replies that show the trait, or that do not.
        """
