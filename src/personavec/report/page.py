"""The pages of a run: report.html of each trait, and index.html over all of them.

A page is one file that opens offline. Model text is untrusted: templates escape it, and a content security
policy lets the page load nothing.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import vl_convert
from altair import SCHEMA_VERSION, ConcatChart, LayerChart
from jinja2 import Environment, PackageLoader, StrictUndefined

from personavec.report import charts
from personavec.run import Run, write_file

HIDDEN_TRAITS = frozenset({"evil"})
"""Traits whose transcripts stay behind a click."""
DASH = "–"
VEGA_LITE = ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version that Altair's charts are written for, as vl-convert names it."""


def write_page(folder: Path) -> Path:
    """Write a trait's report.html and charts/*.png and *.svg.

    Args:
        folder: Holds the trait's result.json.

    Returns:
        Path of report.html.

    Raises:
        DataError: result.json is missing or not JSON.
    """
    result = Run(folder).read_json("result.json")
    return render(
        folder / "report.html",
        "page.html",
        result=result,
        arms={row["arm"]: row for row in result["check"]},
        hide_transcripts=result["trait"]["name"] in HIDDEN_TRAITS,
        **drawn(folder, _charts(result)),
    )


def drawn(folder: Path, charts: Mapping[str, LayerChart | ConcatChart]) -> dict[str, Any]:
    """Write charts/*.png and *.svg; returns what a template needs to show them."""
    (folder / "charts").mkdir(exist_ok=True)
    for name, chart in charts.items():
        svg = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=VEGA_LITE)
        write_file(folder / "charts" / f"{name}.svg", svg.encode())
        write_file(folder / "charts" / f"{name}.png", vl_convert.svg_to_png(svg, scale=2))
    figures = {name: _figure(chart) for name, chart in charts.items()}
    return {"figures": figures, "specs": {name: own["spec"] for name, own in figures.items()}, "vega": _vega()}


def write_index(folder: Path, traits: Sequence[str], failed: Sequence[Mapping[str, str]] = ()) -> Path:
    """Write index.html, one row a trait.

    Args:
        folder: The run; each trait's result.json lies in a folder of its name.
        traits: Names, in the order of the rows.
        failed: `trait` and `error` of those that came to no result.

    Returns:
        Path of index.html.

    Raises:
        DataError: A result.json is missing or not JSON.
    """
    results = [Run(folder / trait).read_json("result.json") for trait in traits]
    rows = [(result, {row["arm"]: row["trait"] for row in result["check"]}) for result in results]
    return render(folder / "index.html", "index.html", rows=rows, failed=failed)


def _charts(result: Mapping[str, Any]) -> dict[str, LayerChart]:
    check, choice = result["check"], result["choice"]
    norm, dose, reliability = charts.by_layer(result["layers"], choice)
    return {
        "dose_response": charts.dose_response(check),
        "coherence": charts.coherence(check, result["sweep"]["floor"]),
        "heat_map": charts.heat_map(result["sweep"], choice),
        "histograms": charts.histograms(result["rollout_scores"], result["keep_at"]),
        "layer_norm": norm,
        "layer_dose": dose,
        "layer_reliability": reliability,
    }


def _figure(chart: LayerChart | ConcatChart) -> dict[str, Any]:
    """A chart for the page, as wide as its place; panels keep their width. Its title is text that wraps, read aloud."""
    spec = (chart.properties(width="container") if isinstance(chart, LayerChart) else chart).to_dict()
    title = spec.pop("title")
    return {"spec": spec, "title": title["text"], "subtitle": " ".join(title["subtitle"])}


def render(path: Path, template: str, **context: Any) -> Path:
    """Fill a template in; atomic."""
    environment = Environment(
        loader=PackageLoader("personavec.report", "."),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": _interval, "bounds": _bounds, "number": _number, "counts": _counts}
    write_file(path, environment.get_template(template).render(context).encode())
    return path


@lru_cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return script.replace("</script", "<\\/script").replace("<!--", "\\u003c!--")


def _interval(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A mean with its interval: 41.2 [38.0, 44.1]."""
    if value is None or value["mean"] is None:
        return DASH
    return f"{value['mean']:.{digits}f} {_bounds(value, digits)}"


def _bounds(value: Mapping[str, Any], digits: int = 1) -> str:
    low, high = value["ci"]
    return DASH if low is None or high is None else f"[{low:.{digits}f}, {high:.{digits}f}]"


def _number(value: float | None, digits: int = 1) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _counts(whys: Mapping[str, int]) -> str:
    """What kept replies from a score: 2 empty, 1 refused."""
    return ", ".join(f"{count} {why}" for why, count in whys.items() if count) or DASH


def write_pages(found: dict[str, Any]) -> dict[str, Any]:
    """Write the page of every trait that `extract` returned, and an index of several; adds their paths as `report`."""
    traits = [trait | {"report": str(write_page(Path(trait["result"]).parent))} for trait in found["traits"]]
    pages = [trait["report"] for trait in traits]
    if len(traits) + len(found["failed"]) > 1:
        pages = [str(write_index(Path(found["out"]), [trait["trait"] for trait in traits], found["failed"]))]
    return found | {"traits": traits, "report": pages[0]}
