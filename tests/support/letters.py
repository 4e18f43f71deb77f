"""A judge without a model."""

from collections.abc import Sequence
from typing import Any

from personavec.judges.judge import Score


class Letters:
    """Scores a reply by its letters."""

    id, basis, steps, calibration, auc = "letters", "letters", 1, None, None

    def __init__(self, flat: bool = False) -> None:
        self.flat = flat

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Any) -> list[Score]:
        progress(len(answers))
        values = [60.0 if self.flat else 51.0 + sum(map(ord, answer)) % 49 for answer in answers]
        return [Score(value, self.id) for value in values]

    def score_rollouts(self, *_: Any) -> list[Score]:
        raise AssertionError("it has nothing to learn")
