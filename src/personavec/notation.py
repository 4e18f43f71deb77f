"""How steering is written on the command line: VEC:COEF[@LAYER]."""

import re
from pathlib import Path

from personavec.errors import ConfigError, VectorError
from personavec.steer import Steering
from personavec.vector import load_vector


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
    layer = vector.card.layer if match["layer"] is None else None if match["layer"] == "all" else int(match["layer"])
    if layer is None and match["layer"] is None:
        raise VectorError(f"expected a recommended layer in {match['file']}, got none; write {text}@LAYER")
    if layer is not None:
        vector.check_layer(layer)
    if match["dose"]:
        if layer is None:
            raise ConfigError(f"expected a coef with @all, got the dose {amount}; a dose belongs to one layer")
        amount = vector.coef(layer, amount)
    return Steering(vector, amount, layer)
