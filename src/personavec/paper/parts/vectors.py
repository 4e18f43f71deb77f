"""Sections 2 and 3.2, appendices A and B: vectors of all traits, the proof by steering, positions, and the judge."""

from dataclasses import replace
from typing import Any

from personavec.errors import VectorError
from personavec.judges.scoring import scored_rows
from personavec.model.activations import POSITIONS
from personavec.paper.claims import Claim
from personavec.paper.study import Study, arm, surviving
from personavec.report.extract import write_pages
from personavec.runs.run import Run
from personavec.steering.vector import load_vector
from personavec.verbs.evaluate.evaluate import evaluate
from personavec.verbs.extract.extract import FILES, extract
from personavec.verbs.extract.options import ExtractConfig
from personavec.verbs.options import Common, Judging, Writing, given

Row = dict[str, Any]

SECOND_JUDGE = "likelihood:gemma3-270m"


def vectors(study: Study) -> Row:
    """Extract every trait's vector and prove it, against random directions, on held-out questions."""
    options = given(study.config, Judging, Writing, Common) | dict(study.size.extract)
    found = write_pages(
        extract(ExtractConfig(traits=tuple(study.traits.values()), out=study.run.path("vectors"), **options))
    )
    claims, table = [], []
    for one in found["traits"]:
        name, run = one["trait"], study.run.part("vectors").part(one["trait"])
        rows = [*scored_rows(run, "check"), *_base(study, name)]
        steered, base, random = (arm(rows, of) for of in ("steered", "base", "random"))
        moved = study.difference(random, base)["mean"]
        claims += [
            Claim(
                "section 3.2, figure 3",
                "Steering along the vector raises the trait, beyond random directions",
                name,
                study.difference(steered, random),
            ),
            Claim(
                "section 5.1",
                "Steering against the vector lowers the trait",
                name,
                study.difference(base, arm(rows, "suppressed")),
                control=None if moved is None else max(0.0, -moved),
            ),
        ]
        result = run.read_json("result.json")
        check = {row["arm"]: row["trait"]["mean"] for row in result["check"]}
        table.append(
            {
                "trait": name,
                "layer": one["layer"],
                "depth": round(one["layer"] / len(result["layers"]), 2),
                "dose": result["choice"]["dose"],
                "judge's AUC": result["judge"]["auc"]["mean"] if result["judge"]["auc"] else None,
                "kept pos": result["counts"]["pos"]["kept"],
                "kept neg": result["counts"]["neg"]["kept"],
                **{of: check[of] for of in ("suppressed", "base", "steered", "random")},
                "proven": result["proven"],
            }
        )
    return {"claims": claims, "table": table, "failed": found["failed"], "report": found["report"]}


def _base(study: Study, trait: str) -> list[Row]:
    run = study.run.part("vectors")
    scores = {row["id"]: row for row in run.part(trait).rows("base.scores.jsonl")}
    return [row | scores[row["id"]] for row in run.rows("base.jsonl") if row["id"] in scores]


def positions(study: Study) -> Row:
    """Steer with the vector from each position, all of them as long as that of the response."""
    claims, table, failed = [], [], list[Row]()
    for name in study.known(study.size.main):
        with surviving(failed, name):
            rows = {}
            for position in POSITIONS:
                steer, out = _as_long(study, name, position), study.run.path("positions") / f"{name}-{FILES[position]}"
                options: Row = {"trait": study.traits[name], "judge_file": study.files[name], "steer": (steer,)}
                found = evaluate(replace(study.evaluation, **options, out=out))
                rows[position] = scored_rows(Run(out), "changed")
                table.append({"trait": name, "position": position, "trait score": found["trait_score"]["mean"]})
            claims += [
                Claim(
                    "appendix A.3, figure 11",
                    f"At equal length the mean over the response steers more than {told}",
                    name,
                    study.difference(rows["response avg"], rows[position]),
                )
                for position, told in (
                    ("prompt avg", "the mean over the prompt"),
                    ("prompt last", "the last prompt token"),
                )
            ]
    return {"claims": claims, "table": table, "failed": failed}


def _as_long(study: Study, trait: str, position: str) -> str:
    """Steering with the vector of a position, scaled to the length of that of the response."""
    vector, path = study.vectors[trait], study.files[trait].with_name(f"{FILES[position]}.safetensors")
    layer, coef = vector.card.layer, vector.card.coef
    if layer is None or coef is None:
        raise VectorError(f"expected a recommended layer and coef for {trait}, got none; extract it again")
    return f"{path}:{coef * float(vector.norms[layer] / load_vector(path).norms[layer]):.6g}@{layer}"


def judges(study: Study) -> Row:
    """How far a second judge, of another model, agrees with the first on the same replies."""
    claims, table, failed = [], [], list[Row]()
    for name in study.known(study.size.single):
        with surviving(failed, name):
            options: Row = {"trait": study.traits[name], "judge_file": study.files[name], "agreement": SECOND_JUDGE}
            found = evaluate(replace(study.evaluation, **options, out=study.run.path("judges") / name))
            told = found["agreement"]["trait"]
            claims.append(
                Claim(
                    "appendix B.2, table 1",
                    f"Another judge ({SECOND_JUDGE}) ranks the replies alike",
                    name,
                    told["spearman"],
                    unit="rank correlation",
                )
            )
            table.append({"trait": name} | {key: told[key] for key in ("scored_by_both", "agree", "kappa")})
    return {"claims": claims, "table": table, "failed": failed}
