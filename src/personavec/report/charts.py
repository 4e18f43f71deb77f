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


def inline(rows: list[Any]) -> alt.InlineData:
    """Data that stand in the chart itself."""
    return alt.InlineData(values=rows)
