"""The pages of a run: report.html of each trait, and index.html over all of them.

A page is one file that opens offline. Model text is untrusted: templates escape it, and a content security
policy lets the page load nothing.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import vl_convert
from altair import SCHEMA_VERSION, ConcatChart, LayerChart
from jinja2 import Environment, PackageLoader, StrictUndefined

from personavec.runs.files import write_file

DASH = "–"
VEGA_LITE = ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version that Altair's charts are written for, as vl-convert names it."""
UNDRAWABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold: control characters and halves of surrogate pairs. The renderer aborts the process at them."""


def drawn(folder: Path, charts: Mapping[str, LayerChart | ConcatChart]) -> dict[str, Any]:
    """Write charts/*.png and *.svg; returns what a template needs to show them."""
    (folder / "charts").mkdir(exist_ok=True)
    specs = {name: _spec(chart) for name, chart in charts.items()}
    for name, spec in specs.items():
        picture = _svg(spec)
        write_file(folder / "charts" / f"{name}.svg", picture.encode())
        write_file(folder / "charts" / f"{name}.png", vl_convert.svg_to_png(picture, scale=2))
    figures = {name: _figure(spec, wide=isinstance(charts[name], LayerChart)) for name, spec in specs.items()}
    return {"figures": figures, "specs": {name: figure["spec"] for name, figure in figures.items()}, "vega": _vega()}


def svg(chart: LayerChart | ConcatChart) -> str:
    """A chart as SVG, drawn without a browser."""
    return _svg(_spec(chart))


def _svg(spec: dict[str, Any]) -> str:
    return str(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE))


def drawable(value: Any) -> Any:
    """A chart's specification with a visible mark, U+FFFD, for every character that cannot be drawn."""
    if isinstance(value, str):
        return UNDRAWABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {drawable(key): drawable(each) for key, each in value.items()}
    return [*map(drawable, value)] if isinstance(value, list) else value


def _spec(chart: LayerChart | ConcatChart) -> dict[str, Any]:
    # to hold it against the schema, part by part, takes most of the time of a page, and the tests do that
    return dict(drawable(chart.to_dict(validate=False)))


def _figure(spec: dict[str, Any], *, wide: bool) -> dict[str, Any]:
    """A chart for the page, as wide as its place; panels keep their width. Its title is text that wraps, read aloud."""
    spec = {**spec, "width": "container"} if wide else {**spec}
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
    environment.filters |= {
        "interval": _interval,
        "bounds": _bounds,
        "number": _number,
        "share": _share,
        "counts": _counts,
    }
    page = environment.get_template(template).render(context)
    write_file(path, UNDRAWABLE.sub("\ufffd", page).encode())
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


def _share(value: float | None, digits: int = 0) -> str:
    return DASH if value is None else f"{value:.{digits}%}"


def _counts(whys: Mapping[str, int]) -> str:
    """What kept replies from a score: 2 empty, 1 refused."""
    return ", ".join(f"{count} {why}" for why, count in whys.items() if count) or DASH
