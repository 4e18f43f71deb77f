"""Means over the rows of a data set, each drawn by itself: of all that are there, or of a random part."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.stats.intervals import CONFIDENCE, Interval


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


def streamed_difference(values: Float[ndarray, " n"], others: Float[ndarray, " m"]) -> Interval:
    """Difference of two means of values drawn by themselves, with Welch's 95% interval; its `n` is of the first."""
    from scipy.stats import ttest_ind

    of, less = streamed_mean(values), streamed_mean(others)
    if min(of.n, less.n) < 2 or (of.low == of.high and less.low == less.high):
        return of._replace(mean=of.mean - less.mean, low=of.low - less.low, high=of.high - less.high)
    sides = (side[~np.isnan(side)].astype(float) for side in (values, others))
    low, high = ttest_ind(*sides, equal_var=False).confidence_interval(CONFIDENCE)
    return of._replace(mean=of.mean - less.mean, low=float(low), high=float(high))


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
