"""Charts of prediction and of mitigation: every figure that was given is drawn, and what is missing does no harm."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from personavec.paper.prediction import Finetunings, measure_prediction
from personavec.report.grid import cross_trait_chart, dose_costs_chart, shift_score_chart
from personavec.report.page import drawn

N, WIDTH = 16, 96
TRAITS = ("evil", "sycophancy", "optimistic")
NOTHING = {"mean": None, "ci": [None, None]}


def made(flat: bool = False, covariance: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    scores = {trait: np.full(N, 40.0) if flat else rng.uniform(0, 100, N) for trait in TRAITS}
    directions = {trait: rng.standard_normal(WIDTH) for trait in TRAITS}
    move = sum(np.outer(scores[trait], directions[trait]) for trait in TRAITS) + 9 * rng.standard_normal((N, WIDTH))
    activations = {trait: rng.standard_normal((30, WIDTH)) for trait in TRAITS} if covariance else {}
    models = tuple(f"model {i}" for i in range(N))
    grid = Finetunings(models, dict.fromkeys(TRAITS, move), directions, scores, activations)
    return measure_prediction(grid, n_random=200, n_permutations=199)


def row(method: str, coef: float, score: float | None, cost: float | None, field: str = "perplexity") -> dict[str, Any]:
    def told(mean: float | None) -> dict[str, Any]:
        return NOTHING if mean is None else {"mean": mean, "ci": [mean - 1, mean + 1]}

    return {"method": method, "coef": coef, "trait_score": told(score), field: told(cost)}


ROWS = [row("prevent", c, 90 - 12 * c, 8 + 0.1 * c) for c in range(5)]
ROWS += [row("posthoc", c, 90 - 20 * c, 8 + c * c) for c in range(5)]
REFERENCES = {"base": row("", 0, 3, 8), "plain finetune": row("", 0, 90, 8.2)}


def rows_of(chart: Any) -> list[dict[str, Any]]:
    """Every row of data of a chart."""
    return [found for data in chart.to_dict()["datasets"].values() for found in data]


def text_of(chart: Any) -> str:
    return json.dumps(chart.to_dict(), ensure_ascii=False)


def test_charts_are_images(tmp_path: Path) -> None:
    result = made()
    charts = {
        "scatter": shift_score_chart(result),
        "cross": cross_trait_chart(result),
        "costs": dose_costs_chart(ROWS, REFERENCES),
    }
    found = drawn(tmp_path, charts)
    for name in charts:
        png = (tmp_path / "charts" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) > 5000
        assert ElementTree.parse(tmp_path / "charts" / f"{name}.svg").getroot().tag.endswith("svg")
        assert found["figures"][name]["title"] and found["figures"][name]["subtitle"]


@pytest.mark.slow
def test_the_scatter_holds_every_model_and_its_nulls() -> None:
    result = made()
    chart = shift_score_chart(result)
    points = {(found["model"], found["score"]) for found in rows_of(chart) if "score" in found}
    assert points == {(point["model"], point["score"]) for own in result["traits"].values() for point in own["points"]}
    for own in result["traits"].values():
        limits = [own["nulls"][name]["percentiles"]["97.5"] for name in ("covariance", "isotropic")]
        assert f"r = {own['pearson']['r']:.2f}" in text_of(chart)
        assert f"null: {limits[0]:.2f} / {limits[1]:.2f}" in text_of(chart)


def test_labels_cover_no_other_label() -> None:
    """Sixteen models at one place have one label at most a side."""
    result = made()
    own = result["traits"]["evil"]
    own["points"] = [point | {"shift": 1.0, "score": 50.0} for point in own["points"]]
    layers = shift_score_chart(result).to_dict()["concat"][0]["layer"]
    assert sum("text" in layer["encoding"] for layer in layers) <= 4


@pytest.mark.slow
def test_the_title_claims_no_more_than_was_compared() -> None:
    assert "predicts the trait score" in shift_score_chart(made()).to_dict()["title"]["text"]
    for result in (made(covariance=False), made(flat=True)):
        assert shift_score_chart(result).to_dict()["title"]["text"].startswith("No shift is shown to predict")


def test_the_cross_table_holds_every_number() -> None:
    result = made()
    cells = {(found["direction"], found["score"]): found for found in rows_of(cross_trait_chart(result))}
    assert len(cells) == len(TRAITS) ** 2
    for i, direction in enumerate(TRAITS):
        for j, score in enumerate(TRAITS):
            assert cells[direction, score]["r"] == result["cross"]["r"][i][j]
            assert cells[direction, score]["diagonal"] is (i == j)
    assert sum(found["best"] for found in cells.values()) == len(TRAITS)
    assert {found["text"] for found in rows_of(cross_trait_chart(made(flat=True)))} == {"–"}


def test_every_dose_and_reference_is_drawn() -> None:
    chart = dose_costs_chart(ROWS, REFERENCES)
    assert len(chart.to_dict()["concat"]) == 4
    found = rows_of(chart)
    for measure in ("trait_score", "perplexity"):
        assert {own[measure]["mean"] for own in [*ROWS, *REFERENCES.values()]} <= {own.get("mean") for own in found}
    assert {own["coef"] for own in found if "coef" in own} == {0, 1, 2, 3, 4}
    assert chart.to_dict()["title"]["text"] == (
        "Lowest trait score: 42 (preventative, perplexity 8.4), 10 (post-hoc, perplexity 24)"
    )


def test_of_a_wanted_trait_the_highest_score_counts() -> None:
    rows = [row(own["method"], -own["coef"], own["trait_score"]["mean"], own["perplexity"]["mean"]) for own in ROWS]
    title = dose_costs_chart(rows).to_dict()["title"]["text"]
    best = max(own["trait_score"]["mean"] for own in ROWS if own["method"] == "posthoc")
    assert title.startswith("Highest trait score") and f"{best:.0f} (post-hoc" in title


def test_a_wide_range_of_costs_is_logarithmic() -> None:
    assert '"log"' not in text_of(dose_costs_chart(ROWS))
    chart = dose_costs_chart([*ROWS, row("posthoc", 5, 5, 54321)])
    assert '"type": "log"' in text_of(chart) and "perplexity 54,321" in text_of(chart)


def test_one_method_without_references_and_another_cost(tmp_path: Path) -> None:
    rows = [row("posthoc", c, 90 - c, 0.6, "capability") for c in (1, 2)]
    chart = dose_costs_chart(rows, cost="capability", best="high")
    assert len(chart.to_dict()["concat"]) == 2 and "capability (higher is better)" in text_of(chart)
    drawn(tmp_path, {"costs": chart})


@pytest.mark.parametrize(("score", "cost"), [(None, None), (None, 8.0), (50.0, None)])
def test_missing_figures_survive(tmp_path: Path, score: float | None, cost: float | None) -> None:
    chart = dose_costs_chart([row("prevent", 1, score, cost)], {"base": row("", 0, None, None)})
    drawn(tmp_path, {"costs": chart, "scatter": shift_score_chart(made(flat=True, covariance=False))})
    assert ("No trait score" in text_of(chart)) is (score is None)
