"""What a correlation over finetunings is worth: planted truths are found, chance and shared directions are not."""

import json
from typing import Any

import numpy as np
import pytest

from personavec.errors import DataError, VectorError
from personavec.paper.prediction import Finetunings, better, measure_prediction
from personavec.stats.nulls import NULLS

N, WIDTH, PROMPTS = 24, 64, 80
MODELS = tuple(f"model {i}" for i in range(N))
RNG = np.random.default_rng
FAST: dict[str, Any] = {"n_random": 400, "n_permutations": 999}


def planted(traits: int = 3, noise: float = 1.0, seed: int = 0, **changes: Any) -> Finetunings:
    """Each trait has its own direction, and each model moves along it as far as its score says."""
    rng = RNG(seed)
    names = [f"trait{i}" for i in range(traits)]
    directions = dict(zip(names, np.linalg.qr(rng.standard_normal((WIDTH, traits)))[0].T * 7, strict=True))
    scores = {name: rng.uniform(0, 100, N) for name in names}
    move = sum(np.outer(scores[name] / 10, directions[name] / 7) for name in names)
    moved = {name: move + noise * rng.standard_normal((N, WIDTH)) for name in names}
    activations = {name: rng.standard_normal((PROMPTS, WIDTH)) for name in names}
    given: dict[str, Any] = {"directions": directions, "scores": scores, "moved": moved, "activations": activations}
    return Finetunings(MODELS, **(given | changes))


def one(scores: np.ndarray, **changes: Any) -> dict[str, Any]:
    """What is said of a single trait with these scores."""
    grid = planted(1)
    given: dict[str, Any] = {"moved": grid.moved, "directions": grid.directions, "activations": grid.activations}
    grid = Finetunings(MODELS, **(given | {"scores": {"trait0": scores}} | changes))
    found: dict[str, Any] = measure_prediction(grid, **FAST)["traits"]["trait0"]
    return found


def dominant(seed: int = 0) -> Finetunings:
    """One direction, along which the base model's own activations vary most, carries every move and every score."""
    rng = RNG(seed)
    strong = rng.standard_normal(WIDTH)
    strong /= np.linalg.norm(strong)
    score = rng.uniform(0, 100, N)
    along = strong + 0.3 * rng.standard_normal(WIDTH) / np.sqrt(WIDTH)
    activations = rng.standard_normal((PROMPTS, WIDTH)) + np.outer(60 * rng.standard_normal(PROMPTS), strong)
    moved = np.outer(score / 10, strong) + 0.3 * rng.standard_normal((N, WIDTH))
    noisy = score + 10 * rng.standard_normal(N)
    return Finetunings(MODELS, {"a": moved}, {"a": along}, {"a": noisy}, {"a": activations})


# verdicts


def test_a_planted_direction_predicts_and_beats_every_null() -> None:
    grid = planted()
    found = measure_prediction(grid, **FAST)
    for trait, own in found["traits"].items():
        assert own["pearson"]["r"] > 0.9 and own["pearson"]["ci"][0] > 0.8 and own["spearman"]["r"] > 0.9
        assert {name: null["beats"] for name, null in own["nulls"].items()} == dict.fromkeys(NULLS, True), trait
        assert (
            own["principal"]["best"] < own["pearson"]["r"]
            and own["beaten_by"] == []
            and "does not" not in own["verdict"]
        )
        assert own["pearson"]["r"] > own["nulls"]["isotropic"]["percentiles"]["97.5"]
        assert own["n"] == len(own["points"]) == N and own["dropped"] == 0 and own["reason"] is None


def test_without_noise_r_is_one() -> None:
    own = measure_prediction(planted(1, noise=0), **FAST)["traits"]["trait0"]
    assert own["pearson"] == {"r": 1.0, "ci": [1.0, 1.0]} and own["spearman"]["r"] == 1.0


def test_noise_is_not_taken_for_a_finding() -> None:
    own = one(RNG(5).uniform(0, 100, N))
    assert all(null["p"] > 0.05 and null["beats"] is False for null in own["nulls"].values())


def test_one_dominant_direction_is_no_proof_of_the_own_one() -> None:
    own = measure_prediction(dominant(), **FAST)["traits"]["a"]
    assert own["pearson"]["r"] > 0.9 and own["nulls"]["permutation"]["beats"]
    matched = own["nulls"]["covariance"]
    assert matched["percentiles"]["97.5"] > 0.9 and matched["beats"] is False
    assert own["principal"]["best"] > 0.9 and "principal components reaches 0.9" in own["verdict"]
    assert "does not beat covariance-matched random directions" in own["verdict"]


