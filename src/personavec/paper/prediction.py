"""How well a move along persona vectors predicts the trait score after finetuning, and what chance would give.

A high correlation over a few dozen finetunings proves little by itself: where finetuning moves a model along one
dominant direction, almost any direction predicts almost any trait. So next to every r stand shuffled scores, random
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
from personavec.stats.intervals import Interval, jackknife, pearson, pearson_rows, spearman_rows
from personavec.stats.nulls import (
    ALPHA,
    NULLS,
    adjust,
    against,
    correlations,
    covariance_directions,
    null_battery,
    principal_directions,
    reason,
    rounded,
    units,
)

Json = dict[str, Any]


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
    predicted: Mapping[str, Float[ndarray, "model d_model"]] = field(default_factory=dict)
    """Mean activation, rows − base replies, of the data set that each model was finetuned on, averaged over replies."""
    reply_activations: Mapping[str, Float[ndarray, "_reply d_model"]] = field(default_factory=dict)
    """The base model's, averaged over many replies, for the same null of what the data predict."""

    def __post_init__(self) -> None:
        traits, n = set(self.scores), len(self.models)
        if not traits or set(self.moved) != traits or set(self.directions) != traits:
            got = f"{sorted(self.moved)}, {sorted(self.directions)} and {sorted(traits)}"
            raise DataError(f"expected moves, directions and scores of the same traits, got {got}; give each all three")
        if unknown := (set(self.activations) | set(self.predicted) | set(self.reply_activations)) - traits:
            raise DataError(f"expected traits out of {sorted(traits)}, got {sorted(unknown)}; give their scores too")
        for trait in self.scores:
            self._check(trait, n)

    def _check(self, trait: str, n: int) -> None:
        width = len(self.directions[trait])
        fits = {
            "moves": self.moved[trait].shape == (n, width),
            "scores": self.scores[trait].shape == (n,),
            "activations": trait not in self.activations or self.activations[trait].shape[1:] == (width,),
            "data sets' differences": trait not in self.predicted or self.predicted[trait].shape == (n, width),
            "replies": trait not in self.reply_activations or self.reply_activations[trait].shape[1:] == (width,),
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
        """Finetuning shift (a_ft − a_base)·v̂ of every model along a trait's direction, in activation units.

        Source: Persona Vectors (arXiv 2507.21509) section 4.2.
        """
        return self._along(self.moved[trait], trait)

    def differences(self, trait: str) -> Float[ndarray, " model"]:
        """Projection difference of every model's data along a trait's direction, in activation units.

        Source: Persona Vectors section 6.1.
        """
        return self._along(self.predicted[trait], trait)

    def _along(self, moves: Float[ndarray, "model d_model"], trait: str) -> Float[ndarray, " model"]:
        return np.asarray(moves.astype(float) @ units(self.directions[trait].astype(float)[None])[0])


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
        `beats` it), `principal`, `beaten_by`, `projection_difference` and how it correlates with the shift (`carried`;
        both null where not given), `points` and a `verdict` in words. `cross` holds r[direction's trait][score's
        trait].

    Source: Persona Vectors sections 4.2 and 6.1. The nulls are not in the paper: with them a reproduction
    over 24 finetunings kept r but no test beat covariance-matched directions (superkaiba/explore-persona-space
    issue 778).
    """
    cross = cross_traits(grid)
    rngs = np.random.default_rng(seed).spawn(len(grid.scores))
    traits = {
        trait: _trait(grid, trait, cross, n_random, n_permutations, rng)
        for trait, rng in zip(grid.scores, rngs, strict=True)
    }
    adjust(list(traits.values()))
    adjust([row["projection_difference"] for row in traits.values() if row["projection_difference"]])
    for row in traits.values():
        row["verdict"] = _verdict(row)
    settings = {"alpha": ALPHA, "random": n_random, "permutations": n_permutations, "seed": seed}
    return {"models": list(grid.models), **settings, "traits": traits, "cross": cross}


def cross_traits(grid: Finetunings) -> Json:
    """Correlation of the shift along every trait's direction (rows) with every trait's score (columns), and who wins.

    Each direction is read at the layer of its trait. `own_beaten` counts the traits whose score another trait's
    direction predicts with a larger |r|.

    Source: Persona Vectors figure 20; in its printed matrices that is so for 7 of 14 scores.
    """
    traits = list(grid.scores)
    shifts = {trait: grid.shifts(trait)[:, None] for trait in traits}
    table = np.array([[_r(shifts[row], grid.scores[column])[0] for column in traits] for row in traits])
    beaten = {
        trait: [traits[row] for row in np.flatnonzero(np.abs(table[:, column]) > abs(table[column, column]))]
        for column, trait in enumerate(traits)
    }
    compared = [
        trait for i, trait in enumerate(traits) if np.isfinite(table[:, i]).sum() > 1 and np.isfinite(table[i, i])
    ]
    return {
        "traits": traits,
        "r": [[rounded(value) for value in row] for row in table],
        "beaten_by": beaten,
        "own_beaten": {"times": sum(bool(beaten[trait]) for trait in compared), "of": len(compared)},
    }


def _trait(grid: Finetunings, trait: str, cross: Json, n_random: int, n_permutations: int, rng: Generator) -> Json:
    """All figures of one trait, before p-values are adjusted."""
    shift, score = grid.shifts(trait), grid.scores[trait]

    def tested(moves: Float[ndarray, "model d_model"], activations: Float[ndarray, "_row d_model"] | None) -> Json:
        """Moves along the trait's direction against its score."""
        return null_battery(
            moves[None],
            score,
            grid.directions[trait][None],
            rng,
            activations=None if activations is None else activations[None],
            n_random=n_random,
            n_permutations=n_permutations,
        )

    moved = tested(grid.moved[trait], grid.activations.get(trait)) | intervals(shift, score)
    ahead = None
    if trait in grid.predicted:
        ahead = tested(grid.predicted[trait], grid.reply_activations.get(trait))
        ahead |= intervals(grid.differences(trait), score)
    return moved | {
        "principal": _principal(grid, trait),
        "beaten_by": cross["beaten_by"][trait],
        "projection_difference": ahead,
        "carried": _carried(grid, trait, n_random, rng) if ahead else None,
        "points": list(_points(grid.models, shift, score)),
    }


