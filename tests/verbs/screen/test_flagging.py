"""Thresholds, extremes, confounds, plans, and estimates from a random part: laws and planted truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personavec.stats.intervals import spearman_rows
from personavec.stats.populations import controlled_mean, streamed_mean
from personavec.verbs.screen.flagging import beyond, confounds, extremes, flagged, thresholds
from personavec.verbs.screen.plan import Rates, estimate, sample_size
from personavec.verbs.screen.reading.rows import prompt_kind
from personavec.verbs.screen.sampled import candidates, estimated_mean, narrow_enough, regression, skewness


def test_a_percentile_of_a_clean_set_lets_the_stated_share_through() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=20_000).astype(np.float32)
    limit = thresholds({"v": clean}, 95)
    assert beyond({"v": rng.normal(size=20_000)}, limit).mean() == pytest.approx(0.05, abs=0.006)
    assert np.isnan(thresholds({"v": np.full(3, np.nan)}, 95)["v"])
    assert not beyond({"v": np.array([np.nan, 1.0])}, {"v": np.nan}).any()


def test_filters_combine() -> None:
    projection, judge = np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
    found = {by: flagged(by, projection, judge).tolist() for by in ("projection", "judge", "either", "both")}
    assert found == {
        "projection": [True, True, False, False],
        "judge": [True, False, True, False],
        "either": [True, True, True, False],
        "both": [True, False, False, False],
    }
    assert flagged("both", projection, None).tolist() == projection.tolist()


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan")]), min_size=1, max_size=30), st.integers(1, 10))
def test_extremes_are_the_k_highest_and_lowest(values: list[float], k: int) -> None:
    top, bottom = extremes(np.array(values), k)
    known = sorted(value for value in values if value == value)
    assert (
        sorted(v for v, t in zip(values, top, strict=True) if t) == known[-k:][-len(known) :]
        if known
        else not top.any()
    )
    assert sorted(v for v, b in zip(values, bottom, strict=True) if b) == known[:k]
    first = [n for n, value in enumerate(values) if value == max(known, default=0)]
    if known and first:
        assert top[first[0]]


def test_confounds_are_found_where_planted() -> None:
    rng = np.random.default_rng(0)
    length = rng.integers(5, 500, size=400).astype(float)
    kinds, names = np.arange(400) % 2, ["code", "question", "never"]
    values = length + 1000.0 * (kinds == 0)
    found = confounds(values, {"response_tokens": length, "prompt_tokens": np.ones(400)}, kinds, names)
    assert found["response_tokens"] > 0.4 and found["prompt_tokens"] is None and found["prompt_kind"] > 0.9
    assert found["kinds"]["code"]["rows"] == 200 and "never" not in found["kinds"]
    values[0] = np.nan
    assert confounds(values, {"response_tokens": length}, kinds, names)["kinds"]["code"]["rows"] == 199


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [("Why?", "question"), ("Write a poem.", "request"), ("def f(): pass", "code"), ("Что это?", "other script"),
     ("x" * 1001, "long"), ("", "request")],
)  # fmt: skip
def test_kinds_of_prompts(prompt: str, kind: str) -> None:
    assert prompt_kind(prompt) == kind


def test_the_plan_counts_tokens() -> None:
    rates = Rates(10, 30, 20, read_per_second=1000, written_per_second=100, rows=8)
    raw, proxy, gradient, sampled, full = estimate(rates, 10_000, 0.1, price_per_hour=3.6)
    assert raw["tokens_read"] == proxy["tokens_read"] == 400_000 and raw["tokens_written"] == 0
    assert raw["seconds"] == 400 and raw["price"] == 0.4
    assert gradient["tokens_read"] == 400_000 and gradient["seconds"] is None, "its speed was not measured"
    assert full["tokens_written"] == 200_000 and full["tokens_read"] == 10_000 * (40 + 10 + 20)
    assert full["seconds"] == 700 + 2000
    assert sampled["base_replies"] == sample_size(10_000, 0.1) == 370
    unmeasured = Rates(10, 30, 64, read_per_second=1000, written_per_second=None, rows=8)
    assert [row["seconds"] is None for row in estimate(unmeasured, 100, 0.1)] == [False, False, True, True, True]
    backwards = Rates(10, 30, 64, read_per_second=1000, written_per_second=None, rows=8, gradient_per_second=250)
    assert estimate(backwards, 10_000, 0.1)[2]["seconds"] == 1600


def population(n: int, r: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values that a known column explains to a share r² of their variance, heavy-tailed errors."""
    rng = np.random.default_rng(seed)
    known = rng.normal(size=(n, 1))
    values = 3 + r * known[:, 0] + np.sqrt(1 - r * r) * rng.standard_t(5, size=n) / np.sqrt(5 / 3)
    return values, known


