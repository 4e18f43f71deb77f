"""How well a move along persona vectors predicts the trait score after finetuning, beside what chance would give.

A high correlation over a few dozen finetunings proves little by itself: where finetuning moves a model along one
dominant direction, almost any direction predicts almost any trait. So every r stands beside shuffled scores, random
directions, random directions with the covariance of the model's own activations, its principal components, and the
other traits' directions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.random import Generator

from personavec.errors import DataError, VectorError
from personavec.stats import CONFIDENCE, spearman_rows

Json = dict[str, Any]

ALPHA = 0.05
"""A null is beaten where the p-value, adjusted over the traits, is not above this."""
FEWEST = 4
"""Models below which there is no r: Fisher's interval needs n − 3 > 0."""
PERCENTILES = (50, 95, 97.5)
"""Of the nulls' |r|."""
N_COMPONENTS = 10
"""Principal components of the base model's activations that are tried as directions."""
NULLS = {
    "permutation": "shuffled scores",
    "isotropic": "random directions",
    "covariance": "covariance-matched random directions",
}
"""What r is compared with, in words."""


@dataclass(frozen=True)
class Finetunings:
    """A grid of finetuned models: where each moved, and what became of each trait. Missing values are nan.

    Raises:
        DataError: The traits or the shapes do not fit each other.
        VectorError: A direction is zero.
    """

    models: tuple[str, ...]
    moved: Mapping[str, Float[ndarray, "model d_model"]]
    """Of each trait: mean activation, finetuned − base, at the last prompt token and the trait's layer."""
    directions: Mapping[str, Float[ndarray, " d_model"]]
    """The persona vector of each trait at its layer, of any length."""
    scores: Mapping[str, Float[ndarray, " model"]]
    """Trait score after finetuning."""
    activations: Mapping[str, Float[ndarray, "_prompt d_model"]] = field(default_factory=dict)
    """The base model's, at the last token of many prompts and the trait's layer; without them a null is missing."""
    predicted: Mapping[str, Float[ndarray, " model"]] = field(default_factory=dict)
    """Projection difference of the data set that each model was finetuned on."""

    def __post_init__(self) -> None:
        traits, n = set(self.scores), len(self.models)
        if not traits or set(self.moved) != traits or set(self.directions) != traits:
            got = f"{sorted(self.moved)}, {sorted(self.directions)} and {sorted(traits)}"
            raise DataError(f"expected moves, directions and scores of the same traits, got {got}; give each all three")
        if unknown := (set(self.activations) | set(self.predicted)) - traits:
            raise DataError(f"expected traits out of {sorted(traits)}, got {sorted(unknown)}; give their scores too")
        for trait in self.scores:
            self._check(trait, n)

    def _check(self, trait: str, n: int) -> None:
        width = len(self.directions[trait])
        fits = {
            "moves": self.moved[trait].shape == (n, width),
            "scores": self.scores[trait].shape == (n,),
            "activations": trait not in self.activations or self.activations[trait].shape[1:] == (width,),
            "projection differences": trait not in self.predicted or self.predicted[trait].shape == (n,),
        }
        if wrong := [name for name, fit in fits.items() if not fit]:
            raise DataError(
                f"expected {wrong[0]} of {trait} for {n} models and width {width}, got another shape; "
                "give one row a model, all read at one layer"
            )
        if not np.isfinite(self.directions[trait]).all() or not self.directions[trait].any():
            raise VectorError(
                f"expected a finite direction of {trait} that is not zero, got one; choose another layer or vector"
            )

    def shifts(self, trait: str) -> Float[ndarray, " model"]:
        """Finetuning shift (a_ft − a_base)·v̂ of every model along a trait's own direction, in activation units.

        Source: Persona Vectors (arXiv 2507.21509) section 4.2.
        """
        direction = self.directions[trait].astype(float)
        return np.asarray(self.moved[trait].astype(float) @ (direction / np.linalg.norm(direction)))


