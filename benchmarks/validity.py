"""What the intervals cover and how often the tests find what is not there: every simulation of the statistics again.

`python benchmarks/validity.py` needs no model and takes a few minutes on a core. Nominal is .95 for intervals, .05 for
what is found where there is nothing.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import norm

from personavec.stats.intervals import (
    Interval,
    auc_interval,
    clustered_mean,
    clustered_ratio,
    difference_interval,
    equivalent,
    pearson_interval,
    spearman_interval,
)
from personavec.stats.nulls import against, covariance_directions, isotropic_directions, null_battery, units
from personavec.stats.populations import controlled_mean
from personavec.verbs.analyse.coexpression import reach_of
from personavec.verbs.analyse.geometry import effective_rank, eigenvalues, noiseless_rank
from personavec.verbs.finetune.supply import best_of, dose_of, moves
from personavec.verbs.monitor.calibrate import Benign, calibrate
from personavec.verbs.monitor.calibration import DRIFT_FROM, KINDS, Calibration
from personavec.verbs.screen.sampled import skewness

Values = np.ndarray
Row = tuple[str, str, float]
Draw = Callable[[np.random.Generator], tuple[Interval, float]]
REPLIES = 4


def effects(shape: str, n: int, rng: np.random.Generator) -> tuple[Values, float]:
    """Scores [question, reply] in which questions differ, and their true mean."""
    if shape == "normal":
        return rng.standard_normal((n, 1)) + rng.standard_normal((n, REPLIES)), 0.0
    if shape == "skewed":
        return np.exp(0.4 * rng.standard_normal((n, 1))) + rng.exponential(0.5, (n, REPLIES)), float(np.exp(0.08)) + 0.5
    if shape == "exponential":  # every reply is its question: the worst that was tried
        return np.repeat(rng.exponential(size=(n, 1)), REPLIES, axis=1), 1.0
    chance = rng.beta(2, 4, (n, 1))
    return rng.beta(4 * chance + 1e-9, 4 * (1 - chance) + 1e-9, (n, REPLIES)), 1 / 3


def covers(draw: Draw, times: int) -> float:
    """Share of draws whose interval holds the truth."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(times):
        interval, truth = draw(rng)
        inside += interval.low <= truth <= interval.high
    return inside / times


