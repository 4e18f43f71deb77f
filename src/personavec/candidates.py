"""Base replies where they tell the most: to a random part, for the set's mean, and to rows that can be extreme."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from personavec.base_replies import BaseReplies
from personavec.config import ScreenConfig
from personavec.dataset import Bad, Dataset
from personavec.model import ChatModel
from personavec.plan import sample_size
from personavec.progress import stage
from personavec.run import Run
from personavec.sample import Sample
from personavec.shards import Directions, screen_shard
from personavec.stats import Interval, controlled_mean
from personavec.table import Table

STEP, FEWEST = 64, 128
"""Rows that are drawn at once, and before the interval is trusted to stop."""
SPARE = 1.3
"""Rows that may be drawn, as a multiple of what would be enough were the proxy worth nothing."""
CHUNK = 256
"""Candidates whose base replies are read together."""
RECALL = 0.96
"""Share of the extreme rows that is to be among the candidates, as the sample's residuals tell it."""

Row = dict[str, Any]


@dataclass
class Differences:
    """Projection differences of some rows, and what they say of all."""

    means: dict[str, Interval]
    """Of the whole data set, by name."""
    sd: dict[str, float]
    """Of the rows drawn at random."""
    uncontrolled: dict[str, Interval]
    """Means of the rows drawn, without control variates."""
    drawn: int
    tokens: int
    """Of their base replies."""
    random_means: Float[ndarray, "layer random"]
    values: dict[str, Float[ndarray, " row"]]
    """Difference of every row of the data set that has a base reply; nan for the others."""
    top: Row = field(default_factory=dict)
    """What the search for extreme rows took."""

    def ranked(self, table: Table, name: str) -> Float[ndarray, " row"]:
        """What extremes are taken from: differences where they were searched for, else the proxy."""
        return self.values[name] if self.top else table.column(name)

    def to_json(self) -> Row:
        """For result.json."""
        return {
            "base_replies": self.drawn,
            "base_tokens": self.tokens,
            "sd": {name: round(value, 4) for name, value in self.sd.items()},
            "half_width_in_sd": {name: round(self._half(name), 4) for name in self.means},
            "without_control_variates": {name: mean.to_json() for name, mean in self.uncontrolled.items()},
            "top_k": self.top or None,
        }

    def _half(self, name: str) -> float:
        return (self.means[name].high - self.means[name].low) / 2 / self.sd[name] if self.sd[name] else np.nan


def features(table: Table, name: str, names: Sequence[str]) -> Float[ndarray, "row feature"]:
    """What is known of every row without a base reply, and may tell its projection difference."""
    own = [table.column(f"{name}.response"), table.column(f"{name}.prompt_last")]
    others = [table.column(f"{other}.prompt_last") for other in names if other != name]
    lengths = [np.log(np.maximum(table.column(kind), 1)) for kind in ("prompt_tokens", "response_tokens")]
    return np.column_stack([*own, *others, *lengths]).astype(float)


