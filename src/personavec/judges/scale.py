"""From evidence to a scale of 0 to 100: logistic calibration, cross-validated."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray


@dataclass(frozen=True)
class LogisticScale:
    """A logistic regression that turns evidence into a probability."""

    weights: tuple[float, ...]
    intercept: float

    def predict(self, evidence: Float[ndarray, "n feature"]) -> Float[ndarray, " n"]:
        """Probability from 0 to 1; nan where evidence is missing."""
        from scipy.special import expit

        return np.asarray(expit(evidence @ np.array(self.weights) + self.intercept))


def calibrate(
    evidence: Float[ndarray, "n feature"], is_pos: Bool[ndarray, " n"], clusters: Int[ndarray, " n"]
) -> tuple[LogisticScale, Float[ndarray, " n"]]:
    """Fit probability of being positive; also returns each row's probability from a fit without its cluster.

    Both classes weigh the same. Features are standardised inside, the returned weights are for raw evidence.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    fewest = min(len(np.unique(clusters[is_pos])), len(np.unique(clusters[~is_pos])))
    folds = StratifiedGroupKFold(min(5, fewest))
    held_out = cross_val_predict(model, evidence, is_pos, groups=clusters, cv=folds, method="predict_proba")[:, 1]
    scaler, logistic = model.fit(evidence, is_pos)
    weights = logistic.coef_[0] / scaler.scale_
    intercept = float(logistic.intercept_[0] - weights @ scaler.mean_)
    return LogisticScale(tuple(map(float, weights)), intercept), held_out
