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

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read a calibration.json.

        Raises:
            DataError: It is none.
        """
        try:
            fields = json.loads(Path(path).read_text("utf-8"))
            vectors = {name: _vector(usual) for name, usual in fields.pop("vectors").items()}
            return cls(**fields, vectors=vectors)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"expected a calibration, got {path} ({' '.join(str(error).split())[:160]}); pass the calibration.json "
                "of a run of personavec monitor with --calibrate"
            ) from error

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


def _vector(usual: Row) -> VectorCalibration:
    bands = {group: {kind: Band(**band) for kind, band in kinds.items()} for group, kinds in usual.pop("bands").items()}
    drift = {group: Cusum(**cusum) for group, cusum in usual.pop("drift").items()}
    if EVERY not in bands:
        raise ValueError(f"no band of {EVERY}")
    return VectorCalibration(**usual, bands=bands, drift=drift)
