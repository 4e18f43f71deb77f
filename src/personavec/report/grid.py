"""The page of many finetunings: how well the shift predicts the trait score; and what mitigation costs."""

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import altair as alt

from personavec.report.charts import (
    BLUE,
    FAINT,
    GREY,
    INK,
    MAX_SCORE,
    VERMILLION,
    Json,
    bounded,
    finish,
    inline,
    themed,
)
from personavec.report.labels import labels
from personavec.report.page import drawn, render, svg

PANEL = 290
"""Width and height of a scatter, in pixels."""
METHODS = {"prevent": "Preventative steering", "posthoc": "Post-hoc steering"}
DOSES = {"prevent": "coefficient added while training", "posthoc": "coefficient subtracted while replying"}
SCORES = (-6, MAX_SCORE + 6)
"""Range of a scatter's scores: with room for labels at 0 and 100."""
LOG_FROM = 20
"""Ratio of the largest cost to the smallest from which its axis is logarithmic."""


def write(result: Json, folder: Path) -> Path:
    """Write report.html and charts/*.png and *.svg of a grid of finetunings; returns the page's path.

    Args:
        result: What `finetuning_grid` reports.
        folder: Where they go.
    """
    charts: dict[str, alt.LayerChart | alt.ConcatChart] = {"shift": shift_score_chart(result)}
    if len(result["traits"]) > 1:
        charts["cross"] = cross_trait_chart(result)
    return render(folder / "report.html", "grid.html", result=result, **drawn(folder, charts))


def notebook(result: Json) -> str:
    """Shift against trait score."""
    return svg(shift_score_chart(result))


def shift_score_chart(result: Json) -> alt.ConcatChart:
    """Finetuning shift against trait score of every finetuned model, one panel a trait.

    Labels that would cover another label or a point are left out; the tooltip names every model.

    Args:
        result: What `prediction.measure_prediction` returned.
    """
    traits = result["traits"]
    beaten = [trait for trait, figures in traits.items() if all(null["beats"] for null in figures["nulls"].values())]
    title = (
        f"The shift predicts the trait score better than chance directions: {', '.join(beaten)}"
        if beaten
        else "No shift is shown to predict its trait score better than chance directions"
    )
    subtitle = [
        "One point a finetuned model; grey: least-squares line; r with its 95% interval.",
        "Null: |r| that 97.5% of random directions stay below (like the base model's activations / any way alike).",
    ]
    panels = [_scatter(trait, figures) for trait, figures in traits.items()]
    return _panels(panels, 2 if len(panels) in (2, 4) else 3, title, subtitle)


def cross_trait_chart(result: Json) -> alt.LayerChart:
    """Correlation of the shift along each trait's direction with each trait's score.

    Args:
        result: What `prediction.measure_prediction` returned.
    """
    cross = result["cross"]
    traits, table = cross["traits"], cross["r"]
    rows = [
        {
            "direction": row,
            "score": column,
            "r": r,
            "text": "–" if r is None else f"{r:.2f}".replace("-", "−"),
            "diagonal": row == column,
            "best": r is not None and abs(r) == max(abs(line[j]) for line in table if line[j] is not None),
        }
        for i, row in enumerate(traits)
        for j, column in enumerate(traits)
        for r in [table[i][j]]
    ]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X(
            "score:N",
            title="score of this trait",
            sort=traits,
            axis=alt.Axis(orient="top", labelAngle=-30, labelOverlap=False),
        ),
        y=alt.Y("direction:N", title="shift along this trait's direction", sort=traits),
        tooltip=["direction:N", "score:N", alt.Tooltip("r:Q", format=".3f")],
    )
    colour = alt.Color(
        "r:Q",
        title="r over finetuned models",
        scale=alt.Scale(domain=[-1, 1], scheme="redblue"),
        legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=200, values=[-1, -0.5, 0, 0.5, 1]),
    )
    ink = alt.condition("abs(datum.r) > 0.7", alt.value("white"), alt.value(INK))
    text = base.encode(text="text:N", color=ink)
    layers = [
        base.mark_rect(fill="white", stroke=FAINT),
        base.transform_filter("datum.r !== null").mark_rect(stroke="white").encode(color=colour),
        text.transform_filter("!datum.best").mark_text(fontSize=12),
        text.transform_filter("datum.best").mark_text(fontSize=13, fontWeight="bold"),
        base.transform_filter("datum.diagonal").mark_rect(filled=False, stroke=INK, strokeWidth=2),
    ]
    times, of = cross["own_beaten"]["times"], cross["own_beaten"]["of"]
    title = (
        f"Another trait's direction predicts better for {times} of {of} scores" if of else "One trait, nothing to cross"
    )
    subtitle = ["Framed: the trait's own direction.", "Bold: the direction that predicts this score best."]
    return finish(layers, title, subtitle, alt.Step(58), alt.Step(34))


