"""What a screening showed: of every row, of the set, and which rows stand out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from personavec.errors import ConfigError
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.runs.run import Row, Run
from personavec.runs.show import higher_said, interval, said
from personavec.stats.intervals import Interval
from personavec.verbs.screen.flagging import SIDES, Drop, beyond, extremes, thresholds
from personavec.verbs.screen.selection import Control
from personavec.verbs.screen.table import Place, Table
from personavec.verbs.screen.verdict import direction

NO_VERDICT = (
    "such scores only rank rows: neither side has a verdict, and the difference tells which replies lie "
    "higher, not what training on them does; --cost sampled or full tells where each side lies"
)


@dataclass(frozen=True, repr=False)
class Screening(Result):
    """A data set along persona vectors; of a plan only the costs."""

    mean: Mapping[str, Interval]
    """The set's mean by vector: an estimate of the projection difference, as `estimate` in the data names it."""
    clean: Mapping[str, Float[ndarray, " clean"]]
    """Scores of the usable rows of the clean set, if one was given."""
    examples: Mapping[str, Any]
    """Beginnings of the most extreme rows' texts, by vector."""
    tables: Run | Place
    """Where the table lies; in a run without a store it stays as long as this result, or its `table`."""
    control: Control | None = None
    """A mean next to the same along random directions; of a plan none."""

    page = "screen"

    @property
    def drawn(self) -> Row:
        """What the page is made of."""
        return {**self.data, "examples": self.examples}

    @property
    def table(self) -> Table:
        """The table on the disk, which is read a column at a time.

        Raises:
            ConfigError: Nothing was screened.
        """
        if not self.mean:
            raise ConfigError("expected a screening, got a plan, which has no rows; screen with plan=False")
        return Table(self.tables, tuple(self.mean))

    @property
    def rows(self) -> Any:
        """The whole table as a pyarrow Table: `row`, a column of scores a vector, what they are made of."""
        return self.table.whole

    def flags(
        self, clean: "Screening | None" = None, percentile: float = 95.0, drop: Drop = "high"
    ) -> Bool[ndarray, " row"]:
        """Which rows lie beyond a percentile of a clean set's rows on any vector.

        Args:
            clean: The clean set, screened alike; default the one that this screening had, else the data set itself.
            percentile: Of its scores, from 0 to 100.
            drop: On which side: high is toward the trait; low, whose percentile is counted from below, against it.

        Raises:
            ConfigError: Another kind of screening, no percentile, or no side.
        """
        table = self.table
        scores = {name: table.column(name) for name in table.names}
        if not 0 < percentile < 100:
            raise ConfigError(f"expected a percentile between 0 and 100, got {percentile}; correct it")
        if drop not in SIDES:
            raise ConfigError(f"expected drop as one of {', '.join(SIDES)}, got {drop}; correct it")
        usual = self.clean or scores if clean is None else self._alike(clean)
        sides = [beyond(scores, thresholds(usual, percentile, side), side) for side in SIDES[drop]]
        return np.asarray(np.any(sides, axis=0))

    def _alike(self, clean: "Screening") -> dict[str, Float[ndarray, " clean"]]:
        """Scores of the usable rows of another screening, which must be of the same kind."""
        if not isinstance(clean, Screening):
            got = type(clean).__name__
            raise ConfigError(f"expected the Screening of a clean data set, got {got}; pass screen(model, it, vectors)")
        if (clean.data["cost"], [*clean.mean]) != (self.data["cost"], [*self.mean]):
            raise ConfigError(
                f"expected a clean set screened alike ({self.data['cost']}: {', '.join(self.mean)}), got "
                f"{clean.data['cost']}: {', '.join(clean.mean) or 'a plan'}; screen it along the same vectors"
            )
        other = clean.table
        return {name: other.column(name)[other.good] for name in other.names}

    def less(self, other: "Screening") -> dict[str, Interval]:
        """How far each row scores above the same row of another screening, in the mean, by vector.

        Of preferences: `screen(…, side="chosen").less(screen(…, side="rejected"))` says which replies lie higher. What
        is taken off both replies to a prompt is one, so every `cost` but gradient and lift gives that difference. With
        raw, proxy, gradient and lift it is no verdict on a set, as neither side has one.

        Raises:
            ConfigError: The other is of another kind, or of other rows.
        """
        difference = self._paired(other)
        if not self.data["verdict_against"]:
            tell(NO_VERDICT)
        return difference

    def _paired(self, other: "Screening") -> dict[str, Interval]:
        self._alike(other)
        ours, theirs = self.table, other.table
        if not (np.array_equal(ours.rows, theirs.rows) and np.array_equal(ours.conversations, theirs.conversations)):
            raise ConfigError(
                f"expected two screenings of the same rows, got {len(ours.rows):,} and {len(theirs.rows):,}, or other "
                "ones; screen both sides of one data set"
            )
        both = ours.good & theirs.good
        return {name: ours.mean(np.where(both, ours.column(name) - theirs.column(name), np.nan)) for name in ours.names}

    def top(self, name: str, k: int = 10) -> Any:
        """The table's k highest rows along a vector, the highest first."""
        if name not in self.mean:
            raise ConfigError(f"expected one of {', '.join(self.mean) or 'no vectors'}, got {name}; correct it")
        column = self.table.column(name)
        places = np.flatnonzero(extremes(column, k)[0])
        return self.rows.take(places[np.argsort(-column[places], kind="stable")])

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        shown = {"data": data["data"], "rows": f"{data['rows']:,}", "skipped": f"{data['skipped']:,}"}
        if not self.mean:
            rung = next(row for row in data["plan"]["estimates"] if row["cost"] == data["cost"])  # of this set
            seconds = "not measured" if rung["seconds"] is None else f"{rung['seconds']:,.0f}"
            return [*shown.items(), ("cost", data["cost"]), ("seconds", seconds)]
        shown["score"] = data["estimate"]
        for name, mean in data["projection_difference"].items():
            shown[name] = f"{interval(mean, 3)}, {said(data['verdict'][name])}"
        if flags := data["flags"]:
            shown["dropped"] = f"{flags['dropped']:,} ({flags['drop']} side)"
            shown |= {f"kept, although {number}": hint for number, hint in enumerate(flags["hints"], 1)}
        return [*shown.items()]


