"""Nominal 95% covers .93 to .97: every interval against planted truth, on normal, skewed and bounded replies."""

import numpy as np
import pytest
from scipy.stats import norm

from personavec.stats import intervals
from personavec.stats.intervals import FISHER, LOGIT, Interval, Transform

RNG = np.random.default_rng
DRAWS, REPLIES = 4000, 4
SHAPES = ("normal", "skewed", "bounded")
CLUSTERS = (6, 10, 20)


def replies(shape: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Scores [draw, question, reply] in which questions differ, and their true mean."""
    size, each = (DRAWS, n, 1), (DRAWS, n, REPLIES)
    if shape == "normal":
        return rng.standard_normal(size) + rng.standard_normal(each), 0.0
    if shape == "skewed":  # skewness 1.3 of questions, 2 of replies
        return np.exp(0.4 * rng.standard_normal(size)) + rng.exponential(0.5, each), float(np.exp(0.08)) + 0.5
    chance = rng.beta(2, 4, size)
    return rng.beta(4 * chance + 1e-9, 4 * (1 - chance) + 1e-9, each), 1 / 3


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def covers(points: np.ndarray, without: np.ndarray, truth: float, scale: Transform = intervals.LINEAR) -> float:
    """Share of the draws whose interval holds the truth."""
    each = (intervals.jackknife(float(p), w, 0, scale) for p, w in zip(points, without, strict=True))
    return float(np.mean([holds(interval, truth) for interval in each]))


def left_out(sums: np.ndarray) -> np.ndarray:
    """What is left of [draw, cluster] without each cluster."""
    return np.asarray(sums.sum(axis=1, keepdims=True) - sums)


@pytest.mark.parametrize("n", CLUSTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_means(shape: str, n: int) -> None:
    values, truth = replies(shape, n, RNG(n))
    sums = values.sum(axis=2)
    assert 0.93 <= covers(values.mean(axis=(1, 2)), left_out(sums) / (n - 1) / REPLIES, truth) <= 0.97
    first = intervals.clustered_mean(values[0].ravel(), np.repeat(np.arange(n), REPLIES))
    same = intervals.jackknife(values[0].mean(), left_out(sums)[0] / (n - 1) / REPLIES, 0)
    assert first[:3] == pytest.approx(same[:3])


@pytest.mark.slow
@pytest.mark.parametrize("n", CLUSTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ratios_of_unequal_clusters(shape: str, n: int) -> None:
    """Questions with 1 to 4 replies left: the mean of replies as a ratio of sums."""
    values, truth = replies(shape, n, RNG(100 + n))
    values[np.arange(REPLIES) >= RNG(n).integers(1, REPLIES + 1, (DRAWS, n, 1))] = np.nan
    clusters = np.repeat(np.arange(n), REPLIES)
    covered = [holds(intervals.clustered_mean(drawn.ravel(), clusters), truth) for drawn in values]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("n", CLUSTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_differences_of_sides(shape: str, n: int) -> None:
    """Two replies of each side to each question, 0.3 apart."""
    values, _ = replies(shape, n, RNG(200 + n))
    apart = 0.3 + values[:, :, ::2].sum(axis=2) - values[:, :, 1::2].sum(axis=2)
    assert 0.93 <= covers(apart.mean(axis=1) / 2, left_out(apart) / (n - 1) / 2, 0.3 / 2) <= 0.97


def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (side.reshape(len(side), -1) for side in (x, y))
    x, y = (side - side.mean(axis=1, keepdims=True) for side in (x, y))
    return np.asarray((x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.6])
@pytest.mark.parametrize("n", CLUSTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_correlations(shape: str, n: int, rho: float) -> None:
    x, noise = (replies(shape, n, RNG(seed + n))[0] for seed in (300, 400))
    y = rho * x + np.sqrt(1 - rho**2) * noise
    without = np.stack([correlation(np.delete(x, at, 1), np.delete(y, at, 1)) for at in range(n)], axis=1)
    assert 0.93 <= covers(correlation(x, y), without, rho, FISHER) <= 0.97


@pytest.mark.parametrize(("truth", "high"), [(0.7, 0.97), (0.9, 0.97), (0.98, 0.995)])
@pytest.mark.parametrize("n", [6, 8, 10, 20])
def test_aucs(n: int, truth: float, high: float) -> None:
    """Where many draws separate perfectly the exact bound covers more than it says, never less."""
    rng, draws = RNG(500 + n), DRAWS // 2
    question = np.sqrt(0.3) * rng.standard_normal((draws, n, 1))
    pos, neg = (question + np.sqrt(0.7) * rng.standard_normal((draws, n, 8)) for _ in range(2))
    pos = pos + norm.ppf(truth) * np.sqrt(2)
    wins = np.stack([(pos[:, [at], :, None] > neg[:, :, None]).sum(axis=(2, 3)) for at in range(n)], axis=1) / 64.0
    both = wins.sum(axis=2) + wins.sum(axis=1) - np.einsum("dcc->dc", wins)
    total = wins.sum(axis=(1, 2))
    assert 0.93 <= covers(total / n**2, (total[:, None] - both) / (n - 1) ** 2, truth, LOGIT) <= high
    is_pos = np.tile(np.repeat([True, False], 8), n)
    first = np.concatenate([pos[0], neg[0]], axis=1).ravel()
    found = intervals.auc_interval(first, is_pos, np.repeat(np.arange(n), 16))
    assert found[:3] == pytest.approx(
        intervals.jackknife(total[0] / n**2, (total[0] - both[0]) / (n - 1) ** 2, 0, LOGIT)[:3]
    )


def test_a_perfect_auc_of_few_questions_is_no_certainty() -> None:
    for n, low in ((8, 0.63), (20, 0.83)):
        is_pos = np.tile([True, False], n)
        whole = intervals.auc_interval(is_pos * 1.0, is_pos, np.repeat(np.arange(n), 2))
        assert whole[:3] == pytest.approx((1, low, 1), abs=0.005) and whole.few is (n < 8)
        none = intervals.auc_interval(-1.0 * is_pos, is_pos, np.repeat(np.arange(n), 2))
        assert none[:3] == pytest.approx((0, 0, 1 - low), abs=0.005)


def test_few_clusters_are_said() -> None:
    for n in (7, 8):
        found = intervals.clustered_mean(np.arange(n, dtype=float), np.arange(n))
        assert found.few is (n < 8) and found.to_json()["clusters"] == n
    assert not Interval(1, 0, 2, 3).few and "clusters" not in Interval(1, 0, 2, 3).to_json()


def test_a_difference_is_equivalent_only_if_all_of_its_interval_is_small() -> None:
    """Where the true difference lies at the margin, "equivalent" is said in at most 1 of 40."""
    assert intervals.equivalent(Interval(1, -1, 3, 9), 3) and not intervals.equivalent(Interval(1, -1, 3, 9), 2.9)
    assert not intervals.equivalent(Interval(1, np.nan, np.nan, 9), 99)
    rng = RNG(0)
    shown = [
        intervals.equivalent(intervals.clustered_mean(1 + 0.6 * rng.standard_normal(10), np.arange(10)), 1)
        for _ in range(2000)
    ]
    assert 0.015 <= np.mean(shown) <= 0.035
