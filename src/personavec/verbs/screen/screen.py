"""Screen: which traits a data set would train, by how much, and which rows do it."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personavec.data.dataset import Dataset, open_dataset
from personavec.data.sample import Sample
from personavec.data.subset import copy_rows
from personavec.errors import ConfigError, DataError
from personavec.judges.judge import TraitJudge
from personavec.model.chat_model import ChatModel
from personavec.runs.files import sha256
from personavec.runs.progress import stage, tell
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import Interval, spearman_rows, streamed_mean
from personavec.stats.nulls import against
from personavec.steering.projection import Directions, directions, names_of
from personavec.steering.vector import load_vector
from personavec.verbs.options import load_subject
from personavec.verbs.screen import flagging
from personavec.verbs.screen.base_replies import BaseReplies, open_base_replies
from personavec.verbs.screen.extremes import top_differences
from personavec.verbs.screen.judge_rows import judge_rows, load_judges
from personavec.verbs.screen.options import ScreenConfig
from personavec.verbs.screen.parallel import screen_in_parallel
from personavec.verbs.screen.plan import SIZES, Census, estimate, foretold, measure, take_census
from personavec.verbs.screen.sampled import Differences, sample_differences
from personavec.verbs.screen.shards import COLUMNS, NO_BASE_REPLY, SHARD_ROWS, screen_shard, shards
from personavec.verbs.screen.table import Table

Row = dict[str, Any]

SHOWN, LONGEST_EXAMPLE = 10, 600
"""Extreme rows of each side that the report shows, and characters of each text."""


def screen(config: ScreenConfig) -> Row:
    """Project every row of a data set on persona vectors, and compare it with the base model's own replies.

    Returns:
        What `--json` prints: `rows`, `skipped`, `projection_difference` of the set by vector, `table` (a folder of
        Parquet files), `rows_per_second`, `tokens`; `flags` and `files` where they were asked for.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the run folder.
    """
    began = time.monotonic()
    if not config.data or not config.vectors:
        raise ConfigError(
            "expected a data set and --vectors, got "
            f"{'no data set' if not config.data else 'no vectors'}; for example: personavec screen chats.jsonl "
            "--vectors runs/demo/optimistic/vector.safetensors"
        )
    if config.top_k and config.cost != "sampled":
        raise ConfigError(f"expected --cost sampled with --top-k, got {config.cost}; pass --cost sampled")
    if config.top_k and (config.export_k or 0) > config.top_k:
        raise ConfigError(
            f"expected --export-k of at most --top-k, {config.top_k}, got {config.export_k}; rows beyond those are not "
            "searched for, so raise --top-k"
        )
    data, clean = open_dataset(config.data), open_dataset(config.clean) if config.clean else None
    vectors = [load_vector(path) for path in config.vectors]
    model = load_subject(config)
    for vector in vectors:
        vector.check_model(model.identity)
    names = names_of(vectors)
    if taken := sorted(set(names) & COLUMNS.keys()):
        raise ConfigError(
            f"expected traits that are not named like a column of the table, got {taken[0]}; rename the trait in its "
            "file and extract it again"
        )
    read = directions(vectors, names, config.layers, config.seed)
    inputs = {"model": model.identity.revision, "numbers": model.numbers, **data.fingerprint()}
    inputs |= {"rows in a part": str(SHARD_ROWS), **{f"trait {path}": sha256(path) for path in config.traits}}
    inputs |= {f"vector {path}": v.content_hash for path, v in zip(config.vectors, vectors, strict=True)}
    bench, judges = load_judges(config, model, vectors, names) if config.judge else (None, {})
    if config.flag_by != "projection" and not judges:
        raise ConfigError(f"expected a --judge with --flag-by {config.flag_by}, got none; pass one")
    run = Run.open(config.out or _default_out(config), settings(type(config), vars(config)), inputs)

    census = take_census(run, data, config)
    base = open_base_replies(model, config)
    rates = measure(run, census, model, read, config, base)
    plans = {rows: estimate(rates, rows, config.precision, config.price_per_hour) for rows in (census.rows, *SIZES)}
    for rung in plans[census.rows]:
        tell(foretold(rung, rung["cost"] == config.cost))
    result: Row = {
        "out": str(run.folder),
        "data": config.data,
        "cost": config.cost,
        "rows": census.rows,
        "skipped": census.bad,
    }
    result |= {"model": config.model, "vectors": [str(path) for path in config.vectors]}
    result |= {
        "plan": {"rates": dataclasses.asdict(rates), "estimates": [row for rows in plans.values() for row in rows]}
    }
    if not config.plan:
        result |= _screened(config, run, data, clean, census, model, read, base, judges)
        result["judge_usage"] = bench.usage if bench else None
    result |= {"versions": versions(), "seconds": round(time.monotonic() - began, 1)}
    run.write_json("plan.json" if config.plan else "result.json", result)
    run.finish()
    return result


def _default_out(config: ScreenConfig) -> Path:
    stem = Path(config.data).stem if Path(config.data).exists() else config.data.replace("/", "-").replace(":", "-")
    return Path("runs") / f"screen-{stem}-{config.cost}"


def _screened(
    config: ScreenConfig,
    run: Run,
    data: Dataset,
    clean: Dataset | None,
    census: Census,
    model: ChatModel,
    read: Directions,
    base: BaseReplies,
    judges: dict[str, TraitJudge],
) -> Row:
    """Everything after the plan."""
    began = time.monotonic()
    fresh = _project(config, run, data, census, model, read, base)
    seconds = time.monotonic() - began
    table = _checked(config, run, data, census, read)
    differences = None
    if config.cost == "sampled":
        differences = sample_differences(config, run, data, model, read, base, table)
        if config.top_k:
            top_differences(config, run, data, model, read, base, table, differences)
    run.write_rows("skipped.jsonl", [*table.errors(), *(differences.missing if differences else ())])
    result: Row = {
        "estimate": {"raw": "raw projection", "proxy": "proxy of the projection difference"}.get(
            config.cost, "projection difference"
        ),
        "projection_difference": {name: _set_mean(table, name, differences).to_json() for name in read.names},
        "random_control": _random_control(table, read, differences),
        "layers": dict(zip(read.names, read.layers, strict=True)),
        "skipped": int((~table.good).sum()),
        "skipped_by_reason": dict(table.reasons().most_common(20)),
        "rows_with_more_turns": table.rows_with_more_turns,
        "confounds": {name: table.confounds(name) for name in read.names},
        "sources": table.by_source(),
        "table": str(run.path("table")),
        "tokens": table.tokens | _written(config, base),
        "rows_per_second": round(fresh / seconds, 2) if fresh else None,
    }
    matched = {name: streamed_mean(table.column(f"{name}.matched")) for name in read.names if config.cost == "full"}
    result["length_matched"] = {name: mean.to_json() for name, mean in matched.items()} or None
    result["sampled"] = differences.to_json() if differences else None
    judged, whys = judge_rows(config, run, data, table, judges) if judges else ({}, {})
    result["judge"] = _judge_told(config, table, judged, whys) if judges else None
    reference = _clean_scores(config, run, clean, model, read, base, judges) if clean else None
    clean_scores = reference.scores if reference else {}
    result |= {
        "distributions": {name: flagging.histogram(table.column(name), clean_scores.get(name)) for name in read.names}
    }
    result |= _flags(config, run, data, table, differences, reference, read.names, judged)
    run.write_json("examples.json", _examples(config, data, table, differences, read.names))
    return result


def _written(config: ScreenConfig, base: BaseReplies) -> Row:
    """Base replies written and found by this process; Ray's actors count for themselves."""
    counted = not config.ray
    return {
        "written_now": base.written_tokens if counted else None,
        "base_replies_kept": base.kept if counted else None,
    }


