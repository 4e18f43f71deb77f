"""How much of a trait a data set supplies: the dose that prevention should supply in its place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.data.dataset import Dataset
from personavec.data.sample import Sample
from personavec.errors import ConfigError, DataError
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import idle_layers
from personavec.runs.progress import stage, tell
from personavec.runs.run import Row
from personavec.runs.show import interval
from personavec.stats.populations import streamed_mean
from personavec.steering.notation import parse_steering
from personavec.steering.projection import directions
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.extract.sweep import swept_layers
from personavec.verbs.finetune.trainer import Training
from personavec.verbs.screen.reading.base_replies import open_base_replies
from personavec.verbs.screen.reading.rows import RowReader
from personavec.verbs.screen.shards import screen_shard

ROWS = 64
"""Random rows that are answered by the base model to find the dose."""
AUTO = re.compile(r"(?P<file>.+):(?P<sign>-?)auto(?:@(?P<layer>all|\d+))?")
"""`VEC:auto[@LAYER]`, and `VEC:-auto[@LAYER]` for data that move against the trait."""

Prevent = str | Steering | tuple[PersonaVector, str] | Sequence[str | Steering | tuple[PersonaVector, str]]
"""What is added in training: `vector.at(coef=…)`, (vector, "auto") or (vector, "-auto"), the command line's
VEC:COEF[@LAYER] or VEC:auto, or several of them."""


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
    sign: Literal[1, -1] = 1
    """Which way the data are expected to move, if they say how much: toward the trait, or against it."""


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
        if prevent.single_layer is not None:
            prevent.vector.check_layer(prevent.single_layer)
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
        where = int(layer) if layer and layer != "all" else layer
        return Prevention(match["file"], prevent, vector, None, where, -1 if match["sign"] else 1)  # type: ignore[arg-type]
    if (
        isinstance(prevent, tuple)
        and len(prevent) == 2
        and isinstance(prevent[0], PersonaVector)
        and prevent[1] in ("auto", "-auto")
    ):
        name = _name(prevent[0])
        return Prevention(name, f"{name}:{prevent[1]}", prevent[0], sign=1 if prevent[1] == "auto" else -1)
    raise ConfigError(
        f'expected prevent=vector.at(coef=…), (vector, "auto" or "-auto") or VEC:COEF[@LAYER], got '
        f"{prevent!r:.100}; correct it"
    )


def _name(vector: PersonaVector) -> str:
    """What a vector in memory is called: another of the same trait is another input of a run."""
    return f"{vector.card.trait}-{vector.content_hash[:6]}"


def supplied(
    model: ChatModel, data: Dataset, vector: PersonaVector, layers: Sequence[int], training: Training
) -> list[Row]:
    """What the data supplies at some layers, see `moves`: projection differences / ‖v‖ over a sample.

    Raises:
        DataError: No row can be read.
    """
    samples = [sample for sample in data.samples("last") if isinstance(sample, Sample)]  # of those that are learned
    if len(samples) > ROWS:
        chosen = np.random.default_rng(training.seed).choice(len(samples), ROWS, replace=False)
        samples = [samples[place] for place in sorted(chosen)]
    along = directions([vector], [vector.card.trait], layers, training.seed)
    reader = RowReader(model, along, cost="full", on_error="skip", system=training.system)
    with stage("what the data supplies", 2 * len(samples)) as advance:
        table = screen_shard(reader, samples, open_base_replies(model, system=training.system), advance)
    columns = [
        np.array(table[name].to_pylist(), dtype=float) / float(vector.norms[layer])
        for name, layer in zip(along.names, along.layers, strict=True)
    ]
    moved = np.stack(columns, axis=1)
    known = ~np.isnan(moved).any(axis=1)
    if known.sum() < min(2, len(columns)):
        raise DataError(f"expected rows to find the dose from, got {known.sum()} that can be read; check them")
    by_layer = moves(moved[known], along.layers, training.seed)
    for row in by_layer:
        row["coef"]["dropped"] = int((~known).sum())
    return by_layer


def moves(moved: Float[ndarray, "row layer"], layers: Sequence[int], seed: int) -> list[Row]:
    """How far rows move along a vector at some layers, in natural differences.

    With several layers one half of the rows, drawn at random, is there to choose from them and the other half to
    measure: the best of many means lies above 0 even if every true one is 0.

    Returns:
        For every layer `coef` with its 95% interval, over the rows that measure, and its `effect` on those that choose:
        the mean in standard deviations of the rows.
    """
    order = np.random.default_rng(seed).permutation(len(moved))
    choosing, measuring = np.array_split(order, 2) if len(layers) > 1 else (order, order)
    spread = moved[choosing].std(axis=0)
    effects = np.divide(moved[choosing].mean(axis=0), spread, out=np.zeros(len(layers)), where=spread > 0)
    return [
        {"layer": layer, "coef": streamed_mean(moved[measuring, at]).to_json(), "effect": round(float(effects[at]), 3)}
        for at, layer in enumerate(layers)
    ]


def automatic(
    prevention: Prevention, model: ChatModel, data: Dataset, training: Training
) -> tuple[Steering, Row | None]:
    """What is added, with the coefficient that the data supplies where none was given, and how that was found.

    Without a layer it is the one where the data's move is largest against its spread, among those that a sweep
    looks at and the one that the card recommends. Coef 0 unless the interval of the move, measured on rows that did not
    choose the layer, lies above 0; for `-auto`, below it.
    """
    if prevention.steering is not None:
        return prevention.steering, None
    vector, named = prevention.vector, prevention.layer
    vector.check_model(model.identity)
    card = () if vector.card.layer is None else (vector.card.layer,)
    layers = (
        [named] if isinstance(named, int) else sorted({*swept_layers((), model.n_layers, idle_layers(model)), *card})
    )
    by_layer = supplied(model, data, vector, layers, training)
    best = best_of(by_layer, prevention.sign)
    coef = dose_of(best, prevention.sign)
    layer = named if named == "all" else best["layer"]
    row = {"vector": prevention.name, "layer": layer}
    row |= {"coef": coef, "sign": prevention.sign, "moves": _moves(by_layer), "by_layer": by_layer}
    if not coef:
        tell(f"{nothing_from(row, data.name)}: nothing is added along it in training")
    return Steering(vector, coef, layer), row


def best_of(by_layer: Sequence[Row], sign: int = 1) -> Row:
    """The layer where the move that way is largest against the rows' spread."""
    return max(by_layer, key=lambda row: sign * float(row["effect"]))


