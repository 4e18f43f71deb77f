"""Limits from benign conversations: they hold at the rate that is stated, and the sequential test finds slow drift."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personavec.errors import DataError
from personavec.verbs.monitor.calibrate import Benign, calibrate
from personavec.verbs.monitor.calibration import DRIFT, KINDS, Calibration, Cusum, Drift, VectorCalibration, fewest

MODEL = {"id": "m", "revision": "r" * 64, "n_layers": 4, "d_model": 8}
Draw = Callable[[np.random.Generator], Benign]


def conversation(rng: np.random.Generator, group: str = "all", shift: float = 0.0) -> Benign:
    """Of one to eight turns that depend on each other: all are as far off as their conversation is."""
    turns, own = int(rng.integers(1, 9)), rng.standard_t(4)
    return Benign(group, {kind: shift + own + rng.normal(size=turns) for kind in KINDS})


def benign(n: int, seed: int = 0, draw: Draw = conversation) -> list[Benign]:
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(n)]


def calibrated(conversations: list[Benign], rate: float) -> Calibration:
    return Calibration(MODEL, rate, {"v": calibrate(conversations, "warm", 2, rate)})


def shares(calibration: Calibration, conversations: list[Benign]) -> dict[str, float]:
    """Share of alerts: of turns on average over conversations, and of conversations for drift."""
    found: dict[str, list[float]] = {kind: [] for kind in (*KINDS, DRIFT)}
    for own in conversations:
        for kind in KINDS:
            raised = [bool(calibration.check("v", {kind: value}, own.group)) for value in own.values[kind].tolist()]
            found[kind].append(float(np.mean(raised)))
        if (test := calibration.drift("v", own.group)) and len(own.values[KINDS[1]]) > 1:
            found[DRIFT].append(float(any([test.add(value) for value in own.values[KINDS[1]].tolist()])))
    return {kind: float(np.mean(values)) for kind, values in found.items()}


@pytest.mark.slow
def test_the_stated_rate_holds_on_new_conversations_whose_turns_depend_on_each_other() -> None:
    """Averaged over many calibrations: the guarantee is one over the draw of the benign set as well."""
    rate, found = 0.1, []
    for seed in range(60):
        new = benign(300, seed=10_000 + seed)
        found.append(shares(calibrated(benign(60, seed), rate), new))
    for kind in (*KINDS, DRIFT):
        mean = np.mean([one[kind] for one in found])
        error = 2.5 * np.std([one[kind] for one in found]) / np.sqrt(60)
        assert rate / 2 < mean <= rate + error, kind


def test_the_rate_on_unseen_conversations_is_covered_by_its_interval() -> None:
    own = calibrated(benign(600), 0.05)
    truth = shares(own, benign(4000, seed=5))
    for kind, rate in own.vectors["v"].held_out.items():
        low, high = rate["ci"]
        assert low <= truth[kind] <= high and high < 0.1


def test_drift_is_found_and_benign_conversations_are_left_alone() -> None:
    def steady(rng: np.random.Generator) -> Benign:
        return Benign("all", {kind: rng.normal(size=20) for kind in KINDS})

    own = calibrated(benign(200, draw=steady), 0.02)
    rng = np.random.default_rng(1)
    ramps = [np.linspace(0, 2, 20) + rng.normal(size=20) for _ in range(100)]
    flat = [rng.normal(size=20) for _ in range(100)]

    def alarms(paths: list[Any]) -> list[Any]:
        tests = [(own.drift("v"), path) for path in paths]
        return [[alert for value in path.tolist() if (alert := test.add(value))] for test, path in tests if test]

    for sign in (1, -1):
        found = alarms([sign * path for path in ramps])
        assert np.mean([bool(one) for one in found]) > 0.8
        assert all(sign * one[0]["value"] > one[0]["high"] for one in found if one)
    assert np.mean([bool(one) for one in alarms(flat)]) <= 0.06


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
@settings(deadline=None)
def test_the_sequential_test_mirrors_and_needs_a_second_turn(values: list[float]) -> None:
    cusum = Cusum(100, 0.0, 1.0, 2.0, 30)
    up, down = Drift("v", cusum), Drift("v", cusum)
    for turn, value in enumerate(values, 1):
        one, other = up.add(value), down.add(-value)
        assert (one is None) == (other is None) and (up.up, up.down) == (down.down, down.up)
        assert not (one and turn == 1)
        if one:
            assert abs(one["value"]) > 2 and (up.up, up.down) == (0, 0)


def test_too_few_conversations_are_refused_and_the_message_keeps_its_word() -> None:
    assert fewest(0.01) == 199 and fewest(0.05) == 39 and fewest(0.01, sides=1) == 99
    calibrate(benign(39), "warm", 2, 0.05)
    with pytest.raises(DataError, match=r"at least 39 benign conversations .* got 38; .*-rate 0\.052 and above"):
        calibrate(benign(38), "warm", 2, 0.05)
    calibrate(benign(38), "warm", 2, 0.052)
    with pytest.raises(DataError, match=r"got 2; pass more$"):
        calibrate(benign(2), "warm", 2, 0.3)


def test_halves_that_are_too_small_are_not_measured() -> None:
    assert not calibrate(benign(77), "warm", 2, 0.05).held_out
    assert calibrate(benign(80), "warm", 2, 0.05).held_out.keys() >= set(KINDS)


def test_conversations_of_one_turn_have_no_drift_and_equal_values_no_band() -> None:
    def single(rng: np.random.Generator) -> Benign:
        return Benign("all", {kind: rng.normal(size=1) for kind in KINDS})

    own = calibrated(benign(100, draw=single), 0.1)
    assert own.drift("v") is None and DRIFT not in own.vectors["v"].held_out
    with pytest.raises(DataError, match="the same prompt last along warm in all"):
        calibrate([Benign("all", dict.fromkeys(KINDS, np.ones(3)))] * 50, "warm", 2, 0.1)


def test_groups_have_limits_of_their_own_where_they_can() -> None:
    rng = np.random.default_rng(0)
    both = [conversation(rng, "far", shift=30) for _ in range(60)] + [conversation(rng, "near") for _ in range(60)]
    both += [conversation(rng, "rare", shift=30) for _ in range(3)]
    own = calibrated(both, 0.1)
    assert set(own.vectors["v"].bands) == {"all", "far", "near"} == set(own.vectors["v"].drift)
    assert own.check("v", {"prompt last": 30.0}, "near") and not own.check("v", {"prompt last": 30.0}, "far")
    assert own.band("v", "prompt last", "rare") == own.band("v", "prompt last") == own.band("v", "prompt last", "new")


@pytest.mark.slow
def test_a_group_of_few_long_conversations_is_not_taken_for_drift() -> None:
    """Beside everybody's mean 23% of its ordinary conversations drifted; with as many as the test needs, 5% do."""

    def traffic(rng: np.random.Generator, n: int, long: int) -> list[Benign]:
        """A group that lies elsewhere, some of its conversations of four turns, among others."""
        sizes = [(turns, "far") for turns in [4] * long + [1] * (n - long)] + [(4, "near")] * 60
        starts = [(rng.normal(size=turns) + rng.standard_normal(), group) for turns, group in sizes]
        return [Benign(g, dict.fromkeys(KINDS, path + 2 * (g == "far"))) for path, g in starts]

    raised = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        assert calibrated(traffic(rng, 60, 15), 0.05).drift("v", "far") is None
        limits = calibrated(traffic(rng, 60, 60), 0.05)
        assert limits.drift("v", "far") != limits.drift("v", "near") and limits.drift("v", "rare") is not None
        raised.append(shares(limits, [talk for talk in traffic(rng, 60, 60) if talk.group == "far"])[DRIFT])
    assert 0.03 <= np.mean(raised) <= 0.07


