"""The page of an extraction, and its charts."""

from collections.abc import Mapping, Sequence
from math import copysign
from pathlib import Path
from typing import Any

import altair as alt

from personavec.report.charts import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    MAX_SCORE,
    SKY,
    VERMILLION,
    Json,
    bounded,
    finish,
    inline,
)
from personavec.report.page import drawn, render, svg
from personavec.runs.show import interval, table

HIDDEN_TRAITS = frozenset({"evil"})
"""Traits whose transcripts stay behind a click."""
BIN = 5
"""Width of a histogram bar, in points of score."""
N_BINS = MAX_SCORE // BIN
WITH_TRAIT, WITH_OPPOSITE = "told to show the trait", "told the opposite"
BY_LAYER = {
    "norm": ("length (activation units)", "Length (norm) of the persona vector."),
    "dose": ("dose (share of length)", "The vector's length over the activations' mean length."),
    "reliability": ("cosine (1 = same way)", "Split-half reliability: cosine of two half-data vectors."),
}
"""Axis and subtitle of what is drawn by layer."""
RELIABLE = 0.9
"""Split-half reliability from which the title says that the halves agree."""

VECTOR, RANDOM, MATCHED, SHUFFLED = "persona vector", "random direction", "matched direction", "shuffled labels"
SERIES = {"none": VECTOR, "vector": VECTOR, "random": RANDOM, "matched": MATCHED, "shuffled": SHUFFLED}
"""Name of each direction of a check in a legend; the unsteered arm is the vector's dose 0."""
_COLOUR = alt.Scale(domain=[VECTOR, RANDOM, MATCHED, SHUFFLED], range=[BLUE, VERMILLION, SKY, GREEN])
_SHAPE = alt.Scale(domain=[VECTOR, RANDOM, MATCHED, SHUFFLED], range=["circle", "square", "diamond", "triangle-up"])
_NUDGE = {VECTOR: 0, RANDOM: 5, SHUFFLED: -5, MATCHED: 10}
"""Pixels by which a series moves sideways, so that intervals at one dose do not cover each other."""
_SIGNED = "datum.value == 0 ? '0' : format(datum.value, '+.2~f')"


def write(details: Json, folder: Path) -> Path:
    """Write a trait's report.html, charts/*.png and *.svg, and sheet.html if there are pairs; returns the page's path.

    Args:
        details: Content of the trait's result.json, and of sheet.json as `sheet`.
        folder: Where they go.
    """
    sheet, harmful = details.get("sheet"), details["trait"]["name"] in HIDDEN_TRAITS
    if sheet and sheet["pairs"]:
        render(folder / "sheet.html", "sheet.html", trait=details["trait"], sheet=sheet, harmful=harmful)
    return render(
        folder / "report.html",
        "extract.html",
        result=details,
        pairs=len(sheet["pairs"]) if sheet else 0,
        arms={row["arm"]: row for row in details["check"]},
        hide_transcripts=harmful,
        **drawn(folder, _charts(details)),
    )


def write_index(
    folder: Path, each: Sequence[Json], failed: Sequence[Mapping[str, str]] = (), among: Json | None = None
) -> Path:
    """Write index.html, one row a trait; returns its path.

    Args:
        folder: The run; each trait's page lies in a folder of its name.
        each: Content of each trait's result.json.
        failed: `trait` and `error` of those that came to no result.
        among: What `judge_by_trait` found; None of a single trait.
    """
    rows = [(details, {row["arm"]: row["trait"] for row in details["check"]}) for details in each]
    return render(folder / "index.html", "index.html", rows=rows, failed=failed, among=among)


def notebook(details: Json) -> str:
    """The dose–response chart, the table of arms, and what the arms replied to a question."""
    arms = [
        (row["arm"].replace("_", " "), f"{row['dose']:+.2f}", interval(row["trait"]), interval(row["coherence"]))
        for row in details["check"]
    ]
    replies = [
        (side, text["question"], text[side] + " [cut]" * (side in text["cut"]))
        for text in (() if details["trait"]["name"] in HIDDEN_TRAITS else details["transcripts"][:1])
        for side in ("suppressed", "base", "steered")
    ]
    chart = svg(dose_response(details["check"]))
    return (
        chart + table(["arm", "dose", "trait score", "coherence"], arms) + table(["arm", "question", "reply"], replies)
    )


