"""What benign traffic looks like along persona vectors: bands for single turns, a sequential test for slow drift."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from personavec.errors import DataError
from personavec.runs.files import write_file
from personavec.runs.json_files import read_json
from personavec.runs.rules import Rule
from personavec.runs.run import Row

Kind = str
"""What of a turn is compared: one of `KINDS`."""
KINDS: tuple[Kind, ...] = ("prompt last", "response avg")
WATCHED: Kind = "response avg"
"""What the sequential test adds up."""
DRIFT = "drift"
"""Kind of the alerts that the sequential test raises."""
EVERY = "all"
"""The group that every turn belongs to."""
ALLOWANCE = 0.5
"""Of the sequential test, in standard deviations: half of the shift that it finds soonest. Source: Page (1954)."""
DRIFT_FROM = 2
"""Turn from which on there can be drift."""

CHECKED: Any = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""How pydantic reads the classes of a calibration: every field is there, of its type, and finite."""


class Alert(TypedDict):
    """A value beyond its limits."""

    kind: str
    """One of `KINDS`, or `DRIFT`."""
    vector: str
    value: float
    low: float
    high: float


HIGHEST_RATE = 0.5
"""False-positive rate beyond which a limit would be none."""
RATE = Rule(lambda value: 0 < value <= HIGHEST_RATE, f"above 0 and at most {HIGHEST_RATE:g}")


@dataclass(frozen=True)
class Band:
    """Where the values of benign turns lie."""

    n: int
    """Benign conversations behind it; each weighs the same, however many turns it has."""
    mean: float
    sd: float
    low: float
    high: float
    """Of the turns of new benign conversations, no more than the stated share lies outside on average."""

    __pydantic_config__ = CHECKED

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low {self.low:g} above high {self.high:g}")


@dataclass(frozen=True)
class Cusum:
    """Parameters of the sequential test."""

    n: int
    """Benign conversations of two turns or more behind the threshold."""
    mean: float
    sd: float
    threshold: float
    """Sum that no more than the stated share of benign conversations goes beyond."""
    longest: int
    """Turns of the longest benign conversation; what is stated holds for conversations up to that length."""
    allowance: float = ALLOWANCE

    __pydantic_config__ = CHECKED

    def __post_init__(self) -> None:
        if not (self.sd > 0 and self.threshold >= 0 and self.allowance >= 0):
            raise ValueError(f"sd {self.sd:g}, threshold {self.threshold:g} and allowance {self.allowance:g}")


@dataclass
class Drift:
    """Two-sided CUSUM over the turns of one conversation along one vector.

    Each side sums how far the turns lie from the benign mean, less an allowance, and never falls below 0. A sum beyond
    the threshold raises an alert and begins anew.
    Source: Page, Continuous inspection schemes, Biometrika 41 (1954).
    """

    vector: str
    cusum: Cusum
    turn: int = 0
    up: float = 0.0
    down: float = 0.0

    def add(self, value: float) -> Alert | None:
        """Take in the next turn's value of the kind `WATCHED`; returns an alert, or None."""
        self.turn += 1
        z = (value - self.cusum.mean) / self.cusum.sd
        self.up = max(0.0, self.up + z - self.cusum.allowance)
        self.down = max(0.0, self.down - z - self.cusum.allowance)
        limit, largest = self.cusum.threshold, max(self.up, self.down)
        if self.turn < DRIFT_FROM or largest <= limit:
            return None
        signed = self.up if self.up >= self.down else -self.down
        self.up = self.down = 0.0
        return {"kind": DRIFT, "vector": self.vector, "value": signed, "low": -limit, "high": limit}


@dataclass(frozen=True)
class VectorCalibration:
    """What is usual along one vector."""

    trait: str
    layer: int
    bands: Mapping[str, Mapping[Kind, Band]]
    """By group; `EVERY` always, others where they have enough benign conversations."""
    drift: Mapping[str, Cusum] = field(default_factory=dict)
    """By group; empty where too few benign conversations have several turns."""
    held_out: Mapping[str, Row] = field(default_factory=dict)
    """By kind and for drift: the false-positive rate on benign conversations that the limits had not seen."""

    __pydantic_config__ = CHECKED


