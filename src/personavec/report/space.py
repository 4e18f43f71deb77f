"""The page of the persona space: a map, its axes, cosines and ranks by layer, and co-expression next to them."""

from pathlib import Path

import altair as alt

from personavec.report.charts import BLUE, FAINT, GREEN, GREY, INK, VERMILLION, Json, finish, inline
from personavec.report.labels import labels
from personavec.report.page import drawn, render, svg
from personavec.runs.show import table as show_table

WIDTH, HEIGHT = 900, 640
"""Of the map, in pixels; labels are placed for it."""
ARROW = 0.8
"""Length of the longest vector on the map, as a share of the half width."""
ASSISTANT = "the assistant"
CELL = 46


def write(data: Json, folder: Path) -> Path:
    """Write report.html and charts/*.png and *.svg of a persona space; returns the page's path.

    Args:
        data: What `space` found.
        folder: Where they go.
    """
    charts: dict[str, alt.LayerChart | alt.ConcatChart] = {
        "map": persona_map(data),
        "cosines": cosine_chart(data),
        "ranks": rank_chart(data),
        "held_out": held_out_chart(data),
    }
    if data["coexpression"]:
        charts |= {"effects": effect_chart(data), "reach": reach_chart(data)}
    return render(folder / "report.html", "space.html", result=data, **drawn(folder, charts))


def notebook(data: Json) -> str:
    """The map, and the cosines of the vectors at its layer."""
    names, table = data["vectors"], data["cosines"][data["layer"]]["cosine"]
    rows = [(name, *(f"{value:.2f}" for value in row)) for name, row in zip(names, table, strict=True)]
    return svg(persona_map(data)) + show_table(["cosine", *names], rows)


def persona_map(result: Json) -> alt.LayerChart:
    """Personas on the first two axes, the assistant among them, and the vectors as arrows from the centre."""
    axes, places = result["axes"]["axes"], result["axes"]["map"]
    rows = [{"name": point["name"], "x": point["place"][0], "y": point["place"][1]} for point in places["personas"]]
    assistant = {"name": ASSISTANT, "x": places["assistant"][0], "y": places["assistant"][1]}
    every = [*rows, assistant]
    x_domain, y_domain = ([1.12 * sign * max(abs(row[k]) for row in every) for sign in (-1, 1)] for k in "xy")
    longest = max((abs(place[0]) + abs(place[1]) for place in places["vectors"]), default=1) or 1
    scale = ARROW * min(x_domain[1], y_domain[1]) / longest
    arrows = [
        {"name": name, "x": scale * place[0], "y": scale * place[1], "x0": 0, "y0": 0}
        for name, place in zip(result["vectors"], places["vectors"], strict=True)
    ]

    def pixels(row: Json) -> tuple[float, float]:
        (left, right), (bottom, top) = x_domain, y_domain
        return WIDTH * (row["x"] - left) / (right - left), HEIGHT * (top - row["y"]) / (top - bottom)

    titles = [_axis_title(index, axis) for index, axis in enumerate(axes[:2])]
    x = alt.X("x:Q", title=titles[0], scale=alt.Scale(domain=x_domain, nice=False))
    y = alt.Y("y:Q", title=titles[1], scale=alt.Scale(domain=y_domain, nice=False))
    points = [*arrows, assistant, *rows]
    layers = [
        alt.Chart(inline([{"x": 0}])).mark_rule(color=FAINT).encode(x="x:Q"),
        alt.Chart(inline([{"y": 0}])).mark_rule(color=FAINT).encode(y="y:Q"),
        alt.Chart(inline(rows)).mark_point(filled=True, size=45, color=BLUE).encode(x=x, y=y, tooltip="name:N"),
        alt.Chart(inline(arrows)).mark_rule(color=VERMILLION).encode(x="x0:Q", y="y0:Q", x2="x:Q", y2="y:Q"),
        alt.Chart(inline(arrows)).mark_point(filled=True, shape="diamond", size=110, color=VERMILLION, opacity=1)
        .encode(x="x:Q", y="y:Q", tooltip="name:N"),
        alt.Chart(inline([assistant])).mark_point(filled=True, shape="square", size=130, color=GREEN, opacity=1)
        .encode(x="x:Q", y="y:Q", tooltip="name:N"),
    ]  # fmt: skip
    for label in labels(
        [pixels(row) for row in points], [row["name"] for row in points], WIDTH, HEIGHT, len(arrows) + 1
    ):
        row = points[label.point]
        strong = row not in rows
        layers.append(
            alt.Chart(inline([row]))
            .mark_text(
                align=label.align,
                dx=label.dx,
                dy=label.dy,
                fontSize=12 if strong else 10,
                fontWeight="bold" if strong else "normal",
                color=VERMILLION if row in arrows else GREEN if strong else INK,
            )
            .encode(x="x:Q", y="y:Q", text="name:N")
        )
    place = axes[0]["percentile"]
    title = f"The assistant lies further along the first axis than {place:.0f}% of the personas"
    subtitle = [
        f"Layer {result['layer']}. Blue: a persona, mean over {result['questions']} questions. Green: the assistant.",
        "Orange: persona vectors from the centre, to a scale of their own. Names that would cover others are left out.",
    ]
    return finish(layers, title, subtitle, WIDTH, HEIGHT)