def _charts(result: Mapping[str, Any]) -> dict[str, alt.LayerChart]:
    check, choice = result["check"], result["choice"]
    return {
        "dose_response": dose_response(check),
        "coherence": coherence(check, result["sweep"]["floor"]),
        "heat_map": heat_map(result["sweep"], choice),
        "histograms": histograms(result["rollout_scores"], result["keep_at"]),
        **by_layer(result["layers"], choice),
    }


def heat_map(sweep: Json, choice: Json) -> alt.LayerChart:
    """Trait score (colour, upper figure) and coherence (lower figure) of every layer and dose that was tried.

    A cell whose coherence may be below the floor (its interval reaches there) is shrunk and struck
    through; the chosen cell is outlined.
    """
    floor = sweep["floor"]
    at_layer = [cell for cell in sweep["cells"] if cell["layer"] == choice["layer"]]
    chosen = min(at_layer, key=lambda cell: abs(cell["coef"] - choice["coef"]), default=None)
    rows = [
        {
            "layer": cell["layer"],
            "dose": round(_signed_dose(cell), 3),
            "coef": cell["coef"],
            "trait": cell["trait"]["mean"],
            "coherence": cell["coherence"]["mean"],
            "n": cell["trait"]["n"],
            "trait_text": _round(cell["trait"]["mean"]),
            "coherence_text": _round(cell["coherence"]["mean"]),
            "low": cell["coherence"]["mean"] is not None and not _above(cell["coherence"]["ci"][0], floor),
            "chosen": cell is chosen,
        }
        for cell in sweep["cells"]
    ]
    step = 34 if len({row["layer"] for row in rows}) <= 12 else 27
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("dose:O", title="dose (length added, as a share of the activation's)", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", title="layer (0 = first block)", sort="descending"),
        tooltip=["layer:O", "dose:Q", "coef:Q", "trait:Q", "coherence:Q", "n:Q"],
    )
    colour = alt.Color(
        "trait:Q",
        title="trait score",
        scale=alt.Scale(domain=[0, MAX_SCORE], scheme="yellowgreenblue", clamp=True),
        legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=200, values=[0, 25, 50, 75, 100]),
    )
    ink = alt.condition("datum.trait !== null && datum.trait > 60", alt.value("white"), alt.value(INK))
    low, known = alt.datum.low, "datum.trait !== null"
    cells = [
        base.mark_rect(fill="white", stroke=FAINT),
        base.transform_filter(f"{known} && !datum.low").mark_rect().encode(color=colour),
        base.transform_filter(f"{known} && datum.low")
        .mark_rect(width=alt.RelativeBandSize(band=0.62), height=alt.RelativeBandSize(band=0.78))
        .encode(color=colour),
        base.mark_text(dy=-6, fontSize=12, fontWeight="bold").encode(text="trait_text:N", color=ink),
        base.mark_text(dy=7, fontSize=10).encode(text="coherence_text:N", color=ink),
        base.transform_filter(low).mark_point(shape="stroke", size=420, yOffset=7, strokeWidth=1.2).encode(color=ink),
        base.transform_filter(alt.datum.chosen).mark_rect(filled=False, stroke=VERMILLION, strokeWidth=3),
    ]
    title = f"Chosen: layer {choice['layer']}, dose {choice['dose']:.2g}"
    if chosen:
        title += f", where the sweep's trait score is {_round(chosen['trait']['mean'])}"
    subtitle = [
        "Upper figure and colour: trait score. Lower figure: coherence.",
        f"Small cells, struck through: coherence not surely above {floor:g}. Orange frame: chosen.",
    ]
    return finish(cells, title, subtitle, 520, alt.Step(step))


