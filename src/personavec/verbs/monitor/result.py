"""What monitoring found: means, curves, distributions and alerts by vector, for people, scripts and the report."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.data.dataset import alike
from personavec.runs.result import Result
from personavec.runs.run import Row, Run
from personavec.runs.show import alerts_said, interval
from personavec.stats.intervals import clustered_mean
from personavec.verbs.monitor.calibrate import Benign
from personavec.verbs.monitor.calibration import DRIFT, DRIFT_FROM, EVERY, KINDS, Alert, Calibration, Kind
from personavec.verbs.monitor.turns import TABLE, About, Recordings, TurnCensus, TurnRow

FIELDS: dict[Kind, Literal["prompt_last", "response_avg"]] = {
    "prompt last": "prompt_last",
    "response avg": "response_avg",
}
"""Where the table has the value of each kind."""
CURVE_TURNS = 50
"""Turns of the drift curve; later ones are in the table."""
BINS = 40
ELSEWHERE = 0.5
"""Standard deviations of the benign turns beyond which the mean of all traffic is another."""
SHOWN_ALERTS = 100
"""Largest alerts whose replies the page shows the beginning of."""
SHOWN_CONVERSATIONS = 20
"""Those with alerts whose turns the page draws."""


class Event(Alert, About):
    """An alert, and where it was raised."""

    turn: int


def direction(alert: Alert) -> Literal["toward", "against"]:
    """On which side of the trait a value lies beyond its limits."""
    return "toward" if alert["value"] > alert["high"] else "against"


def excess(alert: Alert) -> float:
    """How far a value lies beyond its limits, as a share of the room between them."""
    room = max(alert["high"] - alert["low"], 1e-9)
    return max(alert["value"] - alert["high"], alert["low"] - alert["value"]) / room


@dataclasses.dataclass(frozen=True, repr=False)
class Monitoring(Result):
    """Where conversations lie along vectors, and what is unlike benign ones; `to_dict()` is what `--json` prints."""

    turns: list[TurnRow]
    """Every turn of the assistant, in order."""
    alerts: list[Event]
    """In order; none without limits."""
    calibration: Calibration | None
    """The limits: pass them to the next call, or save them."""
    texts: list[list[str]] = dataclasses.field(default_factory=list)
    """Of a single conversation read with tokens: those of each reply."""
    beginnings: Mapping[int, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Of the replies of the conversations with the largest alerts, by row."""

    page = "monitor"

    @property
    def drawn(self) -> Row:
        """What the page is made of: the result, all alerts, the largest first, and the turns of their conversations."""
        raised = sorted(
            (
                {**alert, "direction": direction(alert), "excess": excess(alert), "said": self._said(alert)}
                for alert in self.alerts
            ),
            key=lambda alert: -alert["excess"],  # type: ignore[operator]
        )
        chosen = list(dict.fromkeys(alert["conversation"] for alert in raised))[:SHOWN_CONVERSATIONS]
        lines = [row for row in self.turns if row["conversation"] in chosen]
        return dict(self.data) | {"raised": raised, "lines": lines, "replies": self._replies()}

    def _said(self, alert: Event) -> str:
        return dict(enumerate(self.beginnings.get(alert["conversation"], ()), 1)).get(alert["turn"], "")

    def _replies(self) -> list[Row]:
        """By vector and turn, the reply's tokens with their projections."""
        return [
            {"vector": name, "turn": row["turn"], "tokens": list(zip(texts, along["tokens"], strict=True))}
            for row, texts in zip(self.turns if self.texts else (), self.texts, strict=True)
            for name, along in row["vectors"].items()
        ]

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        shown = {
            "conversations": f"{data['conversations']:,} with {data['turns']:,} turns",
            "skipped rows": f"{data['skipped']:,}",
        }
        for name, layer in data["layers"].items():
            shown[f"{name}, layer {layer}"] = "; ".join(
                f"{kind} {interval(mean, 2)}" for kind, mean in data["projections"][name].items()
            )
        alerted = data["conversations_with_alerts"]
        shown["with alerts"] = "no limits: pass calibrate=" if alerted is None else f"{alerted:,} conversations"
        if data["expectation"]:
            shown["alerts"] = alerts_said(data["expectation"])
            shown |= {f"{name} elsewhere": said for name, said in data["elsewhere"].items()}
        return list(shown.items())


