"""The page of a screening: what a data set holds along each vector, where it comes from, and its extreme rows."""

from pathlib import Path

import altair as alt

from personavec.report.charts import BLUE, GREY, INK, VERMILLION, Json, bounded, finish, histogram, inline
from personavec.report.page import drawn, render, svg
from personavec.runs.show import dropped_by, table

DATA, CLEAN = "this data set", "clean data set"
SHOWN_SOURCES = 20
SHOWN_ROWS, SHORT = 3, 160
"""Rows of each vector in a notebook, and characters of each text."""


def write(data: Json, folder: Path) -> Path:
    """Write report.html (of a plan plan.html) and charts/*.png and *.svg; returns the page's path.

    Args:
        data: What a `Screening` is drawn from: its data, and `examples` of extreme rows.
        folder: Where they go.
    """
    screened = "projection_difference" in data
    return render(
        folder / ("report.html" if screened else "plan.html"),
        "screen.html",
        result=data,
        screened=screened,
        examples=data["examples"],
        headline=headline(data) if screened else "",
        dropped_by=dropped_by(data["flags"]) if screened and data["flags"] else "",
        **drawn(folder, _charts(data) if screened else {}),
    )


def notebook(data: Json) -> str:
    """The set's means as a chart, and the beginnings of its highest rows; of a plan the costs."""
    if "projection_difference" not in data:
        rows = [
            (f"{row['rows']:,}", row["cost"], f"{row['base_replies']:,}", seconds)
            for row in data["plan"]["estimates"]
            for seconds in ["–" if row["seconds"] is None else f"{row['seconds']:,.0f}"]
        ]
        return table(["rows", "cost", "base replies", "seconds"], rows, "Costs on this machine")
    highest = [
        (name, f"{row['score']:.2f}", row["prompt"][:SHORT], row["response"][:SHORT])
        for name, sides in data["examples"].items()
        for row in sides["highest"][:SHOWN_ROWS]
    ]
    return svg(means(data)) + table(["vector", "score", "prompt", "reply"], highest, "Highest rows")


def _charts(result: Json) -> dict[str, alt.LayerChart]:
    names = list(result["projection_difference"])
    charts = {"means": means(result)}
    for number, name in enumerate(names):
        charts[f"distribution_{number}"] = distribution(result, name)
        if result["sources"]:
            charts[f"sources_{number}"] = sources(result["sources"], name)
    return charts


def unit(cost: str) -> str:
    """Of a screening's scores."""
    return {"gradient": "nats per token and unit of activation", "lift": "nats per token"}.get(cost, "activation units")


def headline(result: Json) -> str:
    """The verdict on the set, side by side; of a score that only ranks rows, that there is none."""
    if not result["verdict_against"]:
        return "These scores rank rows; they are no verdict on the set"
    sides = {
        way: ", ".join(name for name, verdict in result["verdict"].items() if verdict == way)
        for way in ("toward", "against")
    }
    parts = [f"{way} {names}" for way, names in sides.items() if names]
    leans = f"leans {' and '.join(parts)}" if parts else "leans neither toward nor against any vector"
    return f"Compared with {result['verdict_against']}, this data set {leans}"


def means(result: Json) -> alt.LayerChart:
    """The set's mean on every vector with its interval, over the range of random directions."""
    axis = f"{result['estimate']}, mean over rows ({unit(result['cost'])})"
    return by_vector(result["projection_difference"], result["random_control"], axis, headline(result))


def by_vector(means: Json, controls: Json, axis: str, title: str) -> alt.LayerChart:
    """Means by vector with their intervals, over the range of the same on random directions."""
    rows = [
        {"vector": name, "random_low": controls[name]["low"], "random_high": controls[name]["high"]} | bounded(mean)
        for name, mean in means.items()
    ]
    base = alt.Chart(inline(rows)).encode(y=alt.Y("vector:N", title=None, sort=None))
    x = alt.X("mean:Q", title=axis)
    layers = [
        base.mark_bar(color=GREY, opacity=0.3, height=16).encode(x="random_low:Q", x2="random_high:Q"),
        alt.Chart(inline([{"zero": 0}])).mark_rule(color=INK, opacity=0.5).encode(x="zero:Q"),
        base.mark_rule(color=BLUE, strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        base.mark_point(color=BLUE, filled=True, size=80, opacity=1).encode(x=x, tooltip=["vector:N", "mean:Q"]),
    ]
    subtitle = ["Point and line: mean with 95% interval."]
    if any(control["low"] is not None for control in controls.values()):
        subtitle.append("Grey: the same mean on 20 random directions.")
    return finish(layers, title, subtitle, 520, alt.Step(34))


def distribution(result: Json, name: str) -> alt.LayerChart:
    """How the rows' scores are spread, next to the clean set's, with the threshold."""
    bars = result["distributions"][name]
    sets = {label: counts for label, counts in ((DATA, bars["data"]), (CLEAN, bars["clean"])) if counts}
    layers = [histogram(bars["edges"], sets, list(sets), f"{name}: score of a row ({unit(result['cost'])})", "rows")]
    title = f"{name}: rows' scores"
    subtitle = ["Outermost bars hold everything beyond them."]
    if flags := result["flags"]:
        of = {"above": ("thresholds", "flagged"), "below": ("low_thresholds", "flagged_low")}
        sides = {"high": ["above"], "low": ["below"], "both": [*of]}[flags["drop"]]
        limits = inline([{"limit": flags[of[side][0]][name]} for side in sides])
        layers.append(alt.Chart(limits).mark_rule(color=VERMILLION, strokeWidth=2).encode(x="limit:Q"))
        dropped = [(side, flags[of[side][1]][name]) for side in sides]
        counts = ", ".join(f"{count:,} row{'s' * (count != 1)} {side} the threshold" for side, count in dropped)
        title = f"{name}: {counts}"
        subtitle = [f"Orange, dropped beyond: {dropped_by(flags)}.", *subtitle]
    return finish(layers, title, subtitle, 420, 220)


def sources(by_source: Json, name: str) -> alt.LayerChart:
    """Mean score of every source with its interval."""
    rows = [
        {"source": f"{source} ({figures['rows']:,})"} | bounded(figures[name])
        for source, figures in list(by_source.items())[:SHOWN_SOURCES]
        if figures[name]["mean"] is not None
    ]
    rows.sort(key=lambda row: -row["mean"])
    base = alt.Chart(inline(rows)).encode(y=alt.Y("source:N", title=None, sort=None))
    layers = [
        base.mark_rule(color=BLUE, strokeWidth=1.5).encode(x="low:Q", x2="high:Q"),
        base.mark_point(color=BLUE, filled=True, size=60, opacity=1).encode(
            x=alt.X("mean:Q", title=f"{name}: mean score"), tooltip=["source:N", "mean:Q", "low:Q", "high:Q"]
        ),
    ]
    highest = rows[0]["source"] if rows else "none"
    return finish(
        layers, f"{name}: highest in {highest}", ["Mean with 95% interval; rows in brackets."], 420, alt.Step(22)
    )