def _checked(config: ScreenConfig, run: Run, data: Dataset, census: Census, read: Directions) -> Table:
    """The table of a data set, after a look at whether it is whole.

    Raises:
        DataError: It has other rows than the data set, none that can be used, or one that is to stop the run.
    """
    table = Table(run.path("table"), read.names)
    if not census.rows:
        raise DataError(f"expected rows that can be screened in {data.name}, got an empty data set; correct it")
    if not np.array_equal(table.rows, np.arange(census.rows)):
        raise DataError(
            f"expected {census.rows:,} rows in order in {table.folder}, got {len(table.rows):,}, or other ones; delete "
            "that folder and run again"
        )
    faults = (row for row in table.errors() if not row["reason"].startswith(NO_BASE_REPLY))
    if config.on_error == "stop" and (fault := next(faults, None)):
        raise DataError(
            f"{fault['where']}: {fault['reason']}; correct it and choose another --out, or pass --on-error skip"
        )
    if not table.good.any():
        told = ", ".join(f"{count} {reason}" for reason, count in table.reasons().most_common(3))
        raise DataError(f"expected rows that can be screened in {data.name}, got none ({told}); correct the data set")
    return table


def _examples(
    config: ScreenConfig, data: Dataset, table: Table, differences: Differences | None, names: Sequence[str]
) -> Row:
    """The beginnings of the most extreme rows' texts, for the report."""
    wanted: dict[int, list[tuple[str, str, float]]] = {}
    shown = min(SHOWN, config.top_k or SHOWN)  # no more than were searched for
    for name in names:
        ranked = differences.ranked(table, name) if differences else table.column(name)
        for side, chosen in zip(("highest", "lowest"), flagging.extremes(ranked, shown), strict=True):
            for row in np.flatnonzero(chosen):
                wanted.setdefault(int(row), []).append((name, side, float(ranked[row])))
    found: Row = {name: {"highest": [], "lowest": []} for name in names}
    for sample in data.samples(config.turn):
        if not isinstance(sample, Sample):
            continue
        for name, side, score in wanted.get(sample.row, ()):
            text = {"prompt": sample.messages[-1]["content"], "response": sample.response}
            short = {key: value[:LONGEST_EXAMPLE] + "…" * (len(value) > LONGEST_EXAMPLE) for key, value in text.items()}
            found[name][side].append({"row": sample.row, "where": sample.where, "score": score, **short})
    for sides in found.values():
        sides["highest"].sort(key=lambda row: -row["score"])
        sides["lowest"].sort(key=lambda row: row["score"])
    return found