@pytest.mark.parametrize("r", [0.0, 0.6, 0.95])
def test_controlled_means_cover_the_truth_and_are_narrower(r: float) -> None:
    values, known = population(3000, r, 0)
    covered, halves, errors = 0, [], []
    for seed in range(300):
        rows = np.random.default_rng(seed).permutation(3000)[:200]
        found = controlled_mean(values[rows], known[rows], known.mean(axis=0), 3000)
        covered += found.low <= values.mean() <= found.high
        halves.append((found.high - found.low) / 2)
        errors.append(found.mean - values.mean())
    assert covered >= 0.92 * 300
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(300), "unbiased"
    plain = 1.96 * values.std() / np.sqrt(200) * np.sqrt(1 - 200 / 3000)
    assert np.mean(halves) < plain * (np.sqrt(1 - r * r) + 0.1)


def test_drawing_all_is_exact() -> None:
    values, known = population(100, 0.5, 1)
    found = controlled_mean(values, known, known.mean(axis=0), 100)
    assert found.low == pytest.approx(found.high) and found.mean == pytest.approx(values.mean())


def test_stopping_when_narrow_keeps_its_promise() -> None:
    values, known = population(4000, 0.7, 2)
    usable, column = np.arange(4000), values.astype(np.float32)
    covered = 0
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(usable)
        taken = 64
        narrow = False
        while not narrow:
            taken += 64
            drawn = column[order[:taken]]
            found = estimated_mean(drawn, known[order[:taken]], known.mean(axis=0), len(usable))
            narrow = narrow_enough({"v": found}, {"v": drawn}, 0.1)
        covered += found.low <= values.mean() <= found.high
        assert taken < 600
    assert covered >= 186


@pytest.mark.parametrize(
    ("drawn", "k", "r", "features"),
    [
        (400, 200, 0.9, 1),
        (192, 10, 0.6, 1),
        pytest.param(400, 100, 0.3, 1, marks=pytest.mark.slow),
        (128, 50, 0.6, 153),
    ],
)
def test_candidates_hold_what_they_promise(drawn: int, k: int, r: float, features: int) -> None:
    good = np.ones(4000, dtype=bool)
    good[:10] = False
    recalls, promised, shares = [], [], []
    for seed in range(20):
        values, known = population(4000, r, seed % 5)
        known = np.column_stack([known, np.random.default_rng(9).normal(size=(4000, features - 1))])
        rows = 10 + np.random.default_rng(seed).permutation(3990)[:drawn]
        told = np.full(4000, np.nan)
        told[rows] = values[rows]
        weights, errors = regression(told[rows], known[rows])
        chosen, expected = candidates(told, weights[0] + known @ weights[1:], errors, good, k)
        best = np.argsort(-np.where(good, values, -np.inf))[:k]
        recalls.append(chosen[best].mean())
        promised.append(expected)
        shares.append(chosen.mean())
        assert not chosen[:10].any()
    # ten of 4,000 lie beyond what 192 drawn rows can tell of the tail
    assert np.mean(recalls) > np.mean(promised) - (0.08 if k == 10 else 0.02)
    assert np.mean(shares) < {0.9: 0.3, 0.6: 0.97, 0.3: 0.9}[r]


def test_too_few_rows_tell_nothing_of_candidates() -> None:
    told = np.array([1.0, np.nan, 2.0, np.nan])
    weights, errors = regression(told[[0, 2]], np.zeros((2, 1)))
    chosen, expected = candidates(told, np.full(4, weights[0]), errors, np.array([True, True, True, False]), 1)
    assert (
        weights.tolist() == pytest.approx([1.5, 0]) and chosen.tolist() == [True, True, True, False] and expected == 1
    )


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40))
def test_streamed_means_are_those_of_students_t(values: list[float]) -> None:
    from scipy.stats import t

    own = np.array(values)
    found = streamed_mean(np.append(own, np.nan))
    assert found.mean == pytest.approx(own.mean()) and found.n == len(own) and found.dropped == 1
    if np.ptp(own) > 1e-6:
        low, high = t.interval(0.95, len(own) - 1, own.mean(), own.std(ddof=1) / np.sqrt(len(own)))
        assert (found.low, found.high) == pytest.approx((low, high))


def test_rank_correlations_of_rows() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    y = x + rng.normal(size=500)
    found = spearman_rows(x, np.append(y[:-1], np.nan))
    assert 0.6 < found.low < found.mean < found.high < 0.8 and found.n == 499 and found.dropped == 1
    assert np.isnan(spearman_rows(x, np.ones(500)).mean)


@pytest.mark.parametrize(("spread", "skewed"), [(0.3, False), (1.0, True), (1.5, True)])
def test_an_interval_that_skewed_rows_make_too_short_is_named(spread: float, skewed: bool) -> None:
    """Lognormal rows, 200 of 5,000 drawn: the interval covers, or most draws say that it does not."""
    rng, inside, named = np.random.default_rng(0), [], []
    for _ in range(300):
        values = np.exp(spread * rng.standard_normal(5000))
        drawn = rng.choice(values, 200, replace=False)
        found = controlled_mean(drawn, np.zeros((200, 0)), np.zeros(0), 5000)
        inside.append(found.low <= values.mean() <= found.high)
        named.append(200 <= 25 * skewness(drawn) ** 2)
    assert bool(np.mean(inside) < 0.93) == skewed == bool(np.mean(named) > 0.5)
