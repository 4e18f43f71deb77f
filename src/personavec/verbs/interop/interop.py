"""Interop: vectors from other tools, and steering for other engines."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    return transfer(source, out, trait=trait, layer=layer, norms=norms).run(model)


def transfer(
    source: str | Path | Steering, out: str | Path, *, trait: str | Trait = "", layer: int | None = None, norms: bool
) -> "TakeOver | HandOn":
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
        return TakeOver(Path(source), out, name, position, layer, known if norms and isinstance(known, Trait) else None)
    steering = source if isinstance(source, Steering) else parse_steering(str(source))
    if not steering.active:
        raise ConfigError(f"expected a coef other than 0, got {shown}; nothing would be steered")
    if steering.op != "add" or steering.gated:
        raise ConfigError(f"expected a steering that adds, got {shown}; other engines cannot do anything else")
    return HandOn(steering, out)


@dataclass(frozen=True)
class TakeOver:
    """A vector of another tool, which is given a card."""

    source: Path
    out: Path
    name: str
    position: str
    layer: int | None
    measured: Trait | None
    """The trait on whose questions activation norms are measured, if they are."""

    def run(self, model: ChatModel) -> Transfer:
        """Read it, measure, and save it."""
        direction, absent = FOREIGN[self.source.suffix](self.source, model.identity)
        held = [layer for layer in range(model.n_layers) if layer not in absent]
        card = Card(
            self.name,
            model.identity,
            self.position,
            layer=held[0] if len(held) == 1 else self.layer,
            details={"absent_layers": list(absent), "imported_from": self.source.name},
        )
        vector = PersonaVector(direction, card)
        if self.layer is not None:
            vector.check_layer(self.layer)
        if self.measured:
            vector = PersonaVector(direction, replace(card, activation_norms=_norms(model, self.measured)))
        vector.save(self.out)
        data = {
            "out": str(self.out),
            "kind": "vector",
            "trait": self.name,
            "model": model.identity.id,
            "layers": held,
            "absent_layers": list(absent),
            "layer": card.layer,
            "activation_norms": bool(self.measured),
        }
        return Transfer(data, vector)


@dataclass(frozen=True)
class HandOn:
    """A steering in the form of another engine, which applies it at every position."""

    steering: Steering
    out: Path

    def run(self, model: ChatModel) -> Transfer:
        """Write it."""
        steering, vector = self.steering, self.steering.vector
        vector.check_model(model.identity)
        dose = None
        if steering.layer is not None and vector.card.activation_norms:
            dose = vector.dose(steering.layer, steering.coef)
        written: Mapping[str, Any]
        if self.out.suffix == ".gguf":
            architecture = model.hf.config.get_text_config().model_type
            written = {"kind": "gguf", "layers": list(to_gguf(steering, architecture, self.out))}
        elif self.out.suffix == ".pt":
            written = {"kind": "lm-eval", "layers": list(to_lm_eval(steering, model, self.out))}
        else:
            written = {"kind": "baked"} | bake(model, steering, self.out)
        applied = {"trait": vector.card.trait, "model": model.identity.id, "coef": steering.coef, "dose": dose}
        return Transfer({"out": str(self.out)} | dict(written) | applied, vector)


def _norms(model: ChatModel, trait: Trait) -> tuple[float, ...]:
    """Activation norms over the model's greedy replies to the trait's held-out questions."""
    interview = Interview(model, max_new_tokens=NORM_TOKENS, temperature=0)
    plans = interview.answers(trait.check, 1, draw="norms", extra={"arm": "base"})
    replies = interview.write(plans, "replies for activation norms")
    rows = [row for row in replies if row["reasoning_tokens"] < len(row["response_ids"])]
    if not rows:
        raise DataError(f"expected replies of {model.identity.id} to read, got empty ones only; leave out --norms")
    return activation_norms(model, rows)