def _carried(grid: Finetunings, trait: str, n_random: int, rng: Generator) -> Json:
    """How the data's projection difference correlates with the shift; along matched directions, too, both read anew."""
    ahead, moved = grid.differences(trait), grid.shifts(trait)
    found: Json = intervals(ahead, moved)
    activations = grid.reply_activations.get(trait)
    if found["pearson"]["r"] is None or activations is None:
        return found | {"covariance": None}
    drawn = covariance_directions(n_random, activations[None], rng)[0]
    valid = np.isfinite(ahead) & np.isfinite(moved)
    data, models = (each[valid].astype(float) @ drawn.T for each in (grid.predicted[trait], grid.moved[trait]))
    along = np.array([pearson(x, y) for x, y in zip(data.T, models.T, strict=True)])
    return found | {"covariance": against(found["pearson"]["r"], along)}


def better(
    first: Float[ndarray, " model"],
    second: Float[ndarray, " model"],
    scores: Float[ndarray, "model question"],
    families: Sequence[str],
) -> Interval:
    """By how much more one prediction correlates with the models' mean scores than another, with a paired interval.

    Drawn are families of data sets, of which all versions go together, and questions.

    Args:
        first: Of each model.
        second: Likewise.
        scores: Nan where there is none.
        families: Of each model's data.
    """

    def of(models: Bool[ndarray, " model"], questions: Bool[ndarray, " question"]) -> float:
        kept = scores[np.ix_(models, questions)]
        counts = np.isfinite(kept).sum(axis=1)
        means = np.where(counts, np.nansum(kept, axis=1) / np.maximum(counts, 1), np.nan)
        return pearson(first[models], means) - pearson(second[models], means)

    labels, asked = np.array(families), np.arange(scores.shape[1])
    every = np.ones(len(first), dtype=bool), np.ones(len(asked), dtype=bool)
    sets = [of(labels != family, every[1]) for family in dict.fromkeys(families)]
    questions = [of(every[0], asked != question) for question in asked]
    return jackknife(of(*every), np.array(sets), len(first), crossed=np.array(questions))


def intervals(x: Float[ndarray, " model"], score: Float[ndarray, " model"]) -> Json:
    """Pearson's and Spearman's r with 95% intervals; nulls where there is none."""
    each = {"pearson": pearson_rows(x, score), "spearman": spearman_rows(x, score)}
    return {name: {"r": rounded(r), "ci": [rounded(low), rounded(high)]} for name, (r, low, high, *_) in each.items()}


def _principal(grid: Finetunings, trait: str) -> Json:
    """Correlation along the base model's principal components, and the largest |r| of them: a figure, not a test."""
    if trait not in grid.activations:
        return {"r": [], "best": None}
    components = principal_directions(grid.activations[trait])
    values = _r(grid.moved[trait] @ components.T, grid.scores[trait])
    if not np.isfinite(values).any():
        return {"r": [], "best": None}
    return {"r": [rounded(value) for value in values], "best": rounded(np.nanmax(np.abs(values)))}


def _r(columns: Float[ndarray, "model column"], score: Float[ndarray, " model"]) -> Float[ndarray, " column"]:
    """Pearson's r of each column with the score, over models that have both; nan where there are too few."""
    valid = np.isfinite(score) & np.isfinite(columns).all(axis=1)
    if reason(columns[valid], score[valid]):
        return np.full(columns.shape[1], np.nan)
    return correlations(columns[valid].astype(float), score[valid].astype(float))


def _points(models: Sequence[str], shift: Float[ndarray, " model"], score: Float[ndarray, " model"]) -> Iterator[Json]:
    for model, x, y in zip(models, shift, score, strict=True):
        if np.isfinite(x) and np.isfinite(y):
            yield {"model": model, "shift": rounded(x), "score": rounded(y)}


def _verdict(row: Json) -> str:
    """What r is worth, in a sentence."""
    if row["reason"]:
        return f"no correlation: {row['reason']}"
    r, nulls = row["pearson"]["r"], row["nulls"]
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
    if row["principal"]["best"] is not None:
        count, best = len(row["principal"]["r"]), row["principal"]["best"]
        parts.append(f"the best of the base model's {count} first principal components reaches {best:.2f}")
    if row["beaten_by"]:
        parts.append(f"the direction of {_listed(row['beaten_by'])} predicts better")
    return "; ".join(parts)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
