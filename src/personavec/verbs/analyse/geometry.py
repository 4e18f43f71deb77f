"""The space that personas and traits span: components, how many matter, axes, and cosines with their reliability."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator

from personavec.runs.run import Row
from personavec.stats.intervals import Interval, jackknife
from personavec.stats.nulls import correlations, covariance_directions, isotropic_directions, rounded, units

Means = Float[ndarray, "persona d_model"]
Every = Float[ndarray, "persona question d_model"]

DRAWS, SHUFFLES = 50, 1000
"""Of each null of a rank, and of names."""
FEWEST = 4
"""Names below which tables are not correlated: the p of three, with six orders, is never small."""
ENOUGH = 0.9
"""Share of the variance that the counted components hold."""
LEAST_RELIABLE = 0.3
"""Split-half reliability below which a cosine is not corrected: it would be divided by noise."""
FEWEST_QUESTIONS = 8
"""Two in each part."""
ENDS = 4
"""Personas that are named at either end of an axis."""


@dataclass(frozen=True)
class Personas:
    """System prompts of many characters, and questions that are about none of them."""

    names: tuple[str, ...]
    prompts: tuple[str, ...]
    questions: tuple[str, ...]


def built_in_personas() -> Personas:
    """Those that come with the package."""
    content = json.loads((files("personavec.verbs.analyse") / "personas.json").read_text("utf-8"))
    names, prompts = zip(*((persona["name"], persona["prompt"]) for persona in content["personas"]), strict=True)
    return Personas(names, prompts, tuple(content["questions"]))


def eigenvalues(means: Means) -> Float[ndarray, " component"]:
    """Variances of personas along their principal components, the largest first."""
    centred = means - means.mean(axis=0)
    return np.asarray(np.linalg.eigvalsh(centred @ centred.T)[::-1].clip(min=0) / len(means))


def effective_rank(variances: Float[ndarray, " component"]) -> float:
    """Participation ratio (Σλ)² / Σλ²: 1 where one component holds everything, n where n hold alike."""
    total = float((variances**2).sum())
    return float(variances.sum() ** 2 / total) if total else float("nan")


def components_for(variances: Float[ndarray, " component"], share: float = ENOUGH) -> int:
    """How many components hold a share of the variance."""
    return int(np.searchsorted(np.cumsum(variances) / variances.sum(), share) + 1)


def rank_of(every: Every, rng: Generator) -> Row:
    """Effective rank of a layer next to what directions without meaning give.

    Args:
        every: Response avg of each persona's reply to each question.
        rng: Of the resampling.

    Returns:
        `effective_rank` (`noiseless_rank`) with its 95% interval; `with_noise`: that of the means as they are, and the
        `components` that hold 90% of their variance; the range of the latter rank for `random` directions as long as
        the personas' and for personas `shuffled` within each question; `held_out`: the share of the variance between
        personas in one half of the questions that the first components of the other half hold, and the same for
        shuffled personas.
    """
    means = every.mean(axis=1)
    variances = eigenvalues(means)
    lengths = np.linalg.norm(means - means.mean(axis=0), axis=1, keepdims=True)
    questions = every.shape[1]
    shuffles = [rng.permuted(np.tile(np.arange(len(every))[:, None], questions), axis=0) for _ in range(DRAWS)]
    mixed = [every[order, np.arange(questions)] for order in shuffles]
    random = [
        effective_rank(eigenvalues(lengths * isotropic_directions(len(every), every.shape[2], rng)))
        for _ in range(DRAWS)
    ]
    shuffled = [effective_rank(eigenvalues(personas.mean(axis=1))) for personas in mixed]
    held = np.mean([held_out(personas) for personas in mixed[:10]], axis=0)
    return {
        "effective_rank": noiseless_rank(every, rng).to_json(),
        "with_noise": rounded(effective_rank(variances)),
        "components": components_for(variances),
        "random": _bounds(random),
        "shuffled": _bounds(shuffled),
        "held_out": [rounded(value) for value in held_out(every)],
        "held_out_shuffled": [rounded(value) for value in held],
    }


def noiseless_rank(every: Every, rng: Generator) -> Interval:
    """Effective rank of the personas' covariance as infinitely many questions would give it.

    Noise adds dimensions. It is another one at every question, so products of different questions are free of it:
    with the means of four disjoint parts of the questions, tr(M₀M₁ᵀ)·tr(M₂M₃ᵀ) / ⟨M₀M₁ᵀ, M₂M₃ᵀ⟩ has (Σλ)² above and Σλ²
    below the line, both without bias; both are summed over random divisions. Its interval is the jackknife's, over
    questions, each left out of the same divisions: other ones would differ by chance, and widen it. There is none where
    a part has no second question.
    """
    centred, count = every - every.mean(axis=0), every.shape[1]
    divisions = [np.array_split(rng.permutation(count), 4) for _ in range(DRAWS)]

    def rank(left_out: int | None = None) -> float:
        above = below = 0.0
        for division in divisions:
            first, second, third, fourth = (centred[:, part[part != left_out]].mean(axis=1) for part in division)
            left, right = first @ second.T, third @ fourth.T
            above += float(np.trace(left) * np.trace(right))
            below += float((left * right).sum())
        return above / below if below else float("nan")

    left = [rank(question) for question in range(count)] if count >= FEWEST_QUESTIONS else [np.nan] * count
    return jackknife(rank(), np.array(left), count)


def held_out(every: Every, most: int = 10) -> Float[ndarray, " component"]:
    """Share of the variance between personas in the odd questions that the even questions' first components hold."""
    even, odd = (half - half.mean(axis=0) for half in (every[:, ::2].mean(axis=1), every[:, 1::2].mean(axis=1)))
    axes = np.linalg.svd(even, full_matrices=False)[2][:most]
    return np.asarray(np.cumsum((odd @ axes.T) ** 2, axis=1).sum(axis=0) / (odd**2).sum())


