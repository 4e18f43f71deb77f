"""The page of an extraction."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from altair import LayerChart

from personavec.report import extract_charts
from personavec.report.page import drawn, render, svg
from personavec.runs.show import interval, table

Json = Mapping[str, Any]

HIDDEN_TRAITS = frozenset({"evil"})
"""Traits whose transcripts stay behind a click."""


def write(details: Json, folder: Path) -> Path:
    """Write a trait's report.html and charts/*.png and *.svg; returns the page's path.

    Args:
        details: Content of the trait's result.json.
        folder: Where they go.
    """
    return render(
        folder / "report.html",
        "extract.html",
        result=details,
        arms={row["arm"]: row for row in details["check"]},
        hide_transcripts=details["trait"]["name"] in HIDDEN_TRAITS,
        **drawn(folder, _charts(details)),
    )


def write_index(folder: Path, each: Sequence[Json], failed: Sequence[Mapping[str, str]] = ()) -> Path:
    """Write index.html, one row a trait; returns its path.

    Args:
        folder: The run; each trait's page lies in a folder of its name.
        each: Content of each trait's result.json.
        failed: `trait` and `error` of those that came to no result.
    """
    rows = [(details, {row["arm"]: row["trait"] for row in details["check"]}) for details in each]
    return render(folder / "index.html", "index.html", rows=rows, failed=failed)


def notebook(details: Json) -> str:
    """The dose–response chart, the table of arms, and what the arms replied to a question."""
    arms = [
        (row["arm"].replace("_", " "), f"{row['dose']:+.2f}", interval(row["trait"]), interval(row["coherence"]))
        for row in details["check"]
    ]
    replies = [
        (side, text["question"], text[side])
        for text in (() if details["trait"]["name"] in HIDDEN_TRAITS else details["transcripts"][:1])
        for side in ("suppressed", "base", "steered")
    ]
    chart = svg(extract_charts.dose_response(details["check"]))
    return (
        chart + table(["arm", "dose", "trait score", "coherence"], arms) + table(["arm", "question", "reply"], replies)
    )


def _charts(result: Mapping[str, Any]) -> dict[str, LayerChart]:
    check, choice = result["check"], result["choice"]
    norm, dose, reliability = extract_charts.by_layer(result["layers"], choice)
    return {
        "dose_response": extract_charts.dose_response(check),
        "coherence": extract_charts.coherence(check, result["sweep"]["floor"]),
        "heat_map": extract_charts.heat_map(result["sweep"], choice),
        "histograms": extract_charts.histograms(result["rollout_scores"], result["keep_at"]),
        "layer_norm": norm,
        "layer_dose": dose,
        "layer_reliability": reliability,
    }