def test_a_reversed_shift_beats_nothing() -> None:
    grid = planted(1)
    turned = Finetunings(MODELS, grid.moved, {"trait0": -grid.directions["trait0"]}, grid.scores, grid.activations)
    own = measure_prediction(turned, **FAST)["traits"]["trait0"]
    assert own["pearson"]["r"] < -0.9 and own["nulls"]["permutation"]["p"] < 0.01
    assert {null["beats"] for null in own["nulls"].values()} == {False} and "does not predict" in own["verdict"]


def test_length_of_a_direction_does_not_matter() -> None:
    grid = planted(2)
    longer = {trait: 9 * direction for trait, direction in grid.directions.items()}
    other = Finetunings(MODELS, grid.moved, longer, grid.scores, grid.activations)
    assert measure_prediction(grid, **FAST) == measure_prediction(other, **FAST)


def test_projection_difference_is_measured_where_given() -> None:
    grid = planted(2)
    unit = grid.directions["trait0"] / np.linalg.norm(grid.directions["trait0"])
    along = grid.scores["trait0"] + RNG(3).standard_normal(N)
    predicted = {"trait0": np.outer(along, unit) + RNG(4).standard_normal((N, WIDTH))}
    replies = {"trait0": RNG(5).standard_normal((PROMPTS, WIDTH))}
    found = measure_prediction(planted(2, predicted=predicted, reply_activations=replies), **FAST)["traits"]
    own = found["trait0"]["projection_difference"]
    assert own["pearson"]["r"] > 0.99 and set(own["nulls"]) == set(NULLS)
    assert own["nulls"]["permutation"]["beats"] and own["nulls"]["covariance"]["percentiles"]["95"] > 0.5
    assert found["trait1"]["projection_difference"] is None


def test_data_that_move_everything_alike_beat_no_matched_direction() -> None:
    grid, strong = dominant(), RNG(0).standard_normal(WIDTH)
    moves = {"a": np.outer(grid.scores["a"], strong)}
    found = measure_prediction(
        Finetunings(MODELS, grid.moved, grid.directions, grid.scores, grid.activations, moves, grid.activations), **FAST
    )["traits"]["a"]["projection_difference"]
    assert found["pearson"]["r"] > 0.9 and not found["nulls"]["covariance"]["beats"]


# the other traits


def test_the_cross_table_has_a_row_for_each_direction() -> None:
    grid = planted(3)
    cross = measure_prediction(grid, **FAST)["cross"]
    table = np.array(cross["r"])
    assert table.shape == (3, 3) and (np.diag(table) > 0.9).all()
    expected = np.corrcoef(grid.shifts("trait0"), grid.scores["trait2"])[0, 1]
    assert table[0, 2] == pytest.approx(expected, abs=1e-4)
    assert cross["own_beaten"] == {"times": 0, "of": 3}


def test_a_better_direction_of_another_trait_is_told() -> None:
    grid = planted(2)
    scores = {"trait0": grid.scores["trait1"], "trait1": grid.scores["trait1"]}
    found = measure_prediction(planted(2, scores=scores), **FAST)
    assert found["cross"]["own_beaten"] == {"times": 1, "of": 2}
    assert found["traits"]["trait0"]["beaten_by"] == ["trait1"]
    assert measure_prediction(planted(1), **FAST)["cross"]["own_beaten"] == {"times": 0, "of": 0}


# too little to tell


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.full(N, 40.0), "the score is the same for every row"),
        (np.where(np.arange(N) < 3, np.arange(N), np.nan), "expected 4 rows or more, got 3"),
        (np.full(N, np.nan), "expected 4 rows or more, got 0"),
    ],
)
def test_without_a_correlation_the_reason_is_told(scores: np.ndarray, reason: str) -> None:
    own = one(scores, predicted={"trait0": RNG(0).standard_normal((N, WIDTH))})
    assert own["reason"] == reason and own["verdict"] == f"no correlation: {reason}"
    assert own["pearson"]["r"] is own["spearman"]["r"] is own["principal"]["best"] is None
    assert all(null["p"] is null["q"] is null["beats"] is None for null in own["nulls"].values())
    assert own["projection_difference"]["reason"] == reason


def test_models_that_move_alike_have_no_correlation() -> None:
    own = one(RNG(0).uniform(0, 100, N), moved={"trait0": np.ones((N, WIDTH))})
    assert own["reason"] == "every row lies alike"


