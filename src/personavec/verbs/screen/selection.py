"""Which rows are taken out of a data set, and the files that are written of them."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from personavec.data.sample import Sample
from personavec.data.subset import copy_rows
from personavec.errors import ConfigError, DataError
from personavec.runs.files import write_file
from personavec.runs.run import Row
from personavec.stats.populations import streamed_mean
from personavec.verbs.screen.flagging import SIDES, Drop, beyond, extremes, flagged, more_than_chance, thresholds
from personavec.verbs.screen.sampled import Differences
from personavec.verbs.screen.shards import DataPass
from personavec.verbs.screen.table import Table

Columns = Mapping[str, Float[ndarray, " row"]]
Control = Callable[[str, float, Float[ndarray, "layer d_model"]], dict[str, Any]]
"""A mean along a vector next to the same mean along random directions, of what the rows moved."""

SHOWN, LONGEST_EXAMPLE = 10, 600
"""Extreme rows of each side that the report shows, and characters of each text."""


LEANS = (("above", "toward"), ("below", "against"))
"""What the high and the low side are called."""


@dataclass(frozen=True)
class Selection:
    """Which rows are asked for."""

    keep_below: float | None
    """Percentile beyond which rows are dropped; None is 95 where there is a clean set."""
    drop: Drop
    """On which side of the scores."""
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
    move: Float[ndarray, "layer d_model"]
    """Mean of what is projected for the scores."""
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
    verdict: Mapping[str, str | None]
    """Of the set, by vector."""
    control: Control

    def ranked(self, name: str) -> Float[ndarray, " row"]:
        """What extremes are taken from."""
        return self.table.column(name) if self.differences is None else self.differences.ranked(self.table, name)


def select(screened: Screened, wanted: Selection) -> Row:
    """Thresholds, and the data sets that are written by them."""
    work, table, reference = screened.work, screened.table, screened.reference
    result: Row = {"flags": None, "clean": None, "files": {}, "scores": {}}
    files: dict[str, Bool[ndarray, " row"]] = {}
    if reference is not None:
        means = {name: streamed_mean(values).to_json() for name, values in reference.scores.items()}
        result["clean"] = {"data": reference.name, "means": means} | reference.counts
    percentile = wanted.keep_below if wanted.keep_below is not None else 95.0 if reference else None
    if percentile is not None:
        result["flags"], files["kept"] = _flags(screened, wanted, percentile)
        result["flags"]["hints"] = _hints(screened, result["flags"])
    if wanted.export_k:
        for name in table.names:
            files[f"top-{name}"], files[f"bottom-{name}"] = extremes(screened.ranked(name), wanted.export_k)
        drawn = np.zeros(len(table.good), dtype=bool)
        drawn[np.random.default_rng(work.seed).permutation(np.flatnonzero(table.good))[: wanted.export_k]] = True
        files["random"] = drawn
    if files and work.run.kept:
        paths = {name: work.run.path(f"{name}{work.data.suffix}") for name in files}
        orders = {name: _order(screened, name, rows) for name, rows in files.items() if name != "kept"}
        in_order = {
            paths[name]: list(dict.fromkeys(table.conversations[order].tolist())) for name, order in orders.items()
        }
        files = {name: _whole(table, rows, every=name == "kept") for name, rows in files.items()}
        copy_rows(work.data, {paths[name]: rows for name, rows in files.items()}, in_order)
        result["files"] = {name: str(path) for name, path in paths.items()}
        result["scores"] = {name: str(_write_scores(screened, name, order)) for name, order in orders.items()}
    return result


def check_choice(
    cost: str,
    top_k: int | None,
    export_k: int | None,
    turn: str,
    drop: Drop,
    keep_below: float | None,
    clean: object,
    layers: Sequence[int] = (),
) -> None:
    """Check options that depend on each other.

    Raises:
        ConfigError: They do not fit.
    """
    if cost == "sampled" and turn == "every":
        raise ConfigError(
            "expected --turn first or last with --cost sampled, whose interval takes rows as drawn one by one, got "
            "every; pass another --cost"
        )
    if layers and cost == "lift":
        raise ConfigError("expected no layers with --cost lift, which reads none, got some; leave --layers out")
    if top_k and cost != "sampled":
        raise ConfigError(f"expected --cost sampled with --top-k, got {cost}; pass --cost sampled")
    if top_k and (export_k or 0) > top_k:
        raise ConfigError(
            f"expected --export-k of at most --top-k, {top_k}, got {export_k}; rows beyond those are not "
            "searched for, so raise --top-k"
        )
    if drop != "high" and keep_below is None and clean is None:
        raise ConfigError(f"expected --keep-below or --clean with --drop {drop}, got neither; pass one")
    if drop == "both" and keep_below is not None and keep_below <= 50:
        raise ConfigError(f"expected --keep-below above 50 with --drop both, got {keep_below:g}; no row would be kept")


def check_pairs(turn: str, plan: bool) -> None:
    """Check options of a screening of both sides of preferences.

    Raises:
        ConfigError: They do not fit.
    """
    if turn == "every":
        raise ConfigError("expected --turn first or last with --side both, whose rows are pairs of replies, got every")
    if plan:
        raise ConfigError("expected --side chosen or rejected with --plan, got both; both take about twice that")


def _whole(table: Table, rows: Bool[ndarray, " row"], *, every: bool) -> Bool[ndarray, " conversation"]:
    """Which rows of the data set are taken: those with a reply among `rows`, or with every usable reply among them."""
    some = np.zeros(table.conversations[-1] + 1, dtype=bool)
    some[table.conversations[rows]] = True
    if every:
        some[table.conversations[table.good & ~rows]] = False
    return some


def _order(screened: Screened, file: str, rows: Bool[ndarray, " row"]) -> list[int]:
    """Places of an exported file's rows: the highest or the lowest of a vector first, else as they are."""
    places = np.flatnonzero(rows)
    side, _, name = file.partition("-")
    if not name:
        return list(places.tolist())
    scores = screened.ranked(name)[places] * (-1 if side == "top" else 1)
    return list(places[np.argsort(scores, kind="stable")].tolist())