def measure_prediction(grid: Finetunings, *, n_random: int = 1000, n_permutations: int = 9999, seed: int = 0) -> Json:
    """How well the shift along each trait's direction predicts its score after finetuning, and whether chance does too.

    Intervals and shuffles take the models as drawn independently. Where several were finetuned on versions of one data
    set they are not quite: the intervals are then too narrow and the p-values too small.

    Args:
        grid: What was measured.
        n_random: Random directions of each kind, a trait.
        n_permutations: Shuffles of the scores; all of them where there are no more than that.
        seed: Of the random directions and the shuffles.

    Returns:
        JSON-able. `traits` holds for each trait: `n`, `dropped` and `reason` (why there is no r, else null),
        `pearson` and `spearman` with 95% intervals, `nulls` (see `NULLS`; `p`, `q` adjusted over the traits, whether r
        `beats` it), `principal`, `beaten_by`, `projection_difference` (null where not given), `points` and a `verdict`
        in words. `cross` holds r[direction's trait][score's trait].

    Source: Persona Vectors sections 4.2 and 6.1. The nulls are not in the paper: with them a reproduction
    over 24 finetunings kept r but no test beat covariance-matched directions (superkaiba/explore-persona-space
    issue 778).
    """
    cross = cross_traits(grid)
    rngs = np.random.default_rng(seed).spawn(len(grid.scores))
    found = {
        trait: _trait(grid, trait, cross, n_random, n_permutations, rng)
        for trait, rng in zip(grid.scores, rngs, strict=True)
    }
    adjust(list(found.values()))
    adjust([own["projection_difference"] for own in found.values() if own["projection_difference"]])
    for own in found.values():
        own["verdict"] = _verdict(own)
    settings = {"alpha": ALPHA, "random": n_random, "permutations": n_permutations, "seed": seed}
    return {"models": list(grid.models), **settings, "traits": found, "cross": cross}


def associate(
    x: Float[ndarray, " model"], score: Float[ndarray, " model"], n_permutations: int, rng: Generator
) -> Json:
    """Correlation of a quantity with the trait score over models, with its permutation p-value (two-sided).

    Models with a value missing are left out and counted. Without a correlation (few models, a flat side) every figure
    is null and `reason` says why.

    Source: Pearson's interval is Fisher's, as scipy.stats.pearsonr has it; Spearman's see stats.spearman_rows.
    """
    from scipy.stats import PermutationMethod, pearsonr

    valid = np.isfinite(x) & np.isfinite(score)
    n, own, other = int(valid.sum()), x[valid].astype(float), score[valid].astype(float)
    found: Json = {"n": n, "dropped": len(x) - n, "reason": _reason(own, other)}
    if found["reason"]:
        empty = {"r": None, "ci": [None, None]}
        return found | {"pearson": empty, "spearman": dict(empty), "nulls": {"permutation": _null()}}
    fit = pearsonr(own, other)
    with np.errstate(divide="ignore"):  # r of exactly 1 lies at infinity on Fisher's scale
        bounds = fit.confidence_interval(CONFIDENCE)
    shuffled = pearsonr(own, other, method=PermutationMethod(n_resamples=n_permutations, rng=rng))
    ranks = spearman_rows(own, other)
    return found | {
        "pearson": _told(fit.statistic, bounds.low, bounds.high),
        "spearman": _told(*ranks[:3]),
        "nulls": {"permutation": _null(float(shuffled.pvalue))},
    }


def correlations(
    shifts: Float[ndarray, "model direction"], score: Float[ndarray, " model"]
) -> Float[ndarray, " direction"]:
    """Pearson's r of the shift along each of many directions with one score; nan where there is none."""
    from scipy.stats import pearsonr

    valid = np.isfinite(score) & np.isfinite(shifts).all(axis=1)
    own, other = shifts[valid].astype(float), score[valid].astype(float)
    found = np.full(shifts.shape[1], np.nan)
    if len(other) < FEWEST or not _varies(other[:, None])[0] or not (varies := _varies(own)).any():
        return found
    found[varies] = pearsonr(own[:, varies], other[:, None], axis=0).statistic
    return found


def isotropic_directions(n: int, d_model: int, rng: Generator) -> Float[ndarray, "direction d_model"]:
    """Random directions of length 1, every way alike; a direction's length does not change r."""
    return _units(rng.standard_normal((n, d_model)))


