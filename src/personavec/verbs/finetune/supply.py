"""How much of a trait a data set supplies: the dose that prevention should supply in its place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from personavec.data.dataset import Dataset
from personavec.data.sample import Sample
from personavec.errors import ConfigError, DataError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import stage, tell
from personavec.runs.run import Row
from personavec.stats.intervals import clustered_mean
from personavec.steering.notation import parse_steering
from personavec.steering.projection import directions
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.extract.sweep import swept_layers
from personavec.verbs.finetune.trainer import Training
from personavec.verbs.screen.base_replies import open_base_replies
from personavec.verbs.screen.shards import RowReader, screen_shard

ROWS = 64
"""Random rows that are answered by the base model to find the dose."""
AUTO = re.compile(r"(?P<file>.+):auto(?:@(?P<layer>all|\d+))?")
"""`VEC:auto[@LAYER]`."""

Prevent = str | Steering | tuple[PersonaVector, str] | Sequence[str | Steering | tuple[PersonaVector, str]]
"""What is added in training: `vector.at(coef=…)`, (vector, "auto"), the command line's VEC:COEF[@LAYER] or VEC:auto,
or several of them."""


@dataclass(frozen=True)
class Prevention:
    """One vector to add in training."""

    name: str
    """Its file, or its trait."""
    text: str
    """How much and where as well, as the command line has it."""
    vector: PersonaVector
    steering: Steering | None = None
    """None: the data say how much."""
    layer: int | Literal["all"] | None = None
    """Where, if the data say how much; None: the data say that, too."""


def preventions(prevent: Prevent) -> tuple[Prevention, ...]:
    """Read what is to be added in training.

    Raises:
        ConfigError: Something else was given, or the notation is wrong.
        VectorError: No such vector or layer, or its card recommends none.
    """
    several = isinstance(prevent, Sequence) and not isinstance(prevent, str)
    if not several or (prevent and isinstance(prevent[0], PersonaVector)):  # type: ignore[index]
        prevent = (prevent,)  # type: ignore[assignment]
    return tuple(map(_read, prevent))  # type: ignore[arg-type]


def _read(prevent: str | Steering | tuple[PersonaVector, str]) -> Prevention:
    if isinstance(prevent, Steering) and prevent.op == "add" and not prevent.gated:
        if prevent.layer is not None:
            prevent.vector.check_layer(prevent.layer)
        name = _name(prevent.vector)
        return Prevention(name, name + prevent.text.removeprefix(prevent.vector.card.trait), prevent.vector, prevent)
    if isinstance(prevent, str):
        match = AUTO.fullmatch(prevent)
        if match is None:
            steering = parse_steering(prevent)
            return Prevention(prevent.rpartition(":")[0], prevent, steering.vector, steering)
        vector, layer = load_vector(match["file"]), match["layer"]
        if layer not in (None, "all"):
            vector.check_layer(int(layer))
        return Prevention(match["file"], prevent, vector, None, int(layer) if layer and layer != "all" else layer)  # type: ignore[arg-type]
    if (
        isinstance(prevent, tuple)
        and len(prevent) == 2
        and isinstance(prevent[0], PersonaVector)
        and prevent[1] == "auto"
    ):
        return Prevention(_name(prevent[0]), f"{_name(prevent[0])}:auto", prevent[0])
    raise ConfigError(
        f'expected prevent=vector.at(coef=…), (vector, "auto") or VEC:COEF[@LAYER], got {prevent!r:.100}; correct it'
    )


def _name(vector: PersonaVector) -> str:
    """What a vector in memory is called: another of the same trait is another input of a run."""
    return f"{vector.card.trait}-{vector.content_hash[:6]}"


def supplied(
    model: ChatModel, data: Dataset, vector: PersonaVector, layers: Sequence[int], training: Training
) -> list[Row]:
    """What the data supplies at some layers, in natural differences: mean projection difference / ‖v‖ over a sample.

    Returns:
        For every layer `coef` with its 95% interval, and its `effect`: the mean in standard deviations of the rows.

    Raises:
        DataError: No row can be read.
    """
    samples = [sample for sample in data.samples("last") if isinstance(sample, Sample)]
    if len(samples) > ROWS:
        chosen = np.random.default_rng(training.seed).choice(len(samples), ROWS, replace=False)
        samples = [samples[place] for place in sorted(chosen)]
    along = directions([vector], [vector.card.trait], layers, training.seed)
    reader = RowReader(model, along, cost="full", on_error="skip", system=training.system)
    with stage("what the data supplies", 2 * len(samples)) as advance:
        table = screen_shard(reader, samples, open_base_replies(model, system=training.system), advance)
    by_layer = []
    for name, layer in zip(along.names, along.layers, strict=True):
        moved = np.array(table[name].to_pylist(), dtype=float) / float(vector.norms[layer])
        mean = clustered_mean(moved, np.arange(len(moved)), training.seed)
        if not mean.n:
            raise DataError(
                f"expected rows to find the dose from, got none of {len(moved)} that can be read; check them"
            )
        spread = float(np.nanstd(moved))
        effect = round(mean.mean / spread, 3) if spread else 0.0
        by_layer.append({"layer": layer, "coef": mean.to_json(), "effect": effect})
    return by_layer


def automatic(
    prevention: Prevention, model: ChatModel, data: Dataset, training: Training
) -> tuple[Steering, Row | None]:
    """What is added, with the coefficient that the data supplies where none was given, and how that was found.

    Without a layer it is the one where the data's move is largest against its spread, among those that a sweep
    looks at and the one that the card recommends. Data that moves away from the trait supplies none: coef 0.
    """
    if prevention.steering is not None:
        return prevention.steering, None
    vector, named = prevention.vector, prevention.layer
    vector.check_model(model.identity)
    card = () if vector.card.layer is None else (vector.card.layer,)
    layers = [named] if isinstance(named, int) else sorted({*swept_layers((), model.n_layers), *card})
    by_layer = supplied(model, data, vector, layers, training)
    best = max(by_layer, key=lambda row: row["effect"])
    coef = round(max(0.0, best["coef"]["mean"]), 4)
    layer = None if named == "all" else best["layer"]
    if not coef:
        tell(f"{data.name} supplies nothing along {prevention.name}: nothing is added along it in training")
    row = {"vector": prevention.name, "layer": named if layer is None else layer}
    row |= {"coef": max(0.0, best["coef"]["mean"]), "by_layer": by_layer}
    return Steering(vector, coef, layer), row
