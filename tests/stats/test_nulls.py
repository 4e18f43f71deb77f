"""The null battery: chance is not taken for a finding, also where the largest of many layers is taken."""

from math import factorial
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from personavec.stats.nulls import (
    NULLS,
    adjust,
    against,
    correlations,
    covariance_directions,
    isotropic_directions,
    null_battery,
    principal_directions,
    units,
)

N, WIDTH, PROMPTS = 24, 16, 60
RNG = np.random.default_rng
FAST: dict[str, Any] = {"n_random": 199, "n_permutations": 199}


def battery(seed: int, layers: int = 1, along: float = 0.0, **options: Any) -> dict[str, Any]:
    """Rows without meaning, or with a planted direction, at several layers."""
    rng = RNG(seed)
    direction = rng.standard_normal((layers, WIDTH))
    score = rng.standard_normal(N)
    read = rng.standard_normal((layers, N, WIDTH)) + along * score[:, None] * direction[:, None]
    activations = rng.standard_normal((layers, PROMPTS, WIDTH))
    return null_battery(read, score, direction, rng, activations=activations, **FAST | options)


@pytest.mark.parametrize("layers", [1, 5])
def test_where_there_is_nothing_p_is_uniform(layers: int) -> None:
    found = [battery(seed, layers)["nulls"] for seed in range(200)]
    for name in NULLS:
        ps = [nulls[name]["p"] for nulls in found]
        assert kstest(ps, "uniform").pvalue > 0.01, name
        assert np.mean(np.array(ps) <= 0.05) < 0.1, name


@pytest.mark.slow
def test_the_largest_of_layers_alone_would_be_taken_for_a_finding() -> None:
    """What the battery guards against: the best of ten layers beside the null of a single one."""
    one: dict[str, Any] = {"n_random": 0, "n_permutations": 1}
    best = [battery(seed, 10, **one)["r"] for seed in range(200)]
    null = np.array([battery(1000 + seed, **one)["r"] for seed in range(400)])
    ps = [against(r, null)["p"] for r in best]
    assert np.mean(np.array(ps) <= 0.05) > 0.15