@dataclasses.dataclass(frozen=True)
class Readings:
    """Everything that was read and raised."""

    recordings: Recordings
    data: str
    """Name of the data set."""
    census: TurnCensus
    rows: Sequence[TurnRow]
    alerts: Sequence[Event]
    benign: Sequence[TurnRow]
    """Turns of the benign conversations; empty where the limits are of an earlier run."""
    limits: Calibration | None
    file: str | None
    """Where those are kept."""
    hashes: Mapping[str, str]
    """Content hash of each vector by name."""


def summarise(readings: Readings, run: Run) -> Row:
    """The content of result.json."""
    rows, census, limits, read = readings.rows, readings.census, readings.limits, readings.recordings.directions
    conversations = np.array([row["conversation"] for row in rows])

    def mean(name: str, kind: Kind) -> Row:
        """Over turns, whole conversations taken as drawn."""
        return clustered_mean(_column(rows, name, kind), conversations).to_json()

    return {
        "out": run.shown(),
        "data": readings.data,
        "model": readings.recordings.model.identity.id,
        "conversations": census.conversations,
        "turns": len(rows),
        "empty_replies": sum(row["response_tokens"] == 0 for row in rows),
        "unread_turns": census.unread_turns,
        "skipped": len(census.skipped),
        "skipped_by_reason": dict(Counter(alike(row["reason"]) for row in census.skipped).most_common(20)),
        "layers": dict(zip(read.names, read.layers, strict=True)),
        "projections": {name: {kind: mean(name, kind) for kind in KINDS} for name in read.names},
        "curves": {name: {kind: list(_curve(rows, name, kind)) for kind in KINDS} for name in read.names},
        "distributions": {name: {kind: _distribution(readings, name, kind) for kind in KINDS} for name in read.names},
        "groups": _groups(readings) if readings.recordings.group_by else {},
        "calibration": _limits(readings, limits) if limits else None,
        "alerts": _counts(readings, limits) if limits else None,
        "expectation": _expectation(readings, limits) if limits else None,
        "directions": _directions(readings) if limits else None,
        "elsewhere": _elsewhere(readings, limits) if limits else None,
        "longer_than_benign": _longer(readings, limits) if limits else None,
        "conversations_with_alerts": len({alert["conversation"] for alert in readings.alerts}) if limits else None,
        "table": run.shown(TABLE),
        "events": run.shown("alerts.jsonl"),
    }


def benign_paths(rows: Sequence[TurnRow], name: str) -> list[Benign]:
    """The conversations of a table along one vector."""
    conversations: dict[int, list[TurnRow]] = {}
    for row in rows:
        conversations.setdefault(row["conversation"], []).append(row)
    return [
        Benign(
            turns[0]["group"],
            {kind: values[~np.isnan(values)] for kind in KINDS for values in [_column(turns, name, kind)]},
        )
        for turns in conversations.values()
    ]


def _column(rows: Sequence[TurnRow], name: str, kind: Kind) -> Float[ndarray, " turn"]:
    """A value of every turn; nan where there is none."""
    return np.array([row["vectors"][name][FIELDS[kind]] for row in rows], dtype=float)


def _curve(rows: Sequence[TurnRow], name: str, kind: Kind) -> Iterator[Row]:
    """Mean over the conversations that have a turn, turn by turn."""
    by_turn: dict[int, list[TurnRow]] = {}
    for row in rows:
        by_turn.setdefault(row["turn"], []).append(row)
    for turn in sorted(by_turn)[:CURVE_TURNS]:
        values = _column(by_turn[turn], name, kind)
        yield {"turn": turn, **clustered_mean(values, np.arange(len(values))).to_json()}


def _distribution(readings: Readings, name: str, kind: Kind) -> Row:
    """Turns by value, next to the benign ones where those were read."""
    columns = {"data": _column(readings.rows, name, kind), "benign": _column(readings.benign, name, kind)}
    both = np.concatenate(list(columns.values()))
    edges = np.histogram_bin_edges(both[~np.isnan(both)], BINS)
    counts = {key: np.histogram(values, edges)[0].tolist() for key, values in columns.items()}
    return {"edges": [round(float(edge), 5) for edge in edges], **counts}


