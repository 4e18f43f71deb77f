"""Which rows stand out: thresholds, extremes, and what a score correlates with besides the trait."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

Scores = Mapping[str, Float[ndarray, " row"]]
FlagBy = str
Side = Literal["high", "low"]
Drop = Literal["high", "low", "both"]
SIDES: dict[Drop, tuple[Side, ...]] = {"high": ("high",), "low": ("low",), "both": ("high", "low")}

BARS = 40
"""Of a histogram."""


def thresholds(scores: Scores, percentile: float, side: Side = "high") -> dict[str, float]:
    """The percentile of each score, counted from the other end on the low side; nan where no row has one.

    Source: Persona Vectors (arXiv 2507.21509) appendix K: the 95th percentile of a clean data set.
    """
    percentile = percentile if side == "high" else 100 - percentile
    return {
        name: float(np.percentile(known, percentile)) if len(known := values[~np.isnan(values)]) else np.nan
        for name, values in scores.items()
    }


def beyond(scores: Scores, limits: Mapping[str, float], side: Side = "high") -> Bool[ndarray, " row"]:
    """Rows above the threshold of any of the scores; on the low side, below it."""
    over = np.greater if side == "high" else np.less
    return np.asarray(np.any([over(scores[name], limit) for name, limit in limits.items()], axis=0))


def more_than_chance(count: int, rows: int, percentile: float, clean: int) -> bool:
    """Whether more rows lie beyond a percentile of a clean set than rows like the clean ones would.

    Args:
        count: Of the rows beyond it.
        rows: How many there are.
        percentile: From 0 to 100, of the clean rows on one side.
        clean: How many clean rows gave the percentile, whose chance the test counts in.

    Returns:
        Whether the chance of so many, of a beta-binomial, is below .025.
    """
    from scipy.stats import betabinom

    share = 1 + (clean - 1) * (1 - percentile / 100)  # where the percentile lies among the clean rows, from its end
    return bool(betabinom.sf(count - 1, rows, share, clean + 1 - share) < 0.025)


def flagged(
    by: FlagBy, projection: Bool[ndarray, " row"], judge: Bool[ndarray, " row"] | None
) -> Bool[ndarray, " row"]:
    """Rows to drop, by the projections, by the judge, by either, or only by both."""
    if judge is None or by == "projection":
        return projection
    return np.asarray({"judge": judge, "either": projection | judge, "both": projection & judge}[by])


def extremes(values: Float[ndarray, " row"], k: int) -> tuple[Bool[ndarray, " row"], Bool[ndarray, " row"]]:
    """The k highest and the k lowest rows, the earlier one among equals; rows without a value are in neither."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    # stable from both ends, so that of equal values the earlier row is taken
    down = known[np.argsort(-values[known], kind="stable")]
    top, bottom = np.zeros((2, len(values)), dtype=bool)
    top[down[:k]] = bottom[order[:k]] = True
    return top, bottom


def histogram(values: Float[ndarray, " row"], clean: Float[ndarray, " clean"] | None) -> dict[str, Any]:
    """A histogram of the scores, and of the clean set's in the same bars; the outermost bars take what lies beyond."""
    every = np.concatenate([values, values[:0] if clean is None else clean])
    low, high = np.nanpercentile(every, [0.5, 99.5]).astype(float)
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)

    def counts(scores: Float[ndarray, " n"]) -> list[int]:
        return [int(n) for n in np.histogram(np.clip(scores[~np.isnan(scores)], edges[0], edges[-1]), edges)[0]]

    rounded = [round(float(edge), 5) for edge in edges]
    return {"edges": rounded, "data": counts(values), "clean": None if clean is None else counts(clean)}


def confounds(
    values: Float[ndarray, " row"],
    tokens: Mapping[str, Float[ndarray, " row"]],
    kinds: Int[ndarray, " row"],
    names: Sequence[str],
) -> dict[str, Any]:
    """What a score correlates with besides the trait.

    Args:
        values: A score a row; nan where there is none.
        tokens: Counts of tokens a row, by what was counted.
        kinds: The kind of every row's prompt, as a place among the names.
        names: Of the kinds.

    Returns:
        Spearman's rank correlation with every count of tokens, and the share of the score's variance that lies between
        kinds of prompts (eta squared), with the mean of each kind; null where a side does not vary.
    """
    from scipy.stats import spearmanr

    valid = ~np.isnan(values)
    shares: dict[str, Any] = {}
    for name, counts in tokens.items():
        varies = valid.sum() > 2 and np.ptp(counts[valid]) > 0 and np.ptp(values[valid]) > 0
        shares[name] = round(float(spearmanr(values[valid], counts[valid]).statistic), 4) if varies else None
    known, index = values[valid].astype(float), kinds[valid]
    total = float(((known - known.mean()) ** 2).sum()) if len(known) else 0.0
    counts = np.bincount(index, minlength=len(names))
    means = np.bincount(index, known, minlength=len(names)) / np.maximum(counts, 1)
    between = float((counts * (means - known.mean()) ** 2).sum()) if len(known) else 0.0
    shares["prompt_kind"] = round(between / total, 4) if total else None
    shares["kinds"] = {
        name: {"rows": int(count), "mean": round(float(mean), 4)}
        for name, count, mean in zip(names, counts, means, strict=True)
        if count
    }
    return shares