def test_within_groups_p_is_uniform_though_groups_differ() -> None:
    """A score that differs between groups alone goes along with anything that does, but not within them."""
    groups = np.repeat([0, 1, 2], N // 3)
    ps, across = [], []
    for seed in range(150):
        rng = RNG(seed)
        score = rng.standard_normal(N) + 9 * groups
        read = rng.standard_normal((1, N, WIDTH)) + 3 * groups[None, :, None]
        found = null_battery(read, score, np.ones((1, WIDTH)), rng, groups=groups, **FAST)
        ps.append(found["nulls"]["permutation"]["p"])
        across.append(null_battery(read, score, np.ones((1, WIDTH)), rng, **FAST)["r"])
    assert kstest(ps, "uniform").pvalue > 0.01 and np.mean(across) > 0.9


def test_a_planted_direction_beats_everything() -> None:
    found = battery(0, layers=3, along=1.0)
    assert found["r"] > 0.9 and found["n"] == N and found["reason"] is None
    adjust([found])
    assert {name: null["beats"] for name, null in found["nulls"].items()} == dict.fromkeys(NULLS, True)
    found["r"] = -found["r"]
    for either_way in (False, True):
        adjust([found], either_way=either_way)
        assert found["nulls"]["permutation"]["beats"] is either_way
    rival = battery(0, layers=3, along=1.0, others={"other": RNG(99).standard_normal((3, WIDTH))})
    assert rival["beaten_by"] == []


def test_a_rival_that_does_better_is_named() -> None:
    rng = RNG(1)
    direction, better = np.eye(WIDTH)[:1], np.eye(WIDTH)[1:2]
    score = rng.standard_normal(N)
    read = rng.standard_normal((1, N, WIDTH)) + 3 * score[:, None] * better
    found = null_battery(read, score, direction, rng, others={"better": better, "other": np.eye(WIDTH)[2:3]}, **FAST)
    assert found["beaten_by"] == ["better"]


def test_few_rows_are_shuffled_in_every_way() -> None:
    rng = RNG(0)
    score = np.arange(6.0)
    found = null_battery(score[None, :, None], score, np.ones((1, 1)), rng, n_random=1)
    assert found["r"] == 1.0
    assert found["nulls"]["permutation"]["p"] == pytest.approx(2 / factorial(6), abs=1e-6)


def test_missing_rows_are_counted_and_too_few_are_told() -> None:
    rng = RNG(0)
    read, score = rng.standard_normal((1, N, WIDTH)), rng.standard_normal(N)
    score[:3] = np.nan
    read[0, 3] = np.nan
    found = null_battery(read, score, np.ones((1, WIDTH)), rng, **FAST)
    assert (found["n"], found["dropped"]) == (N - 4, 4)
    few = null_battery(read[:, :6], score[:6], np.ones((1, WIDTH)), rng, **FAST)
    assert few["reason"] == "expected 4 rows or more, got 2" and few["r"] is None
    apart = null_battery(read[:, 4:], score[4:], np.ones((1, WIDTH)), rng, groups=np.arange(N - 4), **FAST)
    assert apart["reason"] == "nothing varies within a group"


def test_against_tells_the_null() -> None:
    found = against(0.5, np.array([-0.6, 0.1, 0.2, np.nan]))
    assert found == {
        "low": -0.6,
        "high": 0.2,
        "percentiles": {"50": 0.2, "95": 0.56, "97.5": 0.58},
        "draws": 3,
        "p": 0.5,
        "beyond": False,
    }
    assert against(0.7, np.array([-0.6]))["beyond"] is True
    assert against(np.nan, np.array([0.1]))["p"] is against(0.1, np.array([np.nan]))["p"] is None


def test_adjusted_p_values_keep_their_order_and_never_fall() -> None:
    ps = [0.001, 0.04, 0.03, 0.2, 0.9]
    tests: list[dict[str, Any]] = [{"r": 0.5, "nulls": {"permutation": {"p": p}}} for p in ps]
    adjust([*tests, {"r": None, "nulls": {"permutation": {"p": None, "q": None}}}])
    qs = [own["nulls"]["permutation"]["q"] for own in tests]
    assert qs == pytest.approx([0.005, 0.04 * 5 / 3, 0.04 * 5 / 3, 0.25, 0.9], abs=1e-6)
    order = np.argsort(ps)
    assert (np.diff(np.array(qs)[order]) >= 0).all() and all(q >= p for p, q in zip(ps, qs, strict=True))
    assert [own["nulls"]["permutation"]["beats"] for own in tests] == [True, False, False, False, False]


def test_covariance_matched_directions_have_the_covariance() -> None:
    rows = RNG(0).standard_normal((500, 3)) * (10, 3, 0) + 100
    drawn, again = covariance_directions(20000, np.stack([rows, rows]), RNG(1))
    assert np.array_equal(drawn, again), "one draw is one direction at all layers"
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(1)
    assert drawn[:, 2] == pytest.approx(0)
    assert np.median(np.abs(drawn[:, 0] / drawn[:, 1])) == pytest.approx(10 / 3, rel=0.1)
    assert np.abs(drawn.mean(axis=0)) == pytest.approx(0, abs=0.02)  # the mean of the rows plays no part
    assert np.abs(principal_directions(rows)) == pytest.approx(np.eye(3)[:2], abs=0.1)


def test_isotropic_directions_have_length_one() -> None:
    drawn = isotropic_directions(5000, 8, RNG(0))
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(1)
    assert drawn.T @ drawn / 5000 == pytest.approx(np.eye(8) / 8, abs=0.02)


def test_correlations_equal_numpys() -> None:
    columns, score, groups = RNG(0).standard_normal((N, 5)), RNG(1).standard_normal(N), np.arange(N) % 2
    columns[:, 2] = 0.3
    found, inside = correlations(columns, score), correlations(columns, score, groups)
    assert np.isnan(found[2]) and np.isnan(inside[2])
    for column in (0, 1, 3, 4):
        assert found[column] == pytest.approx(np.corrcoef(columns[:, column], score)[0, 1])
        each = [np.corrcoef(columns[groups == g, column], score[groups == g])[0, 1] for g in (0, 1)]
        assert inside[column] == pytest.approx(np.mean(each))


def test_a_direction_without_meaning_is_seldom_beyond_matched_ones() -> None:
    """A data set moves activations along the few dimensions in which they vary; so do directions drawn from there."""
    rng = RNG(0)
    scale = np.exp(-np.arange(WIDTH) / 2)
    beyond = []
    for _ in range(1000):
        move = scale * rng.standard_normal(WIDTH)
        value = units(scale * rng.standard_normal((1, WIDTH)))[0] @ move
        matched = covariance_directions(20, scale * rng.standard_normal((1, PROMPTS, WIDTH)), rng)[0]
        kinds = (matched, isotropic_directions(20, WIDTH, rng))
        beyond.append([against(value, drawn @ move)["beyond"] for drawn in kinds])
    of_matched, of_isotropic = np.mean(beyond, axis=0)
    assert 0.03 <= of_matched <= 0.07 and of_isotropic > 0.2
