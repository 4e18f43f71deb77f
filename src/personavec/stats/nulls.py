"""What a correlation or an effect has to beat: shuffled scores, random directions, and the directions of other traits.

A large value proves little by itself: activations vary along few dimensions, so that almost any direction may
correlate with almost any score. Where the largest value over several layers is taken, it is taken for the null as well.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator

Json = dict[str, Any]

ALPHA = 0.05
"""A null is beaten where the p-value, adjusted over the tests, is not above this."""
FEWEST = 4
"""Rows below which there is no correlation: Fisher's interval needs n − 3 > 0."""
PERCENTILES = (50, 95, 97.5)
"""Of the nulls' absolute values."""
N_COMPONENTS = 10
"""Principal components that are tried as directions."""
NULLS = {
    "permutation": "shuffled scores",
    "isotropic": "random directions",
    "covariance": "covariance-matched random directions",
}
"""What a value is compared with, in words."""
ROUNDING = 1e-9
"""Values as close as this count as equal."""


def against(value: float, others: Float[ndarray, " draw"], *, whole: bool = False) -> Json:
    """A value next to what the same measurement gives where there is nothing to find.

    Args:
        value: What was measured.
        others: The null's; nan is left out.
        whole: Whether they are all there are, the value among them; else one is added to both counts.

    Returns:
        `low` and `high` of the null, `percentiles` of its absolute values, `draws` (how many), the two-sided `p`,
        and whether the value lies `beyond` all of them. Nulls where there is nothing to compare.
    """
    known = others[np.isfinite(others)].astype(float)
    if not len(known) or not np.isfinite(value):
        return {"low": None, "high": None, "percentiles": {}, "draws": 0, "p": None, "beyond": None}
    size = np.abs(known)
    reach = int((size >= abs(value) - ROUNDING).sum())
    at = np.percentile(size, PERCENTILES)
    return {
        "low": rounded(known.min()),
        "high": rounded(known.max()),
        "percentiles": {f"{share:g}": rounded(limit) for share, limit in zip(PERCENTILES, at, strict=True)},
        "draws": len(known),
        "p": round(reach / len(known) if whole else (1 + reach) / (1 + len(known)), 6),
        "beyond": bool(abs(value) > size.max()),
    }


