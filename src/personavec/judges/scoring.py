"""Scores of replies: the judges of a run, learning their scales, and scoring tables resumably."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NotRequired, TypedDict, cast, get_args

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from personavec.errors import ConfigError, JudgeError
from personavec.judges.fluency import FluencyJudge
from personavec.judges.judge import Judge, Score, TraitJudge, Why
from personavec.judges.lessons import Lessons
from personavec.judges.scale import LogisticScale
from personavec.runs.json_files import finite
from personavec.runs.progress import stage
from personavec.runs.run import Run
from personavec.stats.intervals import Interval, clustered_mean
from personavec.steering.rollouts import ReplyRow
from personavec.steering.vector import Card

CHUNK = 256
"""Replies scored between two writes: the unit of resumption."""
WEAK_AUC = 0.7
"""A judge of which one AUC may lie below it (lower bound) is called weak, and nothing is proven by it."""
KEEP_TRAIT, KEEP_COHERENCE = 50.0, 50.0
"""A reply is kept when it is coherent and on its own side of 50. Source: arXiv 2507.21509, section 2.2."""

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
"""Of a table, whatever columns it has besides those that are asked for."""


class ScoreRow(TypedDict):
    """The scores of one reply, as a table of scores holds them."""

    id: str
    judge: str
    trait: float | None
    coherence: float | None
    evidence: dict[str, Any]
    trait_why: NotRequired[Why]
    """Why there is no score."""
    coherence_why: NotRequired[Why]


class ScoredRow(ReplyRow, ScoreRow):
    """A reply with its scores."""


@dataclass(frozen=True)
class Judges:
    """The two judges of a run: one for the trait, one for coherence."""

    trait: TraitJudge
    coherence: Judge
    trait_hash: str

    @property
    def weak(self) -> bool:
        """Whether the trait judge may mistake something else for the trait: the lower bound of an AUC says so."""
        return any(not auc.low >= WEAK_AUC for auc in self.trait.aucs.values())

    @property
    def auc(self) -> Interval | None:
        """How well the trait judge tells the trait's rollouts from its opposite's, where that was measured."""
        return self.trait.aucs.get("opposite")

    def described(self) -> Row:
        """The judges for result files: who, on what scale, and what they tell apart."""
        return {
            "id": self.trait.id,
            "auc": self.auc.to_json() if self.auc else None,
            "aucs": {name: auc.to_json() for name, auc in self.trait.aucs.items()},
            "weak": self.weak,
            "weak_below": WEAK_AUC,
            "basis": self.trait.basis,
            "coherence": {
                "id": self.coherence.id,
                "auc": next((auc.to_json() for auc in self.coherence.aucs.values()), None),
            },
        }

    def to_json(self) -> Row:
        """The learned scales, as judge.json holds them."""
        return {"trait_hash": self.trait_hash, "trait": scale(self.trait), "coherence": scale(self.coherence)}

    def restore(self, scales: Mapping[str, Any], source: str) -> None:
        """Take over the scales of an earlier run.

        Raises:
            JudgeError: They were learned by another judge or for another trait.
        """
        learned = scales.get("trait")
        if isinstance(learned, Mapping) and str(learned.get("id", "")).startswith("likelihood"):
            raise JudgeError(
                f"expected the scale of {self.trait.id} in {source}, got one of the likelihood judge, which could not "
                "tell traits apart and is gone; extract the vector again"
            )
        if scales.get("trait_hash") != self.trait_hash:
            raise JudgeError(
                f"expected the judge of this trait in {source}, got one of another trait; pass its own file"
            )
        take_scale(self.trait, learned, source)
        take_scale(self.coherence, scales.get("coherence"), source)


def scaled(judges: Judges, judge: str, card: Card, name: str) -> Judges:
    """The judges with the scale of a vector's card, where they need one.

    Raises:
        ConfigError: The card holds none.
        JudgeError: It is of another judge.
    """
    if judge.startswith("panel"):
        judges.restore(learned_scales(card, name), f"the card of {name}")
    return judges


def learned_scales(card: Card, name: str) -> Row:
    """The scales of both judges in a vector's card.

    Raises:
        ConfigError: There are none.
    """
    learned: Row | None = card.details.get("judge")
    if learned is None:
        raise ConfigError(
            f"expected the scale of a judge in the card of {name}, got none; choose --judge openai:MODEL or "
            "hf:MODEL, which need none"
        )
    return learned


def scale(judge: Judge) -> Row:
    """What a judge has learned, as JSON; a rubric judge has no calibration, and may have no AUC."""
    learned = asdict(judge.calibration) if judge.calibration else {}
    return {
        "id": judge.id,
        "basis": judge.basis,
        **learned,
        "aucs": {name: auc._asdict() for name, auc in judge.aucs.items()},
    }


def take_scale(judge: Judge, learned: Any, source: str) -> None:
    """Give a judge what an equal one has learned.

    Raises:
        JudgeError: It is not the scale of this judge.
    """
    try:
        basis = learned["basis"]
        calibration = None
        if "weights" in learned:
            if not all(map(finite, [*learned["weights"], learned["intercept"]])):
                raise ValueError("weights or an intercept that are no finite numbers")
            calibration = LogisticScale(tuple(learned["weights"]), float(learned["intercept"]))
        aucs = {name: Interval(**auc) for name, auc in learned["aucs"].items()}
        if not all(isinstance(value, int | float | None) for auc in aucs.values() for value in auc):
            raise ValueError("aucs that are no numbers")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise JudgeError(f"expected the scale of a judge in {source}, got {error!r}; pass a judge.json") from error
    if basis != judge.basis:
        raise JudgeError(
            f"expected the scale of {judge.id} ({judge.basis}) in {source}, got that of {learned.get('id')} ({basis}); "
            "pass its own file"
        )
    judge.calibration, judge.aucs = calibration, aucs


def learn_coherence(judge: Judge, base: Sequence[ReplyRow], seed: int) -> None:
    """Learn the coherence scale from base replies, where it has to be learned."""
    if not isinstance(judge, FluencyJudge):
        return
    with stage("coherence scale", len(base) * FluencyJudge.copies) as advance:
        judge.calibrate([r["question"] for r in base], [r["response"] for r in base], seed, advance)


def learn_trait(judges: Judges, known: Lessons) -> list[ScoreRow]:
    """Score replies of which it is known who wrote them, and learn from them: AUCs, and a scale if there is one."""
    steps = len(known.rows) * (judges.trait.steps + judges.coherence.steps)
    with stage("judging rollouts", steps) as advance:
        trait = judges.trait.learn(known, advance)
        coherence = judges.coherence.score(known.questions, known.answers, advance)
    return _rows(known.rows, trait, coherence)


def score(
    rows: Sequence[ReplyRow], judges: Judges, title: str, *, run: Run | None = None, name: str = ""
) -> list[ScoredRow]:
    """Score replies; with a run into its NAME.scores.jsonl, where those that are there are not scored again."""
    file = f"{name}.scores.jsonl"
    # a call that failed is made again by the next run; of two lines of one reply the later one counts
    scores: dict[str, ScoreRow] = {
        row["id"]: cast(ScoreRow, row)
        for row in (run.rows(file, _wrong) if run else ())
        if "failed" not in (row.get("trait_why"), row.get("coherence_why"))
    }
    # replies to one question are scored together, because they share their prompts
    order = sorted(rows, key=lambda row: row["question_id"])
    with stage(title, len(rows) * (judges.trait.steps + judges.coherence.steps)) as advance:
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            if all(row["id"] in scores for row in chunk):
                advance(len(chunk) * (judges.trait.steps + judges.coherence.steps))
                continue
            questions, replies = [row["question"] for row in chunk], [row["response"] for row in chunk]
            trait = judges.trait.score(questions, replies, advance)
            coherence = judges.coherence.score(questions, replies, advance)
            fresh = [row for row in _rows(chunk, trait, coherence) if row["id"] not in scores]
            if run:
                run.append(file, fresh)
            scores |= {row["id"]: row for row in fresh}
    return joined(rows, list(scores.values()))


def _wrong(row: Row) -> str:
    """The first field of a score in a table that is not what a score has there, with its value; empty if none."""
    fine = {name: isinstance(row.get(name), str) for name in ("id", "judge")}
    fine |= {name: name in row and (row[name] is None or finite(row[name])) for name in ("trait", "coherence")}
    fine["evidence"] = isinstance(row.get("evidence"), dict)
    return next((f"{name} {repr(row.get(name))[:60]}" for name, good in fine.items() if not good), "")


def _rows(rows: Sequence[ReplyRow], trait: Sequence[Score], coherence: Sequence[Score]) -> list[ScoreRow]:
    scores = []
    for row, t, c in zip(rows, trait, coherence, strict=True):
        scored: ScoreRow = {
            "id": row["id"],
            "judge": t.judge,
            "trait": t.value,
            "coherence": c.value,
            "evidence": t.evidence,
        }
        if t.why:
            scored["trait_why"] = t.why
        if c.why:
            scored["coherence_why"] = c.why
        scores.append(scored)
    return scores


def joined(rows: Sequence[ReplyRow], scores: Sequence[ScoreRow]) -> list[ScoredRow]:
    """Rows with their scores beside them."""
    by_id = {row["id"]: row for row in scores}
    return [cast(ScoredRow, {**row, **by_id[row["id"]]}) for row in rows]


def scored_rows(run: Run, name: str) -> list[ScoredRow]:
    """The replies that `score` scored under a name, with their scores."""
    rows, scores = list(run.rows(f"{name}.jsonl")), list(run.rows(f"{name}.scores.jsonl"))
    return joined(cast(list[ReplyRow], rows), cast(list[ScoreRow], scores))


def keep(row: ScoredRow) -> bool:
    """Whether a scored rollout serves the vector: on its own side of 50, and coherent."""
    if row["trait"] is None or row["coherence"] is None or row["coherence"] < KEEP_COHERENCE:
        return False
    return bool(row["trait"] > KEEP_TRAIT if row["side"] == "pos" else row["trait"] < KEEP_TRAIT)


def count(rows: Sequence[ScoredRow]) -> dict[str, int]:
    """What became of the rollouts of one side; every reply is in exactly one of all but the first and last."""
    without = unscored(rows, "trait")
    scored = [row for row in rows if row["trait"] is not None]
    kept = [row for row in scored if keep(row)]
    incoherent = [row for row in scored if row["coherence"] is None or row["coherence"] < KEEP_COHERENCE]
    return {
        "written": len(rows),
        "empty": without["empty"],
        "refused": without["refused"],
        "unjudged": without["filtered"] + without["unparseable"] + without["failed"],
        "incoherent": len(incoherent),
        "wrong_side": len(scored) - len(kept) - len(incoherent),
        "kept": len(kept),
        "truncated": sum(row["finish"] == "length" for row in rows),
    }


def unscored(rows: Rows, kind: str) -> dict[Why, int]:
    """How many rows have no score of a kind ("trait", "coherence"), by what kept the judge from it."""
    return {why: sum(row.get(f"{kind}_why") == why for row in rows) for why in get_args(Why)}


def column(rows: Rows, name: str) -> Float[ndarray, " row"]:
    """A score of every row; nan where there is none."""
    return np.array([row[name] for row in rows], dtype=float)


def question_ids(rows: Rows) -> Int[ndarray, " row"]:
    """The question that each row answers: the clusters of its intervals."""
    return np.array([row["question_id"] for row in rows], dtype=int)


def questions_asked(rows: Rows) -> Int[ndarray, " row"]:
    """The same by the questions' words, for rows of several sets of questions, which number theirs apart."""
    return np.unique([row["question"] for row in rows], return_inverse=True)[1]


def mean_difference(rows: Rows, base: Rows, name: str) -> Interval:
    """Mean of row − base where question and sample are the same; its interval is clustered by question."""
    return paired_difference(rows, base, column(rows, name), column(base, name))


def paired_difference(
    rows: Rows, base: Rows, values: Float[ndarray, " row"], against: Float[ndarray, " other"]
) -> Interval:
    """The same of any values of the rows; a row without its twin is dropped and counted."""
    twins = {(row["question_id"], row["sample"]): value for row, value in zip(base, against, strict=True)}
    paired = np.array([twins.get((row["question_id"], row["sample"]), np.nan) for row in rows], dtype=float)
    return clustered_mean(values - paired, question_ids(rows))


def mean_score(rows: Rows, name: str) -> Interval:
    """Mean of a score with its interval, clustered by question."""
    return clustered_mean(column(rows, name), question_ids(rows))
