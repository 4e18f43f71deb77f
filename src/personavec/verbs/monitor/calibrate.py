"""Calibrating on benign traffic: bands and thresholds, and the false-positive rate on what they had not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import DataError
from personavec.stats.intervals import CONFIDENCE, Interval
from personavec.verbs.monitor.calibration import (
    DRIFT,
    DRIFT_FROM,
    EVERY,
    HIGHEST_RATE,
    KINDS,
    WATCHED,
    Band,
    Calibration,
    Cusum,
    Drift,
    Kind,
    VectorCalibration,
    fewest,
)

TRIAL = ""
"""Name of the vector in a calibration that is only there to be tried."""


@dataclass(frozen=True)
class Benign:
    """A benign conversation along one vector."""

    group: str
    values: Mapping[Kind, Float[ndarray, " turn"]]
    """By kind, in order; turns without one are left out."""


def calibrate(conversations: Sequence[Benign], trait: str, layer: int, rate: float, seed: int = 0) -> VectorCalibration:
    """Bands, the threshold for drift, and how often both raise an alert on the half that they had not seen.

    Raises:
        DataError: Too few benign conversations for the rate, or their values do not differ.
    """
    bands, drift = _limits(conversations, trait, rate)
    return VectorCalibration(trait, layer, bands, drift, held_out(conversations, trait, rate, seed))


def too_few(n: int, rate: float) -> DataError:
    """The error of a benign set that cannot bear the rate."""
    borne = float(np.ceil(2000 / (n + 1)) / 1000)
    return DataError(
        f"expected at least {fewest(rate):,} benign conversations for a false-positive rate of {rate:g}, got {n:,}; "
        "pass more" + f", or --false-positive-rate {borne:g} and above" * (borne <= HIGHEST_RATE)
    )


def held_out(conversations: Sequence[Benign], trait: str, rate: float, seed: int) -> dict[str, dict[str, Any]]:
    """By kind and for drift, the share of alerts on each half of the conversations with the limits of the other half.

    For a kind it is the share of turns, averaged over conversations; for drift that of conversations. Empty where half
    of the conversations cannot bear the rate, without drift where half of the longer ones cannot.
    """
    order = np.random.default_rng(seed).permutation(len(conversations))
    halves = [[conversations[place] for place in half] for half in np.array_split(order, 2)]
    if min(_usable(half) for half in halves) < fewest(rate):
        return {}
    raised: dict[str, list[float]] = {kind: [] for kind in (*KINDS, DRIFT)}
    for fitted, unseen in (halves, halves[::-1]):
        trial = Calibration({}, rate, {TRIAL: VectorCalibration(trait, 0, *_limits(fitted, trait, rate))})
        for conversation in unseen:
            for kind, share in _alerts(conversation, trial).items():
                raised[kind].append(share)
    return {kind: _share(np.array(shares)).to_json() for kind, shares in raised.items() if shares}


def _usable(conversations: Sequence[Benign]) -> int:
    """How many conversations have values of every kind."""
    return min(sum(len(talk.values[kind]) > 0 for talk in conversations) for kind in KINDS)


def _limits(
    conversations: Sequence[Benign], trait: str, rate: float
) -> tuple[dict[str, dict[Kind, Band]], dict[str, Cusum]]:
    """Bands and sequential tests of all conversations, and of every group that has enough of them."""
    bands: dict[str, dict[Kind, Band]] = {}
    drift: dict[str, Cusum] = {}
    if (n := _usable(conversations)) < fewest(rate):
        raise too_few(n, rate)
    for group in (EVERY, *sorted({talk.group for talk in conversations} - {EVERY})):
        members = [talk for talk in conversations if group in (EVERY, talk.group)]
        if _usable(members) < fewest(rate):
            continue
        bands[group] = {kind: _band(members, kind, rate) for kind in KINDS}
        if flat := [kind for kind, band in bands[group].items() if band.sd == 0]:
            raise DataError(
                f"expected benign turns that differ, got one and the same {flat[0]} along {trait} in {group}; pass "
                "conversations of your own traffic"
            )
        if cusum := _cusum(members, bands[group][WATCHED], rate):
            drift[group] = cusum
    return bands, drift


def _band(conversations: Sequence[Benign], kind: Kind, rate: float) -> Band:
    """Limits that a turn of a new conversation lies beyond, on either side, with probability at most rate / 2.

    Every conversation weighs the same, spread over its turns, and one more of them is taken to lie beyond everything.
    Source: Lee, Barber and Willett, Distribution-free inference with hierarchical data (arXiv 2306.06342).
    """
    paths = [talk.values[kind] for talk in conversations if len(talk.values[kind])]
    values = np.concatenate(paths).astype(float)
    weights = np.concatenate([np.full(len(path), 1 / len(path)) for path in paths])
    mean = float(np.average(values, weights=weights))
    sd = float(np.sqrt(np.average((values - mean) ** 2, weights=weights))) if np.ptp(values) else 0.0
    low, high = -_quantile(-values, weights, rate / 2), _quantile(values, weights, rate / 2)
    return Band(len(paths), mean, sd, low, high)


def _quantile(values: Float[ndarray, " turn"], weights: Float[ndarray, " turn"], above: float) -> float:
    """The smallest value with no more than a share above it, one conversation at infinity included."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / (weights.sum() + 1)
    return float(values[order][np.searchsorted(below, 1 - above - 1e-9)])


def _cusum(conversations: Sequence[Benign], band: Band, rate: float) -> Cusum | None:
    """The test whose largest sum over a new benign conversation lies beyond the threshold with probability `rate`.

    The threshold is the conformal quantile of the benign conversations' largest sums; none where there are too few.
    Mean and deviation come from the same conversations, which makes it approximate: the rate on unseen ones shows.
    """
    paths = [talk.values[WATCHED] for talk in conversations if len(talk.values[WATCHED]) >= DRIFT_FROM]
    if len(paths) < fewest(rate, sides=1):
        return None
    endless = Cusum(len(paths), band.mean, band.sd, np.inf, max(map(len, paths)))
    peaks = sorted(_peak(path, endless) for path in paths)
    rank = int(np.ceil((1 - rate) * (len(paths) + 1) - 1e-9))
    return Cusum(endless.n, endless.mean, endless.sd, peaks[rank - 1], endless.longest)


def _peak(path: Float[ndarray, " turn"], cusum: Cusum) -> float:
    """The largest sum over a conversation, from the turn on where there can be drift."""
    test, largest = Drift("", cusum), 0.0
    for value in path.tolist():
        test.add(value)
        if test.turn >= DRIFT_FROM:
            largest = max(largest, test.up, test.down)
    return largest


def _alerts(conversation: Benign, calibration: Calibration) -> dict[str, float]:
    """By kind, the share of a conversation's turns that raise an alert; for drift, whether any does."""
    group = conversation.group
    shares = {
        kind: float(np.mean([bool(calibration.check(TRIAL, {kind: value}, group)) for value in values.tolist()]))
        for kind, values in conversation.values.items()
        if len(values)
    }
    test = calibration.drift(TRIAL, group)
    path = conversation.values[WATCHED].tolist()
    if test and len(path) >= DRIFT_FROM:
        shares[DRIFT] = float(any([test.add(value) is not None for value in path]))
    return shares


def _share(shares: Float[ndarray, " conversation"]) -> Interval:
    """Mean share with a 95% interval, one observation a conversation.

    Clopper and Pearson's: exact where every share is 0 or 1, too wide where a conversation's turns are averaged.
    """
    from scipy.stats import beta

    n, k = len(shares), float(shares.sum())
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Interval(k / n, low, high, n)
