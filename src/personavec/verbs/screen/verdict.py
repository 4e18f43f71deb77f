"""What may be said of a whole data set: on which side of zero, or of a clean set, it lies along each vector."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxtyping import Float
from numpy import ndarray

from personavec.runs.run import Row
from personavec.stats.intervals import Interval
from personavec.stats.populations import streamed_difference
from personavec.verbs.screen.selection import Reference
from personavec.verbs.screen.table import Table

BASE = "the base model's replies"

Control = Callable[[str, float, Float[ndarray, "layer d_model"]], dict[str, Any]]
"""A mean along a vector next to the same mean along random directions, of what the rows moved."""
Direction = Literal["toward", "against", "neither"]


def direction(mean: Interval, control: Mapping[str, Any]) -> Direction:
    """Where a mean lies whose interval excludes zero, and which is beyond all random directions; else neither."""
    if not control["beyond"] or not (mean.low > 0 or mean.high < 0):
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

    A score that only ranks rows (raw, proxy) has no zero that means anything, so there is none from it.

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
    if cost in ("raw", "proxy"):
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