def _project(
    config: ScreenConfig, run: Run, data: Dataset, census: Census, model: ChatModel, read: Directions, base: BaseReplies
) -> int:
    """Write the table, shard by shard, those that are there aside; returns the rows done now."""
    folder = run.path("table")
    folder.mkdir(exist_ok=True)
    if config.ray:
        return screen_in_parallel(config, folder, data, census.rows, read)
    answering = base if config.cost == "full" else None
    steps = 2 if answering else 1  # rows are answered, then read
    fresh = 0
    with stage(f"rows of {data.name}{', answered and read' * (steps > 1)}", steps * census.rows) as advance:
        for number, shard in enumerate(shards(data.samples(config.turn))):
            part, told = f"part-{number:06d}", 0

            def tell_more(rows: int) -> None:
                nonlocal told
                told += rows
                advance(rows)

            if not Table.has(folder, part):
                Table.write(folder, part, screen_shard(model, shard, read, config, answering, tell_more))
                fresh += len(shard)
            advance(steps * len(shard) - told)
    return fresh


def _set_mean(table: Table, name: str, differences: Differences | None) -> Interval:
    if differences is not None:
        return differences.means[name]
    return streamed_mean(table.column(name))


def _random_control(table: Table, read: Directions, differences: Differences | None) -> Row:
    """The same mean along directions without meaning: what the data set does to any direction."""
    moves = dict(zip(read.read_layers, table.mean_move() if differences is None else differences.move, strict=True))
    return {
        name: against(_set_mean(table, name, differences).mean, read.random(layer).numpy() @ moves[layer])
        for name, layer in zip(read.names, read.layers, strict=True)
    }


