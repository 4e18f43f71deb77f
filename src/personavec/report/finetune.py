"""The pages of finetuning studies: one data set by every method, and many data sets next to what predicted them."""

from pathlib import Path
from typing import Any

import altair as alt

from personavec.report.charts import BLUE, GREY, INK, MAX_SCORE, VERMILLION, Json, finish, inline
from personavec.report.grid import dose_costs_chart
from personavec.report.page import drawn, render, svg

REFERENCES = ("base", "plain")
COSTS = {"perplexity": "low", "coherence": "high"}
"""Which side of each is good; accuracies on tasks, like coherence, are best high."""


def write(result: Json, folder: Path) -> Path:
    """Write report.html and charts/*.png and *.svg of a comparison of methods; returns the page's path.

    Args:
        result: What `compare` reports.
        folder: Where they go.
    """
    trait, tasks = result["traits"][0], [key for key in result["arms"][0]["costs"] if key != "perplexity"]
    charts: dict[str, alt.LayerChart | alt.ConcatChart] = {
        f"methods_{place}": methods_chart(result, name) for place, name in enumerate(result["traits"])
    }
    for cost in (each for each in ("perplexity", "coherence", *tasks) if _dosed(result, trait, each)):
        charts[f"dose_{cost}"] = dose_chart(result, trait, cost)
    if any(arm["shift"] for arm in result["arms"]):
        charts["shift"] = shift_chart(result)
    return render(folder / "report.html", "finetune.html", result=result, tasks=tasks, **drawn(folder, charts))


def notebook(result: Json) -> str:
    """The scores of every arm."""
    return svg(methods_chart(result, result["traits"][0]))


def dose_chart(result: Json, trait: str, cost: str) -> alt.ConcatChart:
    """Trait score and a cost as the coefficient grows, for prevention and for post-hoc steering side by side.

    Source: Persona Vectors (arXiv 2507.21509) figure 7.
    """
    rows = [
        {"method": arm["method"], "coef": arm["coef"]} | _measures(arm, trait, cost)
        for arm in result["arms"]
        if arm["method"] in ("prevent", "posthoc")
    ]
    references = {arm["arm"]: _measures(arm, trait, cost) for arm in result["arms"] if arm["arm"] in REFERENCES}
    return dose_costs_chart(rows, references, cost, COSTS.get(cost, "high"))


def methods_chart(result: Json, trait: str) -> alt.LayerChart:
    """Trait score of every arm with its interval, next to the lines of base and plain training."""
    rows = [
        {"arm": arm["arm"], "mean": score["mean"], "low": score["ci"][0], "high": score["ci"][1]}
        for arm in result["arms"]
        for score in [arm["traits"][trait]["trait_score"]]
        if score["mean"] is not None
    ]
    lines = [row for row in rows if row["arm"] in REFERENCES]
    colour = alt.condition(alt.FieldOneOfPredicate("arm", [*REFERENCES]), alt.value(GREY), alt.value(BLUE))
    base = alt.Chart(inline(rows)).encode(y=alt.Y("arm:N", title=None, sort=None), color=colour)
    layers = [
        alt.Chart(inline(lines))
        .mark_rule(color=GREY, strokeDash=[5, 3])
        .encode(x="mean:Q", tooltip=["arm:N", "mean:Q"]),
        base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            x=alt.X("mean:Q", title=f"{trait}: trait score (0–100)", scale=alt.Scale(domain=[0, MAX_SCORE])),
            tooltip=["arm:N", *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("mean", "low", "high"))],
        ),
    ]
    return finish(
        layers, _headline(result, trait), ["Mean with 95% interval; dashed: base and plain."], 520, alt.Step(24)
    )


def shift_chart(result: Json) -> alt.LayerChart:
    """How far each training moved the model along every vector."""
    rows = [
        {"arm": arm["arm"], "vector": name, "mean": mean["mean"], "low": mean["ci"][0], "high": mean["ci"][1]}
        for arm in result["arms"]
        if arm["shift"] and arm["method"] not in ("posthoc", "negative-prompt")
        for name, mean in arm["shift"].items()
    ]
    colour = alt.Color("vector:N", title=None, scale=alt.Scale(range=[BLUE, VERMILLION, GREY, INK]))
    base = alt.Chart(inline(rows)).encode(y=alt.Y("arm:N", title=None, sort=None), color=colour, yOffset="vector:N")
    layers = [
        alt.Chart(inline([{"zero": 0}])).mark_rule(color=INK, opacity=0.5).encode(x="zero:Q"),
        base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q"),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=alt.X("mean:Q", title="finetuning shift at the last prompt token (activation units)"),
            tooltip=["arm:N", "vector:N", alt.Tooltip("mean:Q", format=".3g")],
        ),
    ]
    subtitle = ["Mean over the held-out questions with 95% interval, without any steering."]
    return finish(layers, "How far each training moved the model along the vectors", subtitle, 520, alt.Step(24))


def _headline(result: Json, trait: str) -> str:
    """What prevention at the given coefficient kept of the change."""
    arms = {arm["arm"]: arm["traits"][trait] for arm in result["arms"]}
    change, prevented = arms["plain"]["difference"]["trait"], arms.get("prevent ×1")
    if change["mean"] is None:
        return f"{trait}: how far plain training moves the score is not known"
    if arms["plain"]["kept"] is None:
        return f"{trait}: plain training is not shown to move the score"
    moved, kept = f"{trait}: plain training moves the score by {change['mean']:+.0f}", (prevented or {}).get("kept")
    if not kept or kept["mean"] is None:
        return moved
    low, high = kept["ci"]
    if low is None or high is None:
        return f"{moved}; how much of that prevention leaves is not known"
    left = f"{100 * kept['mean']:.0f}% of that [{100 * low:.0f}, {100 * high:.0f}]"
    if high >= 1:
        return f"{moved}; prevention is not shown to lower that: it leaves {left}"
    return f"{moved}; with prevention {left} is left"


def _dosed(result: Json, trait: str, cost: str) -> bool:
    """Whether there are arms by dose, and it is known of all of them and of the references what they cost."""
    dosed = [arm for arm in result["arms"] if arm["method"] in ("prevent", "posthoc")]
    shown = [_measures(arm, trait, cost) for arm in result["arms"] if arm in dosed or arm["arm"] in REFERENCES]
    known = all(each and each["mean"] is not None for measures in shown for each in measures.values())
    return known and any(arm["coef"] is not None for arm in dosed)


def _measures(arm: Json, trait: str, cost: str) -> dict[str, Any]:
    return {"trait_score": arm["traits"][trait]["trait_score"], cost: _cost(arm, trait, cost)}


def _cost(arm: Json, trait: str, cost: str) -> Any:
    if cost == "coherence":
        return arm["traits"][trait or next(iter(arm["traits"]))]["coherence"]
    return arm["costs"].get(cost)
