"""Charts of a result: each function takes a part of result.json and returns one Altair chart.

Every title says what the figures show. Means that are null are left out of lines and shown as gaps or dashes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import altair as alt

Json = Mapping[str, Any]
Look = TypeVar("Look", alt.LayerChart, alt.ConcatChart)

BLUE, VERMILLION, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
"""Source: Okabe and Ito's palette, told apart by people with any form of colour blindness."""
INK, GREY, FAINT = "#222222", "#6b6b6b", "#dddddd"
FONT = "Helvetica Neue, Arial, Liberation Sans, sans-serif"
MAX_SCORE = 100


def finish(
    layers: Sequence[alt.Chart], title: str, subtitle: list[str], width: int | alt.Step, height: int | alt.Step
) -> alt.LayerChart:
    """A chart in the look that all of them share."""
    chart = alt.LayerChart(
        layer=list(layers),
        title=alt.TitleParams(title, subtitle=subtitle),
        width=width,
        height=height,
        background="white",
        padding=10,
    )
    return themed(chart)


def themed(chart: Look) -> Look:
    """Fonts, colours and legends that all charts share."""
    configured: Look = chart.configure(
        font=FONT,
        title=alt.TitleConfig(
            anchor="start", fontSize=14, color=INK, subtitleColor=GREY, subtitleFontSize=12, offset=10
        ),
        axis=alt.AxisConfig(
            labelColor=INK,
            titleColor=INK,
            labelFontSize=11,
            titleFontSize=12,
            titleFontWeight="normal",
            gridColor=FAINT,
            gridOpacity=0.6,
            domainColor=GREY,
            tickColor=GREY,
            labelOverlap=True,
        ),
        legend=alt.LegendConfig(
            orient="bottom", labelColor=INK, titleColor=INK, labelFontSize=11, titleFontWeight="normal", symbolSize=70
        ),
        view=alt.ViewConfig(stroke=None),
    )
    return configured


def histogram(
    edges: Sequence[float], sets: Mapping[str, Sequence[int]], names: list[str], axis: str, unit: str
) -> alt.Chart:
    """How values are spread: the share of each set in every bin; of the names in the legend the first is blue."""
    rows = [
        {"set": label, "from": low, "to": high, "share": count / max(1, sum(counts)), "floor": 0}
        for label, counts in sets.items()
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    chart: alt.Chart = (
        alt.Chart(inline(rows))
        .mark_rect(opacity=0.55)
        .encode(
            x=alt.X("from:Q", title=axis, scale=alt.Scale(zero=False, nice=False)),
            x2="to:Q",
            y=alt.Y("share:Q", title=f"share of {unit}", axis=alt.Axis(format="%"), scale=alt.Scale(zero=True)),
            y2="floor:Q",
            color=alt.Color("set:N", title=None, scale=alt.Scale(domain=names, range=[BLUE, GREY])),
            tooltip=["set:N", "from:Q", "to:Q", alt.Tooltip("share:Q", format=".2%")],
        )
    )
    return chart


def bounded(estimate: Json) -> dict[str, Any]:
    """A mean with the ends of its interval, as charts read it."""
    return {"mean": estimate["mean"], "low": estimate["ci"][0], "high": estimate["ci"][1]}


def inline(rows: list[Any]) -> alt.InlineData:
    """Data that stand in the chart itself."""
    return alt.InlineData(values=rows)
