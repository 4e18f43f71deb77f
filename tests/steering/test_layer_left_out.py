"""A layer that is left out is the one that the card recommends, through whichever door a steering comes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from personavec.errors import PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.server.api.protocol import SteeringSpec
from personavec.server.catalogue import Catalogue
from personavec.server.refused import Refused
from personavec.steering.notation import parse_steering
from personavec.steering.preventative import PreventativeSteering
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.verbs.finetune.supply import preventions

COEF, CARD = 2.0, 1


def _served(vector: PersonaVector, **layer: Any) -> Steering:
    catalogue = Catalogue({"tiny": vector}, 1e9, "warn")
    (steering,) = catalogue.steer([SteeringSpec(vector="tiny", coef=COEF, **layer)]).steering
    return steering


def _written(vector: PersonaVector, folder: Path, layer: dict[str, Any]) -> str:
    vector.save(folder / "v.safetensors")
    return f"{folder / 'v.safetensors'}:{COEF}" + (f"@{layer['layer']}" if layer else "")


DOORS: dict[str, Callable[[PersonaVector, Path, dict[str, Any]], Steering | None]] = {
    "Steering": lambda v, _, layer: Steering(v, COEF, **layer),
    "vector.at": lambda v, _, layer: v.at(COEF, **layer),
    "--steer": lambda v, folder, layer: parse_steering(_written(v, folder, layer)),
    "--prevent": lambda v, folder, layer: preventions(_written(v, folder, layer))[0].steering,
    "prevent=": lambda v, _, layer: preventions(v.at(COEF, **layer))[0].steering,
    "a trainer's callback": lambda v, _, layer: PreventativeSteering(v, COEF, **layer).steerings[0],
    "a request": lambda v, _, layer: _served(v, **layer),
}


@pytest.mark.parametrize("door", DOORS)
def test_it_is_the_layer_of_the_card(door: str, model: ChatModel, tmp_path: Path) -> None:
    vector = tiny.vector(model, layer=CARD, coef=1.0, activation_norms=(10.0,) * model.n_layers)
    for layer, means in (({}, CARD), ({"layer": 3}, 3), ({"layer": "all"}, "all")):
        steering = DOORS[door](vector, tmp_path, layer)
        assert steering is not None and steering.layer == means
        assert steering.single_layer == (None if means == "all" else means)
        reference = Steering(vector, COEF, means).deltas()  # type: ignore[arg-type]
        deltas = steering.deltas()
        assert deltas.keys() == reference.keys()
        assert all(torch.equal(deltas[at], reference[at]) for at in deltas)


@pytest.mark.parametrize("door", DOORS)
def test_a_card_that_recommends_none_is_refused(door: str, model: ChatModel, tmp_path: Path) -> None:
    vector = tiny.vector(model)
    with pytest.raises((PersonavecError, Refused), match="layer") as error:
        DOORS[door](vector, tmp_path, {})
    assert "expected a" in str(error.value) and "\n" not in str(error.value)
    steering = DOORS[door](vector, tmp_path, {"layer": "all"})
    assert steering is not None and steering.layer == "all"