@dataclass(frozen=True)
class Calibration:
    """What benign traffic of one model looks like along vectors."""

    model: Mapping[str, Any]
    """`ModelIdentity` as JSON."""
    false_positive_rate: float
    """Of each vector and kind by itself."""
    vectors: Mapping[str, VectorCalibration]
    """By content hash of the vector."""
    benign: Mapping[str, Any] = field(default_factory=dict)
    """The data set, its conversations and turns, and how its texts were read."""

    __pydantic_config__ = CHECKED

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read a calibration.json.

        Raises:
            DataError: It is none.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            read = TypeAdapter(cls).validate_json(json.dumps(read_json(path)))
            if missing := _missing(read):
                raise ValueError(missing)
            return read
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        except ValueError as error:
            reason = str(error)
        raise DataError(
            f"expected a calibration, got {path} ({' '.join(reason.split())[:240]}); pass the calibration.json of a "
            "run of personavec monitor with --calibrate"
        )

    def save(self, path: str | Path) -> None:
        """Write calibration.json, atomically."""
        write_file(Path(path), (json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n").encode())

    def check_model(self, name: str, revision: str) -> None:
        """Refuse a model that the benign traffic was not read with.

        Raises:
            DataError: It was read with other weights.
        """
        if self.model["revision"] != revision:
            raise DataError(
                f"expected a calibration of {name} (weights {revision[:12]}), got one of {self.model['id']} (weights "
                f"{self.model['revision'][:12]}); calibrate with this model"
            )

    def check_vector(self, vector_hash: str, trait: str, layer: int) -> None:
        """Refuse a vector that the benign traffic was not read along.

        Raises:
            DataError: It is not there, or at another layer.
        """
        known = self.vectors.get(vector_hash)
        if known is None:
            there = ", ".join(sorted(usual.trait for usual in self.vectors.values())) or "none"
            raise DataError(
                f"expected a calibration of the vector {trait} ({vector_hash[:12]}), got one of other vectors "
                f"({there}); calibrate with this vector"
            )
        if known.layer != layer:
            raise DataError(
                f"expected a calibration of {trait} at layer {layer}, got one at layer {known.layer}; calibrate again"
            )

    def band(self, vector_hash: str, kind: Kind, group: str = EVERY) -> Band:
        """The band of a group, or that of all where the group has none."""
        bands = self.vectors[vector_hash].bands
        return bands.get(group, bands[EVERY])[kind]

    def check(self, vector_hash: str, values: Mapping[Kind, float | None], group: str = EVERY) -> list[Alert]:
        """Alerts for what of one turn lies outside its band.

        Args:
            vector_hash: Content hash of the vector.
            values: By kind; None where there is none.
            group: Of the conversation.
        """
        return [
            {
                "kind": kind,
                "vector": self.vectors[vector_hash].trait,
                "value": value,
                "low": band.low,
                "high": band.high,
            }
            for kind, value in values.items()
            if value is not None
            for band in [self.band(vector_hash, kind, group)]
            if not band.low <= value <= band.high
        ]

    def drift(self, vector_hash: str, group: str = EVERY) -> Drift | None:
        """A sequential test for one conversation; None where none could be calibrated.

        A group with bands of its own and too few long conversations has none: beside the mean of all groups every one
        of its conversations would seem to drift.
        """
        usual = self.vectors[vector_hash]
        cusum = usual.drift.get(group if group in usual.bands else EVERY)
        return Drift(usual.trait, cusum) if cusum else None


def fewest(rate: float, sides: int = 2) -> int:
    """Benign conversations below which a false-positive rate cannot be stated: n with sides / (n + 1) ≤ rate."""
    return math.ceil(sides / rate - 1 - 1e-9)


def _missing(read: Calibration) -> str:
    """What a calibration has to hold and this one does not; empty if there is nothing."""
    if not all(isinstance(read.model.get(key), str) for key in ("id", "revision")):
        return "no id and revision of its model"
    if not RATE.holds(read.false_positive_rate):
        return f"a false_positive_rate of {read.false_positive_rate:g}"
    for usual in read.vectors.values():
        if EVERY not in usual.bands:
            return f"no band of {EVERY} for {usual.trait}"
        if without := [group for group, kinds in usual.bands.items() if not {*KINDS} <= kinds.keys()]:
            return f"no band of {' and '.join(KINDS)} in the group {without[0]} of {usual.trait}"
        if not usual.trait.isprintable() or usual.layer < 0:
            return f"the trait {usual.trait!r} at layer {usual.layer}"
    return ""