def dose_costs_chart(
    rows: Sequence[Json], references: Mapping[str, Json] | None = None, cost: str = "perplexity", best: str = "low"
) -> alt.ConcatChart:
    """Trait score, and below it a cost, against the coefficient of preventative and of post-hoc steering, side by side.

    Args:
        rows: One a method and coefficient: `method` (prevent or posthoc), `coef` (what prevention adds in training and
            post-hoc steering subtracts in replies), `trait_score` and the cost, each `{"mean", "ci": [low, high]}`.
            Those whose mean is null are left out. Negative coefficients are to prevent a fall of the score.
        references: The same two measures without steering, by the name of the model (base, plain finetune).
        cost: Field of the cost: perplexity, or a capability.
        best: Whether a low or a high cost is good; only said in words.

    Source: Persona Vectors (arXiv 2507.21509) figure 7, with perplexity where that has MMLU.
    """
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    fixed = references or {}
    every = [*rows, *fixed.values()]
    measures = {
        "trait_score": ("trait score (0–100)", alt.Scale(domain=[0, MAX_SCORE])),
        cost: (f"{cost} ({'lower' if best == 'low' else 'higher'} is better)", _scale([row[cost] for row in every])),
    }
    panels = [
        _dose_panel(rows, fixed, method, measure, axis, scale, last=method == methods[-1])
        for measure, (axis, scale) in measures.items()
        for method in methods
    ]
    wanted = sum(row["coef"] for row in rows) < 0
    lines = [text for method in methods if (text := _best(rows, method, cost, wanted))]
    title = (
        f"{'Highest' if wanted else 'Lowest'} trait score: {', '.join(lines)}"
        if lines
        else "No trait score was measured"
    )
    subtitle = ["Points and bars: mean with 95% interval. Dashed lines: without steering."]
    return _panels(panels, len(methods), title, subtitle)


def _panels(panels: Sequence[alt.LayerChart], columns: int, title: str, subtitle: list[str]) -> alt.ConcatChart:
    chart = alt.ConcatChart(
        concat=list(panels),
        columns=columns,
        spacing=28,
        title=alt.TitleParams(title, subtitle=subtitle, offset=18),
        background="white",
        padding=10,
    )
    return themed(chart)


def _scatter(trait: str, figures: Json) -> alt.LayerChart:
    points, x_domain = list(figures["points"]), _padded([point["shift"] for point in figures["points"]])
    base = alt.Chart(inline(points)).encode(
        x=alt.X(
            "shift:Q", title="shift along the vector (activation units)", scale=alt.Scale(domain=x_domain, nice=False)
        ),
        y=alt.Y(
            "score:Q",
            title="trait score (0–100)",
            scale=alt.Scale(domain=SCORES, nice=False),
            axis=alt.Axis(values=list(range(0, MAX_SCORE + 1, 20))),
        ),
        tooltip=["model:N", alt.Tooltip("shift:Q", format=".3g"), alt.Tooltip("score:Q", format=".1f")],
    )
    layers = [base.mark_point(filled=True, size=55, opacity=0.85, color=BLUE)]
    if figures["reason"] is None:
        line = base.transform_regression("shift", "score").mark_line(
            color=GREY, opacity=0.5, strokeWidth=1.5, clip=True
        )
        layers.insert(0, line)
    (left, right), (bottom, top) = x_domain, SCORES
    at = [
        (PANEL * (point["shift"] - left) / (right - left), PANEL * (top - point["score"]) / (top - bottom))
        for point in points
    ]
    for label in labels(at, [point["model"] for point in points], PANEL, PANEL):
        layers.append(
            alt.Chart(inline([points[label.point]]))
            .mark_text(align=label.align, dx=label.dx, dy=label.dy, fontSize=10, color=INK)
            .encode(x="shift:Q", y="score:Q", text="model:N")
        )
    title = alt.TitleParams(trait, subtitle=_scatter_notes(figures), fontSize=13, offset=8)
    return alt.LayerChart(layer=layers, title=title, width=PANEL, height=PANEL)


def _scatter_notes(figures: Json) -> list[str]:
    if figures["reason"]:
        return ["no correlation:", figures["reason"]]
    (low, high), nulls = figures["pearson"]["ci"], figures["nulls"]
    reached = (nulls[name].get("percentiles", {}).get("97.5") for name in ("covariance", "isotropic"))
    limits = ["–" if limit is None else f"{limit:.2f}" for limit in reached]
    return [
        f"r = {figures['pearson']['r']:.2f} [{low:.2f}, {high:.2f}], n = {figures['n']}",
        f"null: {' / '.join(limits)}",
    ]


