"""Laws of the statistics: intervals cover, clusters count, held-out means held out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from personavec.judges.scale import calibrate
from personavec.stats.intervals import (
    Interval,
    auc,
    auc_interval,
    clustered_mean,
    clustered_ratio,
    pearson,
    pearson_rows,
)

RNG = np.random.default_rng
NAN = float("nan")


def correlated(seed: int, clusters: int = 20, size: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Values that share most of their variance within a cluster; true mean 50."""
    rng = RNG(seed)
    index = np.repeat(np.arange(clusters), size)
    return 50 + 10 * rng.standard_normal(clusters)[index] + 3 * rng.standard_normal(clusters * size), index


# means


def test_the_interval_is_the_normal_one_where_that_is_known() -> None:
    """400 independent values: half the interval is 1.96 standard errors."""
    values = 7 + 2 * RNG(0).standard_normal(400)
    found = clustered_mean(values, np.arange(400))
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.mean - found.low, found.high - found.mean) == (
        pytest.approx(half, rel=0.1),
        pytest.approx(half, rel=0.1),
    )
    assert found.n == 400


def test_correlated_clusters_widen_the_interval() -> None:
    values, clusters = correlated(1)
    clustered, naive = clustered_mean(values, clusters), clustered_mean(values, np.arange(len(values)))
    assert clustered.mean == pytest.approx(naive.mean)
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_clustered_intervals_cover_and_naive_ones_do_not() -> None:
    covered = np.zeros(2)
    for seed in range(40):
        values, clusters = correlated(seed)
        for kind, index in enumerate((clusters, np.arange(len(values)))):
            found = clustered_mean(values, index)
            covered[kind] += found.low <= 50 <= found.high
    assert covered[0] >= 34 and covered[1] <= 26


def test_missing_values_are_left_out() -> None:
    values = np.array([1.0, NAN, 3.0, NAN, 5.0])
    clusters = np.array([0, 0, 1, 1, 2])
    found = clustered_mean(values, clusters)
    assert (found.mean, found.n, found.dropped) == (3.0, 3, 2)
    assert found._replace(dropped=0) == clustered_mean(np.array([1.0, 3.0, 5.0]), np.array([0, 1, 2]))
    nothing = clustered_mean(np.array([NAN, NAN]), np.array([0, 1]))
    assert nothing.n == 0 and np.isnan(nothing.mean)
    assert nothing.to_json() == {"mean": None, "ci": [None, None], "n": 0, "dropped": 2, "clusters": 0}
    assert clustered_mean(np.array([]), np.array([], dtype=int)).n == 0


def test_a_mean_weighs_replies_not_clusters() -> None:
    found = clustered_mean(np.array([0.0, 0.0, 0.0, 4.0]), np.array([5, 5, 5, 9]))
    assert found.mean == 1.0 and found.low <= 1.0 <= found.high


def test_the_interval_of_a_ratio_covers() -> None:
    """Shares of a change that differs by question: the true ratio of means, 0.3, lies inside about 19 times of 20."""
    inside = 0
    for seed in range(100):
        change, index = correlated(seed)
        kept = 0.3 * change + 8 * RNG(1000 + seed).standard_normal(20)[index]
        ratio = clustered_ratio(np.where(np.arange(len(kept)) == 3, NAN, kept), change, index)
        assert ratio.dropped == 1 and ratio.low <= ratio.mean <= ratio.high
        inside += ratio.low <= 0.3 <= ratio.high
    assert 91 <= inside <= 99


def test_nothing_to_be_a_share_of() -> None:
    assert np.isnan(clustered_ratio(np.ones(4), np.array([1.0, -1, 1, -1]), np.arange(4))[0])


def test_one_cluster_has_no_interval_to_speak_of() -> None:
    single = clustered_mean(np.array([1.0, 2.0]), np.array([4, 4]))
    assert (
        single.to_json() == {"mean": 1.5, "ci": [None, None], "n": 2, "dropped": 0, "clusters": 1}
        and not single.low <= 1.5 <= single.high
    )
    assert clustered_mean(np.full(6, 8.0), np.arange(6)) == Interval(8, 8, 8, 6, clusters=6)


@settings(deadline=None, max_examples=15)
@given(values=st.lists(st.floats(0, 100), min_size=3, max_size=30), shift=st.floats(-50, 50))
def test_intervals_hold_their_mean_repeat_and_shift(values: list[float], shift: float) -> None:
    numbers, clusters = np.array(values), np.arange(len(values)) // 2
    found = clustered_mean(numbers, clusters)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert found == clustered_mean(numbers, clusters)
    renamed = clustered_mean(numbers, 1000 - 7 * clusters)
    assert renamed.mean == pytest.approx(found.mean)
    moved = clustered_mean(numbers + shift, clusters)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-6)
    assert set(found.to_json()) == {"mean", "ci", "n", "dropped", "clusters"}


# separation


@settings(deadline=None, max_examples=40)
@given(
    pos=st.lists(st.integers(-5, 5), min_size=1, max_size=12), neg=st.lists(st.integers(-5, 5), min_size=1, max_size=12)
)
def test_auc_is_the_chance_that_a_positive_lies_higher(pos: list[int], neg: list[int]) -> None:
    wanted = np.mean([(p > n) + 0.5 * (p == n) for p in pos for n in neg])
    assert auc(np.array(pos, float), np.array(neg, float)) == pytest.approx(wanted)
    assert auc(np.array(neg, float), np.array(pos, float)) == pytest.approx(1 - wanted)


