"""Scores of a data set's rows by a judge, next to their projections: for filters that look at both."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from numpy import ndarray

from personavec.data.sample import Sample
from personavec.errors import JudgeError
from personavec.judges.judge import TraitJudge
from personavec.judges.load import Bench
from personavec.judges.scoring import learned_scales, take_scale
from personavec.runs.progress import stage
from personavec.runs.run import Row
from personavec.stats.intervals import spearman_rows
from personavec.steering.vector import PersonaVector
from personavec.traits.load import trait_of
from personavec.traits.trait import Trait
from personavec.verbs.screen.shards import DataPass, shards
from personavec.verbs.screen.table import Table


def load_judges(
    bench: Bench, vectors: Sequence[PersonaVector], names: Sequence[str], traits: Sequence[Trait | str | Path]
) -> dict[str, TraitJudge]:
    """The judge of each vector's trait; one that needs a scale takes it from the vector's card.

    Args:
        bench: Who judges.
        vectors: Whose traits.
        names: Of the vectors.
        traits: Those that are not built in, or their files.

    Raises:
        ConfigError: The card of a vector holds no scale of this judge.
        TraitError: The trait of a vector is not known.
    """
    judges = {}
    for vector, name in zip(vectors, names, strict=True):
        judge = bench.trait(trait_of(vector.card.trait, traits))
        if bench.spec.startswith("panel"):
            take_scale(judge, learned_scales(vector.card, name).get("trait"), f"the card of {name}")
        judges[name] = judge
    return judges


def judge_rows(work: DataPass, table: Table) -> tuple[dict[str, Float[ndarray, " row"]], Row]:
    """Score every usable row for every trait; resumable.

    Returns:
        A column of scores by name, nan where there is none; and how many have none, by name and reason.
    """
    folder, judges = work.run.part("judge").folder, work.judges
    whys: dict[str, Counter[str]] = {name: Counter() for name in judges}
    with stage(f"judging {work.data.name}", len(table.good)) as advance:
        for number, shard in enumerate(shards(work.samples())):
            part = f"part-{number:06d}"
            if not Table.has(folder, part):
                good = [s for s in shard if isinstance(s, Sample) and table.good[s.row]]
                Table.write(folder, part, _judged(good, judges, work.reader.on_error == "stop"))
            for name, counts in whys.items():
                whys_of = pq.read_table(folder / f"{part}.parquet", columns=[f"{name}.why"])[f"{name}.why"]
                counts.update(why for why in whys_of.to_pylist() if why)
            advance(len(shard))
    scores = Table(folder, tuple(judges))
    columns = {name: np.full(len(table.good), np.nan, dtype=np.float32) for name in judges}
    for name, column in columns.items():
        column[scores.rows] = scores.column(name)
    return columns, {name: dict(counts) for name, counts in whys.items()}


def _judged(samples: Sequence[Sample], judges: Mapping[str, TraitJudge], stop: bool) -> Any:
    questions = [sample.messages[-1]["content"] for sample in samples]
    replies = [sample.response for sample in samples]
    columns = {"row": pa.array([sample.row for sample in samples], pa.int64())}
    for name, judge in judges.items():
        scores = judge.score(questions, replies, lambda _: None)
        failed = [score for score in scores if score.why == "failed"]
        if failed and stop:  # what was answered is in the judge's own cache
            raise JudgeError(
                f"expected a score of every row for {name}, got {len(failed)} failed calls of {len(scores)} "
                f"({failed[0].evidence.get('error')}); run the same command again, or pass --on-error skip"
            )
        columns[name] = pa.array([score.value for score in scores], pa.float32())
        columns[f"{name}.why"] = pa.array([score.why for score in scores], pa.string())
    return pa.table(columns)


def judge_figures(work: DataPass, table: Table, judged: Mapping[str, Any], whys: Row) -> Row:
    """What the judge said of the set, and how far it correlates with the projections."""
    return {
        "id": work.judge,
        "means": {name: table.mean(values).to_json() for name, values in judged.items()},
        "unscored": whys,
        "spearman_with_projection": {
            name: spearman_rows(table.column(name), judged[name.split("@")[0]]).to_json() for name in table.names
        },
    }
