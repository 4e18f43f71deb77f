"""Experiments of conditions × questions: without any relation they find none, and the ceiling of r is where it is."""

from typing import Any

import numpy as np
import pytest

from personavec.stats.intervals import FISHER, ceiling, jackknife, pearson_interval
from personavec.stats.nulls import null_battery

RNG = np.random.default_rng
QUESTIONS = 10
SPREADS = {"conditions and questions": (1.0, 0.5), "conditions": (1.0, 0.0), "questions": (0.0, 1.0)}
"""Of conditions and of questions, beside a noise of 0.5."""


def table(draws: int, conditions: int, spread: str, rng: np.random.Generator) -> np.ndarray:
    """A value for each condition and question."""
    between, across = SPREADS[spread]
    rows, columns = (rng.standard_normal(shape) for shape in ((draws, conditions, 1), (draws, 1, QUESTIONS)))
    return np.asarray(between * rows + across * columns + 0.5 * rng.standard_normal((draws, conditions, QUESTIONS)))


def correlation(x: np.ndarray, y: np.ndarray, reach: str) -> np.ndarray:
    """Over all [draw, condition, question], or the mean within conditions."""
    axes = (1, 2) if reach == "overall" else (2,)
    x, y = (side - side.mean(axis=axes, keepdims=True) for side in (x, y))
    r = (x * y).sum(axis=axes) / np.sqrt((x**2).sum(axis=axes) * (y**2).sum(axis=axes))
    return np.asarray(r if reach == "overall" else r.mean(axis=1))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("conditions", [pytest.param(5, marks=pytest.mark.slow), 8])
def test_without_a_relation_few_experiments_find_one(conditions: int, spread: str) -> None:
    """Projection and score have effects of condition and question each by itself; r overall and within is nothing."""
    rng = RNG(conditions)
    condition, question = np.divmod(np.arange(conditions * QUESTIONS), QUESTIONS)
    x, y = (table(1000, conditions, spread, rng) for _ in range(2))
    for reach, groups, blocks in (("overall", None, condition), ("within", condition, question)):
        kinds = (
            np.stack([correlation(*(np.delete(side, at, axis) for side in (x, y)), reach) for at in range(count)], 1)
            for axis, count in ((2, QUESTIONS), (1, conditions))
        )
        each = [
            jackknife(r, without, 0, FISHER, crossed=crossed)
            for r, without, crossed in zip(correlation(x, y, reach), *kinds, strict=True)
        ]
        assert np.mean([not r.low <= 0 <= r.high for r in each]) <= 0.07, reach
        first = pearson_interval(x[0].ravel(), y[0].ravel(), question, groups, condition)
        assert first[:3] == pytest.approx(each[0][:3])
        options: dict[str, Any] = {"groups": groups, "blocks": blocks, "n_random": 1, "n_permutations": 199}
        ps = [
            null_battery(one.reshape(1, -1, 1), other.ravel(), np.ones((1, 1)), rng, **options)
            for one, other in zip(x[:300], y[:300], strict=True)
        ]
        assert np.mean([p["nulls"]["permutation"]["p"] <= 0.05 for p in ps]) <= 0.07, reach


def test_a_relation_between_conditions_is_seen() -> None:
    rng = RNG(0)
    condition, question = np.divmod(np.arange(8 * QUESTIONS), QUESTIONS)
    signal = rng.standard_normal((8, 1))
    x, y = (np.ravel(signal + 0.2 * rng.standard_normal((8, QUESTIONS))) for _ in range(2))
    assert pearson_interval(x, y, question, None, condition).low > 0
    nulls = null_battery(x[None, :, None], y, np.ones((1, 1)), rng, blocks=condition, n_random=1, n_permutations=999)
    assert nulls["nulls"]["permutation"]["p"] <= 0.01


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2])
def test_the_ceiling_is_the_r_of_a_signal_that_knows_all(share: float) -> None:
    """Ten replies a question, of whose variance a share is the question's; some without a score."""
    rng, groups = RNG(5), np.repeat(np.arange(8), 20)
    highest = np.sqrt(share * 10 / (share * 10 + 1 - share))
    inside, ceilings, reached = 0, [], []
    for _ in range(1000):
        question = np.sqrt(share) * rng.standard_normal(160)
        scores = 3 * groups[:, None] + question[:, None] + np.sqrt(1 - share) * rng.standard_normal((160, 10))
        limit = ceiling(np.where(rng.random((160, 10)) < 0.02, np.nan, scores), groups)
        inside += limit.low <= highest <= limit.high + 1e-9
        ceilings.append(limit.mean**2)
        reached.append(np.corrcoef(question[:20], scores[:20].mean(axis=1))[0, 1] if share else 0)
    assert 0.93 <= inside / 1000 <= 0.98  # at a share of 0 the upper bound cannot err
    if share:
        assert np.mean(ceilings) == pytest.approx(highest**2, abs=0.02)
        assert np.mean(reached) == pytest.approx(highest, abs=0.03)


def test_there_is_no_ceiling_without_a_second_reply() -> None:
    assert np.isnan(ceiling(RNG(0).standard_normal((9, 1)), np.zeros(9, dtype=int)).mean)
    assert ceiling(np.tile([1.0, 2.0], (9, 1)), np.zeros(9, dtype=int))[:3] == (0, 0, 0)
