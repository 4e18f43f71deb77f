"""Monitor: where recorded conversations lie along persona vectors, turn by turn, and which are unlike benign ones."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personavec.data.dataset import Dataset, alike, open_dataset
from personavec.errors import VectorError
from personavec.model.chat_model import ChatModel
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import clustered_mean
from personavec.steering.projection import Directions, directions, names_of
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.monitor.calibrate import Benign, calibrate, too_few
from personavec.verbs.monitor.calibration import DRIFT, EVERY, KINDS, WATCHED, Calibration, Drift, fewest
from personavec.verbs.monitor.options import MonitorConfig
from personavec.verbs.monitor.turns import TABLE, read_turns, take_census
from personavec.verbs.options import load_subject

FIELDS = dict(zip(KINDS, ("prompt_last", "response_avg"), strict=True))
"""Where the table has the value of each kind."""
CURVE_TURNS = 50
"""Turns of the drift curve; later ones are in the table."""
BINS = 40

Row = dict[str, Any]


def monitor(config: MonitorConfig) -> Row:
    """Projections of every assistant turn at its last prompt token and over the reply, and alerts.

    Alerts are raised beyond limits that benign conversations set, never on values by themselves: without `calibrate` or
    `calibration` there are none.
    Source: Persona Vectors (arXiv 2507.21509) section 3.3.

    Returns:
        By vector the mean `projections`, the `curves` over turns and `distributions`; `alerts` by vector and kind, and
        the paths of the tables.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the run folder.
    """
    began = time.monotonic()
    data = open_dataset(config.data)
    benign = open_dataset(config.calibrate) if config.calibrate is not None else None
    calibration = Calibration.load(config.calibration) if config.calibration else None
    vectors = [load_vector(path) for path in config.vectors]
    names = names_of(vectors)
    if unknown := [vector.card.trait for vector in vectors if vector.card.layer is None]:
        raise VectorError(f"expected a recommended layer for {unknown[0]}, got none; extract it again")
    model = load_subject(config)
    for vector in vectors:
        vector.check_model(model.identity)
    read = directions(vectors, names, (), config.seed)
    hashes = {name: vector.content_hash for name, vector in zip(names, vectors, strict=True)}
    if calibration:
        calibration.check_model(model.identity.id, model.identity.revision)
        for name, layer in zip(names, read.layers, strict=True):
            calibration.check_vector(hashes[name], name, layer)
    run = Run.open(
        config.out or Path("runs") / f"monitor-{Path(config.data).stem}",
        settings(type(config), vars(config)),
        _inputs(config, model, vectors, data),
    )

    census = take_census(run, data, model, config)
    usual: list[Row] = []
    if benign:
        calibration, usual = _calibrated(config, run, benign, model, read, vectors)
        calibration.save(run.path("calibration.json"))
    rows = read_turns(run, data, census, model, read, config, "reading conversations")
    alerts = list(raised(rows, calibration, hashes)) if calibration else []
    run.write_rows("alerts.jsonl", alerts)
    result: Row = {
        "out": str(run.folder),
        "data": config.data,
        "model": config.model,
        "conversations": census.conversations,
        "turns": len(rows),
        "empty_replies": sum(row["response_tokens"] == 0 for row in rows),
        "unread_turns": census.unread_turns,
        "skipped": len(census.skipped),
        "skipped_by_reason": dict(Counter(alike(row["reason"]) for row in census.skipped).most_common(20)),
        "layers": dict(zip(names, read.layers, strict=True)),
        "projections": {name: _means(rows, name, config.seed) for name in names},
        "curves": {name: {kind: list(_curve(rows, name, kind, config.seed)) for kind in KINDS} for name in names},
        "distributions": {name: {kind: _distribution(rows, usual, name, kind) for kind in KINDS} for name in names},
        "groups": _groups(rows, alerts, calibration, hashes) if config.group_by else {},
        "calibration": _told(config, run, calibration, hashes) if calibration else None,
        "alerts": _counts(rows, alerts, calibration, hashes) if calibration else None,
        "longer_than_benign": _longer(rows, calibration, hashes) if calibration else None,
        "conversations_with_alerts": len({alert["conversation"] for alert in alerts}) if calibration else None,
        "table": str(run.path(TABLE)),
        "events": str(run.path("alerts.jsonl")),
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def raised(rows: Sequence[Row], calibration: Calibration, hashes: Mapping[str, str]) -> Iterator[Row]:
    """Alerts of all turns in order: one for each value outside its band, and those of the sequential test.

    Args:
        rows: Turns as `turns.jsonl` has them, those of a conversation one after the other.
        calibration: The limits.
        hashes: Content hash of each vector by the name it has in the rows.
    """
    tests: dict[str, Drift | None] = {}
    conversation = None
    for row in rows:
        if row["conversation"] != conversation:
            conversation = row["conversation"]
            tests = {name: calibration.drift(own, row["group"]) for name, own in hashes.items()}
        about = {key: row[key] for key in ("conversation", "name", "where", "group", "turn")}
        for name, own in hashes.items():
            values = {kind: row["vectors"][name][FIELDS[kind]] for kind in KINDS}
            found = calibration.check(own, values, row["group"])
            test = tests[name]
            if test and values[WATCHED] is not None:
                found += [alert] if (alert := test.add(values[WATCHED])) else []
            yield from ({**alert, "vector": name, **about} for alert in found)


def _inputs(config: MonitorConfig, model: ChatModel, vectors: Sequence[PersonaVector], data: Dataset) -> dict[str, str]:
    inputs = {"model": model.identity.revision, "numbers": model.numbers, **data.fingerprint()}
    return inputs | {f"vector {path}": v.content_hash for path, v in zip(config.vectors, vectors, strict=True)}


def _calibrated(
    config: MonitorConfig,
    run: Run,
    benign: Dataset,
    model: ChatModel,
    read: Directions,
    vectors: Sequence[PersonaVector],
) -> tuple[Calibration, list[Row]]:
    """Limits from the benign conversations, which are read alike, in a folder of their own."""
    part = run.part(f"benign-{Run.digest(benign.fingerprint())}")
    census = take_census(part, benign, model, config)
    if census.conversations < fewest(config.false_positive_rate):
        raise too_few(census.conversations, config.false_positive_rate)
    rows = read_turns(part, benign, census, model, read, config, "reading benign conversations")
    found = {
        vector.content_hash: calibrate(
            _conversations(rows, name), vector.card.trait, layer, config.false_positive_rate, config.seed
        )
        for vector, name, layer in zip(vectors, read.names, read.layers, strict=True)
    }
    about = {"data": config.calibrate, "conversations": census.conversations, "turns": len(rows)}
    about |= {"skipped": len(census.skipped), "group_by": config.group_by}
    about |= {"system": config.system, "reasoning": config.reasoning}
    identity = dataclasses.asdict(model.identity)
    return Calibration(identity, config.false_positive_rate, found, about), rows


def _conversations(rows: Sequence[Row], name: str) -> list[Benign]:
    """The conversations of a table along one vector."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["conversation"], []).append(row)
    return [
        Benign(turns[0]["group"], {kind: own[~np.isnan(own)] for kind in KINDS for own in [_column(turns, name, kind)]})
        for turns in found.values()
    ]


