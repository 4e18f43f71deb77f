"""Section 3.3, appendix C: does the projection at the last prompt token foretell the trait score of the reply?"""

from typing import Any

from personavec.paper import published
from personavec.paper.claims import Claim
from personavec.paper.study import Study
from personavec.report.monitor import write_experiment
from personavec.verbs.monitor.experiment import experiment
from personavec.verbs.monitor.options import MonitorConfig
from personavec.verbs.options import Common, Judging, Writing, given

Row = dict[str, Any]

TOLD = {
    ("system", "overall"): ("Over graded system prompts the projection foretells the score", published.SYSTEM_PROMPTS),
    ("system", "within"): (
        "Within a system prompt the projection foretells the score",
        published.WITHIN_SYSTEM_PROMPTS,
    ),
    ("shots", "overall"): ("Over numbers of shots the projection foretells the score", published.SHOTS),
    ("shots", "within"): ("Within a number of shots the projection foretells the score", published.WITHIN_SHOTS),
}
"""What is claimed of each kind of condition and reach, and the paper's figures."""


def monitoring(study: Study) -> Row:
    """Graded system prompts and shots for every trait."""
    size = study.size
    found = write_experiment(
        experiment(
            MonitorConfig(
                vectors=tuple(study.files.values()),
                experiment=True,
                questions=size.conditions,
                rollouts=size.rollouts,
                shots=size.shots,
                traits=study.trait_files,
                out=study.run.path("monitoring"),
                **given(study.config, Judging, Writing, Common),
            )
        )
    )
    claims, table = [], []
    for name, kinds in found["traits"].items():
        for (kind, reach), (told, figures) in TOLD.items():
            own = kinds.get(kind)
            limits = own["nulls"][reach]["nulls"]["covariance"].get("percentiles") if own else None
            claims.append(
                Claim(
                    "section 3.3, table 2",
                    told,
                    name,
                    own[reach] if own else None,
                    unit="r",
                    control=limits["95"] if limits else None,
                    published=figures.get(name, ()),
                )
            )
        for kind, own in kinds.items():
            for row in own["conditions"]:
                shown = {"projection": row["projection"], "score": row["score"]["mean"], "sd": row["sd"], "r": row["r"]}
                table.append({"trait": name, "kind": kind, "condition": row["condition"][:60], **shown})
    return {"claims": claims, "table": table, "report": found["report"]}
