"""Base replies where they say the most: to a random part, for the set's mean, and to rows that can be extreme."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from personavec.data.sample import Sample
from personavec.runs.progress import stage
from personavec.runs.run import Row, Run
from personavec.stats.intervals import Interval
from personavec.stats.populations import controlled_mean
from personavec.verbs.screen.plan import sample_size
from personavec.verbs.screen.shards import DataPass, screen_shard
from personavec.verbs.screen.table import Table

STEP, FEWEST = 64, 128
"""Rows that are drawn at once, and before the interval is trusted to stop."""
SPARE = 1.3
"""Rows that may be drawn, as a multiple of what would be enough were the proxy worth nothing."""

CHUNK = 256
"""Candidates whose base replies are read together."""
RECALL = 0.96
"""Share of the extreme rows that is to be among the candidates, as the sample's residuals say."""


@dataclass
class Differences:
    """Projection differences of some rows, and what they say of all."""

    means: dict[str, Interval]
    """Of the whole data set, by name."""
    sd: dict[str, float]
    """Of the rows drawn at random."""
    uncontrolled: dict[str, Interval]
    """Means of the rows drawn, without control variates."""
    skewness: dict[str, float]
    """Of the rows drawn at random."""
    drawn: int
    """Rows drawn at random that have a base reply."""
    tokens: int
    """Of their base replies."""
    move: Float[ndarray, "layer d_model"]
    """Mean difference of activations over the rows drawn."""
    values: dict[str, Float[ndarray, " row"]]
    """Difference of every row of the data set that has a base reply; nan for the others."""
    rows: Int[ndarray, " drawn"]
    """Drawn at random."""
    features: dict[str, Float[ndarray, "drawn feature"]]
    """What is known of them besides."""
    missing: list[Row]
    """Rows that were to get a base reply and have none, with the reason."""
    top: Row = field(default_factory=dict)
    """What the search for extreme rows took."""

    def ranked(self, table: Table, name: str) -> Float[ndarray, " row"]:
        """What extremes are taken from: differences where they were searched for, else the proxy."""
        return self.values[name] if self.top else table.column(name)

    @property
    def skewed(self) -> list[str]:
        """Vectors whose rows are too skewed for as few as were drawn: the interval covers less than it says.

        Source: Cochran, Sampling Techniques (1977), section 2.15: n > 25 · skewness².
        """
        return [name for name, value in self.skewness.items() if self.drawn <= 25 * value**2]

    def to_json(self) -> Row:
        """For result.json."""

        def rounded(value: float) -> float | None:
            return None if np.isnan(value) else round(value, 4)

        return {
            "base_replies": self.drawn,
            "base_tokens": self.tokens,
            "without_base_reply": len(self.missing),
            "sd": {name: rounded(value) for name, value in self.sd.items()},
            "half_width_in_sd": {
                name: rounded(half_width(mean) / (self.sd[name] or np.nan)) for name, mean in self.means.items()
            },
            "skewness": {name: rounded(value) for name, value in self.skewness.items()},
            "skewed": self.skewed,
            "without_control_variates": {name: mean.to_json() for name, mean in self.uncontrolled.items()},
            "top_k": self.top or None,
        }


@dataclass(frozen=True)
class Known:
    """What is known of every row without a base reply, and may predict its projection difference; read part by part."""

    table: Table
    name: str

    def _blocks(self) -> Iterator[Float[ndarray, "row feature"]]:
        mine = [f"{self.name}.response", f"{self.name}.prompt_last"]
        others = [f"{other}.prompt_last" for other in self.table.names if other != self.name]
        for block in self.table.blocks([*mine, *others, "prompt_tokens", "response_tokens"]):
            block[:, -2:] = np.log(np.maximum(block[:, -2:], 1))
            yield block

    def of(self, rows: Int[ndarray, " drawn"]) -> Float[ndarray, "drawn feature"]:
        """Of some rows, in their order."""
        order, start, blocks = np.argsort(rows), 0, []
        ordered = rows[order]
        for block in self._blocks():
            inside = ordered[np.searchsorted(ordered, start) : np.searchsorted(ordered, start + len(block))]
            blocks.append(block[inside - start])
            start += len(block)
        features = np.concatenate(blocks)
        features[order] = features.copy()
        return features

    def mean(self, good: Bool[ndarray, " row"]) -> Float[ndarray, " feature"]:
        """Over all usable rows."""
        total, start = 0.0, 0
        for block in self._blocks():
            total = total + block[good[start : start + len(block)]].sum(axis=0)
            start += len(block)
        return np.asarray(total / good.sum())

    def weighed(self, weights: Float[ndarray, " feature"]) -> Float[ndarray, " row"]:
        """The weighed sum of every row's features."""
        return np.concatenate([block @ weights for block in self._blocks()])


