"""Interop: vectors from other tools, and steering for other engines."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from personavec.errors import ConfigError, DataError
from personavec.model.activations import activation_norms
from personavec.model.chat_model import ChatModel
from personavec.runs.result import Result
from personavec.steering.notation import parse_steering
from personavec.steering.rollouts import Interview
from personavec.steering.steer import Steering
from personavec.steering.vector import Card, PersonaVector
from personavec.traits.load import load_trait
from personavec.traits.trait import Trait, check_name
from personavec.verbs.interop.bake import bake
from personavec.verbs.interop.formats import from_gguf, from_reference, to_gguf, to_lm_eval

FOREIGN = {".pt": from_reference, ".gguf": from_gguf}
"""Forms that are read, by the ending of their file."""
NAMED = re.compile(r"(?P<trait>.+)_(?P<position>response_avg|prompt_avg|prompt_last)_diff")
"""How the reference names its files."""
NORM_TOKENS = 64
"""Longest reply on which activation norms are measured."""


@dataclass(frozen=True, repr=False)
class Transfer(Result):
    """What was taken over or handed on."""

    vector: PersonaVector
    """The vector that was taken over, or that of the steering that was handed on."""


def interop(
    source: str | Path | Steering,
    out: str | Path,
    model: ChatModel,
    *,
    trait: str | Trait = "",
    layer: int | None = None,
    norms: bool = False,
) -> Transfer:
    """Take a vector over from another tool, or hand a steering on to another engine, as the two names say.

    Args:
        source: To take over: a .pt file of the reference's or a GGUF control vector. To hand on: `vector.at(…)`, or
            VEC:COEF[@LAYER].
        out: To take over: NAME.safetensors. To hand on: NAME.gguf (llama.cpp), NAME.pt (lm-eval) or a folder (baked).
        model: Whose vector it is. Baking leaves it as it is.
        trait: Name of a vector taken over; default from its file name. With norms a trait, its name or file.
        layer: Layer that the card of a vector taken over recommends.
        norms: Measure activation norms on the model's replies to the trait's held-out questions, so that doses work.

    Raises:
        PersonavecError: Bad input.
    """
    return transfer(source, out, trait=trait, layer=layer, norms=norms)(model)


def transfer(
    source: str | Path | Steering, out: str | Path, *, trait: str | Trait = "", layer: int | None = None, norms: bool
) -> Callable[[ChatModel], Transfer]:
    """What `interop` is to do, checked as far as that needs no model.

    Raises:
        PersonavecError: Bad input.
    """
    shown, out = getattr(source, "text", str(source)), Path(out)
    if out.exists():
        raise ConfigError(f"expected a new file or folder, got {out}, which exists; name another, or remove it")
    take = not isinstance(source, Steering) and Path(source).suffix in FOREIGN
    if take != (out.suffix == ".safetensors"):
        raise ConfigError(
            f"expected .pt or .gguf to .safetensors, or VEC:COEF[@LAYER] to .gguf, .pt or a folder, got "
            f"{shown} to {out}; correct the names"
        )
    if not take and (trait or norms or layer is not None):
        raise ConfigError(
            "expected --trait, --layer and --norms with a vector to take over, got VEC:COEF; leave them out"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"expected a folder that can be written, got {out.parent} ({error.strerror}); choose another OUT"
        ) from error
    if not isinstance(source, Steering) and take:
        known = load_trait(trait) if norms and not isinstance(trait, Trait) else trait
        named = NAMED.fullmatch(Path(source).stem)
        name = known.name if isinstance(known, Trait) else known or (named["trait"] if named else Path(source).stem)
        check_name(name)
        position = named["position"].replace("_", " ") if named else "imported"
        measured = known if norms and isinstance(known, Trait) else None
        return partial(_take_over, Path(source), out, name, position, layer, measured)
    steering = source if isinstance(source, Steering) else parse_steering(str(source))
    if not steering.active:
        raise ConfigError(f"expected a coef other than 0, got {shown}; nothing would be steered")
    if steering.op != "add" or steering.gated:
        raise ConfigError(f"expected a steering that adds, got {shown}; other engines cannot do anything else")
    return partial(_hand_on, steering, out)


def _take_over(
    source: Path, out: Path, name: str, position: str, layer: int | None, measured: Trait | None, model: ChatModel
) -> Transfer:
    """Read a vector of another tool, give it a card, with activation norms on a trait's questions, and save it."""
    direction, absent = FOREIGN[source.suffix](source, model.identity)
    held = [layer for layer in range(model.n_layers) if layer not in absent]
    card = Card(
        name,
        model.identity,
        position,
        layer=held[0] if len(held) == 1 else layer,
        details={"absent_layers": list(absent), "imported_from": source.name},
    )
    vector = PersonaVector(direction, card)
    if layer is not None:
        vector.check_layer(layer)
    if measured:
        vector = PersonaVector(direction, replace(card, activation_norms=_norms(model, measured)))
    vector.save(out)
    data = {
        "out": str(out),
        "kind": "vector",
        "trait": name,
        "model": model.identity.id,
        "layers": held,
        "absent_layers": list(absent),
        "layer": card.layer,
        "activation_norms": bool(measured),
    }
    return Transfer(data, vector)


def _hand_on(steering: Steering, out: Path, model: ChatModel) -> Transfer:
    """Write a steering in the form of another engine, which applies it at every position."""
    vector = steering.vector
    vector.check_model(model.identity)
    dose = None
    if (layer := steering.single_layer) is not None and vector.card.activation_norms:
        dose = vector.dose(layer, steering.coef)
    written: Mapping[str, Any]
    if out.suffix == ".gguf":
        architecture = model.hf.config.get_text_config().model_type
        written = {"kind": "gguf", "layers": list(to_gguf(steering, architecture, out))}
    elif out.suffix == ".pt":
        written = {"kind": "lm-eval", "layers": list(to_lm_eval(steering, model, out))}
    else:
        written = {"kind": "baked"} | bake(model, steering, out)
    applied = {"trait": vector.card.trait, "model": model.identity.id, "coef": steering.coef, "dose": dose}
    return Transfer({"out": str(out)} | dict(written) | applied, vector)


def _norms(model: ChatModel, trait: Trait) -> tuple[float, ...]:
    """Activation norms over the model's greedy replies to the trait's held-out questions."""
    interview = Interview(model, max_new_tokens=NORM_TOKENS, temperature=0)
    plans = interview.answers(trait.check, 1, draw="norms", extra={"arm": "base"})
    replies = interview.write(plans, "replies for activation norms")
    rows = [row for row in replies if row["reasoning_tokens"] < len(row["response_ids"])]
    if not rows:
        raise DataError(f"expected replies of {model.identity.id} to read, got empty ones only; leave out --norms")
    return activation_norms(model, rows)