def axes_of(
    every: Every,
    names: Sequence[str],
    assistant: Float[ndarray, "question d_model"],
    vectors: Float[ndarray, "vector d_model"],
    count: int,
    rng: Generator,
) -> Row:
    """The first axes at one layer: who lies at their ends, where the assistant lies, and how the vectors do.

    Args:
        every: Response avg of each persona's reply to each question.
        names: Of the personas.
        assistant: The same of the assistant without a persona.
        vectors: Persona vectors at that layer.
        count: Axes to name.
        rng: Of the random directions.

    Returns:
        `axes`: share of the variance, the names at both ends, the assistant's `place` with the `percentile` of personas
        below it, and the `cosine` of every vector; `null`: the |cosine| that 95% of random directions stay below, any
        way alike and covariance-matched; `map`: every persona's, the assistant's and the vectors' place on the axes.
    """
    means = every.mean(axis=1)
    centre = means.mean(axis=0)
    _, spread, basis = np.linalg.svd(means - centre, full_matrices=False)
    basis = basis[:count]
    signs = np.where((vectors @ basis.T).sum(axis=0) < 0, -1.0, 1.0) if len(vectors) else np.ones(count)
    basis = basis * signs[:, None]  # an axis has no direction of its own: the vectors' side is right
    places, default = (means - centre) @ basis.T, (assistant.mean(axis=0) - centre) @ basis.T
    cosines = vectors @ basis.T / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = every.reshape(-1, every.shape[2])
    random = isotropic_directions(1000, every.shape[2], rng), covariance_directions(1000, rows[None], rng)[0]
    limits = [float(np.percentile(np.abs(drawn @ basis[0]), 95)) if len(drawn) else float("nan") for drawn in random]
    axes = []
    for index in range(len(basis)):
        order = np.argsort(places[:, index])
        axes.append(
            {
                "share": rounded(spread[index] ** 2 / (spread**2).sum()),
                "low": [names[at] for at in order[:ENDS]],
                "high": [names[at] for at in order[::-1][:ENDS]],
                "assistant": rounded(default[index]),
                "percentile": rounded(100 * float((places[:, index] < default[index]).mean())),
                "cosine": [rounded(value) for value in cosines[:, index]],
            }
        )
    return {
        "axes": axes,
        "null": {"isotropic": rounded(limits[0]), "covariance": rounded(limits[1])},
        "map": {
            "personas": [
                {"name": name, "place": [rounded(value) for value in place]}
                for name, place in zip(names, places, strict=True)
            ],
            "assistant": [rounded(value) for value in default],
            "vectors": [[rounded(value) for value in row] for row in vectors @ basis.T],
        },
    }


def cosines(
    vectors: Float[ndarray, "vector d_model"],
    reliabilities: Float[ndarray, " vector"],
    rows: Float[ndarray, "row d_model"],
    rng: Generator,
) -> Row:
    """Cosines of vectors at one layer, and what they would be without noise.

    Args:
        vectors: At that layer.
        reliabilities: Split-half cosines; nan where there is none.
        rows: Activations, for the covariance of one of the nulls.
        rng: Of the random directions.

    Returns:
        `cosine`; `reliability`: that of the whole vector, 2r / (1 + r) of its halves' cosine r (Spearman and Brown);
        `corrected`: c / √(R_i · R_j) with these, null where a half-cosine lies below `LEAST_RELIABLE`, and cut at ±1;
        `null`: the |cosine| that 95% of pairs of random directions stay below.
    """
    directions = units(vectors)
    table = directions @ directions.T
    halves = np.where(reliabilities >= LEAST_RELIABLE, reliabilities, np.nan)
    whole = 2 * halves / (1 + halves)
    corrected = np.clip(table / np.sqrt(np.outer(whole, whole)), -1, 1)
    drawn = isotropic_directions(500, vectors.shape[1], rng), covariance_directions(500, rows[None], rng)[0]
    limits = [
        float(np.percentile(np.abs((pairs[::2] * pairs[1::2]).sum(axis=1)), 95)) if len(pairs) else np.nan
        for pairs in drawn
    ]
    return {
        "cosine": [[rounded(value) for value in row] for row in table],
        "reliability": [rounded(value) for value in 2 * reliabilities / (1 + reliabilities)],
        "corrected": [[rounded(value) for value in row] for row in corrected],
        "null": dict(zip(("isotropic", "covariance"), map(rounded, limits), strict=True)),
    }


def mantel(
    table: Float[ndarray, "vector vector"], other: Float[ndarray, "vector vector"], rng: Generator
) -> tuple[float, Float[ndarray, " shuffle"]]:
    """R of two square tables off their diagonals, and the same with the names of one of them shuffled.

    Nan, and no shuffle, below `FEWEST` names.

    Source: Mantel (1967). Cells of one row are no independent pairs; shuffling names keeps rows and columns together.
    """
    if len(table) < FEWEST:
        return float("nan"), np.array([])
    off = ~np.eye(len(table), dtype=bool)

    def r(order: Int[ndarray, " vector"]) -> float:
        """Of the pairs that are known in both."""
        mine, theirs = table[off], other[np.ix_(order, order)][off]
        good = np.isfinite(mine) & np.isfinite(theirs)
        return float(correlations(theirs[good, None], mine[good])[0])

    return r(np.arange(len(table))), np.array([r(rng.permutation(len(table))) for _ in range(SHUFFLES)])


def _bounds(values: Sequence[float]) -> list[float | None]:
    """The middle 95%."""
    return [rounded(value) for value in np.percentile(values, [2.5, 97.5])]