@dataclass(frozen=True, repr=False)
class BothSides(Result):
    """Preferences along persona vectors: each side by itself, and how far chosen replies lie above rejected ones."""

    chosen: Screening
    rejected: Screening
    difference: Mapping[str, Interval]
    """Chosen less rejected, paired by row, by vector."""

    page = "sides"

    @classmethod
    def of(cls, chosen: Screening, rejected: Screening) -> "BothSides":
        """Put two screenings of one data set next to each other."""
        difference = chosen._paired(rejected)
        move = chosen.table.mean_move() - rejected.table.mean_move()
        figures: Row = {}
        for name, mean in difference.items():
            control = chosen.control(name, mean.mean, move) if chosen.control else {"beyond": False}
            higher = {"toward": "chosen", "against": "rejected"}.get(direction(mean, control), "neither")
            figures[name] = mean.to_json() | {"random_control": control, "higher": higher}
        shared = {key: chosen.data[key] for key in ("data", "cost", "rows", "model", "vectors", "layers", "estimate")}
        skipped = int((~(chosen.table.good & rejected.table.good)).sum())
        caveat = None if chosen.data["verdict_against"] else NO_VERDICT
        sides = {"chosen": chosen.to_dict(), "rejected": rejected.to_dict()}
        return cls(
            {"out": None, **shared, "skipped": skipped, "difference": figures, "caveat": caveat, **sides},
            chosen,
            rejected,
            difference,
        )

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page, and each side's in a folder of its own beside it; see `Result.report`."""
        folder = self.place(path)
        for side, shown in (("chosen", self.chosen), ("rejected", self.rejected)):
            shown.report(folder / side)
        return super().report(folder)

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        shown = {"data": data["data"], "pairs": f"{data['rows']:,}", "skipped": f"{data['skipped']:,}"}
        for name, mean in data["difference"].items():
            shown[f"{name}, chosen less rejected"] = f"{interval(mean, 3)}, {higher_said(mean['higher'])}"
        return [*shown.items(), *[("but", data["caveat"])] * bool(data["caveat"])]