def null_battery(
    read: Float[ndarray, "layer row d_model"],
    score: Float[ndarray, " row"],
    direction: Float[ndarray, "layer d_model"],
    rng: Generator,
    *,
    activations: Float[ndarray, "layer _prompt d_model"] | None = None,
    others: Mapping[str, Float[ndarray, "layer d_model"]] | None = None,
    groups: Int[ndarray, " row"] | None = None,
    blocks: Int[ndarray, " row"] | None = None,
    n_random: int = 1000,
    n_permutations: int = 9999,
) -> Json:
    """How the projections of rows on a direction correlate with a score, and what chance gives.

    Args:
        read: Activations of the rows, or how far they moved, at one layer or several.
        score: Of each row; nan is left out and counted.
        direction: At the same layers, of any length.
        rng: Of shuffles and random directions.
        activations: Of any prompts at the same layers: their covariance is that of one of the nulls.
        others: Directions of other traits.
        groups: Pearson's r is then the mean over groups, and scores are shuffled within them.
        blocks: Rows whose scores hang together: whole blocks are shuffled instead, each as long and in the same order.
        n_random: Random directions of each kind.
        n_permutations: Shuffles; all of them where there are no more than that.

    Returns:
        `r` at the `layer` (index) where it is largest in absolute value, `n` rows, those `dropped`, the `reason` where
        there is no r, `nulls` as `against` gives them (`q` and `beats` are for `adjust`), and `beaten_by`: other traits
        whose |r|, the largest over layers, is larger.
    """
    valid = np.isfinite(score) & np.isfinite(read).all(axis=(0, 2))
    rows, scores = read[:, valid].astype(float), score[valid].astype(float)
    inside = None if groups is None else groups[valid]
    values = np.stack([layer @ unit for layer, unit in zip(rows, direction.astype(float), strict=True)], axis=1)
    why = reason(values, scores)
    each = np.full(len(rows), np.nan) if why else correlations(values, scores, inside)
    if not why and not np.isfinite(each).any():
        why = "nothing varies within a group"
    counts: Json = {"n": len(scores), "dropped": len(score) - len(scores), "reason": why}
    if why:
        return counts | {"r": None, "layer": None, "nulls": {name: untested(why) for name in NULLS}, "beaten_by": []}
    layer = int(np.nanargmax(np.abs(each)))
    r = float(each[layer])

    def along(directions: Sequence[Float[ndarray, "direction d_model"]]) -> Float[ndarray, " direction"]:
        """The largest |r| over layers along each direction."""
        return _largest([correlations(x @ d.T, scores, inside) for x, d in zip(rows, directions, strict=True)])

    if blocks is None:
        orders, whole = _orders(len(scores), inside, n_permutations, rng)
    else:
        members = np.array([np.flatnonzero(blocks[valid] == label) for label in np.unique(blocks[valid])])
        places, whole = _orders(len(members), None, n_permutations, rng)
        orders = np.empty((len(places), len(scores)), dtype=int)
        orders[:, members] = members[places]
    shuffled = _largest([correlations(scores[orders].T, column, inside) for column in values.T])
    nulls = {"permutation": against(r, shuffled, whole=whole)}
    nulls["isotropic"] = against(r, along([isotropic_directions(n_random, rows.shape[2], rng)] * len(rows)))
    matched = None if activations is None else covariance_directions(n_random, activations, rng)
    if matched is None:
        nulls["covariance"] = untested("no activations were given")
    elif not len(matched[0]):
        nulls["covariance"] = untested("the activations do not vary")
    else:
        nulls["covariance"] = against(r, along(matched))
    rivals = {name: float(along(list(other[:, None]))[0]) for name, other in (others or {}).items()}
    return counts | {
        "r": rounded(r),
        "layer": layer,
        "nulls": {name: {"q": None, "beats": None} | null for name, null in nulls.items()},
        "beaten_by": [name for name, value in rivals.items() if value > abs(r)],
    }


def adjust(tests: Sequence[Json], *, either_way: bool = False) -> None:
    """Adjust the p-values of each null over the tests, and say which nulls are beaten: q ≤ `ALPHA` and r above 0.

    Args:
        tests: As `null_battery` gives them; changed in place.
        either_way: An r below 0 beats them, too.

    Source: Benjamini and Hochberg (1995), scipy.stats.false_discovery_control.
    """
    from scipy.stats import false_discovery_control

    for name in NULLS:
        known = [test for test in tests if test["nulls"].get(name, {}).get("p") is not None]
        if not known:
            continue
        adjusted = false_discovery_control([test["nulls"][name]["p"] for test in known])
        for test, q in zip(known, adjusted, strict=True):
            beats = bool(q <= ALPHA and (either_way or test["r"] > 0))
            test["nulls"][name] |= {"q": round(float(q), 6), "beats": beats}


def correlations(
    columns: Float[ndarray, "row column"], score: Float[ndarray, " row"], groups: Int[ndarray, " row"] | None = None
) -> Float[ndarray, " column"]:
    """Pearson's r of each column with one score, or its mean over groups in which both vary; nan where none do."""
    labels = np.zeros(len(score), dtype=int) if groups is None else groups
    parts = [_pearson(columns[labels == label], score[labels == label]) for label in np.unique(labels)]
    each = np.stack(parts) if parts else np.full((1, columns.shape[1]), np.nan)
    known = np.isfinite(each)
    return np.asarray(
        np.where(known.any(axis=0), np.where(known, each, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1), np.nan)
    )


def isotropic_directions(n: int, d_model: int, rng: Generator) -> Float[ndarray, "direction d_model"]:
    """Random directions of length 1, every way alike; a direction's length does not change r."""
    return units(rng.standard_normal((n, d_model)))


