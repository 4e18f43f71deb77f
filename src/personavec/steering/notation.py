"""How steering is written on the command line: VEC:COEF[@LAYER]."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from personavec.errors import ConfigError, VectorError
from personavec.model.identity import ModelIdentity
from personavec.steering.steer import Steering
from personavec.steering.vector import load_vector


def parse_steering(text: str) -> Steering:
    """Read `VEC:COEF[@LAYER]`: a vector file, a coefficient (or a dose, `0.5d`) and a layer (or `all`).

    Without a layer it is the one the vector's card recommends.

    Raises:
        ConfigError: The text has another form.
        VectorError: No such vector or layer, or the card recommends no layer.
    """
    match = re.fullmatch(
        r"(?P<file>.+):(?P<amount>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(?P<dose>d?)(?:@(?P<layer>all|\d+))?", text
    )
    if match is None:
        raise ConfigError(
            f"expected VEC:COEF[@LAYER], got {text}; for example "
            "runs/extract-optimistic/optimistic/vector.safetensors:2@15, or :0.2d for a dose"
        )
    vector = load_vector(Path(match["file"]))
    amount = float(match["amount"])
    named = match["layer"]
    layer: Any = vector.card.layer if named is None else named if named == "all" else int(named)
    if layer is None:
        raise VectorError(f"expected a recommended layer in {match['file']}, got none; write {text}@LAYER")
    if layer != "all":
        vector.check_layer(layer)
    if match["dose"]:
        if layer == "all":
            raise ConfigError(f"expected a coef with @all, got the dose {amount}; a dose belongs to one layer")
        amount = vector.coef(layer, amount)
    return Steering(vector, amount, layer)


Steers = str | Steering | Sequence[str | Steering]
"""What steers a model: `vector.at(…)`, the notation of the command line, or several of either."""


def steerings(steer: Steers, model: ModelIdentity | None = None) -> list[tuple[str, Steering]]:
    """What steers a model, each with a text that says so.

    Args:
        steer: One or several.
        model: Whose vectors they must be; None checks that later.

    Raises:
        ConfigError: The notation is wrong, or something else was given.
        VectorError: A vector of another model, or no such layer.
    """
    several = list(steer) if isinstance(steer, Iterable) and not isinstance(steer, str) else [steer]
    if wrong := [each for each in several if not isinstance(each, str | Steering)]:
        raise ConfigError(f"expected steer=vector.at(…) or VEC:COEF[@LAYER], got {wrong[0]!r}; correct it")
    named = [(each, parse_steering(each)) if isinstance(each, str) else (each.text, each) for each in several]
    for _, steering in named:
        if model is not None:
            steering.vector.check_model(model)
    return named


def in_order(steer: Steers, model: ModelIdentity) -> tuple[Steering, ...]:
    """What steers a model, as given; twice the same adds twice.

    Raises:
        ConfigError: As `steerings`.
        VectorError: Likewise.
    """
    return tuple(steering for _, steering in steerings(steer, model))
