"""Do two judges agree on the same replies? And do independent signals go along with them?"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.judges.lessons import Lessons
from personavec.judges.scoring import (
    KEEP_TRAIT,
    Judges,
    Rows,
    ScoredRow,
    ScoreRow,
    column,
    joined,
    learn_coherence,
    learn_trait,
    score,
    unscored,
)
from personavec.runs.run import Run
from personavec.stats.intervals import auc_interval, spearman_interval
from personavec.steering.rollouts import ReplyRow

Row = dict[str, Any]


def first_scores(run: Run, known: Lessons, judges: Judges) -> list[ScoreRow]:
    """Scores of contrastive rollouts by the first judge, on the scale that its other scores are on; sets its AUCs.

    Where the judge learned from these very rollouts their scores are there. Where its scale was at hand, they are read
    now and put on that scale.
    """
    if run.done("rollouts.scores.jsonl"):
        return cast(list[ScoreRow], list(run.rows("rollouts.scores.jsonl")))
    kept, aucs = judges.trait.calibration, judges.trait.aucs
    scores = learn_trait(judges, known)
    judges.trait.calibration, judges.trait.aucs = kept, aucs or judges.trait.aucs
    if kept is not None:
        for row in scores:
            evidence = np.array([list(row["evidence"].values())])
            row["trait"] = None if row["trait"] is None else 100 * float(kept.predict(evidence)[0])
    run.write_rows("rollouts.scores.jsonl", scores)
    return scores


def second_scores(
    part: Run, judges: Judges, known: Lessons, arms: Mapping[str, Sequence[ReplyRow]], seed: int
) -> list[ScoredRow]:
    """Score all replies by a second judge, into a folder of its own; resumable.

    Args:
        part: That folder.
        judges: The second judge and its coherence.
        known: What judges learn from.
        arms: Replies by arm.
        seed: Of the run.

    Returns:
        The rollouts and then the replies of each arm, with scores.
    """
    if not (part.done("judge.json") and part.done("rollouts.scores.jsonl")):
        learn_coherence(judges.coherence, known.base, seed)
        part.write_rows("rollouts.scores.jsonl", learn_trait(judges, known))
        part.write_json("judge.json", judges.to_json())
    judges.restore(part.read_json("judge.json"), str(part.path("judge.json")))
    scores = joined(known.rows, cast(list[ScoreRow], list(part.rows("rollouts.scores.jsonl"))))
    rows = [row for row in scores if "side" in row]
    for arm, replies in arms.items():
        rows += score(replies, judges, f"second judge: {arm}", run=part, name=arm)
    return rows


def agreement(judges: Sequence[str], first: Rows, second: Rows, *, same_coherence: bool = False) -> Row:
    """How far two judges agree.

    Args:
        judges: Their ids.
        first: Replies with the scores of the first judge; those with a `side` are contrastive rollouts.
        second: The same replies with the scores of the second.
        same_coherence: Both take coherence from one and the same judge, so that there is nothing to compare.

    Returns:
        `trait`: Spearman's rank correlation, each judge's AUC between positive and negative rollouts, how many replies
        lie above 50 to both, one or neither, the share on which they agree, and Cohen's kappa. `coherence`: the rank
        correlation, or null. Intervals resample whole questions.
    """
    from sklearn.metrics import cohen_kappa_score

    questions = _clusters(first)
    trait = [column(rows, "trait") for rows in (first, second)]
    both = ~np.isnan(trait).any(axis=0)
    above = [values[both] > KEEP_TRAIT for values in trait]
    sides = np.array([row.get("side", "") for row in first])
    confusion = [[int((a & b).sum()) for b in (above[1], ~above[1])] for a in (above[0], ~above[0])]
    varies = len(set(np.concatenate(above).tolist())) == 2
    return {
        "judges": list(judges),
        "replies": len(first),
        "trait": {
            "scored_by_both": int(both.sum()),
            "unscored": [unscored(rows, "trait") for rows in (first, second)],
            "spearman": spearman_interval(trait[0], trait[1], questions).to_json(),
            "auc": [_auc(values, sides, questions) for values in trait],
            "above_50": {
                "both": confusion[0][0],
                "first_only": confusion[0][1],
                "second_only": confusion[1][0],
                "neither": confusion[1][1],
            },
            "agree": round(float((above[0] == above[1]).mean()), 4) if both.any() else None,
            "kappa": round(float(cohen_kappa_score(*above)), 4) if varies else None,
        },
        "coherence": None
        if same_coherence
        else {
            "unscored": [unscored(rows, "coherence") for rows in (first, second)],
            "spearman": spearman_interval(column(first, "coherence"), column(second, "coherence"), questions).to_json(),
        },
    }


def signal_agreement(signals: Mapping[str, Float[ndarray, " reply"]], scored: Rows, kinds: Mapping[str, str]) -> Row:
    """Rank correlation of each signal with the score of its kind ("trait" or "coherence"), by signal."""
    questions = _clusters(scored)
    return {
        name: {
            "with": kinds[name],
            "spearman": spearman_interval(values, column(scored, kinds[name]), questions).to_json(),
        }
        for name, values in signals.items()
    }


def _clusters(rows: Rows) -> Any:
    return np.unique(np.array([row["question"] for row in rows]), return_inverse=True)[1]


def _auc(values: Float[ndarray, " reply"], sides: Any, questions: Any) -> Row:
    known = ~np.isnan(values) & (sides != "")
    auc = auc_interval(values[known], sides[known] == "pos", questions[known])
    return auc._replace(dropped=int((np.isnan(values) & (sides != "")).sum())).to_json()
