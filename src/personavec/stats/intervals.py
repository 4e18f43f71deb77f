"""Means, separations and correlations, with intervals that resample whole questions or take each row by itself."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from personavec.stats.nulls import FEWEST, correlations, varies

CONFIDENCE = 0.95
RESAMPLES = 4000


class Interval(NamedTuple):
    """A mean with its 95% confidence interval."""

    mean: float
    low: float
    high: float
    n: int
    """Number of values behind it."""
    dropped: int = 0
    """Number of values left out: refused, empty or unscored replies."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in result files; null where there was too little to tell."""
        mean, low, high = (None if np.isnan(value) else round(value, 4) for value in self[:3])
        return {"mean": mean, "ci": [low, high], "n": self.n, "dropped": self.dropped}


def clustered_mean(values: Float[ndarray, " n"], clusters: Int[ndarray, " n"], seed: int = 0) -> Interval:
    """Mean with a 95% bootstrap interval that resamples whole clusters (questions), not single replies.

    A single cluster has a mean, but no interval (nan).

    Args:
        values: One per reply; nan (refused, empty) is left out and counted as dropped.
        clusters: Which question each reply answers.
        seed: Of the resampling.
    """
    return clustered_ratio(values, np.where(np.isnan(values), np.nan, 1.0), clusters, seed)


def clustered_ratio(
    above: Float[ndarray, " n"], below: Float[ndarray, " n"], clusters: Int[ndarray, " n"], seed: int = 0
) -> Interval:
    """Ratio of two sums with a 95% bootstrap interval that resamples whole clusters (questions).

    Args:
        above: One per reply; where either is nan (refused, empty) both are left out and counted as dropped.
        below: What it is a share of.
        clusters: Which question each reply answers.
        seed: Of the resampling.
    """
    from scipy.stats import bootstrap

    valid = ~(np.isnan(above) | np.isnan(below))
    n, dropped = int(valid.sum()), int((~valid).sum())
    _, index = np.unique(clusters[valid], return_inverse=True)
    sums, counts = np.bincount(index, above[valid]), np.bincount(index, below[valid])
    if not counts.sum():
        return Interval(np.nan, np.nan, np.nan, n, dropped)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return Interval(mean, np.nan, np.nan, n, dropped)
    if counts.all() and np.ptp(sums / counts) == 0:
        return Interval(mean, mean, mean, n, dropped)
    bounds = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high), n, dropped)


def streamed_mean(values: Float[ndarray, " n"]) -> Interval:
    """Mean of any number of values, with a 95% interval (Student's t) that takes each of them as drawn by itself."""
    from scipy.stats import t

    known = values[~np.isnan(values)].astype(float)
    n, dropped = len(known), int(len(values) - len(known))
    if n < 2 or np.ptp(known) == 0:
        mean = float(known.mean()) if n else np.nan
        return Interval(mean, *((mean, mean) if n > 1 else (np.nan, np.nan)), n, dropped)
    mean, half = float(known.mean()), float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * known.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, dropped)


