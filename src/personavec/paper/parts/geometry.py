"""Appendix G.2, and what the paper leaves open: cosines of vectors, and whether they foretell co-expression."""

from itertools import combinations
from typing import Any

from personavec.paper import published
from personavec.paper.claims import COSINE, Claim
from personavec.paper.study import Study
from personavec.report.space import write_space
from personavec.verbs.analyse.options import SpaceConfig
from personavec.verbs.analyse.space import space
from personavec.verbs.options import Common, Judging, Writing, given

Row = dict[str, Any]


def geometry(study: Study) -> Row:
    """All vectors beside each other and beside many personas, with co-expression in the whole version."""
    found = write_space(
        space(
            SpaceConfig(
                vectors=tuple(study.files.values()),
                coexpress=not study.config.quick,
                traits=study.trait_files,
                out=study.run.path("space"),
                **given(study.config, Judging, Writing, Common),
            )
        )
    )
    names, own = found["vectors"], found["cosines"][found["layer"]]
    claims, table = [], []
    for i, j in combinations(range(len(names)), 2):
        pair = (min(names[i], names[j]), max(names[i], names[j]))
        cosine, limit = own["cosine"][i][j], own["null"]["covariance"]
        figures = published.COSINES.get(pair, ())
        sign = -1 if figures and figures[0] < 0 else 1
        if figures:
            # a cosine has no interval of its own: what random pairs reach stands for its noise
            ours = {"mean": sign * cosine, "ci": [sign * cosine - limit, sign * cosine + limit]}
            told = "Vectors of these traits point the way that the paper's do"
            theirs = tuple(map(abs, figures))
            claims.append(Claim("appendix G.2", told, " and ".join(pair), ours, COSINE, None, theirs))
        table.append({"pair": " and ".join(pair), "cosine": cosine, "corrected": own["corrected"][i][j], "null": limit})
    return {"claims": claims, "table": table, "report": found["report"], "coexpression": found["coexpression"]}
