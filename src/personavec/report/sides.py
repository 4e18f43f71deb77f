"""The page of a screening of preferences: how far chosen replies lie above rejected ones, and each side's own page."""

from pathlib import Path

import altair as alt

from personavec.report.charts import Json
from personavec.report.page import drawn, render, svg
from personavec.report.screen import by_vector, unit
from personavec.runs.show import higher_said, interval, table

LABELS = {"chosen": "chosen replies lie higher along", "rejected": "rejected replies lie higher along"}


def write(data: Json, folder: Path) -> Path:
    """Write report.html and charts/*.png and *.svg; returns the page's path.

    Args:
        data: What a `BothSides` holds. Each side's own page is in the folder of its name.
        folder: Where they go.
    """
    charts = {"difference": difference(data)}
    rows = [(name, data["layers"][name], higher_said(each["higher"])) for name, each in data["difference"].items()]
    more = {"headline": headline(data), "rows": rows}
    return render(folder / "report.html", "sides.html", result=data, **more, **drawn(folder, charts))


def notebook(data: Json) -> str:
    """The difference as a chart, and both sides' means."""
    means = [
        (name, *(interval(data[side]["projection_difference"][name], 3) for side in LABELS), interval(mean, 3))
        for name, mean in data["difference"].items()
    ]
    return svg(difference(data)) + table(["vector", *LABELS, "chosen less rejected"], means, "Means over pairs")


def headline(data: Json) -> str:
    """Which replies lie higher along which vectors."""
    sides = {side: [name for name, mean in data["difference"].items() if mean["higher"] == side] for side in LABELS}
    parts = [f"{LABELS[side]} {', '.join(names)}" for side, names in sides.items() if names]
    text = "; ".join(parts) or "neither chosen nor rejected replies stand out along any vector"
    return text[0].upper() + text[1:]


def difference(data: Json) -> alt.LayerChart:
    """Chosen less rejected with its interval, over the range of random directions."""
    controls = {name: mean["random_control"] for name, mean in data["difference"].items()}
    axis = f"chosen less rejected, mean over pairs ({unit(data['cost'])})"
    return by_vector(data["difference"], controls, axis, headline(data))
