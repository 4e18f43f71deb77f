"""Sections 4 and 6.1, appendices D, G, H and I: finetunings on all data sets, and what foretells what they do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from personavec.judges.scoring import scored_rows
from personavec.paper import published
from personavec.paper.claims import Claim, correlation
from personavec.paper.data import write_levels
from personavec.paper.grid import finetuning_grid
from personavec.paper.prediction import intervals
from personavec.paper.study import MAIN, Study
from personavec.runs.run import Run
from personavec.stats.intervals import clustered_mean, or_nan
from personavec.verbs.screen.table import Table

Row = dict[str, Any]

BAD = (*MAIN, "impolite", "apathetic", "humorous")
"""Traits that the paper saw rise together."""


def finetunings(study: Study) -> Row:
    """Train on every data set, measure every trait, and correlate."""
    data = write_levels(study)
    out = study.run.path("finetunings")
    evaluation = replace(study.evaluation, questions=study.size.asked)
    found = finetuning_grid(data["files"], tuple(study.files.values()), out, study.training, evaluation)
    scored = {
        (name, trait): scored_rows(Run(out / f"{name}-{trait}"), "base" if name == "base" else "changed")
        for name in ("base", *data["files"])
        for trait in study.files
    }
    claims = [*_levels(study, scored), *_leaks(study, scored), *_correlations(study, found, out, list(data["files"]))]
    table = [
        {"data": name} | {trait: own[trait]["mean"] for trait in study.files}
        for name, own in {"base": found["base"], **found["scores"]}.items()
    ]
    return {
        "claims": claims,
        "table": table,
        "rows": data["table"],
        "cross": found["cross"],
        "report": found["report"],
        "files": data["files"],
        "held_out": data["held_out"],
    }


def _levels(study: Study, scored: dict[tuple[str, str], list[Row]]) -> list[Claim]:
    """Data that shows a trait teach it, the more so the more overtly it shows."""
    told = {"I": "Data that shows the trait a little teach it", "II": "Data that shows the trait overtly teach it"}
    return [
        Claim(
            "section 4.1, figure 5",
            told[level],
            trait,
            study.difference(scored[f"{trait} {level}", trait], scored[f"{trait} normal", trait]),
        )
        for level in told
        for trait in study.files
        if level in study.levels(trait)
    ]


def _leaks(study: Study, scored: dict[tuple[str, str], list[Row]]) -> list[Claim]:
    """Data of one trait move others; wrong answers raise bad traits; every finetuning costs optimism."""
    claims = []
    for trait in study.files:
        others = [other for other in study.files if other != trait and trait in BAD and other in BAD]
        pairs = [(f"{trait} II", f"{trait} normal", other) for other in others]
        if pairs:
            told = "Data of one bad trait raise the other bad traits"
            claims.append(Claim("section 4.1, figure 5", told, f"{trait} data", _mean(study, scored, pairs)))
    for trait in study.files:
        if trait in MAIN:
            own = study.difference(scored["chats II", trait], scored["chats normal", trait])
            claims.append(Claim("section 4.1, figure 5", "Wrong answers alone raise bad traits", trait, own))
    if "optimistic" in study.files:
        names = [name for name, trait in scored if trait == "optimistic" and name != "base"]
        told = "Every finetuning lowers optimism: the mean over all of them"
        own = _mean(study, scored, [("base", name, "optimistic") for name in names])
        claims.append(Claim("appendix G.1", told, "optimistic", own))
    return claims


def _mean(study: Study, scored: dict[tuple[str, str], list[Row]], pairs: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Mean of first − second model over several pairs and traits, clustered by question."""
    values, questions = [], []
    for one, other, trait in pairs:
        theirs = {(row["question_id"], row["sample"]): row["trait"] for row in scored[other, trait]}
        for row in scored[one, trait]:
            known = theirs[row["question_id"], row["sample"]]
            values.append(np.nan if row["trait"] is None or known is None else row["trait"] - known)
            questions.append(f"{trait} {row['question_id']}")
    clusters = np.unique(questions, return_inverse=True)[1]
    return clustered_mean(np.array(values), clusters, study.config.seed).to_json()


def _correlations(study: Study, found: Row, out: Path, names: list[str]) -> list[Claim]:
    """The shift and the data's projections against the trait score after training, one point a data set."""
    claims = []
    for trait, own in found["traits"].items():
        layer = study.vectors[trait].card.layer
        read = {name: _projections(out / f"{name}-screen" / "table", trait) for name in names}
        score = np.array([or_nan(found["scores"][name][trait]["mean"]) for name in names])
        shift = {point["model"]: or_nan(point["shift"]) for point in own["points"]}
        moved = np.array([shift.get(name, np.nan) for name in names])
        full, raw, proxy = (np.array([read[name][kind] for name in names]) for kind in ("full", "raw", "proxy"))
        told = {
            "The finetuning shift foretells the trait score after training": (
                "section 4.2, figures 6, 18 and 20",
                correlation(own["pearson"]),
                _matched(own),
                published.SHIFT,
            ),
            "The projection difference of the data foretells the trait score after training": (
                "section 6.1, figures 8 and 19",
                correlation(own["projection_difference"]["pearson"]),
                _matched(own["projection_difference"]),
                published.PROJECTION_DIFFERENCE,
            ),
            "The projection difference of the data foretells the finetuning shift": (
                "appendix G.3, figure 17",
                correlation(intervals(full, moved)["pearson"]),
                None,
                published.DIFFERENCE_AND_SHIFT,
            ),
            "The raw projection of the data foretells the trait score": (
                "appendix H",
                correlation(intervals(raw, score)["pearson"]),
                None,
                published.RAW_PROJECTION,
            ),
            "The projection less that of the last prompt token foretells the trait score": (
                "appendix I",
                correlation(intervals(proxy, score)["pearson"]),
                None,
                published.PROXY,
            ),
        }
        claims += [
            Claim(where, text, f"{trait} (layer {layer})", r, unit="r", control=limit, published=figures.get(trait, ()))
            for text, (where, r, limit, figures) in told.items()
        ]
    return claims


def _matched(found: Row) -> float | None:
    """What covariance-matched directions reach: the 95th percentile of their |r|."""
    told = found["nulls"]["covariance"].get("percentiles")
    return told["95"] if told else None


def _projections(folder: Path, trait: str) -> dict[str, float]:
    """Means of a screened data set: the difference, the raw projection, and its proxy."""
    table = Table(folder, (trait,))
    raw, prompt, full = (table.column(name) for name in (f"{trait}.response", f"{trait}.prompt_last", trait))
    return {"full": float(np.nanmean(full)), "raw": float(np.nanmean(raw)), "proxy": float(np.nanmean(raw - prompt))}