def _write_scores(screened: Screened, file: str, order: Sequence[int]) -> Path:
    """Write a table beside an exported file, with the place and the scores of each of its rows."""
    names, text = screened.table.names, io.StringIO()
    columns = [screened.ranked(name) for name in names]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *names])
    rows = screened.table.conversations
    writer.writerows([rows[place], *(f"{column[place]:.6g}" for column in columns)] for place in order)
    path = screened.work.run.path(f"{file}.scores.csv")
    write_file(path, text.getvalue().encode())
    return path


def _flags(screened: Screened, wanted: Selection, percentile: float) -> tuple[Row, Bool[ndarray, " row"]]:
    """What the rule drops, and the rows that it keeps."""
    table, judged, reference = screened.table, screened.judged, screened.reference
    scores = {name: table.column(name) for name in table.names}
    limits, judge_limits = (
        {side: thresholds(of, percentile, side) for side in SIDES["both"]}
        for of in ((reference.scores, reference.judged) if reference else (scores, judged))
    )
    if unjudged := [name for name, limit in judge_limits["high"].items() if np.isnan(limit)]:
        raise DataError(
            f"expected rows that {screened.work.judge} scores for {unjudged[0]}, got none; the reasons are in judge/"
        )

    def dropped(projections: Columns, by_judge: Columns) -> Bool[ndarray, " row"]:
        """Rows to drop of a set."""
        sides = [
            flagged(
                wanted.flag_by,
                beyond(projections, limits[side], side),
                beyond(by_judge, judge_limits[side], side) if by_judge else None,
            )
            for side in SIDES[wanted.drop]
        ]
        return np.asarray(np.any(sides, axis=0))

    over = dropped(scores, judged)
    false_alarms = round(float(dropped(reference.scores, reference.judged).mean()), 6) if reference else None
    kept = table.good & ~over
    counts = {
        side: {name: int(beyond({name: scores[name]}, {name: limits[side][name]}, side).sum()) for name in table.names}
        for side in SIDES["both"]
    }
    by_judge = [beyond(judged, judge_limits[side], side) for side in SIDES[wanted.drop] if judged]
    return {
        "percentile": percentile,
        "drop": wanted.drop,
        "of": reference.name if reference else "the data set itself",
        "false_positive_rate": false_alarms,
        "thresholds": _rounded(limits["high"]),
        "low_thresholds": _rounded(limits["low"]),
        "by": wanted.flag_by,
        "judge_thresholds": _rounded(judge_limits["high"]),
        "judge_low_thresholds": _rounded(judge_limits["low"]),
        "flagged_by_judge": int((table.good & np.any(by_judge, axis=0)).sum()) if judged else None,
        "flagged": counts["high"],
        "flagged_low": counts["low"],
        "by_chance": round(int(table.good.sum()) * (1 - percentile / 100), 1) if reference else None,
        "dropped": int((table.good & over).sum()),
        "kept": int(kept.sum()),
        "kept_conversations": int(_whole(table, kept, every=True).sum()),
    }, kept


def _hints(screened: Screened, flags: Row) -> list[str]:
    """Where the set leans to a side whose rows stay in: by more rows than chance gives, or by its mean."""
    drop, clean, hints = flags["drop"], screened.reference, list[str]()
    rows = int(screened.table.good.sum())
    for side, (over, way), counts in zip(SIDES["both"], LEANS, (flags["flagged"], flags["flagged_low"]), strict=True):
        for name, count in counts.items() if side not in SIDES[drop] else ():
            what = ""
            if clean and more_than_chance(count, rows, flags["percentile"], len(clean.scores[name])):
                what = f"{count:,} rows lie {over} the clean set, where chance alone gives {flags['by_chance']:.0f}"
            elif screened.verdict[name] == way:
                what = "the set's mean lies there"
            if what:
                hints.append(f"{name}, {way} the trait: {what}; --drop {drop} keeps that side, {side} or both drops it")
    return hints


def _rounded(limits: Mapping[str, float]) -> dict[str, float]:
    return {name: round(limit, 6) for name, limit in limits.items()}


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