def sample_differences(
    config: ScreenConfig, run: Run, data: Dataset, model: ChatModel, read: Directions, base: BaseReplies, table: Table
) -> Differences:
    """Draw rows at random until every vector's interval is as narrow as asked.

    The means are unbiased estimates over all usable rows; what is known of every row serves as control variates.
    """
    usable = np.flatnonzero(table.good)
    most = min(len(usable), int(SPARE * sample_size(len(usable), config.precision)) + FEWEST)
    order = np.random.default_rng(config.seed).permutation(usable)[:most]
    places = {int(row): place for place, row in enumerate(order)}
    drawn: list[Sample] = [None] * most  # type: ignore[list-item]
    for sample in data.samples(config.turn):
        if (place := places.get(sample.row)) is not None and isinstance(sample, Sample):
            drawn[place] = sample
    known = {name: features(table, name, read.names) for name in read.names}
    folder = run.path("differences")
    folder.mkdir(exist_ok=True)
    values = {name: np.full(len(table.good), np.nan, dtype=np.float32) for name in read.names}
    taken = 0
    with stage("base replies to random rows", most) as advance:
        for start in range(0, most, STEP):
            _add(config, folder, f"sample-{start:06d}", drawn[start : start + STEP], model, read, base, values)
            taken = min(start + STEP, most)
            advance(taken - start)
            if taken >= min(FEWEST, most) and narrow_enough(order[:taken], values, known, usable, config.precision):
                break
    rows = order[:taken]
    own = {name: column[rows] for name, column in values.items()}
    answered = ~np.isnan(own[read.names[0]])
    sampled = Table(folder, read.names)
    sampled.parts = sorted(folder.glob("sample-*.parquet"))[: -(-taken // STEP)]
    return Differences(
        means={name: estimated_mean(rows, values[name], known[name], usable) for name in read.names},
        sd={name: float(np.nanstd(column, ddof=1)) for name, column in own.items()},
        uncontrolled={
            name: controlled_mean(
                column[answered].astype(float), np.zeros((answered.sum(), 0)), np.zeros(0), len(usable)
            )
            for name, column in own.items()
        },
        drawn=taken,
        tokens=sampled.tokens["base"],
        random_means=sampled.random_means(),
        values=values,
    )


def narrow_enough(
    rows: Int[ndarray, " drawn"],
    values: dict[str, Float[ndarray, " row"]],
    known: dict[str, Float[ndarray, "row feature"]],
    usable: Int[ndarray, " usable"],
    precision: float,
) -> bool:
    """Whether the interval of every mean, from the rows drawn so far, is as narrow as asked."""
    for name, column in values.items():
        mean = estimated_mean(rows, column, known[name], usable)
        if not (mean.high - mean.low) / 2 <= precision * np.nanstd(column[rows], ddof=1):
            return False
    return True


def estimated_mean(
    rows: Int[ndarray, " drawn"],
    column: Float[ndarray, " row"],
    known: Float[ndarray, "row feature"],
    usable: Int[ndarray, " usable"],
) -> Interval:
    """Mean of a column over the usable rows, from those drawn, with what is known of all as control variates."""
    own = column[rows].astype(float)
    answered = ~np.isnan(own)
    found = controlled_mean(own[answered], known[rows][answered], known[usable].mean(axis=0), len(usable))
    return found._replace(dropped=int((~answered).sum()))


def top_differences(
    config: ScreenConfig,
    run: Run,
    data: Dataset,
    model: ChatModel,
    read: Directions,
    base: BaseReplies,
    table: Table,
    found: Differences,
) -> None:
    """Base replies to the rows that can be among the k highest or lowest differences of any vector."""
    k = config.top_k or 0
    chosen = np.zeros(len(table.good), dtype=bool)
    expected = {}
    for name in read.names:
        known = features(table, name, read.names)
        for sign, side in ((1, "top"), (-1, "bottom")):
            own, recall = candidates(sign * found.values[name], known, table.good, k)
            chosen |= own
            expected[f"{name} {side}"] = round(recall, 4)
    waiting = chosen & np.isnan(found.values[read.names[0]])
    folder = run.path("differences")
    with stage("base replies to candidates", int(waiting.sum())) as advance:
        for start, samples in _picked(data.samples(config.turn), waiting, CHUNK):
            _add(config, folder, f"candidates-{start:08d}", samples, model, read, base, found.values)
            advance(len(samples))
    found.top = {
        "k": k,
        "base_replies": int((~np.isnan(found.values[read.names[0]])).sum()),
        "candidates": int(chosen.sum()),
        "expected_recall": expected,
    }


def candidates(
    values: Float[ndarray, " row"], known: Float[ndarray, "row feature"], good: Bool[ndarray, " row"], k: int
) -> tuple[Bool[ndarray, " row"], float]:
    """The fewest rows that hold a share `RECALL` of the k highest values, as far as the known values tell.

    The values are predicted from what is known of every row, by a regression on those with a value. With its residuals
    as the error of each prediction, every row has a chance to lie above the k-th highest value, and the rows of the
    highest chances are taken.

    Args:
        values: Known for a random part of the rows, nan for the others.
        known: Features of every row.
        good: Rows that count.
        k: How many are wanted.

    Returns:
        The candidates, and the share of the k highest that they are expected to hold.
    """
    drawn = np.flatnonzero(~np.isnan(values) & good)
    design = np.column_stack([np.ones(len(values)), known])
    beta = np.linalg.lstsq(design[drawn], values[drawn].astype(float), rcond=None)[0]
    freedom = max(1, len(drawn) - design.shape[1])
    predicted = design @ beta
    residuals = np.sort((values[drawn] - predicted[drawn]) * np.sqrt(len(drawn) / freedom))
    rows = np.flatnonzero(good)
    chances = np.zeros(len(values))

    def chance(bound: float) -> Float[ndarray, " row"]:
        """Of every row to lie above a bound."""
        above = 1 - np.searchsorted(residuals, bound - predicted[rows], side="right") / len(residuals)
        return np.asarray(above, dtype=float)

    low, high = float(predicted[rows].min() + residuals[0]), float(predicted[rows].max() + residuals[-1])
    for _ in range(50):  # the bound that k rows are expected to lie above
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle).sum() > k else (low, middle)
    chances[rows] = chance(high)
    order = np.argsort(-chances, kind="stable")
    held = np.cumsum(chances[order]) / max(chances.sum(), 1e-12)
    count = min(len(rows), int(np.searchsorted(held, RECALL)) + 1)
    chosen = np.zeros(len(values), dtype=bool)
    chosen[order[:count]] = True
    return chosen & good, float(held[count - 1])


def _add(
    config: ScreenConfig,
    folder: Any,
    part: str,
    samples: Sequence[Sample],
    model: ChatModel,
    read: Directions,
    base: BaseReplies,
    values: dict[str, Float[ndarray, " row"]],
) -> None:
    """Differences of some rows, read or taken from the disk, into the columns."""
    import pyarrow.parquet as pq

    if not Table.has(folder, part):
        Table.write(folder, part, screen_shard(model, samples, read, config, base))
    found = pq.read_table(folder / f"{part}.parquet")
    rows = found["row"].to_numpy()
    for name, column in values.items():
        column[rows] = found[name].to_numpy()


def _picked(
    samples: Iterator[Sample | Bad], wanted: Bool[ndarray, " row"], size: int
) -> Iterator[tuple[int, list[Sample]]]:
    """Wanted rows in order, in chunks, with the place of each chunk's first row."""
    chunk: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Sample) and wanted[sample.row]:
            chunk.append(sample)
            if len(chunk) == size:
                yield chunk[0].row, chunk
                chunk = []
    if chunk:
        yield chunk[0].row, chunk
