"""The pages of monitoring: recorded turns beside benign ones, and how well projections foretell scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from personavec.report.charts import BLUE, GREY, INK, MAX_SCORE, VERMILLION, finish, inline
from personavec.report.page import drawn, render
from personavec.runs.run import Run

Json = Mapping[str, Any]

RECORDED, BENIGN = "recorded", "benign"
SHOWN_ALERTS, SHOWN_CONVERSATIONS = 100, 20
"""In the table, and as lines in a chart."""
TITLES = {"prompt last": "last prompt token", "response avg": "reply"}
FIELDS = {"prompt last": "prompt_last", "response avg": "response_avg"}
CONDITIONS = {"system": "system prompts", "shots": "shots"}
UNITS = "projection (activation units)"


def write_monitoring(result: dict[str, Any]) -> dict[str, Any]:
    """Write report.html and charts/*.png and *.svg of a monitoring; adds the path as `report`.

    Args:
        result: What `monitor` returned.
    """
    folder = Path(result["out"])
    run = Run(folder)
    alerts = list(run.rows("alerts.jsonl"))
    lines = _alerted(list(run.rows("turns.jsonl")), alerts)
    charts: dict[str, alt.LayerChart | alt.ConcatChart] = {}
    for place, name in enumerate(result["layers"]):
        for kind, field in FIELDS.items():
            if len(result["curves"][name][kind]) > 1:
                charts[f"curve_{place}_{field}"] = curve(result, name, kind, lines)
            charts[f"distribution_{place}_{field}"] = distribution(result, name, kind)
    path = render(
        folder / "report.html",
        "monitor.html",
        result=result,
        alerts=alerts[:SHOWN_ALERTS],
        n_alerts=len(alerts),
        **drawn(folder, charts),
    )
    return result | {"report": str(path)}


def _alerted(rows: Sequence[Json], alerts: Sequence[Json]) -> list[Json]:
    """Turns of the first conversations with alerts."""
    chosen = list(dict.fromkeys(alert["conversation"] for alert in alerts))[:SHOWN_CONVERSATIONS]
    return [row for row in rows if row["conversation"] in chosen]


def curve(result: Json, name: str, kind: str, lines: Sequence[Json]) -> alt.LayerChart:
    """Mean projection turn by turn with its interval, over the benign band, and the conversations with alerts."""
    means = [
        {"turn": one["turn"], "mean": one["mean"], "low": one["ci"][0], "high": one["ci"][1], "n": one["n"]}
        for one in result["curves"][name][kind]
        if one["mean"] is not None
    ]
    last = max(row["turn"] for row in means)
    single = [
        {"conversation": row["conversation"], "turn": row["turn"], "value": row["vectors"][name][FIELDS[kind]]}
        for row in lines
        if row["turn"] <= last and row["vectors"][name][FIELDS[kind]] is not None
    ]
    x = alt.X("turn:Q", title="turn", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1, format="d"))
    y = alt.Y("mean:Q", title=UNITS, scale=alt.Scale(zero=False))
    base = alt.Chart(inline(means)).encode(x=x)
    layers = [
        *_band(result, name, kind, vertical=True),
        alt.Chart(inline(single))
        .mark_line(color=VERMILLION, opacity=0.45, strokeWidth=1.2, point=alt.OverlayMarkDef(size=14, color=VERMILLION))
        .encode(
            x="turn:Q",
            y="value:Q",
            detail="conversation:N",
            tooltip=["conversation:N", "turn:Q", alt.Tooltip("value:Q", format=".3g")],
        ),
        base.mark_area(color=BLUE, opacity=0.2).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(color=BLUE, strokeWidth=2.5).encode(y=y),
        base.mark_point(color=BLUE, filled=True, size=45, opacity=1).encode(
            y="mean:Q", tooltip=["turn:Q", alt.Tooltip("mean:Q", format=".3g"), "n:Q"]
        ),
    ]
    subtitle = ["Blue: mean over conversations with 95% interval."]
    if result["calibration"]:
        subtitle[0] += f" Grey: the benign band{_pooled(result)}. Orange: conversations with alerts."
    return finish(layers, f"{name}, {TITLES[kind]}: turn by turn", subtitle, 420, 240)


def distribution(result: Json, name: str, kind: str) -> alt.LayerChart:
    """How the turns are spread, beside the benign ones, with the limits."""
    found = result["distributions"][name][kind]
    every = {label: found[key] for label, key in ((BENIGN, "benign"), (RECORDED, "data")) if sum(found[key])}
    rows = [
        {"set": label, "from": low, "to": high, "share": count / sum(counts), "floor": 0}
        for label, counts in every.items()
        for low, high, count in zip(found["edges"], found["edges"][1:], counts, strict=False)
    ]
    colour = alt.Color("set:N", title=None, scale=alt.Scale(domain=[RECORDED, BENIGN], range=[BLUE, GREY]))
    layers = [
        alt.Chart(inline(rows))
        .mark_rect(opacity=0.55)
        .encode(
            x=alt.X("from:Q", title=UNITS, scale=alt.Scale(zero=False, nice=False)),
            x2="to:Q",
            y=alt.Y("share:Q", title="share of turns", axis=alt.Axis(format="%"), scale=alt.Scale(zero=True)),
            y2="floor:Q",
            color=colour,
            tooltip=["set:N", "from:Q", "to:Q", alt.Tooltip("share:Q", format=".2%")],
        ),
        *_band(result, name, kind, vertical=False),
    ]
    title, subtitle = f"{name}, {TITLES[kind]}: all turns", ["No limits: nothing here is an alert."]
    if result["alerts"]:
        own = result["alerts"][name][kind]
        title = f"{name}, {TITLES[kind]}: {own['alerts']:,} of {own['of_turns']:,} turns beyond the limits"
        rate = result["calibration"]["false_positive_rate"]
        subtitle = [f"Orange: limits for a false-positive rate of {rate:g}{_pooled(result)}."]
    return finish(layers, title, subtitle, 420, 220)


def _pooled(result: Json) -> str:
    """What to say of limits where groups have their own."""
    return " of all groups together" * bool(result["groups"])


def _band(result: Json, name: str, kind: str, *, vertical: bool) -> list[alt.Chart]:
    """Where benign turns lie: an area over the turns, or two lines across the values."""
    if not result["calibration"]:
        return []
    band = result["calibration"]["bands"][name][kind]
    if vertical:
        base = alt.Chart(inline([{"low": band["low"], "high": band["high"]}]))
        return [base.mark_rect(color=GREY, opacity=0.18).encode(y="low:Q", y2="high:Q")]
    limits = inline([{"limit": band["low"]}, {"limit": band["high"]}])
    return [alt.Chart(limits).mark_rule(color=VERMILLION, strokeWidth=2).encode(x="limit:Q")]


def write_either(result: dict[str, Any]) -> dict[str, Any]:
    """The page of a monitoring or of the experiment."""
    return write_experiment(result) if "traits" in result else write_monitoring(result)


def write_experiment(result: dict[str, Any]) -> dict[str, Any]:
    """Write report.html and charts/*.png and *.svg of the monitoring experiment; adds the path as `report`.

    Args:
        result: What `studies.monitoring.experiment` found.
    """
    folder = Path(result["out"])
    charts: dict[str, alt.LayerChart | alt.ConcatChart] = {
        f"scatter_{place}_{kind}": scatter(name, kind, own)
        for place, (name, kinds) in enumerate(result["traits"].items())
        for kind, own in kinds.items()
    }
    path = render(folder / "report.html", "monitoring_experiment.html", result=result, **drawn(folder, charts))
    return result | {"report": str(path)}


def scatter(name: str, kind: str, own: Json) -> alt.LayerChart:
    """Projection at the last prompt token against the trait score of what was then said, one point a question."""
    order = [one["condition"].partition(":")[0] for one in own["conditions"]]
    points = [{**point, "condition": order[point["place"]]} for point in own["points"] if point["score"] is not None]
    means = [
        {"condition": told, "projection": one["projection"], "score": one["score"]["mean"]}
        for told, one in zip(order, own["conditions"], strict=True)
        if one["score"]["mean"] is not None
    ]
    colour = alt.Color("condition:N", title=None, sort=order, scale=alt.Scale(scheme="viridis"))
    layers = [
        alt.Chart(inline(points))
        .mark_point(filled=True, size=55, opacity=0.75)
        .encode(
            x=alt.X("projection:Q", title=f"last prompt token: {UNITS}", scale=alt.Scale(zero=False)),
            y=alt.Y("score:Q", title=f"{name}: trait score (0–100)", scale=alt.Scale(domain=[0, MAX_SCORE])),
            color=colour,
            tooltip=["condition:N", "question:Q", alt.Tooltip("projection:Q", format=".3g"), "score:Q"],
        ),
        alt.Chart(inline(means))
        .mark_point(shape="diamond", filled=True, size=170, opacity=1, stroke=INK, strokeWidth=1)
        .encode(x="projection:Q", y="score:Q", color=colour),
    ]
    overall, within = (_r(own[one]) for one in ("overall", "within"))
    title = f"{name}, {CONDITIONS[kind]}: r = {overall} overall, {within} within conditions"
    return finish(layers, title, ["One point a question; diamonds: means of the conditions."], 420, 300)


def _r(value: Json) -> str:
    return "–" if value["mean"] is None else f"{value['mean']:.2f}"
