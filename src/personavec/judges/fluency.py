"""Offline coherence: is a reply as fluent as the unsteered model's own, and free of loops?"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import JudgeError
from personavec.judges.garble import garble
from personavec.judges.judge import Progress, Score
from personavec.judges.plain import PlainReader
from personavec.judges.scale import LogisticScale, calibrate
from personavec.model.logits import Ids
from personavec.stats.intervals import Interval, auc_interval

GRAM = 3
"""Length of the token runs whose repetition is counted."""


class FluencyJudge:
    """Coherence 0–100: how likely a reply is an intact one of the model's own rather than a garbled one.

    Fluency only: fluent evil text is coherent. Calibrated on the base model's replies against the same replies
    with their words shuffled, partly swapped, or looped.
    """

    copies = 4
    """Texts that are scored for each base reply while the scale is learned: itself and three damaged copies."""

    def __init__(self, plain: PlainReader) -> None:
        self._plain = plain
        self.id = f"fluency:{plain.model.identity.id}"
        self.steps = 1
        self.basis = f"weights {plain.model.identity.revision[:16]}, system prompt {plain.system}"
        self.calibration: LogisticScale | None = None
        self.aucs: dict[str, Interval] = {}

    def calibrate(self, questions: Sequence[str], answers: Sequence[str], seed: int, progress: Progress) -> None:
        """Learn the 0–100 scale, and its AUC cross-validated by question, from the base model's replies.

        Raises:
            JudgeError: Fewer than two questions have replies that can be damaged.
        """
        groups = np.unique(np.array(questions), return_inverse=True)[1]
        garbled = [*zip(*(garble(answer, (seed, index)) for index, answer in enumerate(answers)), strict=True)]
        texts = [*answers, *(text for kind in garbled for text in kind)]
        features = self._features(list(questions) * self.copies, texts, progress)
        intact = np.arange(len(texts)) < len(answers)
        originals = [*answers] * self.copies
        damaged = np.array([copy.split() != text.split() for copy, text in zip(texts, originals, strict=True)])
        valid = (intact | damaged) & ~np.isnan(features).any(axis=1)
        groups = np.tile(groups, self.copies)
        if len(set(groups[valid & damaged])) < 2:
            raise JudgeError(
                "expected replies of several words to at least two questions to learn coherence from, got fewer; "
                "raise --max-new-tokens or choose another model"
            )
        self.calibration, held_out = calibrate(features[valid], intact[valid], groups[valid])
        auc = auc_interval(held_out, intact[valid], groups[valid])
        self.aucs = {"garbled": auc._replace(dropped=int((~valid).sum()))}

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        """Score replies; see `Judge`."""
        if self.calibration is None:
            raise JudgeError("expected a calibrated judge, got one without calibration; call calibrate first")
        return self._scores(self.calibration.predict(self._features(questions, answers, progress)))

    def _features(
        self, questions: Sequence[str], answers: Sequence[str], progress: Progress
    ) -> Float[ndarray, "reply feature"]:
        """Mean log-probability, that of the least likely tokens, and repetition; nan for empty replies."""
        loops = [repetition(self._plain.model.reply_ids(answer)) for answer in answers]
        return np.column_stack([self._plain.read(questions, answers, progress), loops])

    def _scores(self, chances: Float[ndarray, " reply"]) -> list[Score]:
        return [Score(None, self.id, why="empty") if np.isnan(c) else Score(100 * float(c), self.id) for c in chances]


def repetition(ids: Ids) -> float:
    """Share of token runs of length `GRAM` that occurred before in the same reply, 0 to 1."""
    grams = [ids[start : start + GRAM] for start in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
