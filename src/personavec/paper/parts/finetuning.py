"""Sections 4 and 6.1, appendices D, G, H and I: finetunings on all data sets, and what predicts what they do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.judges.scoring import ScoredRow
from personavec.paper import published
from personavec.paper.claims import CHATS, Claim, Control, correlation, matched
from personavec.paper.data import write_levels
from personavec.paper.grid import Grid, finetuning_grid
from personavec.paper.prediction import better
from personavec.paper.study import MAIN, Study
from personavec.stats.intervals import clustered_mean

Row = dict[str, Any]
Replies = Mapping[str, Mapping[str, list[ScoredRow]]]
"""Scored replies by data set and trait."""

BAD = (*MAIN, "impolite", "apathetic", "humorous")
"""Traits that the paper saw rise together."""
GOOD = "optimistic"
"""The trait that is none of them: what its data do to bad traits, data do that have nothing bad about them."""
NORMAL, RIGHT = Control("training on normal data"), Control("training on right answers")
RAW = Control("the raw projection")


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
    claims = [*_levels(study, grid.replies), *leaks(study, grid.replies), *_correlations(study, grid)]
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
            controls=(NORMAL,),
        )
        for level, text in texts.items()
        for trait in study.files
        if level in study.levels(trait)
    ]


def leaks(study: Study, replies: Replies) -> list[Claim]:
    """Data of one trait move others; wrong answers raise bad traits; every finetuning costs optimism."""
    claims = []
    for trait in study.files:
        others = [other for other in study.files if other != trait and trait in BAD and other in BAD]
        if others:
            leaked = {of: {o: _apart(replies, f"{of} II", f"{of} normal", o) for o in others} for of in study.files}
            control: tuple[Control, ...] = ()
            if GOOD in leaked:
                over = _mean({o: leaked[trait][o] - leaked[GOOD][o] for o in others})
                control = (Control(f"data of {GOOD}", over=over),)
            text = "Data of one bad trait raise the other bad traits"
            ours = _mean(leaked[trait])
            claims.append(Claim("section 4.1, figure 5", text, f"{trait} data", ours, controls=control))
    for trait in study.files:
        if trait in MAIN:
            raised = study.difference(replies["chats II"][trait], replies["chats normal"][trait])
            text = "Wrong answers alone raise bad traits"
            claims.append(Claim("section 4.1, figure 5", text, trait, raised, controls=(RIGHT,), data=CHATS))
    if GOOD in study.files:
        every = np.nanmean([_apart(replies, "base", name, GOOD) for name in replies if name != "base"], axis=0)
        text = "Every finetuning lowers optimism: the mean over all of them"
        claims.append(Claim("appendix G.1", text, GOOD, _mean({GOOD: every})))
    return claims


def _apart(replies: Replies, first: str, second: str, trait: str) -> Float[ndarray, " question"]:
    """First − second model's mean trait score of each question."""
    one, other = (np.array(_by_question(replies[name][trait])) for name in (first, second))
    return np.asarray(one - other)


def _mean(differences: Mapping[str, Float[ndarray, " question"]]) -> Row:
    """Mean over questions of several traits."""
    values = np.concatenate([*differences.values()])
    return clustered_mean(values, np.arange(len(values))).to_json()


def _correlations(study: Study, grid: Grid) -> list[Claim]:
    """The shift and the data's projections against the trait score after training, one point a data set."""
    claims = []
    names = list(grid.data["scores"])
    for trait, row in grid.data["traits"].items():
        subject = f"{trait} (layer {study.vectors[trait].card.layer})"
        ahead, carried = row["projection_difference"], row["carried"]
        for text, where, pearson, null, figures in (
            (
                "The finetuning shift foretells the trait score after training",
                "section 4.2, figures 6, 18 and 20",
                row["pearson"],
                row["nulls"]["covariance"],
                published.SHIFT,
            ),
            (
                "The projection difference of the data foretells the trait score after training",
                "section 6.1, figures 8 and 19",
                ahead["pearson"],
                ahead["nulls"]["covariance"],
                published.PROJECTION_DIFFERENCE,
            ),
            (
                "The projection difference of the data foretells the finetuning shift",
                "appendix G.3, figure 17",
                carried["pearson"],
                carried["covariance"],
                published.DIFFERENCE_AND_SHIFT,
            ),
        ):
            judge = None if pearson is carried["pearson"] else ""
            theirs = figures.get(trait, ())
            claims.append(Claim(where, text, subject, correlation(pearson), "r", matched(null), theirs, judge=judge))
        read = [_projections(study, name, trait) for name in names]
        full, raw, proxy = (np.array([each[kind] for each in read]) for kind in ("full", "raw", "proxy"))
        scores = np.array([_by_question(grid.replies[name][trait]) for name in names])
        families = [name.rsplit(" ", 1)[0] for name in names]
        for text, where, values, figures in (
            ("The projection difference foretells the trait score better", "appendix H", full, published.OVER_RAW),
            (
                "The projection less that of the last prompt token foretells it better",
                "appendix I",
                proxy,
                published.PROXY_OVER_RAW,
            ),
        ):
            ours, theirs = better(values, raw, scores, families).to_json(), figures.get(trait, ())
            text = f"{text} than the raw projection does"
            claims.append(Claim(where, text, subject, ours, "difference of r", (RAW,), theirs))
    return claims


def _by_question(rows: Sequence[ScoredRow]) -> list[float]:
    """Mean trait score of each question; nan where no reply has one."""
    scores: dict[int, list[float]] = {row["question_id"]: [] for row in rows}
    for row in rows:
        if row["trait"] is not None:
            scores[row["question_id"]].append(row["trait"])
    return [float(np.mean(scores[question])) if scores[question] else np.nan for question in sorted(scores)]


def _projections(study: Study, name: str, trait: str) -> dict[str, float]:
    """Means of a screened data set: the difference, the raw projection, and its proxy."""
    table = study.table(f"finetunings/{name}-screen", trait)
    raw, prompt, full = (table.column(name) for name in (f"{trait}.response", f"{trait}.prompt_last", trait))
    return {"full": float(np.nanmean(full)), "raw": float(np.nanmean(raw)), "proxy": float(np.nanmean(raw - prompt))}