def covariance_directions(
    n: int, activations: Float[ndarray, "_prompt d_model"], rng: Generator
) -> Float[ndarray, "direction d_model"]:
    """Random directions z ~ N(0, Σ) scaled to length 1, Σ being the covariance of activations; none where Σ is zero.

    Drawn as random weighted sums of the centred rows, which has that law without Σ ever being formed. Rows that are
    not finite are left out.
    """
    centred = _centred(activations)
    if not centred.any():
        return np.empty((0, activations.shape[1]))
    return _units(rng.standard_normal((n, len(centred))) @ centred)


def principal_directions(activations: Float[ndarray, "_prompt d_model"]) -> Float[ndarray, "component d_model"]:
    """The first principal components of activations, those without variance left out."""
    _, spread, components = np.linalg.svd(_centred(activations), full_matrices=False)
    kept = spread > 1e-9 * spread.max(initial=0)
    return np.asarray(components[kept][:N_COMPONENTS])


def cross_traits(grid: Finetunings) -> Json:
    """Correlation of the shift along every trait's direction (rows) with every trait's score (columns), and who wins.

    Each direction is read at its own trait's layer. `own_beaten` counts the traits whose score another trait's
    direction predicts with a larger |r| than the own one.

    Source: Persona Vectors figure 20; in its printed matrices that is so for 7 of 14 scores.
    """
    traits = list(grid.scores)
    shifts = {trait: grid.shifts(trait)[:, None] for trait in traits}
    table = np.array([[correlations(shifts[row], grid.scores[column])[0] for column in traits] for row in traits])
    beaten = {
        trait: [traits[row] for row in np.flatnonzero(np.abs(table[:, column]) > abs(table[column, column]))]
        for column, trait in enumerate(traits)
    }
    compared = [
        trait for i, trait in enumerate(traits) if np.isfinite(table[:, i]).sum() > 1 and np.isfinite(table[i, i])
    ]
    return {
        "traits": traits,
        "r": [[_rounded(value) for value in row] for row in table],
        "beaten_by": beaten,
        "own_beaten": {"times": sum(bool(beaten[trait]) for trait in compared), "of": len(compared)},
    }


def adjust(tests: Sequence[Json]) -> None:
    """Adjust the p-values of each null over the traits, and say which nulls are beaten: q ≤ `ALPHA` and r above 0.

    Source: Benjamini and Hochberg (1995), scipy.stats.false_discovery_control.
    """
    from scipy.stats import false_discovery_control

    for name in NULLS:
        known = [own for own in tests if own["nulls"].get(name, {}).get("p") is not None]
        if not known:
            continue
        adjusted = false_discovery_control([own["nulls"][name]["p"] for own in known])
        for own, q in zip(known, adjusted, strict=True):
            own["nulls"][name] |= {"q": round(float(q), 6), "beats": bool(q <= ALPHA and own["pearson"]["r"] > 0)}


def _trait(grid: Finetunings, trait: str, cross: Json, n_random: int, n_permutations: int, rng: Generator) -> Json:
    """All that is said of one trait, before p-values are adjusted."""
    shift, score = grid.shifts(trait), grid.scores[trait]
    found = associate(shift, score, n_permutations, rng)
    r, sets = found["pearson"]["r"], _directions(grid, trait, n_random, rng)
    for name, (directions, missing) in sets.items():
        reason = found["reason"] or missing
        found["nulls"][name] = (
            _null(reason=reason) if reason else _random_null(r, correlations(grid.moved[trait] @ directions.T, score))
        )
    predicted = grid.predicted.get(trait)
    return found | {
        "principal": _principal(grid, trait),
        "beaten_by": cross["beaten_by"][trait],
        "projection_difference": None if predicted is None else associate(predicted, score, n_permutations, rng),
        "points": list(_points(grid.models, shift, score)),
    }


def _directions(
    grid: Finetunings, trait: str, n: int, rng: Generator
) -> dict[str, tuple[Float[ndarray, "direction d_model"], str | None]]:
    """Random directions of each kind, and why there are none."""
    width = len(grid.directions[trait])
    found: dict[str, tuple[Float[ndarray, "direction d_model"], str | None]] = {
        "isotropic": (isotropic_directions(n, width, rng), None)
    }
    if trait not in grid.activations:
        return found | {"covariance": (np.empty((0, width)), "no activations of the base model were given")}
    matched = covariance_directions(n, grid.activations[trait], rng)
    reason = None if len(matched) else "the base model's activations do not vary"
    return found | {"covariance": (matched, reason)}