def _column(rows: Sequence[Row], name: str, kind: str) -> Any:
    """A value of every turn; nan where there is none."""
    return np.array([row["vectors"][name][FIELDS[kind]] for row in rows], dtype=float)


def _means(rows: Sequence[Row], name: str, seed: int) -> Row:
    """Mean over turns, whole conversations resampled."""
    conversations = np.array([row["conversation"] for row in rows])
    return {kind: clustered_mean(_column(rows, name, kind), conversations, seed).to_json() for kind in KINDS}


def _curve(rows: Sequence[Row], name: str, kind: str, seed: int) -> Iterator[Row]:
    """Mean over the conversations that have a turn, turn by turn."""
    by_turn: dict[int, list[Row]] = {}
    for row in rows:
        by_turn.setdefault(row["turn"], []).append(row)
    for turn in sorted(by_turn)[:CURVE_TURNS]:
        own = _column(by_turn[turn], name, kind)
        yield {"turn": turn, **clustered_mean(own, np.arange(len(own)), seed).to_json()}


def _distribution(rows: Sequence[Row], usual: Sequence[Row], name: str, kind: str) -> Row:
    """Turns by value, beside the benign ones where those were read."""
    own, other = _column(rows, name, kind), _column(usual, name, kind)
    both = np.concatenate([own, other])
    edges = np.histogram_bin_edges(both[~np.isnan(both)], BINS)
    counts = {key: np.histogram(values, edges)[0].tolist() for key, values in (("data", own), ("benign", other))}
    return {"edges": [round(float(edge), 5) for edge in edges], **counts}


