"""Sections 2 and 3.2, appendices A and B: vectors of all traits, the proof by steering, positions, and the judge."""

from functools import partial
from typing import Any

from personavec.errors import VectorError
from personavec.judges.load import load_bench
from personavec.judges.scoring import ScoredRow, joined, scored_rows
from personavec.model.activations import POSITIONS
from personavec.model.chat_model import ChatModel
from personavec.paper.claims import Claim, Control
from personavec.paper.study import Study, arm, surviving
from personavec.steering.vector import load_vector
from personavec.verbs.evaluate.evaluate import evaluate
from personavec.verbs.extract.extract import FILES, extract

Row = dict[str, Any]

SECOND_JUDGE = "panel:gemma3-270m"
CONTROLS = {
    "matched": "matched random directions",
    "shuffled": "the vector of shuffled labels",
    "garbled": "damaged words",
}
"""Arms of the final check that mean nothing, in words."""
OTHER = Control("the other vector")


def vectors(study: Study) -> Row:
    """Extract every trait's vector and prove it, against what means nothing, on held-out questions."""
    extracted = extract(
        study.model,
        list(study.traits.values()),
        store=study.run.path("vectors"),
        layers=study.layers,
        **study.size.extract,
        **study.asking,
    )
    claims, table = [], []
    for extraction in extracted.each:
        name, details = extraction.data["trait"], extraction.details
        rows = [*scored_rows(study.run.part("vectors").part(name), "check"), *_unsteered(study, name)]
        steered, base, suppressed = (arm(rows, of) for of in ("steered", "base", "suppressed"))
        less = {of: arm(rows, of) for of in CONTROLS}
        claims += [
            Claim(
                "section 3.2, figure 3",
                "Steering along the vector raises the trait",
                name,
                study.difference(steered, base),
                controls=tuple(
                    Control(what, over=study.difference(steered, less[of])) for of, what in CONTROLS.items()
                ),
            ),
            Claim(
                "section 5.1",
                "Steering against the vector lowers the trait",
                name,
                study.difference(base, suppressed),
                controls=tuple(
                    Control(CONTROLS[of], over=study.difference(less[of], suppressed)) for of in ("matched", "garbled")
                ),
            ),
        ]
        scores = {row["arm"]: row["trait"]["mean"] for row in details["check"]}
        table.append(
            {
                "trait": name,
                "layer": details["choice"]["layer"],
                "depth": round(details["choice"]["layer"] / len(details["layers"]), 2),
                "dose": details["choice"]["dose"],
                "judge's AUC": details["judge"]["auc"]["mean"] if details["judge"]["auc"] else None,
                "kept pos": details["counts"]["pos"]["kept"],
                "kept neg": details["counts"]["neg"]["kept"],
                **{of: scores[of] for of in ("suppressed", "base", "steered", "random")},
                "verdict": details["verdict_word"],
            }
        )
    return {
        "claims": claims,
        "table": table,
        "failed": extracted.data["failed"],
        "report": study.page(extracted),
    }


def _unsteered(study: Study, trait: str) -> list[ScoredRow]:
    """The base replies of a trait's final check, and their garbled copies, of which only the scores are read.

    All traits share the table of replies.
    """
    run = study.run.part("vectors")
    scores = list(run.part(trait).rows("check.scores.jsonl"))
    known = {row["id"] for row in scores}
    base: list[Any] = [row for row in run.rows("base.jsonl") if row["id"] in known]
    copies = [row | {"id": f"garbled-{row['id']}", "arm": "garbled"} for row in base]
    return joined([*base, *(row for row in copies if row["id"] in known)], scores)  # type: ignore[arg-type]


def positions(study: Study) -> Row:
    """Steer with the vector from each position, all of them as long as that of the response."""
    claims, table, failed = [], [], list[Row]()
    for name in study.known(study.size.main):
        with surviving(failed, name):
            rows = {}
            for position in POSITIONS:
                evaluation = evaluate(
                    study.model,
                    study.traits[name],
                    steer=_as_long(study, name, position),
                    judge_file=study.files[name],
                    rollouts=study.size.rollouts,
                    store=study.run.path("positions") / f"{name}-{FILES[position]}",
                    **study.asking,
                )
                rows[position] = evaluation.replies["changed"]
                score = evaluation.data["trait_score"]["mean"]
                table.append({"trait": name, "position": position, "trait score": score})
            claims += [
                Claim(
                    "appendix A.3, figure 11",
                    f"At equal length the mean over the response steers more than {other}",
                    name,
                    study.difference(rows["response avg"], rows[position]),
                    controls=(OTHER,),
                )
                for position, other in (
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
            model = study.model
            here = model.engine is None  # else its weights, and so their place, are elsewhere
            place: Row = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.placement} if here else {}
            load = partial(ChatModel.load, **place)
            options: Row = {"system": study.interview.system, "beside": study.bench, "load": load}
            evaluation = evaluate(
                model,
                study.traits[name],
                judge_file=study.files[name],
                rollouts=study.size.rollouts,
                agreement=load_bench(SECOND_JUDGE, model, **options),
                store=study.run.path("judges") / name,
                **study.asking,
            )
            agreement = evaluation.data["agreement"]["trait"]
            claims.append(
                Claim(
                    "appendix B.2, table 1",
                    f"Another judge ({SECOND_JUDGE}) ranks the replies alike",
                    name,
                    agreement["spearman"],
                    unit="rank correlation",
                    judge=SECOND_JUDGE,
                )
            )
            table.append({"trait": name} | {key: agreement[key] for key in ("scored_by_both", "agree", "kappa")})
    return {"claims": claims, "table": table, "failed": failed}