def dose_of(best: Row, sign: int = 1) -> float:
    """What is supplied at the chosen layer; 0 unless it is shown to be more than nothing that way."""
    return round(float(best["coef"]["mean"]), 4) if _shown(best["coef"]) == sign else 0.0


def _shown(coef: Row) -> int:
    """1 where a move is shown to be toward the trait, −1 against it, else 0."""
    low, high = coef["ci"]
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def _moves(by_layer: Sequence[Row]) -> Literal["toward", "against", "neither"]:
    """Which way the data move at the layer where they move most."""
    most = max(by_layer, key=lambda row: abs(float(row["effect"])))
    return {1: "toward", -1: "against", 0: "neither"}[_shown(most["coef"])]  # type: ignore[return-value]


def nothing_from(automatic: Row, data: str) -> str:
    """Why the data gave no coefficient along a vector, and what else can be asked for."""
    name, sign = automatic["vector"], automatic["sign"]
    other = "against" if sign == 1 else "toward"
    if automatic["moves"] != other:
        return f"{data} is not shown to {'supply' if sign == 1 else 'move against the trait along'} {name}"
    move = interval(best_of(automatic["by_layer"], -sign)["coef"], 2)
    return f"{data} moves {other} the trait along {name}, by {move}; {name}:{'-' * (sign == 1)}auto adds that dose"


def check_adds(steerings: Sequence[Steering], automatic: Sequence[Row], data: str) -> None:
    """Refuse a prevention that would add nothing: the training would be the plain one.

    Raises:
        ConfigError: All coefficients are 0.
    """
    if any(steering.coef for steering in steerings):
        return
    whys = [nothing_from(row, data) for row in automatic] or ["the coefficient is 0"]
    raise ConfigError(
        f"expected something to add in training, got nothing to prevent: {', and '.join(whys)}; pass a "
        "coefficient, or leave --prevent out to train plainly"
    )
