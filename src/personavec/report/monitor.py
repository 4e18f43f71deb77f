"""The pages of monitoring: recorded turns next to benign ones, and how well projections predict scores."""

import re
from html import escape
from pathlib import Path

import altair as alt

from personavec.report.charts import BLUE, GREY, INK, MAX_SCORE, VERMILLION, Json, finish, histogram, inline
from personavec.report.page import drawn, render, svg
from personavec.runs.show import alerts_said, shaded_tokens, table

RECORDED, BENIGN = "recorded", "benign"
SHOWN_ALERTS, SHOWN_CONVERSATIONS = 100, 20
"""Alerts in the page's table, conversations in a notebook's."""
DRAWN_ID = re.compile("[0-9a-f]{32}")
"""What a server calls a conversation whose client gave no name."""
TITLES = {"prompt last": "last prompt token", "response avg": "reply"}
FIELDS = {"prompt last": "prompt_last", "response avg": "response_avg"}
CONDITIONS = {"system": "system prompts", "shots": "shots"}
UNITS = "projection (activation units)"


def write(data: Json, folder: Path) -> Path:
    """Write report.html and charts/*.png and *.svg of a monitoring or of the experiment; returns the page's path.

    Args:
        data: What `Monitoring.drawn` or `MonitoringExperiment.drawn` holds.
        folder: Where they go.
    """
    path = folder / "report.html"
    if "traits" in data:
        return render(path, "monitoring_experiment.html", result=data, **drawn(folder, _scatters(data)))
    alerts = data["raised"]
    shown = {"alerts": [{**each, "named": named(each)} for each in alerts[:SHOWN_ALERTS]], "n_alerts": len(alerts)}
    shown["alerts_said"] = alerts_said(data["expectation"]) if data["expectation"] else ""
    return render(path, "monitor.html", result=data, **shown, **drawn(folder, _charts(data)))


def notebook(data: Json) -> str:
    """The experiment's first chart; of a monitoring the conversations with alerts, and of a single one its tokens."""
    if "traits" in data:
        return "".join(svg(chart) for chart in [*_scatters(data).values()][:1])
    alerts: dict[str, list[Json]] = {}
    for alert in data["raised"]:
        alerts.setdefault(named(alert), []).append(alert)
    rows = [
        (name, *(", ".join(sorted({str(alert[key]) for alert in raised})) for key in ("turn", "vector", "kind")))
        for name, raised in [*alerts.items()][:SHOWN_CONVERSATIONS]
    ]
    shown = table(["conversation", "turns", "vectors", "kinds"], rows, "Conversations with alerts") if rows else ""
    for reply in data["replies"]:
        if reply["tokens"]:
            shown += f"<p>{escape(reply['vector'])}, turn {reply['turn']}</p>" + shaded_tokens(reply["tokens"])
    return shown


def named(alert: Json) -> str:
    """The conversation of an alert: its id, which of a server's log is cut to what a person can compare, or its row."""
    name = alert["name"] or alert["where"]
    return f"{alert['conversation']} ({name[:8]}…)" if DRAWN_ID.fullmatch(name) else str(name)


def _charts(data: Json) -> dict[str, alt.LayerChart | alt.ConcatChart]:
    charts: dict[str, alt.LayerChart | alt.ConcatChart] = {}
    for place, name in enumerate(data["layers"]):
        for kind, field in FIELDS.items():
            if len(data["curves"][name][kind]) > 1:
                charts[f"curve_{place}_{field}"] = curve(data, name, kind)
            charts[f"distribution_{place}_{field}"] = distribution(data, name, kind)
    return charts


def _scatters(data: Json) -> dict[str, alt.LayerChart | alt.ConcatChart]:
    return {
        f"scatter_{place}_{kind}": scatter(name, kind, correlations)
        for place, (name, kinds) in enumerate(data["traits"].items())
        for kind, correlations in kinds.items()
    }


def curve(result: Json, name: str, kind: str) -> alt.LayerChart:
    """Mean projection turn by turn with its interval, over the benign band, and the conversations with alerts."""
    means = [
        {"turn": at["turn"], "mean": at["mean"], "low": at["ci"][0], "high": at["ci"][1], "n": at["n"]}
        for at in result["curves"][name][kind]
        if at["mean"] is not None
    ]
    last = max((row["turn"] for row in means), default=-1)
    single = [
        {"conversation": row["conversation"], "turn": row["turn"], "value": row["vectors"][name][FIELDS[kind]]}
        for row in result["lines"]
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
    """How the turns are spread, next to the benign ones, with the limits."""
    bins = result["distributions"][name][kind]
    sets = {label: bins[key] for label, key in ((BENIGN, "benign"), (RECORDED, "data")) if sum(bins[key])}
    bars = histogram(bins["edges"], sets, [RECORDED, BENIGN], UNITS, "turns")
    layers = [bars, *_band(result, name, kind, vertical=False)]
    title, subtitle = f"{name}, {TITLES[kind]}: all turns", ["No limits: nothing here is an alert."]
    if result["alerts"]:
        raised = result["alerts"][name][kind]
        title = f"{name}, {TITLES[kind]}: {raised['alerts']:,} of {raised['of_turns']:,} turns beyond the limits"
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


def scatter(name: str, kind: str, correlations: Json) -> alt.LayerChart:
    """Projection at the last prompt token against the trait score of what was then said, one point a question."""
    conditions = correlations["conditions"]
    order = [condition["condition"].partition(":")[0] for condition in conditions]
    points = [
        {**point, "condition": order[point["place"]]} for point in correlations["points"] if point["score"] is not None
    ]
    means = [
        {"condition": title, "projection": condition["projection"], "score": condition["score"]["mean"]}
        for title, condition in zip(order, conditions, strict=True)
        if condition["score"]["mean"] is not None
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
    r = (correlations[reach]["mean"] for reach in ("overall", "within"))
    overall, within = ("–" if value is None else f"{value:.2f}" for value in r)
    missed = ", not measurable" * (correlations["within"]["measurable"] is False)
    title = f"{name}, {CONDITIONS[kind]}: r = {overall} overall, {within} within conditions{missed}"
    return finish(layers, title, ["One point a question; diamonds: means of the conditions."], 420, 300)
