"""The pages of the paper's experiments: every claim next to the paper's figure, as HTML and as Markdown."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from personavec.report.charts import BLUE, FAINT, GREY, INK, SKY, VERMILLION, Json, finish, inline
from personavec.report.page import drawn, render, svg
from personavec.runs.show import interval

GOOD, OURS, CONTROL, PAPER = "same direction", "here", "largest control", "the paper's models"
MARKS = {OURS: BLUE, CONTROL: VERMILLION, PAPER: GREY}
"""Colour of each kind of figure."""
LOOKS = (BLUE, SKY, GREY, VERMILLION, INK, FAINT)
"""Colours of the verdicts, in their order."""
ROW, HEAD = 26, 40
"""Height of a chart's row, and of what is around them."""
CLOSED = "closed"
"""Mark of claims of which nothing comes from elsewhere."""


def write(result: Json, folder: Path) -> Path:
    """Write paper.html, paper.md and charts/*.png and *.svg; returns the page's path.

    Args:
        result: What `paper` measured.
        folder: Where they go.
    """
    parts = []
    charts: dict[str, alt.LayerChart | alt.ConcatChart] = {}
    for name, part in result["parts"].items():
        groups = grouped(part["claims"])
        names = [f"{name}_{place}" for place in range(len(groups))]
        charts |= {key: claim_chart(claims) for key, claims in zip(names, groups, strict=True)}
        reports = [part["report"]] if part.get("report") else part.get("reports", [])
        links = [os.path.relpath(path, folder) for path in reports]
        shown: dict[str, Any] = {"failed": [], "table": []} | dict(part)
        rows = [{**claim, **worded(claim)} for claim in part["claims"]]
        parts.append(shown | {"name": name, "claims": rows, "charts": names, "links": links})
    charts["verdicts"] = verdict_chart(result)
    titles = {name: chart.to_dict()["title"]["text"] for name, chart in charts.items()}
    good = [claim for claim in result["claims"] if claim["verdict"] == GOOD]
    bare = sum(not claim["controls"] for claim in good)
    closed = sum(not claim["elsewhere"] for claim in result["claims"])
    context = {"result": result, "parts": parts, "titles": titles, "uncontrolled": bare, "closed": closed}
    render(folder / "paper.md", "paper.md", **context)
    return render(folder / "paper.html", "paper.html", **context, **drawn(folder, charts))


def worded(claim: Json) -> dict[str, str]:
    """A claim's cells that are more than one figure."""
    here = interval(claim, 2)
    if claim["ceiling"] is not None:
        here += f", ceiling {claim['ceiling']:.2f}"
    controls = [
        control["what"] if control["reach"] is None else f"{control['what']} {control['reach']:.2f}"
        for control in claim["controls"]
    ]
    verdict = ": ".join(filter(None, (claim["verdict"], claim["why"])))
    if claim["verdict"] == "not shown":
        least = "no effect" if claim["least"] is None else f"{claim['least']:.3g}"
        verdict += f"; {least} would have been"
    return {
        "here": here,
        "control": ", ".join(controls) or "no control",
        "origin": ", ".join(claim["elsewhere"]) or CLOSED,
        "said": verdict,
    }


def notebook(result: Json) -> str:
    """How often each verdict was reached."""
    return "" if "plan" in result else svg(verdict_chart(result))


def verdict_chart(result: Json) -> alt.LayerChart:
    """How often each verdict was reached, part by part."""
    rows = [
        {"part": part["title"], "verdict": verdict, "claims": count, "order": place}
        for part in result["parts"].values()
        for place, (verdict, count) in enumerate(part["tally"].items())
        if count
    ]
    order = [part["title"] for part in result["parts"].values()]
    colour = alt.Scale(domain=list(result["tally"]), range=LOOKS)
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("part:N", sort=order, title=None, axis=alt.Axis(labelLimit=300, ticks=False, domain=False)),
        x=alt.X("claims:Q", title="claims", axis=alt.Axis(tickMinStep=1)),
        order="order:Q",
    )
    legend = alt.Legend(title=None, orient="bottom")
    bars = base.mark_bar().encode(
        color=alt.Color("verdict:N", scale=colour, legend=legend), tooltip=["part:N", "verdict:N", "claims:Q"]
    )
    counts = result["tally"]
    title = f"{counts[GOOD]} of {len(result['claims'])} claims point the way the paper's do"
    subtitle = [
        f"{result['model']}. One claim is one figure of one trait; not shown: not apart from zero or from its controls."
    ]
    return finish([bars], title, subtitle, 420, ROW * len(order))


def grouped(claims: Sequence[Json]) -> list[list[Json]]:
    """Claims of one text and unit together, in order."""
    groups: dict[tuple[str, str], list[Json]] = {}
    for claim in claims:
        groups.setdefault((claim["claim"], claim["unit"]), []).append(claim)
    return list(groups.values())


def claim_chart(claims: Sequence[Json]) -> alt.LayerChart:
    """One claim for all its subjects: our mean with its interval, what the control reaches, and the paper's figures."""
    order = [claim["subject"] for claim in claims]
    y = alt.Y("subject:N", sort=order, title=None, axis=alt.Axis(labelLimit=200, ticks=False, domain=False))
    ours = [
        {"subject": claim["subject"], "kind": OURS, "value": claim["mean"], "verdict": claim["verdict"]}
        | dict(zip(("low", "high"), claim["ci"], strict=True))
        for claim in claims
        if claim["mean"] is not None
    ]
    others = [
        {"subject": claim["subject"], "kind": kind, "value": value}
        for claim in claims
        for kind, values in ((CONTROL, _largest(claim)), (PAPER, claim["published"]))
        for value in values
    ]
    shown = [kind for kind in MARKS if any(row["kind"] == kind for row in [*ours, *others])]
    legend = alt.Legend(title=None, orient="bottom", values=shown) if len(shown) > 1 else None
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(MARKS), range=list(MARKS.values())), legend=legend)
    x = alt.X("value:Q", title=claims[0]["unit"], scale=alt.Scale(zero=True))
    base = alt.Chart(inline(ours)).encode(y=y)
    layers = [
        alt.Chart(inline([{"value": 0}])).mark_rule(color=INK, strokeWidth=1).encode(x="value:Q"),
        base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", color=colour),
        base.mark_point(filled=True, size=70, opacity=1).encode(x=x, color=colour, tooltip=["verdict:N", "value:Q"]),
        alt.Chart(inline([row for row in others if row["kind"] == CONTROL]))
        .mark_tick(thickness=3, height=16)
        .encode(x="value:Q", y=y, color=colour),
        alt.Chart(inline([row for row in others if row["kind"] == PAPER]))
        .mark_point(shape="diamond", filled=False, size=90, strokeWidth=2)
        .encode(x="value:Q", y=y, color=colour),
    ]
    held = sum(claim["verdict"] == GOOD for claim in claims)
    title = f"{claims[0]['claim']}: {held} of {len(claims)}"
    bars = claims[0]["unit"].partition("± ")[2] or "95% intervals"
    subtitle = [f"{claims[0]['where']}. Right of the line is the paper's direction; bars are {bars}."]
    return finish(layers, title, subtitle, 420, ROW * len(claims) + HEAD)


def _largest(claim: Json) -> list[float]:
    """The control that reaches farthest on the figure's side, if any has a figure."""
    reached = [control["reach"] for control in claim["controls"] if control["reach"] is not None]
    return [max(reached)] if reached else []
