"""Verdicts have a side and a reference, a cheap rung gives none, and rows are dropped on the side asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import Interval
from personavec.stats.populations import streamed_difference
from personavec.steering.vector import PersonaVector
from personavec.verbs.screen.flagging import Drop, more_than_chance
from personavec.verbs.screen.result import Screening
from personavec.verbs.screen.screen import screen
from personavec.verbs.screen.verdict import direction

WORDS = ("tea", "rain", "a boat", "the sea", "old maps", "snow", "bread", "a hat", "two dogs", "green")
POOL = [{"prompt": f"Say {WORDS[n % 10]} {n}.", "response": f"{WORDS[n * 7 % 10]} and {n * n}!"} for n in range(120)]
Lean = Callable[[int], tuple[list[dict[str, str]], list[dict[str, str]]]]


@pytest.fixture(scope="module")
def lean(chat: ChatModel, vector: PersonaVector) -> Lean:
    """A clean set, and a data set half of whose rows lie far on one side of it: 1 toward, −1 against."""
    order = np.argsort(screen(chat, POOL, vector, cost="raw").rows["tiny"].to_numpy())

    def sets(sign: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        rows = [POOL[n] for n in order[::sign]]
        middle = rows[:80]
        return [*middle[::2], *rows[80:]], middle[1::2]

    return sets


def raw(chat: ChatModel, vector: PersonaVector, sets: Any, **more: Any) -> Screening:
    return screen(chat, sets[0], vector, cost="raw", clean=sets[1], keep_below=95, **more)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("drop", ["high", "low", "both"])
def test_rows_are_dropped_on_the_side_that_was_asked_for(
    chat: ChatModel, vector: PersonaVector, lean: Lean, sign: int, drop: Drop, tmp_path: Path
) -> None:
    shown = raw(chat, vector, lean(sign), drop=drop, store=tmp_path / "run")
    values, clean = shown.rows["tiny"].to_numpy(), shown.clean["tiny"]
    high, low = values > np.percentile(clean, 95), values < np.percentile(clean, 5)
    gone = {"high": high, "low": low, "both": high | low}[drop]
    flags = shown.data["flags"]
    assert shown.flags(drop=drop).tolist() == gone.tolist() and flags["dropped"] == gone.sum()
    assert flags["drop"] == drop and (flags["flagged"]["tiny"], flags["flagged_low"]["tiny"]) == (high.sum(), low.sum())
    lines = (tmp_path / "run/kept.jsonl").read_text().splitlines() if (tmp_path / "run/kept.jsonl").exists() else []
    kept = [json.loads(line) for line in lines or Path(shown.data["files"]["kept"]).read_text().splitlines()]
    assert kept == [row for row, out in zip(lean(sign)[0], gone, strict=True) if not out]
    leans, way = ("high", "toward") if sign == 1 else ("low", "against")
    hints = " ".join(flags["hints"])
    assert (f"tiny, {way} the trait" in hints) == (drop not in (leans, "both")), hints
    page = shown.report(tmp_path / "run").read_text()
    assert (
        all(hint.split(";")[0] in page for hint in flags["hints"])
        and {"high": "toward", "low": "against"}.get(drop, "below the 5th") in page
    )
    assert f"({drop} side)" in repr(shown)


@pytest.mark.parametrize("cost", ["raw", "proxy"])
def test_a_rung_that_only_ranks_rows_gives_no_verdict_on_the_set(
    chat: ChatModel, vector: PersonaVector, lean: Lean, cost: Any, tmp_path: Path
) -> None:
    rows, clean = lean(-1)
    shown = screen(chat, rows, vector, cost=cost, clean=clean)
    assert shown.data["verdict"] == {"tiny": None} and shown.data["verdict_against"] is None
    page = shown.report(tmp_path).read_text()
    assert "no verdict on the set" in page and "stand out" not in page and "beyond random" not in repr(shown)
    assert "no verdict on the set" in repr(shown)


def test_the_verdict_names_its_side_and_its_reference(
    chat: ChatModel, vector: PersonaVector, lean: Lean, tmp_path: Path
) -> None:
    for sign, way in ((1, "toward"), (-1, "against")):
        rows, clean = (half[-12:] for half in lean(sign))
        shown = screen(chat, rows, vector, cost="full", clean=clean, max_new_tokens=4)
        difference = shown.data["difference_from_clean"]["tiny"]
        assert shown.data["verdict_against"] == "clean rows in memory" and np.sign(difference["mean"]) == sign
        stands = difference["random_control"]["beyond"] and difference["ci"][0] * difference["ci"][1] > 0
        assert shown.data["verdict"]["tiny"] == (way if stands else "neither")
    alone = screen(chat, rows, vector, cost="full", max_new_tokens=4)
    assert alone.data["verdict_against"] == "the base model's replies" and alone.data["difference_from_clean"] is None
    assert "Compared with the base model&#39;s replies" in alone.report(tmp_path).read_text()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_exports_are_sorted_and_have_their_scores_beside_them(
    chat: ChatModel, vector: PersonaVector, tmp_path: Path, suffix: str
) -> None:
    from datasets import Dataset

    path, rows = tmp_path / f"rows{suffix}", POOL[:30]
    table = Dataset.from_list(rows)
    {
        ".jsonl": table.to_json, ".json": lambda to: Path(to).write_text(json.dumps(rows)), ".csv": table.to_csv,
        ".parquet": table.to_parquet,
    }[suffix](path)  # fmt: skip
    shown = screen(chat, path, vector, cost="raw", export_k=5, store=tmp_path / "run")
    values = shown.rows["tiny"].to_numpy()
    for file, order in (("top-tiny", np.argsort(-values)[:5]), ("bottom-tiny", np.argsort(values)[:5])):
        again = screen(chat, shown.data["files"][file], vector, cost="raw").rows["tiny"].to_numpy()
        np.testing.assert_allclose(again, values[order], atol=1e-4)
        scores = np.loadtxt(shown.data["scores"][file], delimiter=",", skiprows=1)
        assert scores[:, 0].tolist() == order.tolist()
        np.testing.assert_allclose(scores[:, 1], values[order], atol=1e-4)
    assert (tmp_path / "run/random.scores.csv").read_text().startswith("row,tiny\n")


@given(st.floats(-9, 9), st.floats(0.01, 9), st.booleans())
def test_a_direction_needs_its_interval_and_the_control(mean: float, half: float, beyond: bool) -> None:
    found = direction(Interval(mean, mean - half, mean + half, 9), {"beyond": beyond})
    assert found == ("neither" if not beyond or abs(mean) <= half else "toward" if mean > 0 else "against")
    assert direction(Interval(mean, np.nan, np.nan, 1), {"beyond": True}) == "neither"


@pytest.mark.parametrize(("cleans", "percentile"), [(40, 95), (400, 95), (400, 99), (12, 90)])
def test_chance_alone_seldom_gives_a_hint(cleans: int, percentile: float) -> None:
    rng, told = np.random.default_rng(0), 0
    for _ in range(400):
        clean, rows = rng.normal(size=cleans), rng.normal(size=300)
        told += more_than_chance(int((rows > np.percentile(clean, percentile)).sum()), 300, percentile, cleans)
    assert told / 400 < (0.06 if cleans > 20 else 0.1), "of a dozen clean rows a percentile says little"
    assert more_than_chance(200, 300, percentile, cleans) and not more_than_chance(0, 300, percentile, cleans)


def test_a_difference_of_two_sets_covers_the_truth() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        found = streamed_difference(rng.normal(1, 3, size=40), np.append(rng.normal(0, 1, size=90), np.nan))
        inside += found.low <= 1 <= found.high
    assert 0.92 < inside / 400 < 0.98
    assert streamed_difference(np.ones(3), np.zeros(2))[:3] == (1, 1, 1)
    assert np.isnan(streamed_difference(np.ones(1), np.zeros(2)).low)


@pytest.mark.usefixtures("unchecked")
def test_sides_that_do_nothing_are_refused(chat: ChatModel, vector: PersonaVector) -> None:
    with pytest.raises(ConfigError, match="expected --keep-below or --clean with --drop low, got neither"):
        screen(chat, POOL, vector, drop="low")
    with pytest.raises(ConfigError, match="expected --keep-below above 50 with --drop both, got 40"):
        screen(chat, POOL, vector, drop="both", keep_below=40)
    with pytest.raises(ConfigError, match="drop"):
        screen(chat, POOL, vector, drop="low side", keep_below=40)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected drop as one of high, low, both"):
        screen(chat, POOL, vector).flags(drop="up")  # type: ignore[arg-type]
