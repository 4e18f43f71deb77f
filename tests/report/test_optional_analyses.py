"""Pages of extractions and analyses are drawn with each part that a run may leave out left out, or not known."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.results import interval, make_result, unknown

from personavec.report import decompose as decompose_page
from personavec.report import extract as extract_page
from personavec.report import grid as grid_page
from personavec.report import page

Data = dict[str, Any]
Change = Callable[[Data], Any]


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)


def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are made and checked, and not turned into pictures, which takes a second each."""
    monkeypatch.setattr(page.vl_convert, "vegalite_to_svg", lambda spec, **_: "<svg></svg>" if spec else "")
    monkeypatch.setattr(page.vl_convert, "svg_to_png", lambda *_, **__: b"")
    monkeypatch.setattr(page, "_vega", lambda: "")


def setting(place: str, value: Any) -> Change:
    """A change of what lies at a place such as `judge.auc`; `*` stands for every entry of a list."""

    def change(data: Any, keys: list[str]) -> None:
        first, *rest = keys
        if not rest:
            data[first] = value
        elif first == "*":
            for each in data:
                change(each, rest)
        else:
            change(data[first], rest)

    return lambda data: change(data, place.split("."))


MEASURE = {"pos": 1.0, "neg": 2.0, "difference": interval(1), "auc": interval(0.6), "stands_out": True}
NULLS = {name: {"p": 0.1} for name in ("permutation", "isotropic", "covariance")}
CONFOUNDS = {
    "handling": "none", "dropped": 0, "measures": {"length": MEASURE, "sentiment": MEASURE | {"stands_out": False}},
    "length": {"r": 0.2, "reason": "", "nulls": NULLS},
}  # fmt: skip
MEASURED = {"pairwise_cosine": [0.1] * 30, "instruction_agreement": [0.2] * 30, "confounds": CONFOUNDS}
PAIRS = {"pairs": [{"id": 1, "question": "Why?", "replies": ["a", "b"]}], "key": "k", "code": "c"}
EXTRACTED: dict[str, Change] = {
    "all": lambda data: None,
    "inconclusive": lambda data: data.update(verdict_word="inconclusive", proven=False),
    "not shown": lambda data: data.update(verdict_word="not shown by this model", proven=False),
    "no independent check": setting("independent_check", None),
    "a check that was not told apart": setting("independent_check.told_auc", None),
    "a judge without AUC": lambda data: data["judge"].update(auc=None, aucs={}),
    "no AUC of coherence": setting("judge.coherence.auc", None),
    "a weak judge": setting("judge.weak", True),
    "nothing next to the trait": lambda data: data["judge"]["table"].update(largest=None, above=None),
    "no scores of the judge": setting("judge.table.scores", {}),
    "no reliability": setting("layers.*.reliability", None),
    "no confounds": lambda data: data.pop("confounds"),
    "no measures": setting("confounds.measures", {}),
    "no correlation with length": lambda data: data["confounds"].update(length={"reason": "too few", "r": None}),
    "matched": setting("confounds.handling", "match"),
    "residualised": setting("confounds.handling", "residualise"),
    "no cosines": lambda data: data.update(pairwise_cosine=None, instruction_agreement=None),
    "no agreement": setting("instruction_agreement", None),
    "no transcripts": setting("transcripts", []),
    "no rollouts scored": setting("rollout_scores", {side: {"trait": [], "coherence": []} for side in ("pos", "neg")}),
    "no cells": setting("choice.above_floor", False),
    "no conditions": setting("verdict", []),
    "no commit": setting("commit", None),
    "no revision": setting("model.revision", ""),
    "no description": lambda data: data["trait"].update(description="", antonym=""),
    "no sheet": setting("sheet", None),
    "no pairs": setting("sheet", {"pairs": []}),
    "no seconds": setting("seconds", None),
}


