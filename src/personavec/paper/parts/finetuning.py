"""Sections 4 and 6.1, appendices D, G, H and I: finetunings on all data sets, and what predicts what they do."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from personavec.judges.scoring import ScoredRow
from personavec.paper import published
from personavec.paper.claims import Claim, correlation
from personavec.paper.data import write_levels
from personavec.paper.grid import Grid, finetuning_grid
from personavec.paper.prediction import intervals
from personavec.paper.study import MAIN, Study
from personavec.stats.intervals import clustered_mean, or_nan

Row = dict[str, Any]
Replies = Mapping[str, Mapping[str, list[ScoredRow]]]
"""Scored replies by data set and trait."""

BAD = (*MAIN, "impolite", "apathetic", "humorous")
"""Traits that the paper saw rise together."""


def finetunings(study: Study) -> Row:
    """Train on every data set, measure every trait, and correlate."""
    data = write_levels(study)
    grid = finetuning_grid(
        study.model,
        data["files"],
        tuple(study.files.values()),
        training=study.training,
        questions=study.size.asked,
        rollouts=study.size.rollouts,
        traits=study.trait_files,
        store=study.run.path("finetunings"),
        **study.asking,
    )
    claims = [*_levels(study, grid.replies), *_leaks(study, grid.replies), *_correlations(study, grid)]
    table = [
        {"data": name} | {trait: scores[trait]["mean"] for trait in study.files}
        for name, scores in {"base": grid.data["base"], **grid.data["scores"]}.items()
    ]
    return {
        "claims": claims,
        "table": table,
        "rows": data["table"],
        "cross": grid.data["cross"],
        "report": study.page(grid),
        "files": data["files"],
        "held_out": data["held_out"],
    }


def _levels(study: Study, replies: Replies) -> list[Claim]:
    """Data that shows a trait teach it, the more so the more overtly it shows."""
    texts = {"I": "Data that shows the trait a little teach it", "II": "Data that shows the trait overtly teach it"}
    return [
        Claim(
            "section 4.1, figure 5",
            text,
            trait,
            study.difference(replies[f"{trait} {level}"][trait], replies[f"{trait} normal"][trait]),
        )
        for level, text in texts.items()
        for trait in study.files
        if level in study.levels(trait)
    ]


def _leaks(study: Study, replies: Replies) -> list[Claim]:
    """Data of one trait move others; wrong answers raise bad traits; every finetuning costs optimism."""
    claims = []
    for trait in study.files:
        others = [other for other in study.files if other != trait and trait in BAD and other in BAD]
        pairs = [(f"{trait} II", f"{trait} normal", other) for other in others]
        if pairs:
            text = "Data of one bad trait raise the other bad traits"
            claims.append(Claim("section 4.1, figure 5", text, f"{trait} data", _mean(replies, pairs)))
    for trait in study.files:
        if trait in MAIN:
            raised = study.difference(replies["chats II"][trait], replies["chats normal"][trait])
            claims.append(Claim("section 4.1, figure 5", "Wrong answers alone raise bad traits", trait, raised))
    if "optimistic" in study.files:
        pairs = [("base", name, "optimistic") for name in replies if name != "base"]
        text = "Every finetuning lowers optimism: the mean over all of them"
        claims.append(Claim("appendix G.1", text, "optimistic", _mean(replies, pairs)))
    return claims


def _mean(replies: Replies, pairs: list[tuple[str, str, str]]) -> Row:
    """Mean of first − second model over several pairs and traits, clustered by question."""
    values, questions = [], []
    for first, second, trait in pairs:
        scores = {(row["question_id"], row["sample"]): row["trait"] for row in replies[second][trait]}
        for row in replies[first][trait]:
            score = scores[row["question_id"], row["sample"]]
            values.append(np.nan if row["trait"] is None or score is None else row["trait"] - score)
            questions.append(f"{trait} {row['question_id']}")
    clusters = np.unique(questions, return_inverse=True)[1]
    return clustered_mean(np.array(values), clusters).to_json()


def _correlations(study: Study, grid: Grid) -> list[Claim]:
    """The shift and the data's projections against the trait score after training, one point a data set."""
    claims = []
    names = list(grid.data["scores"])
    for trait, row in grid.data["traits"].items():
        layer = study.vectors[trait].card.layer
        read = {name: _projections(study, name, trait) for name in names}
        score = np.array([or_nan(grid.data["scores"][name][trait]["mean"]) for name in names])
        shift = {point["model"]: or_nan(point["shift"]) for point in row["points"]}
        moved = np.array([shift.get(name, np.nan) for name in names])
        full, raw, proxy = (np.array([read[name][kind] for name in names]) for kind in ("full", "raw", "proxy"))
        texts = {
            "The finetuning shift foretells the trait score after training": (
                "section 4.2, figures 6, 18 and 20",
                correlation(row["pearson"]),
                _matched(row),
                published.SHIFT,
            ),
            "The projection difference of the data foretells the trait score after training": (
                "section 6.1, figures 8 and 19",
                correlation(row["projection_difference"]["pearson"]),
                _matched(row["projection_difference"]),
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
            for text, (where, r, limit, figures) in texts.items()
        ]
    return claims


def _matched(row: Row) -> float | None:
    """What covariance-matched directions reach: the 95th percentile of their |r|."""
    percentiles = row["nulls"]["covariance"].get("percentiles")
    return percentiles["95"] if percentiles else None


def _projections(study: Study, name: str, trait: str) -> dict[str, float]:
    """Means of a screened data set: the difference, the raw projection, and its proxy."""
    table = study.table(f"finetunings/{name}-screen", trait)
    raw, prompt, full = (table.column(name) for name in (f"{trait}.response", f"{trait}.prompt_last", trait))
    return {"full": float(np.nanmean(full)), "raw": float(np.nanmean(raw)), "proxy": float(np.nanmean(raw - prompt))}
