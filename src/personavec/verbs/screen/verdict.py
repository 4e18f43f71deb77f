"""What may be said of a whole data set: on which side of zero, or of a clean set, it lies along each vector."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from personavec.model.activations import read_rows
from personavec.runs.run import Row
from personavec.stats.intervals import Interval
from personavec.stats.nulls import against, covariance_directions
from personavec.stats.populations import streamed_difference
from personavec.steering.projection import RANDOM
from personavec.verbs.screen.reading.rows import encode
from personavec.verbs.screen.selection import Control, Reference
from personavec.verbs.screen.shards import DataPass
from personavec.verbs.screen.table import Table

BASE = "the base model's replies"
COVARIANCE_ROWS = 200
"""Random rows that are read again for the covariance of replies."""

Direction = Literal["toward", "against", "neither"]


def direction(mean: Interval, control: Mapping[str, Any]) -> Direction:
    """Where a mean lies whose interval excludes zero, and which is beyond all random directions if there are any."""
    if control["beyond"] is False or not (mean.low > 0 or mean.high < 0):
        return "neither"
    return "toward" if mean.low > 0 else "against"


def verdicts(
    cost: str,
    table: Table,
    means: Mapping[str, Interval],
    controls: Mapping[str, Any],
    clean: Reference | None,
    at: Control,
) -> Row:
    """Along which vectors a data set would train, and on which side.

    A score that only ranks rows (raw, proxy, lift) has no zero that means anything, so there is none from it. The
    gradient has one next to a clean set alone: of what the model writes itself the expected gradient of a whole reply
    is 0, its end included, but not that of a token of it.

    Args:
        cost: What the scores are.
        table: Of the set.
        means: The set's, by vector.
        controls: The same along random directions.
        clean: The clean set; with full the set is compared with it instead of with zero.
        at: Makes the control of the comparison with it.

    Returns:
        `verdict` by vector (null where there can be none), `verdict_against` (what it was compared with), and
        `difference_from_clean` by vector: `mean`, `ci` and its `random_control`, or null.
    """
    if cost in ("raw", "proxy", "lift") or (cost == "gradient" and clean is None):
        return {"verdict": dict.fromkeys(means), "verdict_against": None, "difference_from_clean": None}
    if cost == "sampled" or clean is None:  # the clean set's rows have base replies with full alone
        found = {name: direction(mean, controls[name]) for name, mean in means.items()}
        return {"verdict": found, "verdict_against": BASE, "difference_from_clean": None}
    found, differences = {}, {}
    for name, scores in clean.scores.items():
        difference = streamed_difference(table.column(name), scores)
        control = at(name, difference.mean, table.mean_move() - clean.move)
        found[name] = direction(difference, control)
        differences[name] = difference.to_json() | {"random_control": control}
    return {"verdict": found, "verdict_against": clean.name, "difference_from_clean": differences}


NO_DIRECTION = {"low": None, "high": None, "beyond": None}
"""Control of a score that is along no direction."""


def random_control(work: DataPass, table: Table) -> Control:
    """A mean next to the same along random directions with the covariance of the replies: what a set does to any.

    Activations vary along few dimensions, and those are where any data set moves them: next to directions drawn every
    way alike most that mean nothing would stand out.
    """
    if work.reader.cost == "lift":
        return lambda *_: {**NO_DIRECTION}
    read, rng = work.reader.directions, np.random.default_rng(work.seed)
    good = np.flatnonzero(table.good)
    chosen = set(rng.permutation(good)[:COVARIANCE_ROWS].tolist())
    rows = [encode(work.reader, sample) for sample in work.samples() if sample.row in chosen]
    activations = read_rows(work.reader.model, rows, "response avg", read.read_layers, "how replies vary")
    drawn = covariance_directions(RANDOM, activations.swapaxes(0, 1), rng)
    at = {name: read.read_layers.index(layer) for name, layer in zip(read.names, read.layers, strict=True)}
    return lambda name, mean, move: against(mean, drawn[at[name]] @ move[at[name]])
