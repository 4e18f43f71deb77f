"""Means, separations and correlations, with intervals that take whole questions, or each row by itself, as drawn.

Those of clusters are Student's t with the delete-one-cluster jackknife's standard error and clusters − 1 degrees of
freedom; AUCs on the logit scale, correlations on Fisher's. `benchmarks/validity.py` simulates what they
cover.
Source: Tukey (1958); Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from personavec.stats.nulls import FEWEST, ROUNDING, correlations, varies

CONFIDENCE = 0.95
FEWEST_CLUSTERS = 8
"""Clusters below which an interval rests on too few."""


class Interval(NamedTuple):
    """A mean with its 95% confidence interval."""

    mean: float
    low: float
    high: float
    n: int
    """Number of values behind it."""
    dropped: int = 0
    """Number of values left out: refused, empty or unscored replies."""
    clusters: int | None = None
    """Number of clusters (questions) that it takes as drawn; None: each value by itself."""

    @property
    def few(self) -> bool:
        """Whether there are too few clusters to lean on it: the t distribution is then most of its width."""
        return self.clusters is not None and self.clusters < FEWEST_CLUSTERS

    def to_json(self) -> dict[str, Any]:
        """As it stands in result files; null where there was too little to tell."""
        mean, low, high = (None if np.isnan(value) else round(value, 4) for value in self[:3])
        known = {} if self.clusters is None else {"clusters": self.clusters}
        return {"mean": mean, "ci": [low, high], "n": self.n, "dropped": self.dropped} | known


def equivalent(difference: Interval, margin: float) -> bool:
    """Whether a difference is shown to be small: its whole interval lies within ± the margin.

    Source: Schuirmann (1987), two one-sided tests; with a 95% interval each of them is made at 2.5%.
    """
    return bool(-margin <= difference.low and difference.high <= margin)


class Transform(NamedTuple):
    """Where an interval is symmetric."""

    to: Callable[[Any], Any]
    back: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    """Derivative of `to`."""


LINEAR = Transform(np.asarray, np.asarray, np.ones_like)
FISHER = Transform(np.arctanh, np.tanh, lambda r: 1 / (1 - r**2))
LOGIT = Transform(lambda p: np.arctanh(2 * p - 1), lambda z: (np.tanh(z) + 1) / 2, lambda p: 0.5 / (p * (1 - p)))


def jackknife(
    point: float,
    without: Float[ndarray, " cluster"],
    n: int,
    scale: Transform = LINEAR,
    freedom: float | None = None,
    crossed: Float[ndarray, " other"] | None = None,
) -> Interval:
    """A statistic with its 95% interval, from what it is without each cluster in turn.

    No interval (nan) where there are fewer than two clusters, or where one of them holds all that there is to see. An
    AUC of 0 or 1 says nothing of its own spread: its far bound is Clopper and Pearson's for that many clusters
    that are all alike.

    Args:
        point: Of all clusters.
        without: Without each of them.
        n: Number of values.
        scale: Where the interval is symmetric.
        freedom: Degrees of freedom; default clusters − 1.
        crossed: What it is without each cluster of another kind that crosses the first, if those are drawn as well
            (Cameron, Gelbach and Miller, 2011). Their variance is added, which is too much rather than too little.
    """
    from scipy.special import stdtrit

    kinds = [without] if crossed is None else [without, crossed]
    clusters = min(map(len, kinds))
    spread = sum((len(kind) - 1) * float(kind.var()) for kind in kinds) if clusters > 1 else np.nan
    if not np.isfinite(spread):
        return Interval(point, np.nan, np.nan, n, clusters=clusters)
    tail = (1 - CONFIDENCE) / 2
    if scale is LOGIT and point in (0, 1):
        far = tail ** (1 / clusters)
        low, high = (far, 1.0) if point else (0.0, 1 - far)
        return Interval(point, low, high, n, clusters=clusters)
    if spread <= (ROUNDING * point) ** 2:
        return Interval(point, point, point, n, clusters=clusters)
    half = stdtrit(freedom or clusters - 1, 1 - tail) * np.sqrt(spread) * scale.slope(point)
    low, high = (float(scale.back(scale.to(point) + side * half)) for side in (-1, 1))
    return Interval(point, low, high, n, clusters=clusters)


def clustered(
    of: Callable[[Int[ndarray, " row"]], float],
    clusters: Int[ndarray, " n"],
    scale: Transform = LINEAR,
    crossed: Int[ndarray, " n"] | None = None,
) -> Interval:
    """A statistic of rows, with the jackknife's interval over whole clusters, and over those that cross them."""

    def without(labels: Int[ndarray, " n"]) -> Float[ndarray, " cluster"]:
        names = np.unique(labels)
        left = [of(np.flatnonzero(labels != name)) if len(names) > 1 else np.nan for name in names]
        return np.array(left, dtype=float)

    point, other = of(np.arange(len(clusters))), None if crossed is None else without(crossed)
    return jackknife(point, without(clusters), len(clusters), scale, crossed=other)