def test_auc_interval_resamples_clusters() -> None:
    rng = RNG(0)
    clusters = np.repeat(np.arange(20), 10)
    is_pos = np.tile([True, False], 100)
    values = is_pos * 1.0 + rng.standard_normal(200)
    found = auc_interval(values, is_pos, clusters)
    assert found.mean == pytest.approx(auc(values[is_pos], values[~is_pos])) and found.n == 200
    assert 0.62 < found.low < found.mean < found.high < 0.86
    assert found == auc_interval(values, is_pos, clusters)
    whole = auc_interval(is_pos * 1.0, is_pos, clusters)
    assert whole[:4] == (1, pytest.approx(0.025 ** (1 / 20)), 1, 200)
    single = auc_interval(values, is_pos, np.zeros(200, dtype=int))
    assert single.to_json()["ci"] == [None, None] and single.clusters == 1


def test_auc_interval_bears_clusters_of_one_side() -> None:
    """A question whose positive replies were all empty still counts."""
    values = np.array([3.0, 1.0, 4.0, 0.0, 2.0, 5.0])
    is_pos = np.array([True, False, True, False, False, True])
    found = auc_interval(values, is_pos, np.arange(6))
    assert found.mean == 1.0 and found.high == 1.0


# correlation


@pytest.mark.parametrize("sign", [1, -1])
def test_pearson_of_rows_is_scipys_with_fishers_interval(sign: int) -> None:
    x = RNG(0).standard_normal(30)
    y = sign * x + RNG(1).standard_normal(30)
    expected = pearsonr(x, y)
    bounds = expected.confidence_interval(0.95)
    missing = np.append(x, [NAN, 1.0]), np.append(y, [1.0, NAN])
    found = pearson_rows(*missing)
    assert found[:3] == pytest.approx((expected.statistic, bounds.low, bounds.high), abs=1e-12)
    assert (found.n, found.dropped) == (30, 2) and pearson(*missing) == found.mean
    assert pearson_rows(x, sign * x)[:3] == pytest.approx((sign, sign, sign), abs=1e-9)


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 3, 2]), ([0.1] * 5, [1, 2, 3, 4, 5]), ([1, 2, 3, 4], [7] * 4)])
def test_too_few_rows_or_flat_ones_have_no_correlation(x: list[float], y: list[float]) -> None:
    assert np.isnan(pearson_rows(np.array(x, float), np.array(y, float))[:3]).all()


# calibration


def test_calibrated_chances_rise_with_the_evidence_and_are_chances() -> None:
    rng = RNG(0)
    is_pos = np.tile([True, False], 200)
    evidence = (0.03 * is_pos + 0.02 * rng.standard_normal(400) + 5)[:, None]  # nats a token: small, far from 0
    calibration, held_out = calibrate(evidence, is_pos, np.repeat(np.arange(40), 10))
    grid = calibration.predict(np.linspace(4.9, 5.15, 50)[:, None])
    assert (np.diff(grid) > 0).all() and 0 <= grid.min() and grid.max() <= 1
    assert grid[0] < 0.05 and grid[-1] > 0.95
    assert calibration.predict(np.array([[5.015]])) == pytest.approx(0.5, abs=0.1)
    assert auc(held_out[is_pos], held_out[~is_pos]) == pytest.approx(0.85, abs=0.05)
    assert np.isnan(calibration.predict(np.array([[NAN]]))).all()


def test_both_sides_weigh_the_same() -> None:
    rng = RNG(0)
    is_pos = np.arange(440) < 40
    evidence = (2.0 * is_pos + rng.standard_normal(440))[:, None]
    calibration, _ = calibrate(evidence, is_pos, np.arange(440) % 20)
    assert calibration.predict(np.array([[1.0]])) == pytest.approx(0.5, abs=0.1)


def test_evidence_that_only_names_the_question_does_not_count() -> None:
    """Each cluster has its own label and its own mark: learnt by heart within, worthless on held-out clusters."""
    rng = RNG(3)
    clusters = np.repeat(np.arange(30), 10)
    label = rng.permutation(np.arange(30) % 2 == 0)
    is_pos = label[clusters]
    evidence = np.eye(30)[clusters] + 0.01 * rng.standard_normal((300, 30))
    calibration, held_out = calibrate(evidence, is_pos, clusters)
    seen = calibration.predict(evidence)
    assert auc(seen[is_pos], seen[~is_pos]) > 0.99
    assert auc(held_out[is_pos], held_out[~is_pos]) < 0.65


def test_held_out_chances_do_not_see_their_own_cluster() -> None:
    """Turning the labels of one cluster round leaves its own held-out chances as they were."""
    rng = RNG(1)
    clusters = np.repeat(np.arange(5), 8)
    is_pos = np.tile([True, False], 20)
    evidence = (is_pos + rng.standard_normal(40))[:, None]
    turned = np.where(clusters == 2, ~is_pos, is_pos)
    _, before = calibrate(evidence, is_pos, clusters)
    _, after = calibrate(evidence, turned, clusters)
    np.testing.assert_allclose(before[clusters == 2], after[clusters == 2])
    assert not np.allclose(before[clusters != 2], after[clusters != 2])


def test_a_side_that_is_in_two_questions_only_can_be_calibrated() -> None:
    """Positive replies to two questions of twenty: whichever folds these land in, every fit needs both sides."""
    for seed in range(10):
        rng = RNG(seed)
        clusters = np.arange(20)
        is_pos = np.zeros(20, dtype=bool)
        is_pos[rng.choice(20, 2, replace=False)] = True
        _, held_out = calibrate((is_pos + rng.standard_normal(20))[:, None], is_pos, clusters)
        assert np.isfinite(held_out).all()
