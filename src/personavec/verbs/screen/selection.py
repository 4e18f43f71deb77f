"""Which rows are taken out of a data set, and the files that are written of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from personavec.data.sample import Sample
from personavec.data.subset import copy_rows
from personavec.errors import DataError
from personavec.runs.run import Row
from personavec.stats.populations import streamed_mean
from personavec.verbs.screen.flagging import above, extremes, flagged, thresholds
from personavec.verbs.screen.sampled import Differences
from personavec.verbs.screen.shards import DataPass
from personavec.verbs.screen.table import Table

Columns = Mapping[str, Float[ndarray, " row"]]

SHOWN, LONGEST_EXAMPLE = 10, 600
"""Extreme rows of each side that the report shows, and characters of each text."""


@dataclass(frozen=True)
class Selection:
    """Which rows are asked for."""

    keep_below: float | None
    """Percentile above which rows are dropped; None is 95 where there is a clean set."""
    flag_by: Literal["projection", "judge", "either", "both"]
    export_k: int | None
    top_k: int | None
    """How many extreme rows were searched for."""


@dataclass(frozen=True)
class Reference:
    """What the usable rows of the clean data set are like."""

    name: str
    scores: Columns
    judged: Columns
    counts: Row
    """Of its rows, and of those that were left out."""


@dataclass(frozen=True)
class Screened:
    """A data set after its pass: the table, and what stands next to it."""

    work: DataPass
    table: Table
    differences: Differences | None
    judged: Columns
    reference: Reference | None

    def ranked(self, name: str) -> Float[ndarray, " row"]:
        """What extremes are taken from."""
        return self.table.column(name) if self.differences is None else self.differences.ranked(self.table, name)


def select(screened: Screened, wanted: Selection) -> Row:
    """Thresholds, and the data sets that are written by them."""
    work, table, reference = screened.work, screened.table, screened.reference
    result: Row = {"flags": None, "clean": None, "files": {}}
    files: dict[str, Bool[ndarray, " row"]] = {}
    if reference is not None:
        means = {name: streamed_mean(values).to_json() for name, values in reference.scores.items()}
        result["clean"] = {"data": reference.name, "means": means} | reference.counts
    percentile = wanted.keep_below if wanted.keep_below is not None else 95.0 if reference else None
    if percentile is not None:
        result["flags"], files["kept"] = _flags(screened, wanted, percentile)
    if wanted.export_k:
        for name in table.names:
            files[f"top-{name}"], files[f"bottom-{name}"] = extremes(screened.ranked(name), wanted.export_k)
        drawn = np.zeros(len(table.good), dtype=bool)
        drawn[np.random.default_rng(work.seed).permutation(np.flatnonzero(table.good))[: wanted.export_k]] = True
        files["random"] = drawn
    if files and work.run.kept:
        files = {name: _whole(table, rows, every=name == "kept") for name, rows in files.items()}
        paths = {name: work.run.path(f"{name}{work.data.suffix}") for name in files}
        copy_rows(work.data, {paths[name]: rows for name, rows in files.items()})
        result["files"] = {name: str(path) for name, path in paths.items()}
    return result


def _whole(table: Table, rows: Bool[ndarray, " row"], *, every: bool) -> Bool[ndarray, " conversation"]:
    """Which rows of the data set are taken: those with a reply among `rows`, or with every usable reply among them."""
    some = np.zeros(table.conversations[-1] + 1, dtype=bool)
    some[table.conversations[rows]] = True
    if every:
        some[table.conversations[table.good & ~rows]] = False
    return some


def _flags(screened: Screened, wanted: Selection, percentile: float) -> tuple[Row, Bool[ndarray, " row"]]:
    """What the rule drops, and the rows that it keeps."""
    table, judged, reference = screened.table, screened.judged, screened.reference
    scores = {name: table.column(name) for name in table.names}
    limits = thresholds(reference.scores if reference else scores, percentile)
    judge_limits = thresholds(reference.judged if reference else judged, percentile)
    if unjudged := [name for name, limit in judge_limits.items() if np.isnan(limit)]:
        raise DataError(
            f"expected rows that {screened.work.judge} scores for {unjudged[0]}, got none; the reasons are in judge/"
        )

    def dropped(projections: Columns, by_judge: Columns) -> Bool[ndarray, " row"]:
        """Rows to drop of a set."""
        over = above(by_judge, judge_limits) if by_judge else None
        return flagged(wanted.flag_by, above(projections, limits), over)

    over = dropped(scores, judged)
    false_alarms = round(float(dropped(reference.scores, reference.judged).mean()), 6) if reference else None
    kept = table.good & ~over
    return {
        "percentile": percentile,
        "of": reference.name if reference else "the data set itself",
        "false_positive_rate": false_alarms,
        "thresholds": {name: round(limit, 6) for name, limit in limits.items()},
        "by": wanted.flag_by,
        "judge_thresholds": {name: round(limit, 6) for name, limit in judge_limits.items()},
        "flagged_by_judge": int((table.good & above(judged, judge_limits)).sum()) if judged else None,
        "flagged": {name: int((scores[name] > limits[name]).sum()) for name in table.names},
        "dropped": int((table.good & over).sum()),
        "kept": int(kept.sum()),
    }, kept


def examples(screened: Screened, wanted: Selection) -> Row:
    """The beginnings of the most extreme rows' texts, for the report."""
    names, places = screened.table.names, dict[int, list[tuple[str, str, float]]]()
    shown = min(SHOWN, wanted.top_k or SHOWN)  # no more than were searched for
    for name in names:
        ranked = screened.ranked(name)
        for side, chosen in zip(("highest", "lowest"), extremes(ranked, shown), strict=True):
            for row in np.flatnonzero(chosen):
                places.setdefault(int(row), []).append((name, side, float(ranked[row])))
    texts: Row = {name: {"highest": [], "lowest": []} for name in names}
    for sample in screened.work.samples():
        if not isinstance(sample, Sample):
            continue
        for name, side, score in places.get(sample.row, ()):
            text = {"prompt": sample.messages[-1]["content"], "response": sample.response}
            short = {key: value[:LONGEST_EXAMPLE] + "…" * (len(value) > LONGEST_EXAMPLE) for key, value in text.items()}
            texts[name][side].append({"row": sample.row, "where": sample.where, "score": score, **short})
    for sides in texts.values():
        sides["highest"].sort(key=lambda row: -row["score"])
        sides["lowest"].sort(key=lambda row: row["score"])
    return texts