def clustered_mean(
    values: Float[ndarray, " n"],
    clusters: Int[ndarray, " n"],
) -> Interval:
    """Mean with Student's 95% interval over the means of clusters (questions), not over single replies.

    A single cluster has a mean, but no interval (nan).

    Args:
        values: One per reply; nan (refused, empty) is left out and counted as dropped.
        clusters: Which question each reply answers.
    """
    return clustered_ratio(values, np.where(np.isnan(values), np.nan, 1.0), clusters)


def clustered_ratio(above: Float[ndarray, " n"], below: Float[ndarray, " n"], clusters: Int[ndarray, " n"]) -> Interval:
    """Ratio of two sums with a 95% interval over whole clusters (questions).

    Clusters of unequal size have Kish's effective number of clusters, less 1, as degrees of freedom.

    Args:
        above: One per reply; where either is nan (refused, empty) both are left out and counted as dropped.
        below: What it is a share of.
        clusters: Which question each reply answers.
    """
    valid = ~(np.isnan(above) | np.isnan(below))
    n, dropped = int(valid.sum()), int((~valid).sum())
    _, index = np.unique(clusters[valid], return_inverse=True)
    sums, counts = np.bincount(index, above[valid]), np.bincount(index, below[valid])
    if not counts.sum():
        return Interval(np.nan, np.nan, np.nan, n, dropped, len(sums))
    with np.errstate(divide="ignore", invalid="ignore"):  # a single cluster leaves nothing
        without = (sums.sum() - sums) / (counts.sum() - counts)
    even = float(counts.sum() ** 2 / (counts**2).sum())  # clusters of one size that would say as much
    found = jackknife(float(sums.sum() / counts.sum()), without, n, freedom=max(even - 1, 1.0))
    return found._replace(dropped=dropped)


def auc(pos: Float[ndarray, " n"], neg: Float[ndarray, " m"]) -> float:
    """Chance that a positive value lies above a negative one; 0.5 is no separation."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(pos, neg).statistic / (len(pos) * len(neg)))


def auc_interval(
    values: Float[ndarray, " n"],
    is_pos: Bool[ndarray, " n"],
    clusters: Int[ndarray, " n"],
) -> Interval:
    """AUC with a 95% interval over whole clusters (questions), on the logit scale."""
    return clustered(_of_sides(auc, values, is_pos), clusters, LOGIT)


def difference_interval(
    values: Float[ndarray, " n"],
    is_pos: Bool[ndarray, " n"],
    clusters: Int[ndarray, " n"],
) -> Interval:
    """Mean of the positive values minus that of the others, with an interval over whole clusters."""
    return clustered(_of_sides(lambda pos, neg: float(pos.mean() - neg.mean()), values, is_pos), clusters)


def _of_sides(
    of: Callable[[Float[ndarray, " p"], Float[ndarray, " q"]], float],
    values: Float[ndarray, " n"],
    is_pos: Bool[ndarray, " n"],
) -> Callable[[Int[ndarray, " row"]], float]:
    """A statistic of both sides as one of rows."""

    def of_rows(rows: Int[ndarray, " row"]) -> float:
        pos, neg = values[rows][is_pos[rows]], values[rows][~is_pos[rows]]
        return of(pos, neg) if len(pos) and len(neg) else np.nan

    return of_rows


def or_nan(value: float | None) -> float:
    """What JSON writes as null."""
    return float("nan") if value is None else value


def pearson(x: Float[ndarray, " n"], y: Float[ndarray, " n"], groups: Int[ndarray, " n"] | None = None) -> float:
    """Pearson's r, or with groups its mean over those in which both sides vary; nan where none do.

    Values that are nan on either side are left out.
    """
    valid = ~(np.isnan(x) | np.isnan(y))
    inside = None if groups is None else groups[valid]
    return float(correlations(x[valid, None].astype(float), y[valid].astype(float), inside)[0])


def pearson_interval(
    x: Float[ndarray, " n"],
    y: Float[ndarray, " n"],
    clusters: Int[ndarray, " n"],
    groups: Int[ndarray, " n"] | None = None,
    crossed: Int[ndarray, " n"] | None = None,
) -> Interval:
    """The same with a 95% interval over whole clusters (questions), and those that cross them, on Fisher's scale."""

    def of(rows: Int[ndarray, " row"]) -> float:
        return pearson(x[rows], y[rows], None if groups is None else groups[rows])

    return _of_pairs(of, x, y, clusters, crossed)