def auc(pos: Float[ndarray, " n"], neg: Float[ndarray, " m"]) -> float:
    """Chance that a positive value lies above a negative one; 0.5 is no separation."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(pos, neg).statistic / (len(pos) * len(neg)))


def auc_interval(
    values: Float[ndarray, " n"], is_pos: Bool[ndarray, " n"], clusters: Int[ndarray, " n"], seed: int = 0
) -> Interval:
    """AUC with a 95% bootstrap interval that resamples whole clusters (questions)."""
    return _of_sides(auc, values, is_pos, clusters, seed)


def difference_interval(
    values: Float[ndarray, " n"], is_pos: Bool[ndarray, " n"], clusters: Int[ndarray, " n"], seed: int = 0
) -> Interval:
    """Mean of the positive values minus that of the others, with an interval that resamples whole clusters."""
    return _of_sides(lambda pos, neg: float(pos.mean() - neg.mean()), values, is_pos, clusters, seed)


def _of_sides(
    of: Callable[[Float[ndarray, " p"], Float[ndarray, " q"]], float],
    values: Float[ndarray, " n"],
    is_pos: Bool[ndarray, " n"],
    clusters: Int[ndarray, " n"],
    seed: int,
) -> Interval:
    def drawn(rows: Int[ndarray, " row"]) -> float:
        pos, neg = values[rows][is_pos[rows]], values[rows][~is_pos[rows]]
        return of(pos, neg) if len(pos) and len(neg) else np.nan

    return clustered(drawn, clusters, seed)


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
    seed: int = 0,
) -> Interval:
    """The same with a 95% bootstrap interval that resamples whole clusters (questions)."""

    def of(rows: Int[ndarray, " row"]) -> float:
        return pearson(x[rows], y[rows], None if groups is None else groups[rows])

    return _of_pairs(of, x, y, clusters, seed)


def spearman_interval(
    x: Float[ndarray, " n"], y: Float[ndarray, " n"], clusters: Int[ndarray, " n"], seed: int = 0
) -> Interval:
    """Rank correlation with a 95% bootstrap interval that resamples whole clusters (questions).

    Values that are nan on either side are left out and counted as dropped; nan where a side does not vary.
    """
    from scipy.stats import spearmanr

    def of(rows: Int[ndarray, " row"]) -> float:
        if len(rows) < 2 or np.ptp(x[rows]) == 0 or np.ptp(y[rows]) == 0:
            return np.nan
        return float(spearmanr(x[rows], y[rows]).statistic)

    return _of_pairs(of, x, y, clusters, seed)


def _of_pairs(
    of: Callable[[Int[ndarray, " row"]], float],
    x: Float[ndarray, " n"],
    y: Float[ndarray, " n"],
    clusters: Int[ndarray, " n"],
    seed: int,
) -> Interval:
    """A statistic of the rows that have both values."""
    valid = np.flatnonzero(~(np.isnan(x) | np.isnan(y)))
    return clustered(lambda rows: of(valid[rows]), clusters[valid], seed)._replace(dropped=len(x) - len(valid))


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


def clustered(of: Callable[[Int[ndarray, " row"]], float], clusters: Int[ndarray, " n"], seed: int) -> Interval:
    """A statistic of rows, with an interval that resamples whole clusters."""
    from scipy.stats import DegenerateDataWarning, bootstrap

    names = np.unique(clusters)
    members = [np.flatnonzero(clusters == name) for name in names]
    point = of(np.arange(len(clusters)))
    if len(names) < 2:
        return Interval(point, np.nan, np.nan, len(clusters))
    with warnings.catch_warnings(category=DegenerateDataWarning, action="ignore"):  # nan is dealt with below
        draws = bootstrap(
            (np.arange(len(names)),),
            lambda chosen: of(np.concatenate([members[int(c)] for c in chosen])),
            vectorized=False,
            n_resamples=400,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    if np.isnan(draws).all():
        return Interval(point, np.nan, np.nan, len(clusters))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(point, float(low), float(high), len(clusters))


def controlled_mean(
    values: Float[ndarray, " n"], controls: Float[ndarray, "n control"], known: Float[ndarray, " control"], total: int
) -> Interval:
    """Mean of a population from a random part of it, with what is known of every member as control variates.

    A tenth of the sample at a time is a random part of what the other nine tenths leave of the population, and is
    corrected by a regression on the controls that was fitted to those nine tenths. So the estimate is unbiased whatever
    the controls are worth, and exact when all are drawn; what the controls explain only narrows the interval.

    Args:
        values: Of the members drawn, without replacement and with equal chances.
        controls: What is known of them.
        known: Its mean over the whole population.
        total: Size of the population.

    Returns:
        The mean with a 95% interval (Student's t, finite population); nan bounds below three members.

    Source: Lohr, Sampling: Design and Analysis, chapter 4 (regression estimation), with cross-fitting.
    """
    from scipy.stats import t

    n = len(values)
    if n < 3:
        return Interval(float(values.mean()) if n else np.nan, np.nan, np.nan, n)
    fitted = n >= 4 * (controls.shape[1] + 1)
    folds = np.arange(n) % 10
    estimates, residuals = [], np.empty(n)
    for fold in range(min(10, n)):
        held_out, others = folds == fold, folds != fold
        beta = np.zeros(controls.shape[1])
        if fitted:
            design = np.column_stack([np.ones(others.sum()), controls[others]])
            beta = np.linalg.lstsq(design, values[others], rcond=None)[0][1:]
        left = total - int(others.sum())
        known_left = (total * known - controls[others].sum(axis=0)) / left
        mean_left = values[held_out].mean() - (controls[held_out].mean(axis=0) - known_left) @ beta
        estimates.append((values[others].sum() + left * mean_left) / total)
        away = controls[held_out] - controls[others].mean(axis=0)
        residuals[held_out] = values[held_out] - values[others].mean() - away @ beta
    mean = float(np.average(estimates, weights=np.bincount(folds)))
    half = t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.sqrt((residuals**2).mean() / n * (1 - n / total))
    return Interval(mean, mean - half, mean + half, n)