def dose_response(check: Sequence[Json]) -> alt.LayerChart:
    """Trait score at each signed dose, next to controls of the same length."""
    by_arm = {row["arm"]: row["trait"] for row in check}
    means = [by_arm.get(arm, {}).get("mean") for arm in ("suppressed", "base", "steered")]
    low, high = by_arm.get("suppressed", {}), by_arm.get("steered", {})
    if None in means:
        finding = "Not every arm has a trait score"
    elif _above(high["ci"][0], low["ci"][1]):
        finding = "Steering moves the trait score"
    elif means[2] > means[0]:
        finding = "Steering hardly moves the trait score"
    else:
        finding = "Steering does not raise the trait score"
    title = f"{finding}: {' → '.join(map(_round, means))}"
    subtitle = ["Suppressed → unsteered → steered. Grey band: unsteered, with 95% interval."]
    if "random" in by_arm:
        subtitle.append(f"Random directions of the same length: {_round(by_arm['random']['mean'])}.")
    return finish([*_base_band(check), *_arms(check, "trait", "trait score (0–100)")], title, subtitle, 420, 280)


def coherence(check: Sequence[Json], floor: float) -> alt.LayerChart:
    """Coherence at each signed dose, with the floor below which a dose counts as too much."""
    known = [row for row in check if row["direction"] in ("none", "vector") and row["coherence"]["mean"] is not None]
    broken = [row for row in known if row["coherence"]["mean"] < floor]
    if not known:
        title = "No coherence was measured"
    elif broken:
        title = f"Coherence falls below {floor:g} at dose {', '.join(f'{_signed_dose(row):+.2g}' for row in broken)}"
    else:
        title = f"Replies stay coherent: no mean is below {int(min(row['coherence']['mean'] for row in known))}"
    line = alt.Chart(inline([{"floor": floor}])).mark_rule(color=INK, strokeDash=[4, 3]).encode(y="floor:Q")
    subtitle = [f"Dashed line: the floor, {floor:g}. Vertical bars: 95% intervals."]
    return finish([line, *_arms(check, "coherence", "coherence (0–100)")], title, subtitle, 420, 280)