def spearman_interval(
    x: Float[ndarray, " n"],
    y: Float[ndarray, " n"],
    clusters: Int[ndarray, " n"],
) -> Interval:
    """Rank correlation with a 95% interval over whole clusters (questions), on Fisher's scale.

    Values that are nan on either side are left out and counted as dropped; nan where a side does not vary.
    """
    from scipy.stats import spearmanr

    def of(rows: Int[ndarray, " row"]) -> float:
        if len(rows) < 2 or np.ptp(x[rows]) == 0 or np.ptp(y[rows]) == 0:
            return np.nan
        return float(spearmanr(x[rows], y[rows]).statistic)

    return _of_pairs(of, x, y, clusters)


def _of_pairs(
    of: Callable[[Int[ndarray, " row"]], float],
    x: Float[ndarray, " n"],
    y: Float[ndarray, " n"],
    clusters: Int[ndarray, " n"],
    crossed: Int[ndarray, " n"] | None = None,
) -> Interval:
    """A correlation of the rows that have both values."""
    valid = np.flatnonzero(~(np.isnan(x) | np.isnan(y)))
    other = None if crossed is None else crossed[valid]
    found = clustered(lambda rows: of(valid[rows]), clusters[valid], FISHER, other)
    return found._replace(dropped=len(x) - len(valid))


def ceiling(scores: Float[ndarray, "row reply"], groups: Int[ndarray, " row"]) -> Interval:
    """The highest r within groups that a signal known before the reply can have with the mean score of the replies.

    √(share of the variance of a row's mean that is no noise between replies to the same row), by a one-way analysis of
    variance pooled over the groups, with the interval of its F. Nothing where no row has two replies with a score.
    Source: Shrout and Fleiss (1979), ICC(1, k); the square root: Spearman's attenuation.
    """
    from scipy.stats import f

    known = ~np.isnan(scores)
    counts, totals = known.sum(axis=1), np.nansum(scores, axis=1)
    rows, n = counts > 0, int(known.sum())
    means = totals[rows] / counts[rows]
    _, index = np.unique(groups[rows], return_inverse=True)
    sizes = np.bincount(index)
    between, within = len(means) - len(sizes), n - len(means)
    left = float(np.nansum((scores[rows] - means[:, None]) ** 2))
    if not left or between < 1:
        return Interval(np.nan, np.nan, np.nan, n)
    noise = left / within * float((1 / counts[rows]).mean())
    ratio = float(((means - (np.bincount(index, means) / sizes)[index]) ** 2).sum()) / between / noise
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    limits = np.array([1, *f.ppf(tails[::-1], between, within)])
    mean, low, high = np.sqrt(np.maximum(0, 1 - limits / max(ratio, ROUNDING))).tolist()
    return Interval(mean, low, high, n)


def pearson_rows(x: Float[ndarray, " n"], y: Float[ndarray, " n"]) -> Interval:
    """Pearson's r of any number of rows, each drawn by itself; nan values are left out, nan where a side is flat.

    Source: the 95% interval is Fisher's: z with variance 1 / (n − 3).
    """
    from scipy.special import ndtri

    return _of_rows(pearson, x, y, lambda _, n: float(ndtri((1 + CONFIDENCE) / 2)) / np.sqrt(n - 3))


def spearman_rows(x: Float[ndarray, " n"], y: Float[ndarray, " n"]) -> Interval:
    """The same of ranks.

    Source: the 95% interval is Bonett and Wright's (2000): Fisher's z with variance (1 + r²/2) / (n − 3).
    """
    from scipy.stats import spearmanr

    return _of_rows(
        lambda x, y: float(spearmanr(x, y).statistic), x, y, lambda r, n: 1.96 * np.sqrt((1 + r**2 / 2) / (n - 3))
    )


def _of_rows(
    of: Callable[[Float[ndarray, " n"], Float[ndarray, " n"]], float],
    x: Float[ndarray, " n"],
    y: Float[ndarray, " n"],
    half: Callable[[float, int], float],
) -> Interval:
    """A correlation with the interval that lies `half` to either side on Fisher's scale."""
    valid = ~(np.isnan(x) | np.isnan(y))
    n, dropped = int(valid.sum()), int((~valid).sum())
    if n < FEWEST or not varies(np.column_stack([x[valid], y[valid]])).all():
        return Interval(np.nan, np.nan, np.nan, n, dropped)
    r = of(x[valid], y[valid])
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return Interval(r, float(np.tanh(z - half(r, n))), float(np.tanh(z + half(r, n))), n, dropped)
