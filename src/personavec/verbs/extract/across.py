"""Several traits of one run: each trait's judge reads what the others' instructions wrote."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from personavec.judges.load import Bench
from personavec.judges.scoring import Judges, ScoredRow, column, questions_asked, score, scored_rows
from personavec.runs.run import Run
from personavec.stats.intervals import clustered_mean, difference_interval
from personavec.traits.trait import Trait


def judge_by_trait(bench: Bench, run: Run, traits: Sequence[Trait]) -> dict[str, Any] | None:
    """Mean score that each trait's judge gives to replies told to show each trait, and its own less the largest other.

    Its own replies' scores are those of fits that saw neither the question nor the instruction. Of every other trait it
    reads one reply a question, each pair's in turn. None for a single trait.

    Args:
        bench: The judges of the run.
        run: Its parts are the traits' runs.
        traits: Those that came to a result.
    """
    if len(traits) < 2:
        return None
    told = {trait.name: _told(scored_rows(run.part(trait.name), "rollouts")) for trait in traits}
    table, above = {}, {}
    for trait in traits:
        part = run.part(trait.name)
        judges = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
        judges.restore(part.read_json("judge.json"), str(part.path("judge.json")))
        scored: dict[str, Sequence[ScoredRow]] = {}
        for name, rows in told.items():
            title = f"{trait.name}: judging replies of {name}"
            read = [row for row in rows if row["pair"] == row["question_id"] % len(trait.pairs) and not row["sample"]]
            scored[name] = rows if name == trait.name else score(read, judges, title, run=part, name=f"of_{name}")
        table[trait.name] = {name: _mean(rows) for name, rows in scored.items()}
        others = {name: mean["mean"] for name, mean in table[trait.name].items() if name != trait.name}
        largest = max(others, key=lambda name: -1.0 if others[name] is None else others[name])
        above[trait.name] = {"largest": largest, "difference": _difference(scored[trait.name], scored[largest])}
    return {"scores": table, "above": above}


def _told(rollouts: Sequence[ScoredRow]) -> list[ScoredRow]:
    return [row for row in rollouts if row["side"] == "pos"]


def _mean(rows: Sequence[ScoredRow]) -> Mapping[str, Any]:
    return clustered_mean(column(rows, "trait"), questions_asked(rows)).to_json()


def _difference(own: Sequence[ScoredRow], other: Sequence[ScoredRow]) -> Mapping[str, Any]:
    """Mean score of the one minus that of the other, over the questions of both."""
    values = np.r_[column(own, "trait"), column(other, "trait")]
    questions, known = questions_asked([*own, *other]), ~np.isnan(values)
    return difference_interval(values[known], (np.arange(len(values)) < len(own))[known], questions[known]).to_json()