def cosine_chart(result: Json) -> alt.LayerChart:
    """Cosines of the vectors at every layer, the reliability of each on the diagonal; a slider chooses the layer."""
    names = result["vectors"]
    rows = [
        {
            "layer": table["layer"],
            "row": names[i],
            "column": names[j],
            "value": table["reliability"][i] if i == j else table["cosine"][i][j],
            "corrected": table["corrected"][i][j],
        }
        for table in result["cosines"]
        for i in range(len(names))
        for j in range(len(names))
    ]
    slider = alt.binding_range(min=0, max=len(result["cosines"]) - 1, step=1, name="layer ")
    chosen = alt.param(name="layer", value=result["layer"], bind=slider)
    base = (
        alt.Chart(inline(rows))
        .transform_filter("datum.layer == layer")
        .encode(
            x=alt.X(
                "column:N", sort=names, title=None, axis=alt.Axis(orient="top", labelAngle=-30, labelOverlap=False)
            ),
            y=alt.Y("row:N", sort=names, title=None),
            tooltip=["row:N", "column:N", "layer:Q", "value:Q", "corrected:Q"],
        )
    )
    colour = alt.Color(
        "value:Q",
        title="cosine",
        scale=alt.Scale(domain=[-1, 1], scheme="redblue", clamp=True),
        legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=200, values=[-1, -0.5, 0, 0.5, 1]),
    )
    ink = alt.condition("abs(datum.value) > 0.6", alt.value("white"), alt.value(INK))
    layers = [
        base.mark_rect().encode(color=colour).add_params(chosen),
        base.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".2f"), color=ink),
    ]
    null = result["cosines"][result["layer"]]["null"]
    table = result["cosines"][result["layer"]]["cosine"]
    pairs = [abs(table[i][j]) for i in range(len(names)) for j in range(i)]
    beyond = sum(value > (null["covariance"] or 0) for value in pairs)
    title = f"{beyond} of {len(pairs)} pairs lie further from zero than random directions with the personas' covariance"
    subtitle = [
        f"Layer {result['layer']}: 95% of such pairs stay below {null['covariance']:.2f}; of directions any way alike "
        f"{null['isotropic']:.2f}.",
        "Diagonal: split-half reliability of the whole vector (Spearman–Brown).",
    ]
    return finish(layers, title, subtitle, alt.Step(CELL), alt.Step(CELL))


def rank_chart(result: Json) -> alt.LayerChart:
    """Effective rank of the personas at every layer, next to personas shuffled and random directions."""
    rows = [
        {
            "layer": rank["layer"],
            "rank": rank["effective_rank"]["mean"],
            "noisy": rank["with_noise"],
            **dict(zip(("low", "high"), rank["effective_rank"]["ci"], strict=True)),
            **dict(zip(("s_low", "s_high"), rank["shuffled"], strict=True)),
            **dict(zip(("r_low", "r_high"), rank["random"], strict=True)),
        }
        for rank in result["ranks"]
    ]
    base = alt.Chart(inline(rows)).encode(x=alt.X("layer:Q", title="layer (0 = first block)"))
    # where noise is nearly all there is, in the first blocks, the interval has no end
    most = max(row[key] for row in rows for key in ("noisy", "s_high", "r_high"))
    y = alt.Y("low:Q", title="effective rank", scale=alt.Scale(domain=[0, 1.1 * most]))
    names = {"r": (GREY, "random directions"), "s": (VERMILLION, "personas shuffled within questions")}
    layers = [
        base.mark_area(color=names["r"][0], opacity=0.3).encode(y="r_low:Q", y2="r_high:Q"),
        base.mark_area(color=names["s"][0], opacity=0.3).encode(y="s_low:Q", y2="s_high:Q"),
        base.mark_area(color=BLUE, opacity=0.3, clip=True).encode(y=y, y2="high:Q"),
        base.mark_line(color=BLUE, strokeDash=[4, 3]).encode(y="noisy:Q"),
        base.mark_line(color=BLUE, strokeWidth=2, clip=True).encode(
            y="rank:Q", tooltip=["layer:Q", "rank:Q", "low:Q", "high:Q"]
        ),
    ]
    rank = result["ranks"][result["layer"]]["effective_rank"]["mean"]
    many = "dimensions that noise hides" if rank is None else f"about {rank:.1f} dimensions"
    title = f"At layer {result['layer']} {result['personas']} personas span {many}"
    subtitle = [
        "Blue: effective rank (participation ratio) without noise, with its 95% interval. Dashed: with it; compare",
        "that with personas shuffled within each question (orange) and with random directions (grey).",
        "Intervals that leave the picture are cut.",
    ]
    return finish(layers, title, subtitle, 420, 280)