def _flags(
    config: ScreenConfig,
    run: Run,
    data: Dataset,
    table: Table,
    differences: Differences | None,
    reference: "Reference | None",
    names: Sequence[str],
    judged: dict[str, Any],
) -> Row:
    """Thresholds, and the data sets that are written by them."""
    scores = {name: table.column(name) for name in names}
    wanted: dict[Path, Any] = {}
    result: Row = {"flags": None, "clean": None, "files": {}}
    if reference is not None:
        means = {name: streamed_mean(values).to_json() for name, values in reference.scores.items()}
        result["clean"] = {"data": config.clean, "means": means} | reference.told
    percentile = config.keep_below if config.keep_below is not None else 95.0 if config.clean else None
    if percentile is not None:
        limits = flagging.thresholds(reference.scores if reference else scores, percentile)
        judge_limits = flagging.thresholds(reference.judged if reference else judged, percentile)
        if unjudged := [name for name, limit in judge_limits.items() if np.isnan(limit)]:
            raise DataError(
                f"expected rows that {config.judge} scores for {unjudged[0]}, got none; the reasons are in judge/"
            )

        def flag(own: dict[str, Any], own_judged: dict[str, Any]) -> Any:
            """Rows to drop of a set."""
            by_judge = flagging.above(own_judged, judge_limits) if own_judged else None
            return flagging.flagged(config.flag_by, flagging.above(own, limits), by_judge)

        over = flag(scores, judged)
        false_alarms = round(float(flag(reference.scores, reference.judged).mean()), 6) if reference else None
        by_judge = flagging.above(judged, judge_limits) if judged else None
        kept = table.good & ~over
        result["flags"] = {
            "percentile": percentile,
            "of": config.clean or "the data set itself",
            "false_positive_rate": false_alarms,
            "thresholds": {name: round(limit, 6) for name, limit in limits.items()},
            "by": config.flag_by,
            "judge_thresholds": {name: round(limit, 6) for name, limit in judge_limits.items()},
            "flagged_by_judge": None if by_judge is None else int((table.good & by_judge).sum()),
            "flagged": {name: int((scores[name] > limits[name]).sum()) for name in names},
            "dropped": int((table.good & over).sum()),
            "kept": int(kept.sum()),
        }
        wanted[run.path(f"kept{data.suffix}")] = kept
    if config.export_k:
        for name in names:
            ranked = differences.ranked(table, name) if differences else scores[name]
            top, bottom = flagging.extremes(ranked, config.export_k)
            wanted[run.path(f"top-{name}{data.suffix}")] = top
            wanted[run.path(f"bottom-{name}{data.suffix}")] = bottom
        drawn = np.zeros(len(table.good), dtype=bool)
        drawn[np.random.default_rng(config.seed).permutation(np.flatnonzero(table.good))[: config.export_k]] = True
        wanted[run.path(f"random{data.suffix}")] = drawn
    if wanted:
        copy_rows(data, wanted)
        result["files"] = {path.stem: str(path) for path in wanted}
    return result


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the usable rows of the clean data set are like."""

    scores: dict[str, Any]
    judged: dict[str, Any]
    told: Row
    """Of the rows that were left out."""


def _clean_scores(
    config: ScreenConfig,
    run: Run,
    clean: Dataset,
    model: ChatModel,
    read: Directions,
    base: BaseReplies,
    judges: dict[str, TraitJudge],
) -> Reference:
    """The clean data set screened and judged alike, in a folder of its own."""
    part = run.part(f"clean-{Run.digest(clean.fingerprint())}")
    census = take_census(part, clean, config)
    _project(config, part, clean, census, model, read, base)
    table = _checked(config, part, clean, census, read)
    part.write_rows("skipped.jsonl", [*table.errors()])
    judged = judge_rows(config, part, clean, table, judges)[0] if judges else {}
    return Reference(
        {name: table.column(name)[table.good] for name in read.names},
        {name: column[table.good] for name, column in judged.items()},
        {
            "rows": census.rows,
            "skipped": int((~table.good).sum()),
            "skipped_by_reason": dict(table.reasons().most_common(20)),
        },
    )


def _judge_told(config: ScreenConfig, table: Table, judged: dict[str, Any], whys: Row) -> Row:
    """What the judge said of the set, and how far it goes along with the projections."""
    return {
        "id": config.judge,
        "means": {name: streamed_mean(values).to_json() for name, values in judged.items()},
        "unscored": whys,
        "spearman_with_projection": {
            name: spearman_rows(table.column(name), judged[name.split("@")[0]]).to_json() for name in table.names
        },
    }