def covariance_directions(
    n: int, activations: Float[ndarray, "layer _prompt d_model"], rng: Generator
) -> list[Float[ndarray, "direction d_model"]]:
    """Random directions z ~ N(0, Σ) scaled to length 1 at each layer, Σ being the covariance there; none where it is 0.

    Drawn as random weighted sums of the centred rows, which has that law without Σ ever being formed; the weights are
    those of all layers, so that one draw is one direction as a vector is. Rows that are not finite are left out.
    """
    finite = np.isfinite(activations).all(axis=(0, 2))
    weights = rng.standard_normal((n, int(finite.sum())))
    centred = [_centred(layer[finite]) if finite.any() else layer[finite] for layer in activations]
    if not all(rows.any() for rows in centred):
        return [np.empty((0, activations.shape[2]))] * len(activations)
    return [units(weights @ rows) for rows in centred]


def principal_directions(activations: Float[ndarray, "_prompt d_model"]) -> Float[ndarray, "component d_model"]:
    """The first principal components of activations, those without variance left out."""
    finite = activations[np.isfinite(activations).all(axis=1)]
    if not len(finite):
        return np.empty((0, activations.shape[1]))
    _, spread, components = np.linalg.svd(_centred(finite), full_matrices=False)
    kept = spread > ROUNDING * spread.max(initial=0)
    return np.asarray(components[kept][:N_COMPONENTS])


def reason(columns: Float[ndarray, "row column"], score: Float[ndarray, " row"]) -> str | None:
    """Why there is no correlation; None where there is one."""
    if len(score) < FEWEST:
        return f"expected {FEWEST} rows or more, got {len(score)}"
    if not varies(score[:, None])[0]:
        return "the score is the same for every row"
    return None if varies(columns).any() else "every row lies alike"


def untested(why: str) -> Json:
    """A null that nothing was compared with."""
    return {"p": None, "q": None, "beats": None, "reason": why}


def rounded(value: float) -> float | None:
    """Four digits; None where there is no value."""
    return round(float(value), 4) if np.isfinite(value) else None


def varies(values: Float[ndarray, "row column"]) -> Bool[ndarray, " column"]:
    """Columns that hold more than one value, rounding left aside."""
    return np.asarray(np.ptp(values, axis=0) > ROUNDING * np.abs(values).max(axis=0))


def units(rows: Float[ndarray, "direction d_model"]) -> Float[ndarray, "direction d_model"]:
    """Each scaled to length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _pearson(columns: Float[ndarray, "row column"], score: Float[ndarray, " row"]) -> Float[ndarray, " column"]:
    r = np.full(columns.shape[1], np.nan)
    if len(score) < 2 or not varies(score[:, None])[0]:
        return r
    vary = varies(columns)
    r[vary] = _standard(columns[:, vary]).T @ _standard(score[:, None])[:, 0]
    return r


def _orders(
    n: int, groups: Int[ndarray, " row"] | None, most: int, rng: Generator
) -> tuple[Int[ndarray, "shuffle row"], bool]:
    """Orders of the rows, shuffled within groups, and whether these are all there are."""
    if groups is None and math.factorial(min(n, 20)) <= most:
        return np.array(list(permutations(range(n)))), True
    orders = np.tile(np.arange(n), (most, 1))
    for label in [0] if groups is None else np.unique(groups):
        members = np.arange(n) if groups is None else np.flatnonzero(groups == label)
        orders[:, members] = rng.permuted(orders[:, members], axis=1)
    return orders, False


def _largest(values: Sequence[Float[ndarray, " draw"]]) -> Float[ndarray, " draw"]:
    """Largest absolute value over layers; nan where there is none."""
    size = np.max([np.where(np.isfinite(r), np.abs(r), -1) for r in values], axis=0)
    return np.asarray(np.where(size < 0, np.nan, size))


def _standard(columns: Float[ndarray, "row column"]) -> Float[ndarray, "row column"]:
    """Columns less their mean, of length 1."""
    centred = columns - columns.mean(axis=0)
    return np.asarray(centred / np.linalg.norm(centred, axis=0))


def _centred(rows: Float[ndarray, "_prompt d_model"]) -> Float[ndarray, "_prompt d_model"]:
    """Rows less their mean; what is left of a flat column by rounding is zero."""
    return np.where(varies(rows), rows - rows.mean(axis=0), 0)