def _padded(values: Sequence[float], share: float = 0.08) -> list[float]:
    """A domain with room at both ends."""
    low, high = (min(values), max(values)) if values else (0, 1)
    room = share * (high - low) or 1
    return [low - room, high + room]


def _scale(costs: Sequence[Json]) -> alt.Scale:
    """Of a cost: over all panels, without zero, logarithmic where the largest is many times the smallest."""
    values = [value for cost in costs for value in (cost["mean"], *cost["ci"]) if value is not None]
    if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
        return alt.Scale(type="log", domain=[min(values) / 1.2, max(values) * 1.2], nice=False)
    return alt.Scale(domain=_padded(values), nice=False, zero=False)


def _known(rows: Sequence[Json], method: str, measure: str) -> list[dict[str, Any]]:
    """What was measured, by coefficient."""
    known = [row for row in rows if row["method"] == method and row[measure]["mean"] is not None]
    points = [{"coef": row["coef"]} | bounded(row[measure]) for row in known]
    return sorted(points, key=lambda row: row["coef"])


def _dose_panel(
    rows: Sequence[Json],
    references: Mapping[str, Json],
    method: str,
    measure: str,
    axis: str,
    scale: alt.Scale,
    last: bool,
) -> alt.LayerChart:
    known = _known(rows, method, measure)
    colour = BLUE if method == "prevent" else VERMILLION
    ticks = alt.Axis(grid=False, values=sorted({row["coef"] for row in known}), format="~g")
    x = alt.X("coef:Q", title=DOSES[method], scale=alt.Scale(padding=12, nice=False), axis=ticks)
    tooltip = [alt.Tooltip(f"{name}:Q", format=".3g") for name in ("coef", "mean", "low", "high")]
    base = alt.Chart(inline(known)).encode(x=x, tooltip=tooltip)
    y = alt.Y("mean:Q", title=axis, scale=scale, axis=_cost_axis(scale))
    bounded = base.transform_filter("datum.low !== null && datum.high !== null")
    low = alt.Y("low:Q", scale=scale)
    layers = [
        *_rules(references, measure, scale, last),
        bounded.mark_area(color=colour, opacity=0.15).encode(y=low, y2="high:Q"),
        base.mark_line(color=colour, strokeWidth=2).encode(y=y),
        bounded.mark_rule(color=colour, strokeWidth=1.5).encode(y=low, y2="high:Q"),
        base.mark_point(color=colour, filled=True, size=60, opacity=1).encode(y=y),
    ]
    panel = alt.LayerChart(layer=layers, width=300, height=200)
    if measure == "trait_score":
        panel.title = alt.TitleParams(METHODS[method], fontSize=13, offset=8)
    return panel


def _cost_axis(scale: alt.Scale) -> alt.Axis:
    """Few ticks where the axis is logarithmic: powers of ten, and 3 between them over a short range."""
    if scale.to_dict().get("type") != "log":
        return alt.Axis()
    low, high = scale.to_dict()["domain"]
    powers = range(floor(log10(low)), ceil(log10(high)))
    steps = (1, 3) if len(powers) <= 3 else (1,)
    return alt.Axis(values=[step * 10.0**power for power in powers for step in steps], format=",~r")


def _rules(references: Mapping[str, Json], measure: str, scale: alt.Scale, named: bool) -> Iterator[alt.Chart]:
    """Lines of the models without steering; their names stand at the right, one above and one below where close."""
    known = [
        (name, reference[measure]["mean"])
        for name, reference in references.items()
        if reference[measure]["mean"] is not None
    ]
    known.sort(key=lambda pair: pair[1])
    for place, (name, mean) in enumerate(known):
        base = alt.Chart(inline([{"model": name, "mean": mean}])).encode(y=alt.Y("mean:Q", scale=scale))
        yield base.mark_rule(color=GREY, strokeDash=[5, 3]).encode(tooltip=["model:N", "mean:Q"])
        if named:
            dy = 6 if place == 0 and len(known) > 1 else -6
            yield base.mark_text(align="left", dx=5, dy=dy, fontSize=11, color=INK).encode(
                x=alt.value("width"), text="model:N"
            )


def _best(rows: Sequence[Json], method: str, cost: str, wanted: bool) -> str:
    """The trait score that a method pushes furthest and what that costs."""
    of_method = [row for row in rows if row["method"] == method and row["trait_score"]["mean"] is not None]
    if not of_method:
        return ""
    row = (max if wanted else min)(of_method, key=lambda row: row["trait_score"]["mean"])
    price = row[cost]["mean"]
    paid = "" if price is None else f", {cost} {price:,.0f}" if abs(price) >= 1000 else f", {cost} {price:.3g}"
    return f"{row['trait_score']['mean']:.0f} ({METHODS[method].split()[0].lower()}{paid})"
