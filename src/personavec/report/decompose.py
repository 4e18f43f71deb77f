"""The page of a decomposition: blocks that write the direction, tokens that carry it, replies shaded by it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from personavec.report.charts import BLUE, FAINT, GREY, VERMILLION, finish, inline
from personavec.report.extract import HIDDEN_TRAITS
from personavec.report.page import drawn, render

Json = Mapping[str, Any]

KINDS = {"attention": BLUE, "mlp": VERMILLION, "embedding": GREY, "block": BLUE}
"""Colour of each kind of term."""


def write_decomposition(result: dict[str, Any]) -> dict[str, Any]:
    """Write report.html and charts/*.png and *.svg; adds the page's path as `report`.

    Args:
        result: What `decompose` returned.
    """
    folder = Path(result["out"])
    largest = max(abs(value) for one in result["examples"] for _, value in one["tokens"]) or 1
    path = render(
        folder / "report.html",
        "decompose.html",
        result=result,
        largest=largest,
        hide=result["trait"] in HIDDEN_TRAITS,
        **drawn(folder, {"terms": term_chart(result)}),
    )
    return result | {"report": str(path)}


def term_chart(result: Json) -> alt.LayerChart:
    """What every attention and MLP adds to the difference, block by block, beside random directions."""
    rows = [
        {
            "kind": one["term"].split()[0],
            "block": int(one["term"].split()[1]) if " " in one["term"] else -1,
            "value": one["difference"]["mean"],
            **dict(zip(("low", "high"), one["difference"]["ci"], strict=True)),
            **{f"random_{side}": one["random"][side] for side in ("low", "high")},
        }
        for one in result["terms"]
    ]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds]))
    x = alt.X("block:O", title="block (−1: the embedding)", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(inline(rows)).encode(
        x=x, xOffset="kind:N", tooltip=["kind:N", "block:O", "value:Q", "low:Q", "high:Q"]
    )
    layers = [
        base.mark_rule(color=FAINT, strokeWidth=7).encode(y="random_low:Q", y2="random_high:Q"),
        base.mark_bar().encode(y=alt.Y("value:Q", title="difference along the vector"), color=colour),
        base.mark_rule(strokeWidth=1.2).encode(y="low:Q", y2="high:Q"),
    ]
    best = max(result["terms"], key=lambda one: one["difference"]["mean"])
    share = best["difference"]["mean"] / result["whole"]["mean"]
    title = f"{best['term'].capitalize()} writes more of the difference than any other: {100 * share:.0f}%"
    subtitle = [
        f"The terms sum to {result['whole']['mean']:.2f}, the difference at layer {result['layer']}.",
        "Lines: 95% intervals over questions. Grey: the range along random directions.",
    ]
    return finish(layers, title, subtitle, 820, 300)
