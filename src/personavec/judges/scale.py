"""From evidence to a scale of 0 to 100: logistic calibration, cross-validated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from personavec.errors import JudgeError


@dataclass(frozen=True)
class LogisticScale:
    """A logistic regression that turns evidence into a probability."""

    weights: tuple[float, ...]
    intercept: float

    def predict(self, evidence: Float[ndarray, "n feature"]) -> Float[ndarray, " n"]:
        """Probability from 0 to 1; nan where evidence is missing.

        Raises:
            JudgeError: The scale is one of other evidence.
        """
        from scipy.special import expit

        if evidence.shape[1] != len(self.weights):
            raise JudgeError(
                f"expected a scale of {evidence.shape[1]} weights, got {len(self.weights)}; pass the judge.json or "
                "the vector as its run wrote it"
            )
        return np.asarray(expit(evidence @ np.array(self.weights) + self.intercept))


FOLDS = 5


def calibrate(
    evidence: Float[ndarray, "n feature"],
    is_pos: Bool[ndarray, " n"],
    clusters: Int[ndarray, " n"],
    *,
    writers: Int[ndarray, " n"] | None = None,
    groups: Sequence[str] | None = None,
    strength: float | None = None,
) -> tuple[LogisticScale, Float[ndarray, " n"]]:
    """Fit probability of being positive; also returns each row's probability from a fit without its kind.

    Positive and other rows weigh the same. Features are standardised inside, the weights are for raw evidence.

    Args:
        evidence: Of each row.
        is_pos: What is to be predicted.
        clusters: Which question each row answers: a row's probability comes from a fit without its question.
        writers: Under which instruction each was written: and without its instruction; -1 for none.
        groups: What each row is an example of: those on a side weigh the same.
        strength: Inverse strength of the ridge, for all rows together; less holds the weights smaller.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0 if strength is None else strength / len(evidence)))
    names = np.array(is_pos.astype(str) if groups is None else groups)
    weights = np.zeros(len(names))
    for side in (is_pos, ~is_pos):
        present = np.unique(names[side])
        for name in present:
            rows = side & (names == name)
            weights[rows] = len(names) / (2 * len(present) * rows.sum())

    def fit(rows: Bool[ndarray, " n"]) -> Any:
        return model.fit(evidence[rows], is_pos[rows], logisticregression__sample_weight=weights[rows])

    share = [float(is_pos[clusters == cluster].mean()) for cluster in clusters]
    order = np.lexsort((clusters, np.array(share)))  # neighbours go to different folds: each side is in several
    places = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters[order].tolist()))}
    question_fold = np.array([places[cluster] % min(FOLDS, len(places)) for cluster in clusters.tolist()])
    writer_fold = question_fold if writers is None else np.where(writers < 0, -1, writers % FOLDS)
    held_out = np.full(len(names), np.nan)
    for question, writer in {*zip(question_fold.tolist(), writer_fold.tolist(), strict=True)}:
        out, others = (question_fold == question) & (writer_fold == writer), question_fold != question
        both = others & ((writer_fold != writer) | (writer_fold < 0))
        rows = both if len({*is_pos[both].tolist()}) == 2 else others  # few instructions: all may be held out
        held_out[out] = fit(rows).predict_proba(evidence[out])[:, 1]
    scaler, logistic = fit(np.ones(len(names), dtype=bool))
    weights = logistic.coef_[0] / scaler.scale_
    intercept = float(logistic.intercept_[0] - weights @ scaler.mean_)
    return LogisticScale(tuple(map(float, weights)), intercept), held_out