def _groups(
    rows: Sequence[Row], alerts: Sequence[Row], calibration: Calibration | None, hashes: Mapping[str, str]
) -> Row:
    """What each group holds, and whether it is compared with limits of its own or with those of all."""
    turns = Counter(row["group"] for row in rows)
    conversations = Counter(row["group"] for row in rows if row["turn"] == 1)
    found: Row = {group: {"conversations": conversations[group], "turns": n} for group, n in turns.most_common()}
    if calibration:
        alerted = Counter(group for group, _ in {(alert["group"], alert["conversation"]) for alert in alerts})
        for group, own in found.items():
            known = all(group in calibration.vectors[one].bands for one in hashes.values())
            own |= {"with_alerts": alerted[group], "limits": "own" if known and group != EVERY else EVERY}
    return found


def _longer(rows: Sequence[Row], calibration: Calibration, hashes: Mapping[str, str]) -> Row:
    """By vector, conversations longer than any benign one: drift raises more false alarms there than is stated."""
    tests = {name: calibration.drift(own) for name, own in hashes.items()}
    return {
        name: sum(row["turn"] == test.cusum.longest + 1 for row in rows) if test else 0 for name, test in tests.items()
    }


def _told(config: MonitorConfig, run: Run, calibration: Calibration, hashes: Mapping[str, str]) -> Row:
    """The limits that were used."""
    own = {name: calibration.vectors[one] for name, one in hashes.items()}
    return {
        "file": str(config.calibration or run.path("calibration.json")),
        "false_positive_rate": calibration.false_positive_rate,
        "benign": dict(calibration.benign),
        "bands": {
            name: {kind: dataclasses.asdict(one.bands[EVERY][kind]) for kind in KINDS} for name, one in own.items()
        },
        "drift": {
            name: dataclasses.asdict(one.drift[EVERY]) if EVERY in one.drift else None for name, one in own.items()
        },
        "held_out": {name: dict(one.held_out) for name, one in own.items()},
    }


def _counts(rows: Sequence[Row], alerts: Sequence[Row], calibration: Calibration, hashes: Mapping[str, str]) -> Row:
    """By vector and kind, how many alerts there are, and how many turns or conversations could have raised one."""
    several = len({row["conversation"] for row in rows if row["turn"] > 1})
    found: Row = {}
    for name, vector in hashes.items():
        own = [alert for alert in alerts if alert["vector"] == name]
        by_kind = Counter(alert["kind"] for alert in own)
        found[name] = {
            kind: {"alerts": by_kind[kind], "of_turns": int((~np.isnan(_column(rows, name, kind))).sum())}
            for kind in KINDS
        }
        found[name][DRIFT] = {
            "alerts": by_kind[DRIFT],
            "conversations": len({alert["conversation"] for alert in own if alert["kind"] == DRIFT}),
            "of_conversations": several if calibration.vectors[vector].drift else 0,
        }
    return found