def of_clusters(shape: str, n: int) -> dict[str, Draw]:
    """The intervals over questions, each as a draw of it and of the truth."""
    clusters, is_pos = np.repeat(np.arange(n), REPLIES), np.tile([True, False], n * REPLIES // 2)

    def drawn(rng: np.random.Generator) -> Values:
        return effects(shape, n, rng)[0].ravel()

    def mean(rng: np.random.Generator) -> tuple[Interval, float]:
        values, truth = effects(shape, n, rng)
        return clustered_mean(values.ravel(), clusters), truth

    def unequal(rng: np.random.Generator) -> tuple[Interval, float]:
        values, truth = effects(shape, n, rng)
        values[np.arange(REPLIES) >= rng.integers(1, REPLIES + 1, (n, 1))] = np.nan
        return clustered_mean(values.ravel(), clusters), truth

    def ratio(rng: np.random.Generator) -> tuple[Interval, float]:
        below = 3 + np.repeat(rng.random(n), REPLIES)
        return clustered_ratio(0.3 * below + 0.1 * (drawn(rng) - drawn(rng)), below, clusters), 0.3

    def difference(rng: np.random.Generator) -> tuple[Interval, float]:
        return difference_interval(drawn(rng) + 0.3 * is_pos, is_pos, clusters), 0.3

    def correlation(rng: np.random.Generator) -> tuple[Interval, float]:
        x = drawn(rng)
        return pearson_interval(x, 0.6 * x + 0.8 * drawn(rng), clusters), 0.6

    def ranks(rng: np.random.Generator) -> tuple[Interval, float]:
        x = drawn(rng)
        return spearman_interval(x, 0.6 * x + 0.8 * drawn(rng), clusters), float(6 / np.pi * np.arcsin(0.3))

    draws: dict[str, Draw] = {"mean": mean, "mean, 1 to 4 replies": unequal, "Pearson's r": correlation}
    if shape != "exponential":  # a difference within questions that are all alike is no random one
        draws |= {"ratio": ratio, "difference of sides": difference}
    return draws | ({"Spearman's r": ranks} if shape == "normal" else {})


def separation(truth: float, n: int) -> Draw:
    """The interval of an AUC of eight replies of each side to each question."""
    sides, questions = np.tile(np.repeat([True, False], 8), n), np.repeat(np.arange(n), 16)

    def auc(rng: np.random.Generator) -> tuple[Interval, float]:
        values = np.sqrt(0.3) * rng.standard_normal(n)[questions] + np.sqrt(0.7) * rng.standard_normal(len(sides))
        return auc_interval(values + sides * norm.ppf(truth) * np.sqrt(2), sides, questions), truth

    return auc


def intervals(times: int) -> Iterator[Row]:
    """Every interval function at 6, 10 and 20 questions."""
    for shape in ("normal", "skewed", "bounded", "exponential"):
        for n in (6, 10, 20):
            for name, draw in of_clusters(shape, n).items():
                yield name, f"{shape}, {n} questions", covers(draw, times)
    for truth in (0.7, 0.9, 0.98):
        for n in (6, 8, 20):
            yield "AUC", f"{truth}, {n} questions", covers(separation(truth, n), times // 2)


def tests(times: int) -> Iterator[Row]:
    """How often something is found where there is nothing."""
    rng = np.random.default_rng(0)
    shown = [equivalent(clustered_mean(1 + 0.6 * rng.standard_normal(10), np.arange(10)), 1) for _ in range(times)]
    yield "equivalent", "a true difference at the margin (nominal .025)", float(np.mean(shown))
    for levels in (5, 8):
        condition, question = np.divmod(np.arange(10 * levels), 10)
        for reach, groups, blocks in (("overall", None, condition), ("within", condition, question)):
            found = []
            for _ in range(times // 4):
                x, y = (
                    rng.standard_normal(levels)[condition]
                    + 0.5 * rng.standard_normal(10)[question]
                    + 0.5 * rng.standard_normal(len(condition))
                    for _ in range(2)
                )
                r = pearson_interval(x, y, question, groups, condition)
                null = null_battery(
                    x[None, :, None],
                    y,
                    np.ones((1, 1)),
                    rng,
                    groups=groups,
                    blocks=blocks,
                    n_random=1,
                    n_permutations=199,
                )
                found.append([not r.low <= 0 <= r.high, null["nulls"]["permutation"]["p"] <= 0.05])
            for name, share in zip(("interval", "permutation"), np.mean(found, axis=0), strict=True):
                yield f"monitoring, r {reach}: {name}", f"no relation, {levels} conditions", float(share)
    yield "drift, group with limits of its own", "no drift, 60 long chats", _drift(rng, max(20, times // 25))
    for shape in ("normal", "skewed"):
        moved = 0.7 * (rng.standard_normal((times, 64, 1)) + rng.standard_normal((times, 64, 12)))
        moved = np.expm1(0.5 * moved) - np.expm1(0.1225) if shape == "skewed" else moved
        doses = [dose_of(best_of(moves(rows, range(12), 0))) for rows in moved]
        yield "VEC:auto above 0", f"nothing supplied, {shape}, best of 12 layers", float(np.mean(np.array(doses) > 0))
    scale, beyond = np.exp(-np.arange(64) / 10), []
    for _ in range(times // 2):
        move = scale * rng.standard_normal(64)
        value = units(scale * rng.standard_normal((1, 64)))[0] @ move
        matched = covariance_directions(20, scale * rng.standard_normal((1, 200, 64)), rng)[0]
        beyond.append([against(value, ds @ move)["beyond"] for ds in (matched, isotropic_directions(20, 64, rng))])
    for name, share in zip(("matched", "isotropic (no longer used)"), np.mean(beyond, axis=0), strict=True):
        yield f"beyond 20 directions, {name}", "a direction of the covariance", float(share)
    times_of = np.tile([-1, -0.5, 0, 0.5, 1, 1.5], 12)
    bent = []
    for _ in range(times // 8):
        odds = np.repeat(1.2 + 0.2 * rng.standard_normal(12), 6) * times_of + 0.3 * rng.standard_normal(72)
        columns = enumerate(zip(times_of, 100 / (1 + np.exp(-odds)), strict=True))
        rows = [{"times": dose, "question_id": at // 6, "trait": score} for at, (dose, score) in columns]
        bent.append(reach_of(rows)["verdict"] != "linear")
    yield "reach: bent", "evidence in a straight line", float(np.mean(bent))


def _drift(rng: np.random.Generator, times: int) -> float:
    raised = []
    for _ in range(times):
        talks = [
            Benign(group, dict.fromkeys(KINDS, shift + rng.standard_normal() + rng.standard_normal(4)))
            for group, shift in (("far", 2.0), ("near", 0.0))
            for _ in range(120)
        ]
        benign, new = talks[:60] + talks[120:180], talks[60:120]
        limits = Calibration({}, 0.05, {"v": calibrate(benign, "warm", 2, 0.05)})
        for talk in new:
            test = limits.drift("v", "far")
            path = talk.values[KINDS[1]]
            assert test and len(path) >= DRIFT_FROM
            raised.append(any([test.add(value) is not None for value in path.tolist()]))
    return float(np.mean(raised))


def widths(times: int) -> Iterator[Row]:
    """Intervals of ranks, and of skewed rows with how often those are named."""
    rng, scale = np.random.default_rng(0), np.exp(-np.arange(20) / 4)
    for noise in (0.7, 1.5):
        errors, halves, inside = [], [], []
        for _ in range(max(40, times // 16)):
            means = scale * rng.standard_normal((24, 20))
            truth = effective_rank(eigenvalues(means))
            found = noiseless_rank(means[:, None] + noise * scale * rng.standard_normal((24, 8, 20)), rng)
            inside.append(found.low <= truth <= found.high)
            errors.append(found.mean - truth)
            halves.append((found.high - found.low) / 2 / 2.3646)
        yield "effective rank", f"noise {noise}, 8 questions", float(np.mean(inside))
        yield "effective rank: width / right width", f"noise {noise}", float(np.mean(halves) / np.std(errors))
    for spread in (0.3, 1.0, 1.5):
        inside, named = [], []
        for _ in range(times // 2):
            values = np.exp(spread * rng.standard_normal(5000))
            drawn = rng.choice(values, 200, replace=False)
            mean = controlled_mean(drawn, np.zeros((200, 0)), np.zeros(0), 5000)
            inside.append(mean.low <= values.mean() <= mean.high)
            named.append(200 <= 25 * skewness(drawn) ** 2)
        yield "sampled screening", f"lognormal rows, σ {spread}", float(np.mean(inside))
        yield "sampled screening: named as skewed", f"lognormal rows, σ {spread}", float(np.mean(named))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2000, help="draws of the cheapest simulations; others take a part")
    times = parser.parse_args().times
    print("| what | of | share |\n|---|---|---|")
    for part in (intervals, tests, widths):
        for name, of, share in part(times):
            print(f"| {name} | {of} | {share:.3f} |", flush=True)


if __name__ == "__main__":
    main()
