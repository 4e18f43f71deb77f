"""The page of a decomposition: blocks that write the direction, tokens that carry it, replies shaded by it."""

from html import escape
from pathlib import Path

import altair as alt

from personavec.report.charts import BLUE, FAINT, GREY, VERMILLION, Json, finish, inline
from personavec.report.extract import HIDDEN_TRAITS
from personavec.report.page import drawn, render, svg
from personavec.runs.show import shaded_tokens

KINDS = {"attention": BLUE, "MLP": VERMILLION, "embedding": GREY, "block": BLUE}
"""Colour of each kind of term."""


def write(data: Json, folder: Path) -> Path:
    """Write report.html and charts/*.png and *.svg of a decomposition; returns the page's path.

    Args:
        data: What `decompose` found.
        folder: Where they go.
    """
    return render(
        folder / "report.html",
        "decompose.html",
        result=data,
        centre=data["tokens"]["mean_projection"] or 0,
        largest=max((abs(value) for example in data["examples"] for _, value in _known(example)), default=0) or 1,
        examples=[{**example, "tokens": _known(example)} for example in data["examples"]],
        hide=data["trait"] in HIDDEN_TRAITS,
        **drawn(folder, {"terms": term_chart(data)}),
    )


def notebook(data: Json) -> str:
    """What every block adds, and the first reply of either side, its tokens shaded by their projection."""
    shown = svg(term_chart(data))
    if data["trait"] not in HIDDEN_TRAITS:
        first = {example["side"]: example for example in reversed(data["examples"])}
        for example in (first[side] for side in ("pos", "neg") if side in first):
            shown += f"<p>{escape(example['question'])}</p>" + shaded_tokens(_known(example))
    return shown


def _known(example: Json) -> list[tuple[str, float]]:
    """Tokens of a reply with their projections, 0 where one is not known."""
    return [(text, value or 0.0) for text, value in example["tokens"]]


def term_chart(result: Json) -> alt.LayerChart:
    """What every attention and MLP adds to the difference, block by block, next to random directions."""
    rows = [
        {
            "kind": term["term"].split()[0],
            "block": int(term["term"].split()[1]) if " " in term["term"] else -1,
            "value": term["difference"]["mean"],
            **dict(zip(("low", "high"), term["difference"]["ci"], strict=True)),
            **{f"random_{side}": term["random"][side] for side in ("low", "high")},
        }
        for term in result["terms"]
    ]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds]))
    x = alt.X("block:O", title="block (−1: the embedding)", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(inline(rows)).encode(
        x=x, xOffset=alt.XOffset("kind:N", sort=kinds), tooltip=["kind:N", "block:O", "value:Q", "low:Q", "high:Q"]
    )
    layers = [
        base.mark_rule(color=FAINT, strokeWidth=7).encode(y="random_low:Q", y2="random_high:Q"),
        base.mark_bar().encode(y=alt.Y("value:Q", title="difference along the vector"), color=colour),
        base.mark_rule(strokeWidth=1.2).encode(y="low:Q", y2="high:Q"),
    ]
    whole, known = result["whole"]["mean"], [term for term in result["terms"] if term["difference"]["mean"] is not None]
    title, total = "What each block writes of the difference", "what is not known"
    if whole and known:
        best = max(known, key=lambda term: term["difference"]["mean"])
        share, name = best["difference"]["mean"] / whole, best["term"][0].upper() + best["term"][1:]
        title, total = f"{name} writes more of the difference than any other: {share:.0%}", f"{whole:.2f}"
    subtitle = [
        f"The terms sum to {total}, the difference at layer {result['layer']}.",
        "Lines: 95% intervals over questions. Grey: the range along random directions.",
    ]
    return finish(layers, title, subtitle, 820, 300)