def _random_null(r: float, others: Float[ndarray, " direction"]) -> Json:
    """|r| along random directions, and the share of them that reach ours (one is added to both counts)."""
    known = np.abs(others[np.isfinite(others)])
    if not len(known):
        return _null(reason="no model moves along these directions")
    reach = int((np.round(known, 4) >= abs(r)).sum())  # r is rounded, too
    percentiles = {
        f"{at:g}": _rounded(value) for at, value in zip(PERCENTILES, np.percentile(known, PERCENTILES), strict=True)
    }
    return _null((1 + reach) / (1 + len(known))) | {"directions": len(known), "percentiles": percentiles}


def _principal(grid: Finetunings, trait: str) -> Json:
    """Correlation along the base model's principal components, and the largest |r| of them: a figure, not a test."""
    if trait not in grid.activations:
        return {"r": [], "best": None}
    components = principal_directions(grid.activations[trait])
    values = correlations(grid.moved[trait] @ components.T, grid.scores[trait])
    if not np.isfinite(values).any():
        return {"r": [], "best": None}
    return {"r": [_rounded(value) for value in values], "best": _rounded(np.nanmax(np.abs(values)))}


def _points(models: Sequence[str], shift: Float[ndarray, " model"], score: Float[ndarray, " model"]) -> Iterator[Json]:
    for model, x, y in zip(models, shift, score, strict=True):
        if np.isfinite(x) and np.isfinite(y):
            yield {"model": model, "shift": _rounded(x), "score": _rounded(y)}


def _verdict(own: Json) -> str:
    """What r is worth, in a sentence."""
    if own["reason"]:
        return f"no correlation: {own['reason']}"
    r, nulls = own["pearson"]["r"], own["nulls"]
    if r <= 0:
        return f"does not predict the score: r = {r:.2f}, above 0 was expected"
    named = {
        state: [words for name, words in NULLS.items() if nulls[name]["beats"] is state]
        for state in (True, False, None)
    }
    parts = [f"r = {r:.2f}"]
    parts += [f"beats {_listed(named[True])}"] if named[True] else []
    parts += [f"does not beat {_listed(named[False])}"] if named[False] else []
    parts += [f"not compared with {_listed(named[None])}"] if named[None] else []
    if own["principal"]["best"] is not None:
        count, best = len(own["principal"]["r"]), own["principal"]["best"]
        parts.append(f"the best of the base model's {count} first principal components reaches {best:.2f}")
    if own["beaten_by"]:
        parts.append(f"the direction of {_listed(own['beaten_by'])} predicts better")
    return "; ".join(parts)


def _reason(x: Float[ndarray, " model"], score: Float[ndarray, " model"]) -> str | None:
    """Why two rows have no correlation."""
    if len(x) < FEWEST:
        return f"expected {FEWEST} models or more, got {len(x)}"
    if not _varies(score[:, None])[0]:
        return "the score is the same for every model"
    return None if _varies(x[:, None])[0] else "every model moves alike"


def _varies(values: Float[ndarray, "model column"]) -> Bool[ndarray, " column"]:
    """Columns that hold more than one value, rounding left aside."""
    return np.asarray(np.ptp(values, axis=0) > 1e-9 * np.abs(values).max(axis=0))


def _units(rows: Float[ndarray, "direction d_model"]) -> Float[ndarray, "direction d_model"]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _centred(rows: Float[ndarray, "_prompt d_model"]) -> Float[ndarray, "_finite d_model"]:
    """Finite rows less their mean; what is left of a flat column by rounding is zero."""
    finite = rows[np.isfinite(rows).all(axis=1)].astype(float)
    if not len(finite):
        return np.zeros((1, rows.shape[1]))
    return np.where(_varies(finite), finite - finite.mean(axis=0), 0)


def _null(p: float | None = None, reason: str | None = None) -> Json:
    return {"p": None if p is None else round(p, 6), "q": None, "beats": None} | ({"reason": reason} if reason else {})


def _told(r: float, low: float, high: float) -> Json:
    return {"r": _rounded(r), "ci": [_rounded(low), _rounded(high)]}


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