def sample_differences(work: DataPass, table: Table, precision: float) -> Differences:
    """Draw rows at random until every vector's interval is as narrow as `precision`, in standard deviations.

    The means estimate those of all usable rows; what is known of every row serves as control variates.
    """
    usable = np.flatnonzero(table.good)
    most = min(len(usable), int(SPARE * sample_size(len(usable), precision)) + FEWEST)
    order = np.random.default_rng(work.seed).permutation(usable)[:most]
    places = {int(row): place for place, row in enumerate(order)}
    drawn: list[Sample] = [None] * most  # type: ignore[list-item]
    for sample in work.samples():
        if (place := places.get(sample.row)) is not None and isinstance(sample, Sample):
            drawn[place] = sample
    known = {name: Known(table, name) for name in work.names}
    of_drawn = {name: features.of(order) for name, features in known.items()}
    of_all = {name: features.mean(table.good) for name, features in known.items()}
    values = {name: np.full(len(table.good), np.nan, dtype=np.float32) for name in work.names}
    taken, parts = 0, []

    def means() -> dict[str, Interval]:
        """From the rows drawn so far."""
        return {
            name: estimated_mean(column[order[:taken]], of_drawn[name][:taken], of_all[name], len(usable))
            for name, column in values.items()
        }

    with stage("base replies to random rows", most) as advance:
        for start in range(0, most, STEP):
            parts.append(add_differences(work, "sample", drawn[start : start + STEP], values))
            taken = min(start + STEP, most)
            advance(taken - start)
            columns = {name: column[order[:taken]] for name, column in values.items()}
            if taken >= min(FEWEST, most) and narrow_enough(estimates := means(), columns, precision):
                break
    answered = ~np.isnan(columns[work.names[0]])
    sampled = Table(parts[0].parent, work.names)
    sampled.parts = [part.stem for part in parts]
    return Differences(
        means=estimates,
        sd={name: _sd(column) for name, column in columns.items()},
        uncontrolled={
            name: controlled_mean(
                column[answered].astype(float), np.zeros((answered.sum(), 0)), np.zeros(0), len(usable)
            )
            for name, column in columns.items()
        },
        skewness={name: skewness(column) for name, column in columns.items()},
        drawn=int(answered.sum()),
        tokens=sampled.tokens["base"],
        move=sampled.mean_move(),
        values=values,
        missing=[*sampled.errors()],
        rows=order[:taken],
        features={name: features[:taken] for name, features in of_drawn.items()},
    )


def narrow_enough(
    means: Mapping[str, Interval], drawn: Mapping[str, Float[ndarray, " drawn"]], precision: float
) -> bool:
    """Whether the interval of every mean is as narrow as asked, in standard deviations of the rows drawn."""
    return all(half_width(mean) <= precision * _sd(drawn[name]) for name, mean in means.items())


def half_width(mean: Interval) -> float:
    """Of an interval."""
    return (mean.high - mean.low) / 2


