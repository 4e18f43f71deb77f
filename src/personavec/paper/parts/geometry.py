"""Appendix G.2, and what the paper leaves open: cosines of vectors, and whether they predict co-expression."""

from itertools import combinations
from typing import Any

from personavec.paper import published
from personavec.paper.claims import COSINE, Claim, Control
from personavec.paper.study import Study
from personavec.verbs.analyse.space import space

Row = dict[str, Any]


def geometry(study: Study) -> Row:
    """All vectors next to each other and to many personas, with co-expression in the whole version."""
    measured = space(
        study.model,
        tuple(study.files.values()),
        coexpress=study.size.coexpress,
        traits=study.trait_files,
        store=study.run.path("space"),
        **study.asking,
    )
    data = measured.data
    names, cosines = data["vectors"], data["cosines"][data["layer"]]
    claims, table = [], []
    for i, j in combinations(range(len(names)), 2):
        pair = (min(names[i], names[j]), max(names[i], names[j]))
        cosine, limit = cosines["cosine"][i][j], cosines["null"]["covariance"]
        figures = published.COSINES.get(pair, ())
        sign = -1 if figures and figures[0] < 0 else 1
        if figures:
            # a cosine has no interval: what random pairs reach stands for its noise
            ours = {"mean": sign * cosine, "ci": [sign * cosine - limit, sign * cosine + limit]}
            text = "Vectors of these traits point the way that the paper's do"
            theirs = tuple(map(abs, figures))
            control = Control("matched random pairs, in the interval")
            subject = " and ".join(pair)
            claims.append(Claim("appendix G.2", text, subject, ours, COSINE, (control,), theirs, judge=None))
        table.append(
            {"pair": " and ".join(pair), "cosine": cosine, "corrected": cosines["corrected"][i][j], "null": limit}
        )
    return {
        "claims": claims,
        "table": table,
        "report": study.page(measured),
        "coexpression": data["coexpression"],
    }
