"""The dose that makes a data set likeliest: how much of a trait its replies ask for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.data.dataset import Dataset
from personavec.data.sample import Sample
from personavec.errors import DataError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.runs.progress import stage
from personavec.runs.run import Row
from personavec.steering.gradient import likelihood_gradients
from personavec.steering.projection import Directions, directions
from personavec.steering.steer import Steering, steer
from personavec.steering.vector import PersonaVector
from personavec.verbs.screen.reading.rows import RowReader, encode

ROWS = 64
"""Random rows that are read; one half chooses the layer, the other measures."""
DOSES = (-0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2)
"""Where the likelihood is read; between them it is a parabola."""
BOOTSTRAPS = 2000


def likeliest(
    model: ChatModel,
    data: Dataset,
    vector: PersonaVector,
    layers: Sequence[int],
    *,
    system: str = "template",
    seed: int = 0,
) -> list[Row]:
    """For every layer the coefficient that makes the data's replies likeliest, added at every token as in training.

    Training on data that some of a vector makes likelier moves the model along it; with that much of it supplied there
    is nothing left to learn that way.

    Args:
        model: The base model.
        data: What is to be trained on.
        vector: Along which.
        layers: Where.
        system: System prompt of rows that have none.
        seed: Of the rows drawn, and of the intervals.

    Returns:
        By layer: `layer`; `coef`, the likeliest coefficient with its 95% interval by bootstrap over rows (`mean`, `ci`,
        `n`, `dropped`) and whether it lies at the `edge` of the doses tried; `gain`, nats a token that it brings;
        `effect`, of other rows: the mean gradient of the likelihood at 0 in standard deviations of the rows.

    Raises:
        DataError: Fewer than four rows can be read.
        ModelError: The model cannot run backwards, or its numbers overflow.
    """
    along = directions([vector], [vector.card.trait], layers, seed)
    rows, dropped = _drawn(RowReader(model, along, on_error="skip", system=system), data)
    choosing, measuring = np.array_split(np.random.default_rng(seed).permutation(len(rows)), 2)
    effects = _effects(model, [rows[place] for place in choosing], along)
    measured = [rows[place] for place in measuring]
    found = []
    with stage("how much of it the data ask for", len(layers) * (len(DOSES) - 1) + 1) as advance:
        plain = _likelihoods(model, measured, ())
        advance(1)
        for layer, effect in zip(layers, effects, strict=True):
            at = [vector.at(dose=dose, layer=layer, positions="all") for dose in DOSES]
            columns = []
            for steering in at:
                columns.append(_likelihoods(model, measured, (steering,)) if steering.coef else plain)
                advance(bool(steering.coef))
            tokens = np.array([row["response_tokens"] for row in measured], dtype=float)
            coefs = np.array([steering.coef for steering in at])
            found.append({"layer": layer, **peak(coefs, np.column_stack(columns), tokens, seed), "effect": effect})
            found[-1]["coef"]["dropped"] = dropped
    return found


def peak(
    coefs: Float[ndarray, " dose"], likelihoods: Float[ndarray, "row dose"], tokens: Float[ndarray, " row"], seed: int
) -> Row:
    """Where the mean log-likelihood a token is highest, with a 95% interval by bootstrap over rows.

    Args:
        coefs: Ascending.
        likelihoods: Of each row's reply, its sum over tokens.
        tokens: Of each row's reply.
        seed: Of the bootstrap.
    """
    drawn = np.random.default_rng(seed).integers(0, len(tokens), (BOOTSTRAPS, len(tokens)))
    means = np.vstack(
        [
            likelihoods.sum(axis=0) / tokens.sum(),
            likelihoods[drawn].sum(axis=1) / tokens[drawn].sum(axis=1, keepdims=True),
        ]
    )
    places, heights = _tops(coefs, means)
    low, high = np.percentile(places[1:], [2.5, 97.5])
    coef = {"mean": round(float(places[0]), 4), "ci": [round(float(low), 4), round(float(high), 4)], "n": len(tokens)}
    nothing = float(np.interp(0.0, coefs, means[0]))
    return {
        "coef": coef,
        "edge": bool(places[0] in (coefs[0], coefs[-1])),
        "gain": round(float(heights[0]) - nothing, 5),
    }


def _tops(
    coefs: Float[ndarray, " dose"], means: Float[ndarray, "draw dose"]
) -> tuple[Float[ndarray, " draw"], Float[ndarray, " draw"]]:
    """Vertex of the parabola through each highest point and its neighbours: place and height; an end stays one."""
    best = means.argmax(axis=1)
    around = best.clip(1, len(coefs) - 2)[:, None] + [-1, 0, 1]
    (x0, x1, x2), (y0, y1, y2) = coefs[around].T, np.take_along_axis(means, around, axis=1).T
    rise, fall = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (fall - rise) / (x2 - x0)
    inside = (best == around[:, 1]) & (bend < 0)
    place = np.where(inside, (x0 + x1) / 2 - rise / np.where(inside, 2 * bend, 1), coefs[best])
    height = np.where(inside, y0 + (place - x0) * (rise + bend * (place - x1)), means.max(axis=1))
    return place, height


def _drawn(reader: RowReader, data: Dataset) -> tuple[list[Row], int]:
    """Random rows as token ids, and how many of them cannot be read."""
    samples = [sample for sample in data.samples("last") if isinstance(sample, Sample)]
    if len(samples) > ROWS:
        chosen = np.random.default_rng(reader.directions.seed).choice(len(samples), ROWS, replace=False)
        samples = [samples[place] for place in sorted(chosen)]
    encoded = [encode(reader, sample) for sample in samples]
    rows = [row for row in encoded if not row["error"]]
    if len(rows) < 4:
        raise DataError(f"expected rows to find the dose from, got {len(rows)} that can be read; check them")
    return rows, len(encoded) - len(rows)


def _effects(model: ChatModel, rows: Sequence[Row], along: Directions) -> list[float]:
    pulls = np.zeros((len(rows), len(along.names)))
    for places, gradients in likelihood_gradients(model, rows, along.read_layers):
        pulls[places] = along.project(gradients)[:, 0]
    spread = pulls.std(axis=0)
    effects = np.divide(pulls.mean(axis=0), spread, out=np.zeros(len(along.names)), where=spread > 0)
    return [round(float(effect), 3) for effect in effects]


def _likelihoods(model: ChatModel, rows: Sequence[Row], steerings: Sequence[Steering]) -> Float[ndarray, " row"]:
    with steer(model, [steerings]):
        read = reply_logprobs(model, [row["prompt_ids"] for row in rows], [row["response_ids"] for row in rows])
    sums = [float(each[row["reasoning_tokens"] :].double().sum()) for each, row in zip(read, rows, strict=True)]
    if not np.isfinite(sums).all():
        raise ModelError(f"expected finite likelihoods, got inf or nan ({model.numbers}); pass --dtype float32")
    return np.array(sums)
