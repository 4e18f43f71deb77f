"""Section 3.3, appendix C: does the projection at the last prompt token predict the trait score of the reply?"""

from typing import Any

from personavec.paper import published
from personavec.paper.claims import GRADED, OWN, Claim, matched
from personavec.paper.study import Study
from personavec.verbs.monitor.experiment import experiment

Row = dict[str, Any]

REACHES = {
    ("system", "overall"): ("Over graded system prompts the projection foretells the score", published.SYSTEM_PROMPTS),
    ("system", "within"): (
        "Within a system prompt the projection foretells the score",
        published.WITHIN_SYSTEM_PROMPTS,
    ),
    ("shots", "overall"): ("Over numbers of shots the projection foretells the score", published.SHOTS),
    ("shots", "within"): ("Within a number of shots the projection foretells the score", published.WITHIN_SHOTS),
}
"""What is claimed of each kind of condition and reach, and the paper's figures."""


def within_reach(row: Row, published_r: tuple[float, ...]) -> bool:
    """Whether an r within conditions as high as the paper's could be seen here, or with none the one measured."""
    highest = row["ceiling"]["mean"]
    return highest is not None and bool(row["within"]["measurable"]) and highest >= min(published_r, default=0.0)


def monitoring(study: Study) -> Row:
    """Graded system prompts and shots for every trait."""
    measured = experiment(
        study.model,
        tuple(study.files.values()),
        questions=study.size.conditions,
        rollouts=study.size.condition_rollouts,
        shots=study.size.shots,
        traits=study.trait_files,
        store=study.run.path("monitoring"),
        **study.asking,
    )
    claims, table = [], []
    for name, kinds in measured.traits.items():
        for (kind, reach), (text, paper) in REACHES.items():
            row, theirs = kinds.get(kind), paper.get(name, ())
            within = row is not None and reach == "within"
            claims.append(
                Claim(
                    "section 3.3, table 2",
                    text,
                    name,
                    row[reach] if row else None,
                    unit="r",
                    controls=matched(row["nulls"][reach]["nulls"]["covariance"]) if row else (),
                    published=theirs,
                    data=GRADED if kind == "system" else OWN,
                    ceiling=row["ceiling"]["mean"] if within else None,
                    measurable=within_reach(row, theirs) if within else True,
                )
            )
        for kind, row in kinds.items():
            for condition in row["conditions"]:
                figures = {"projection": condition["projection"], "score": condition["score"]["mean"]}
                figures |= {"sd": condition["sd"], "r": condition["r"]}
                table.append({"trait": name, "kind": kind, "condition": condition["condition"][:60], **figures})
    return {"claims": claims, "table": table, "report": study.page(measured)}