def histograms(rollout_scores: Mapping[str, Json], keep_at: float) -> alt.LayerChart:
    """Trait scores of the rollouts, under instructions for the trait and against it, and where they are kept."""
    pos, neg = rollout_scores["pos"]["trait"], rollout_scores["neg"]["trait"]
    rows = []
    for side, values in ((WITH_TRAIT, pos), (WITH_OPPOSITE, neg)):
        bins = [min(int(value // BIN), N_BINS - 1) for value in values]
        rows += [{"side": side, "from": BIN * i, "to": BIN * (i + 1), "replies": bins.count(i)} for i in range(N_BINS)]
    if pos and neg:
        above, below = sum(v > keep_at for v in pos) / len(pos), sum(v < keep_at for v in neg) / len(neg)
        title = f"{above:.0%} of “trait” replies score above {keep_at:g}, {below:.0%} of “opposite” replies below"
    else:
        title = "One side has no scored replies"
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(opacity=0.55, stroke="white", strokeWidth=0.5)
        .encode(
            x=alt.X("from:Q", bin="binned", title="trait score (0–100)", scale=alt.Scale(domain=[0, MAX_SCORE])),
            x2="to:Q",
            y=alt.Y("replies:Q", title="replies", stack=None, axis=alt.Axis(tickMinStep=1)),
            color=alt.Color(
                "side:N", title=None, scale=alt.Scale(domain=[WITH_TRAIT, WITH_OPPOSITE], range=[VERMILLION, BLUE])
            ),
            tooltip=["side:N", "from:Q", "to:Q", "replies:Q"],
        )
    )
    line = alt.Chart(inline([{"keep": keep_at}])).mark_rule(color=INK, strokeDash=[4, 3]).encode(x="keep:Q")
    subtitle = [f"Dashed line: a reply on the wrong side of {keep_at:g} is dropped."]
    return finish([bars, line], title, subtitle, 520, 220)


def by_layer(layers: Sequence[Json], choice: Json) -> dict[str, alt.LayerChart]:
    """The vector's length, the dose that coefficient 1 makes, and split-half reliability, at every layer."""
    rows = [{**row, "dose": _ratio(row["norm"], row["activation_norm"])} for row in layers]
    at = next((row for row in rows if row["layer"] == choice["layer"]), {})
    longest = max((row for row in rows if row["norm"] is not None), key=lambda row: row["norm"], default=None)
    where = f"layer {choice['layer']}"
    reliability = at.get("reliability")
    agree = "agree" if reliability is not None and reliability >= RELIABLE else "agree only in part"
    titles = {
        "norm": f"The vector is longest at layer {longest['layer']}" if longest else "No length was measured",
        "dose": f"Coefficient 1 is dose {_round(at.get('dose'), 2)} at {where}",
        "reliability": f"Halves of the data {agree}: {_round(reliability, 2)} at {where}",
    }
    return {f"layer_{field}": _layer_chart(rows, field, choice["layer"], title) for field, title in titles.items()}


def _layer_chart(layers: Sequence[Json], field: str, layer: int, title: str) -> alt.LayerChart:
    axis, subtitle = BY_LAYER[field]
    rows = [{"layer": row["layer"], "value": row[field]} for row in layers if row[field] is not None]
    line = alt.Chart(inline(rows)).encode(
        x=alt.X(
            "layer:Q",
            title="layer (0 = first block)",
            scale=alt.Scale(nice=False),
            axis=alt.Axis(tickMinStep=1, format="d"),
        ),
        y=alt.Y("value:Q", title=axis),
        tooltip=["layer:Q", alt.Tooltip("value:Q", format=".3g")],
    )
    mark = alt.Chart(inline([{"layer": layer}])).mark_rule(color=VERMILLION, strokeDash=[4, 3]).encode(x="layer:Q")
    chosen = line.transform_filter(alt.datum.layer == layer)
    points = chosen.mark_point(filled=True, color=VERMILLION, size=70, opacity=1)
    return finish([mark, line.mark_line(color=BLUE), points], title, [subtitle], 340, 190)


def _arms(check: Sequence[Json], measure: str, axis: str) -> list[alt.Chart]:
    """Lines, points and intervals of the arms, one series a direction."""
    rows = [
        {
            "arm": row["arm"].replace("_", " "),
            "series": SERIES[row["direction"]],
            "dose": _signed_dose(row),
            "coef": row["coef"],
            "n": row[measure]["n"],
        }
        | bounded(row[measure])
        for row in check
        if row[measure]["mean"] is not None and row["direction"] in SERIES
    ]
    x = alt.X(
        "dose:Q",
        title="dose (− suppresses, + steers)",
        scale=alt.Scale(padding=16, nice=False),
        axis=alt.Axis(values=sorted({row["dose"] for row in rows}), labelExpr=_SIGNED, grid=False),
    )
    y = alt.Y("mean:Q", title=axis, scale=alt.Scale(domain=[0, MAX_SCORE]))
    two_rows = alt.Legend(columns=2)
    color = alt.Color("series:N", title=None, scale=_COLOUR, legend=two_rows)
    shape = alt.Shape("series:N", title=None, scale=_SHAPE, legend=two_rows)
    tooltip = ["arm:N", "dose:Q", "coef:Q", "mean:Q", "low:Q", "high:Q", "n:Q"]
    vector = [row for row in rows if row["series"] == VECTOR]
    charts = [
        alt.Chart(inline(vector)).mark_area(opacity=0.15, color=BLUE).encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        alt.Chart(inline(vector)).mark_line(color=BLUE, strokeWidth=2).encode(x=x, y=y),
    ]
    for series, nudge in _NUDGE.items():
        points = inline([row for row in rows if row["series"] == series])
        base = alt.Chart(points).encode(x=x, color=color, tooltip=tooltip)
        charts += [
            base.mark_rule(xOffset=nudge, strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
            base.mark_point(xOffset=nudge, filled=True, size=60, opacity=1).encode(y=y, shape=shape),
        ]
    return charts


def _base_band(check: Sequence[Json]) -> list[alt.Chart]:
    base = next((row["trait"] for row in check if row["arm"] == "base" and row["trait"]["mean"] is not None), None)
    if base is None:
        return []
    data = alt.Chart(inline([bounded(base)]))
    return [
        data.mark_rect(color=GREY, opacity=0.18).encode(y="low:Q", y2="high:Q"),
        data.mark_rule(color=GREY, strokeDash=[2, 3]).encode(y="mean:Q"),
    ]


def _signed_dose(row: Json) -> float:
    return copysign(row["dose"], row["coef"])


def _ratio(value: float | None, whole: float | None) -> float | None:
    return None if value is None or not whole else value / whole


def _above(bound: float | None, other: float | None) -> bool:
    """Whether one bound lies above or at another; an interval of a single question has none."""
    return bound is not None and other is not None and bound >= other


def _round(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