def held_out_chart(result: Json) -> alt.LayerChart:
    """How much of the personas' variance on other questions the first components hold."""
    ranks = result["ranks"][result["layer"]]
    rows = [
        {"components": place, "share": value, "of": of}
        for of, values in (("personas", ranks["held_out"]), ("shuffled", ranks["held_out_shuffled"]))
        for place, value in enumerate(values, 1)
    ]
    colour = alt.Color("of:N", title=None, scale=alt.Scale(domain=["personas", "shuffled"], range=[BLUE, VERMILLION]))
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("components:O", title="components, found on half of the questions", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("share:Q", title="share on the other half", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        color=colour,
        tooltip=["of:N", "components:O", "share:Q"],
    )
    title = f"Three components hold {100 * ranks['held_out'][2]:.0f}% of what tells personas apart on other questions"
    subtitle = [f"Layer {result['layer']}. Shuffled: personas exchanged within each question."]
    return finish([base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=50)], title, subtitle, 420, 280)


def effect_chart(result: Json) -> alt.LayerChart:
    """Effect of steering along each vector on each trait, against the cosine of the two."""
    table = result["coexpression"]
    names, effects = table["traits"], table["effects"]
    rows = [
        {
            "steered": steered,
            "judged": judged,
            "cosine": table["cosine"][i][j],
            "effect": effects[steered][judged]["mean"],
            "low": effects[steered][judged]["ci"][0],
            "high": effects[steered][judged]["ci"][1],
            "kind": "its own trait" if i == j else "another trait",
            "name": f"{steered} → {judged}",
        }
        for i, steered in enumerate(names)
        for j, judged in enumerate(names)
        if effects[steered][judged]["mean"] is not None
    ]
    colour = alt.Color(
        "kind:N", title=None, scale=alt.Scale(domain=["its own trait", "another trait"], range=[VERMILLION, BLUE])
    )
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("cosine:Q", title="cosine of the two vectors, at the steered layer", scale=alt.Scale(domain=[-1, 1])),
        color=colour,
        tooltip=["name:N", "cosine:Q", "effect:Q", "low:Q", "high:Q"],
    )
    layers = [
        alt.Chart(inline([{"y": 0}])).mark_rule(color=GREY).encode(y="y:Q"),
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=alt.Y("effect:Q", title="change of the trait score")),
    ]
    r, p = table["r"], table["null"]["p"]
    correlation = "too few for a correlation" if r is None else f"r = {r:.2f}, p = {p:.3f}"
    title = f"Cosine and co-expression of other traits: {correlation}"
    subtitle = [f"{table['pairs']} pairs of different traits; p: names of the traits shuffled (Mantel)."]
    return finish(layers, title, subtitle, 420, 320)


def reach_chart(result: Json) -> alt.LayerChart:
    """Change of each trait by the multiple of its vector's coefficient."""
    reach = result["coexpression"]["reach"]
    rows = [
        {"trait": trait, "times": dose["times"], "change": dose["change"]["mean"]}
        | dict(zip(("low", "high"), dose["change"]["ci"], strict=True))
        for trait, curve in reach.items()
        for dose in [*curve["doses"], {"times": 0, "change": {"mean": 0, "ci": [0, 0]}}]
    ]
    base = alt.Chart(inline(rows)).encode(
        x=alt.X("times:Q", title="multiple of the coefficient that the card recommends"),
        color=alt.Color("trait:N", title=None),
        tooltip=["trait:N", "times:Q", "change:Q", "low:Q", "high:Q"],
    )
    layers = [
        alt.Chart(inline([{"y": 0}])).mark_rule(color=GREY).encode(y="y:Q"),
        base.mark_rule(strokeWidth=1.5, opacity=0.5).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=2, point=True).encode(y=alt.Y("change:Q", title="change of its own trait score")),
    ]
    linear = [trait for trait, curve in reach.items() if curve["verdict"] == "linear"]
    title = f"Linear in the dose: {', '.join(linear) or 'none'}"
    return finish(layers, title, ["Bars: 95% intervals over questions."], 420, 320)


def _axis_title(index: int, axis: Json) -> str:
    """The ends of an axis, as its title."""
    low, high = ", ".join(axis["low"][:2]), ", ".join(axis["high"][:2])
    return f"axis {index + 1} ({100 * axis['share']:.0f}% of the variance): {low} ← → {high}"
