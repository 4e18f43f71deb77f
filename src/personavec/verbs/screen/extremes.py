"""Finding the extreme rows of a data set without answering every one of them."""

from itertools import islice

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from personavec.data.sample import Sample
from personavec.runs.progress import stage
from personavec.verbs.screen.sampled import FEWEST, Differences, Known, add_differences
from personavec.verbs.screen.shards import DataPass
from personavec.verbs.screen.table import Table

CHUNK = 256
"""Candidates whose base replies are read together."""
RECALL = 0.96
"""Share of the extreme rows that is to be among the candidates, as the sample's residuals say."""


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
