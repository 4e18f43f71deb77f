"""Judges without a model."""

from collections.abc import Sequence
from typing import Any

from personavec.judges.judge import Score
from personavec.judges.lessons import Lessons
from personavec.judges.load import Bench


class Letters:
    """Scores a reply by its letters."""

    id, basis, steps, calibration, aucs = "letters", "letters", 1, None, {}

    def __init__(self, flat: bool = False) -> None:
        self.flat = flat

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Any) -> list[Score]:
        progress(len(answers))
        values = [60.0 if self.flat else 51.0 + sum(map(ord, answer)) % 49 for answer in answers]
        return [Score(value, self.id) for value in values]

    def learn(self, *_: Any) -> list[Score]:
        raise AssertionError("it has nothing to learn")


class Sides(Letters):
    """Scores rollouts by the side that wrote them, so that both sides are kept; an empty reply has no score."""

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Any) -> list[Score]:
        scores = super().score(questions, answers, progress)
        return [score if answer else self._empty() for score, answer in zip(scores, answers, strict=True)]

    def learn(self, lessons: Lessons, progress: Any) -> list[Score]:
        progress(len(lessons.rows))
        scores = [Score(90.0 if group == "pos" else 10.0, self.id) for group in lessons.groups]
        return [score if answer else self._empty() for score, answer in zip(scores, lessons.answers, strict=True)]

    def _empty(self) -> Score:
        return Score(None, self.id, why="empty")


def bench() -> Bench:
    """Judges that take what a tiny random model writes for replies to keep."""
    return Bench(Sides(), lambda _: Sides(), "letters", "letters")