def test_missing_values_are_dropped_and_counted() -> None:
    grid = planted(1)
    scores = grid.scores["trait0"].copy()
    scores[:5] = np.nan
    own = one(scores)
    assert (own["n"], own["dropped"], len(own["points"])) == (N - 5, 5, N - 5)
    whole = measure_prediction(
        Finetunings(MODELS[5:], {"trait0": grid.moved["trait0"][5:]}, grid.directions, {"trait0": scores[5:]})
    )
    assert own["pearson"] == whole["traits"]["trait0"]["pearson"]


@pytest.mark.parametrize(
    ("activations", "reason"),
    [
        ({}, "no activations were given"),
        ({"trait0": np.full((9, WIDTH), 0.1)}, "the activations do not vary"),
        ({"trait0": np.full((9, WIDTH), np.nan)}, "the activations do not vary"),
        ({"trait0": np.empty((0, WIDTH))}, "the activations do not vary"),
    ],
)
def test_a_null_that_cannot_be_drawn_is_told(activations: dict[str, np.ndarray], reason: str) -> None:
    own = measure_prediction(planted(1, activations=activations), **FAST)["traits"]["trait0"]
    assert own["nulls"]["covariance"] == {"p": None, "q": None, "beats": None, "reason": reason}
    assert own["nulls"]["isotropic"]["beats"] and own["principal"] == {"r": [], "best": None}
    assert "not compared with covariance-matched random directions" in own["verdict"]


def test_every_result_is_json_without_nan() -> None:
    flat = planted(3, scores={name: np.full(N, np.nan) for name in ("trait0", "trait1", "trait2")})
    for grid in (planted(), flat, planted(1, activations={}), planted(1, noise=0), dominant()):
        json.dumps(measure_prediction(grid, **FAST), allow_nan=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {}},
        {"directions": {"other": np.ones(WIDTH)}},
        {"activations": {"other": np.ones((3, WIDTH))}},
        {"scores": {"trait0": np.ones(N - 1)}},
        {"moved": {"trait0": np.ones((N, WIDTH + 1))}},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_grid_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected"):
        planted(1, **changes)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_direction_without_direction_is_refused(value: float) -> None:
    with pytest.raises(VectorError, match="trait0"):
        planted(1, directions={"trait0": np.full(WIDTH, value)})


def test_a_seed_gives_one_result() -> None:
    assert measure_prediction(planted(), **FAST) == measure_prediction(planted(), **FAST)


# the data and the shift, and one prediction against another


def test_along_any_direction_that_data_move_alike_the_shift_follows() -> None:
    """Where training moves a model as its data lie, every direction's shift is predicted: the vector proves little."""
    grid = planted(1)
    predicted = {"trait0": grid.moved["trait0"] + 0.01 * RNG(1).standard_normal((N, WIDTH))}
    replies = {"trait0": RNG(5).standard_normal((PROMPTS, WIDTH))}
    carried = measure_prediction(planted(1, predicted=predicted, reply_activations=replies), **FAST)["traits"][
        "trait0"
    ]["carried"]
    assert carried["pearson"]["r"] > 0.99 and carried["covariance"]["percentiles"]["95"] > 0.99
    noise = {"trait0": RNG(2).standard_normal((N, WIDTH))}
    apart = measure_prediction(planted(1, predicted=noise, reply_activations=replies), **FAST)["traits"]["trait0"][
        "carried"
    ]
    assert apart["covariance"]["percentiles"]["95"] < 0.6
    assert measure_prediction(planted(1), **FAST)["traits"]["trait0"]["carried"] is None


def drawn(rng: np.random.Generator, gain: float) -> dict[str, Any]:
    """Two predictions of 8 families' three models each; the first is less noisy if there is a gain."""
    families = np.repeat(np.arange(8), 3)
    true = rng.standard_normal(8)[families] + rng.standard_normal(24)
    scores = true[:, None] + rng.standard_normal((24, 12))
    first, second = (true + 2 * noise * rng.standard_normal(24) for noise in (1 - gain, 1))
    return {"first": first, "second": second, "scores": scores, "families": [f"family {at}" for at in families]}


@pytest.mark.slow
def test_a_better_prediction_is_seen_and_an_equal_one_is_not() -> None:
    rng = RNG(0)
    equal = [better(**drawn(rng, 0)) for _ in range(200)]
    assert np.mean([found.low <= 0 <= found.high for found in equal]) > 0.93
    assert np.mean([better(**drawn(rng, 0.8)).low > 0 for _ in range(100)]) > 0.5
    assert equal[0].clusters == 8 and equal[0].n == 24


def test_of_too_few_families_nothing_is_said() -> None:
    few = drawn(RNG(0), 0.5)
    few["families"] = ["one"] * 24
    assert np.isnan(better(**few).low)