def test_alerts_are_json_and_nothing_is_said_of_what_is_not_there() -> None:
    own = calibrated(benign(60), 0.1)
    (alert,) = own.check("v", {"prompt last": 99.0, "response avg": None})
    band = own.band("v", "prompt last")
    assert json.loads(json.dumps(alert)) == alert
    assert alert == {"kind": "prompt last", "vector": "warm", "value": 99.0, "low": band.low, "high": band.high}
    assert not own.check("v", {"prompt last": band.low, "response avg": own.band("v", "response avg").high})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("vectors.v.bands.all.response avg.low", 1e9),
        ("vectors.v.bands.all.response avg.low", "3"),
        ("vectors.v.bands.all.response avg.high", None),
        ("vectors.v.bands.all.response avg.n", 2.5),
        ("vectors.v.bands.all.response avg", {}),
        ("vectors.v.bands.all", {}),
        ("vectors.v.bands", []),
        ("vectors.v.drift.all.sd", 0),
        ("vectors.v.drift.all.threshold", -1.0),
        ("vectors.v.drift.all.longest", True),
        ("vectors.v.layer", "2"),
        ("vectors.v.layer", -1),
        ("vectors.v.trait", "warm\u0007"),
        ("vectors.v", None),
        ("vectors", []),
        ("model", 3),
        ("model", {"id": "m"}),
        ("model.revision", 7),
        ("false_positive_rate", 7.0),
        ("false_positive_rate", 10**400),
        ("benign", []),
    ],
)
def test_a_file_is_checked_when_it_is_loaded(place: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibrated(benign(100), 0.1).save(path)
    fields = inner = json.loads(path.read_text())
    *outer, last = place.split(".")
    for key in outer:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(fields))
    with pytest.raises(DataError, match="expected a calibration, got") as error:
        Calibration.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 600


def test_a_file_comes_back_equal_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    own = calibrated(benign(100), 0.1)
    own.save(path)
    assert Calibration.load(path) == own
    own.check_model("m", "r" * 64)
    own.check_vector("v", "warm", 2)
    for refused, told in (
        (lambda: own.check_model("n", "s" * 64), "calibrate with this model"),
        (lambda: own.check_vector("w", "cold", 2), "got one of other vectors (warm)"),
        (lambda: own.check_vector("v", "warm", 3), "at layer 3, got one at layer 2"),
    ):
        with pytest.raises(DataError) as error:
            refused()
        assert told in str(error.value)
    for text in ("", "[]", "{}", '{"vectors": {"v": {}}}', json.dumps(dataclasses.asdict(own) | {"more": 1})):
        path.write_text(text)
        with pytest.raises(DataError, match="expected a calibration, got"):
            Calibration.load(path)
    empty = dataclasses.replace(own, vectors={"v": VectorCalibration("warm", 2, {})})
    empty.save(path)
    with pytest.raises(DataError, match="no band of all"):
        Calibration.load(path)