CHARTED = ("all", "no reliability", "no rollouts scored", "no cells")
"""What charts are made of; for the others those of a whole result stand, as making charts takes seconds."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Data:
    with pytest.MonkeyPatch.context() as patched:
        without_pictures(patched)
        return page.drawn(tmp_path_factory.mktemp("whole"), extract_page._charts(make_result() | MEASURED))


@pytest.mark.parametrize("name", EXTRACTED)
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_extraction_is_drawn_whatever_is_left_out(
    name: str, known: bool, whole: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in CHARTED:
        monkeypatch.setattr(extract_page, "_charts", lambda _: {})
        monkeypatch.setattr(extract_page, "drawn", lambda *_: whole)
        monkeypatch.setattr(extract_page, "dose_response", lambda _: None)
        monkeypatch.setattr(extract_page, "svg", lambda _: "<svg></svg>")
    data = make_result() | copy.deepcopy(MEASURED)
    EXTRACTED[name](data)
    data = data if known else unknown(data)
    assert "</html>" in extract_page.write(data, tmp_path).read_text()
    assert "<svg" in extract_page.notebook(data)
    both = [data, make_result("other")]
    failed = [{"trait": "third", "error": "no replies"}]
    least = {"difference": interval(1) if known else unknown(interval(1)), "largest": "other"}
    among = {"scores": {"other": {"other": data["check"][0]["trait"]}}, "above": {"other": least}}
    assert "</html>" in extract_page.write_index(tmp_path, both, failed, among).read_text()
    assert "</html>" in extract_page.write_index(tmp_path, both).read_text()


def decomposed() -> Data:
    token = {"token": " a\n", "share": 0.1, "projection": 1.0, "pos": 1, "neg": 2}
    term = {"difference": interval(1), "random": {"low": -1.0, "high": 1.0, "beyond": True}}
    feature = {"feature": 3, "cosine": 0.4, "pos": 1.0, "neg": 0.5, "shown": [{"strength": 1.0, "text": "so"}]}
    null = {"percentiles": {"50": 0.1, "95": 0.2}, "p": 0.01}
    examples = [{"side": side, "question": "Why?", "tokens": [["so", 1.0]]} for side in ("pos", "neg")]
    return {
        "trait": "warm", "model": "tiny", "layer": 2, "replies": {"pos": 3, "neg": 3}, "whole": interval(3),
        "terms": [{"term": name, **term} for name in ("embedding", "attention 0", "MLP 0", "block 1")],
        "tokens": {"kinds": 4, "mean_projection": 0.2, "for": [token], "against": [token]},
        "places": [{"place": "first", "difference": interval(1), "replies": 6}], "examples": examples,
        "dictionary": {"size": 9, "null": null, "explained": 0.3, "features": [feature]},
        "causal": {"vector": interval(1), "features": {"3": interval(1)}, "random": interval(0)},
    }  # fmt: skip


DECOMPOSED: dict[str, Change] = {
    "all": lambda data: None,
    "no dictionary": lambda data: data.update(dictionary=None, causal=None),
    "no steering along features": setting("causal", None),
    "no features": setting("dictionary.features", []),
    "features that fire nowhere": setting("dictionary.features.*.shown", []),
    "no tokens for it": setting("tokens.for", []),
    "no tokens against it": setting("tokens.against", []),
    "places without a difference": setting("places.*.difference", None),
    "no places": setting("places", []),
    "no examples": setting("examples", []),
    "examples of one side": lambda data: data["examples"].pop(),
    "examples without tokens": setting("examples.*.tokens", []),
    "projections of zero": setting("examples.*.tokens", [["so", 0.0]]),
    "projections that are not known": setting("examples.*.tokens", [["so", None]]),
    "shares that are not known": lambda data: data["tokens"]["for"][0].update(share=None, projection=None),
    "no centre": setting("tokens.mean_projection", None),
    "no difference at all": setting("whole.mean", 0.0),
    "an unpleasant trait": setting("trait", "evil"),
    "no random directions": setting("terms.*.random", {"low": None, "high": None, "beyond": None}),
}


@pytest.mark.parametrize("name", DECOMPOSED)
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_decomposition_is_drawn_whatever_is_left_out(name: str, known: bool, tmp_path: Path) -> None:
    data = decomposed()
    DECOMPOSED[name](data)
    data = data if known else unknown(data)
    assert "</html>" in decompose_page.write(data, tmp_path).read_text()
    assert "<svg" in decompose_page.notebook(data)


def correlated(**more: Any) -> Data:
    kept = {"r": 0.5, "ci": [0.1, 0.8]}
    nulls = {name: {"p": 0.1, "q": 0.2, "beats": True} for name in ("permutation", "isotropic", "covariance")}
    return {"pearson": kept, "nulls": nulls, "verdict": "it predicts"} | more


GRID: dict[str, Change] = {
    "all": lambda data: None,
    "no covariance": lambda data: [each["nulls"].pop("covariance") for each in _grids(data)],
    "no nulls": lambda data: [each.update(nulls={}) for each in _grids(data)],
    "no projection difference": setting("traits.warm.projection_difference", None),
    "no correlation": lambda data: [each.update(pearson={"r": None, "ci": [None, None]}) for each in _grids(data)],
    "no scores": lambda data: data.update(scores={"a": {"warm": None}}, base={"warm": None}),
}


def _grids(data: Data) -> list[Data]:
    return [data["traits"]["warm"], data["traits"]["warm"]["projection_difference"]]


@pytest.mark.parametrize("name", GRID)
def test_a_grid_is_drawn_whatever_is_left_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its charts have tests of their own."""
    figures = {"figures": {"shift": {"title": "t", "subtitle": "s", "spec": {}}}, "specs": {}, "vega": ""}
    monkeypatch.setattr(grid_page, "shift_score_chart", lambda _: None)
    monkeypatch.setattr(grid_page, "drawn", lambda *_: figures)
    traits = {"warm": correlated(projection_difference=correlated())}
    data = {"model": "tiny", "models": ["a"], "traits": traits, "base": {"warm": interval(3)}}
    data |= {"scores": {"a": {"warm": interval(4)}}}
    GRID[name](data)
    assert "</html>" in grid_page.write(data, tmp_path).read_text()