def _groups(readings: Readings) -> Row:
    """What each group holds, whether it is compared with limits of its own or with those of all, and if for drift."""
    turns = Counter(row["group"] for row in readings.rows)
    conversations = Counter(row["group"] for row in readings.rows if row["turn"] == 1)
    groups: Row = {group: {"conversations": conversations[group], "turns": n} for group, n in turns.most_common()}
    if readings.limits:
        pairs = {(alert["group"], alert["conversation"]) for alert in readings.alerts}
        alerted = Counter(group for group, _ in pairs)
        bands = [readings.limits.vectors[vector].bands for vector in readings.hashes.values()]
        for group, counts in groups.items():
            known = group != EVERY and all(group in of_vector for of_vector in bands)
            counts |= {"with_alerts": alerted[group], "limits": "own" if known else EVERY}
            counts["drift"] = all(readings.limits.drift(vector, group) for vector in readings.hashes.values())
    return groups


def _longer(readings: Readings, limits: Calibration) -> Row:
    """By vector, conversations longer than any benign one: drift raises more false alarms there than is stated."""
    tests = {name: limits.drift(vector) for name, vector in readings.hashes.items()}
    return {
        name: sum(row["turn"] == test.cusum.longest + 1 for row in readings.rows) if test else 0
        for name, test in tests.items()
    }


def _limits(readings: Readings, limits: Calibration) -> Row:
    """The limits that were used."""
    vectors = {name: limits.vectors[vector] for name, vector in readings.hashes.items()}
    return {
        "file": readings.file,
        "false_positive_rate": limits.false_positive_rate,
        "benign": dict(limits.benign),
        "bands": {
            name: {kind: dataclasses.asdict(usual.bands[EVERY][kind]) for kind in KINDS}
            for name, usual in vectors.items()
        },
        "drift": {
            name: dataclasses.asdict(usual.drift[EVERY]) if EVERY in usual.drift else None
            for name, usual in vectors.items()
        },
        "held_out": {name: dict(usual.held_out) for name, usual in vectors.items()},
    }


def _counts(readings: Readings, limits: Calibration) -> Row:
    """By vector and kind, how many alerts there are, and how many turns or conversations could have raised one."""
    several = Counter(row["group"] for row in readings.rows if row["turn"] == DRIFT_FROM)
    counts: Row = {}
    for name, vector in readings.hashes.items():
        alerts = [alert for alert in readings.alerts if alert["vector"] == name]
        by_kind = Counter(alert["kind"] for alert in alerts)
        counts[name] = {
            kind: {"alerts": by_kind[kind], "of_turns": int((~np.isnan(_column(readings.rows, name, kind))).sum())}
            for kind in KINDS
        }
        counts[name][DRIFT] = {
            "alerts": by_kind[DRIFT],
            "conversations": len({alert["conversation"] for alert in alerts if alert["kind"] == DRIFT}),
            "of_conversations": sum(n for group, n in several.items() if limits.drift(vector, group)),
        }
    return counts


def _expectation(readings: Readings, limits: Calibration) -> Row:
    """Alerts next to what chance alone gives at the stated rate, over all vectors and kinds."""
    rate = limits.false_positive_rate
    counts = [kind for kinds in _counts(readings, limits).values() for kind in kinds.values()]
    tests = sum(kind.get("of_turns", kind.get("of_conversations", 0)) for kind in counts)
    return {"alerts": len(readings.alerts), "by_chance": round(rate * tests, 1)}


def _directions(readings: Readings) -> Row:
    """By vector, alerts on the side of the trait and against it."""
    ways = Counter((alert["vector"], direction(alert)) for alert in readings.alerts)
    return {name: {way: ways[name, way] for way in ("toward", "against")} for name in readings.hashes}


def _elsewhere(readings: Readings, limits: Calibration) -> dict[str, str]:
    """By vector, in words, where the traffic as a whole lies elsewhere than the benign conversations."""
    conversations = np.array([row["conversation"] for row in readings.rows])
    texts: dict[str, str] = {}
    for name, vector in readings.hashes.items():
        for kind in KINDS:
            band = limits.band(vector, kind)
            mean = clustered_mean((_column(readings.rows, name, kind) - band.mean) / band.sd, conversations)
            if mean.low > ELSEWHERE or mean.high < -ELSEWHERE:
                side = "above" if mean.mean > 0 else "below"
                texts[name] = (
                    f"all traffic lies elsewhere than the benign conversations, {abs(mean.mean):.1f} of their standard "
                    f"deviations {side} along {name} ({kind}): alerts say that more than anything of single turns; "
                    "calibrate on traffic of the same kind"
                )
    return texts