def _sd(values: Float[ndarray, " n"]) -> float:
    """Standard deviation of the known values; nan below two."""
    known = values[~np.isnan(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else np.nan


def skewness(values: Float[ndarray, " n"]) -> float:
    """Third standardised moment of the known values; 0 where they do not vary."""
    known = values[~np.isnan(values)].astype(float)
    spread = known.std() if len(known) else 0
    return float((((known - known.mean()) / spread) ** 3).mean()) if spread else 0.0


def estimated_mean(
    drawn: Float[ndarray, " drawn"],
    features: Float[ndarray, "drawn feature"],
    of_all: Float[ndarray, " feature"],
    usable: int,
) -> Interval:
    """Mean over the usable rows from those drawn, with features as control variates whose mean over all is known."""
    answered = ~np.isnan(drawn)
    mean = controlled_mean(drawn[answered].astype(float), features[answered], of_all, usable)
    return mean._replace(dropped=int((~answered).sum()))


def add_differences(
    work: DataPass, kind: str, samples: Sequence[Sample], values: Mapping[str, Float[ndarray, " row"]]
) -> Path:
    """Differences of some rows, read or taken from the disk, into the columns; returns the part that holds them.

    It is named by its rows: with other options other rows are chosen.
    """
    folder = work.run.part("differences").folder
    part = f"{kind}-{Run.digest({'rows': str([sample.row for sample in samples])})}"
    if not Table.has(folder, part):
        Table.write(folder, part, screen_shard(work.reader, samples, work.base))
    path = folder / f"{part}.parquet"
    table = pq.read_table(path)
    rows = table["row"].to_numpy()
    for name, column in values.items():
        column[rows] = table[name].to_numpy()
    return path


def top_differences(work: DataPass, table: Table, drawn: Differences, k: int) -> None:
    """Base replies to the rows that can be among the k highest or lowest differences of any vector, into `drawn`."""
    chosen = np.zeros(len(table.good), dtype=bool)
    expected = {}
    for name, column in drawn.values.items():
        beta, errors = regression(column[drawn.rows], drawn.features[name])
        predicted = beta[0] + Known(table, name).weighed(beta[1:])
        for sign, side in ((1, "top"), (-1, "bottom")):
            extreme, recall = candidates(sign * column, sign * predicted, sign * errors, table.good, k)
            chosen |= extreme
            expected[f"{name} {side}"] = round(recall, 4)
    tried = np.zeros(len(table.good), dtype=bool)
    tried[drawn.rows] = True
    waiting = chosen & ~tried
    with stage("base replies to candidates", int(waiting.sum())) as advance:
        picked = (sample for sample in work.samples() if isinstance(sample, Sample) and waiting[sample.row])
        while samples := list(islice(picked, CHUNK)):
            part = add_differences(work, "candidates", samples, drawn.values)
            drawn.missing += Table.errors_of(part.parent, part.stem)
            advance(len(samples))
    drawn.top = {
        "k": k,
        "base_replies": int((~np.isnan(drawn.values[work.names[0]])).sum()),
        "candidates": int(chosen.sum()),
        "expected_recall": expected,
    }


def regression(
    values: Float[ndarray, " drawn"], features: Float[ndarray, "drawn feature"]
) -> tuple[Float[ndarray, " weight"], Float[ndarray, " drawn"]]:
    """Least squares of the known values on features; of few values (under four a feature) their mean alone.

    Returns:
        The weights, that of 1 first, and the error of every value as the other nine tenths predict it.
    """
    answered = ~np.isnan(values)
    known, design = values[answered].astype(float), np.column_stack([np.ones(answered.sum()), features[answered]])
    width = design.shape[1] if len(known) >= 4 * design.shape[1] else 1
    folds = np.arange(len(known)) % 10
    errors = np.zeros(len(known))
    for fold in np.unique(folds):
        held, rest = folds == fold, folds != fold
        beta = np.linalg.lstsq(design[rest, :width], known[rest], rcond=None)[0]
        errors[held] = known[held] - design[held, :width] @ beta
    weights = np.zeros(design.shape[1])
    weights[:width] = np.linalg.lstsq(design[:, :width], known, rcond=None)[0]
    return weights, errors


def candidates(
    values: Float[ndarray, " row"],
    predicted: Float[ndarray, " row"],
    errors: Float[ndarray, " drawn"],
    good: Bool[ndarray, " row"],
    k: int,
) -> tuple[Bool[ndarray, " row"], float]:
    """The fewest rows that hold a share `RECALL` of the k highest values, as far as a prediction tells.

    A row's value, where it is not known, is its prediction with an error of Student's t, fitted to the errors of known
    values that took no part in their own prediction. So every row has a chance to lie above the k-th highest value, and
    the rows of the highest chances are taken.

    Args:
        values: Known for a random part of the rows, nan for the others.
        predicted: For every row.
        errors: Of the prediction.
        good: Rows that count.
        k: How many are wanted.

    Returns:
        The candidates, and the share of the k highest that they are expected to hold.
    """
    from scipy.stats import t

    rows = np.flatnonzero(good)
    known = ~np.isnan(values[rows])
    if len(errors) < FEWEST / 4:  # too few to tell how good the prediction is
        return good.copy(), 1.0
    freedom, middle_error, scale = t.fit(errors)

    def chance(bound: float) -> Float[ndarray, " row"]:
        """Of every row to lie above a bound."""
        guessed = t.sf((bound - predicted[rows] - middle_error) / scale, freedom)
        return np.where(known, values[rows] > bound, guessed)

    reach = scale * t.isf(1e-9, freedom)
    low, high = (
        float(predicted[rows].min() - reach),
        float(max(predicted[rows].max() + reach, values[rows][known].max())),
    )
    for _ in range(60):  # the bound that k rows are expected to lie above
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle).sum() > k else (low, middle)
    chances = chance(low)
    order = np.argsort(-chances, kind="stable")
    held = np.cumsum(chances[order]) / max(chances.sum(), 1e-12)
    count = min(len(rows), int(np.searchsorted(held, RECALL)) + 1)
    chosen = np.zeros(len(values), dtype=bool)
    chosen[rows[order[:count]]] = True
    return chosen, float(held[count - 1])
