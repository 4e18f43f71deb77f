"""Interop: vectors from other tools, and steering for other engines."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from personavec.errors import ConfigError, DataError
from personavec.model.activations import activation_norms
from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.runs.progress import stage
from personavec.steering.generate import Request, batches, generate
from personavec.steering.notation import parse_steering
from personavec.steering.vector import Card, PersonaVector
from personavec.traits.trait import Trait, check_name, load_trait
from personavec.verbs.interop.bake import bake
from personavec.verbs.interop.formats import from_gguf, from_reference, to_gguf, to_lm_eval
from personavec.verbs.interop.options import InteropConfig
from personavec.verbs.options import Writing, load_subject

FOREIGN = {".pt": from_reference, ".gguf": from_gguf}
"""Forms that are read, by the ending of their file."""
NAMED = re.compile(r"(?P<trait>.+)_(?P<position>response_avg|prompt_avg|prompt_last)_diff")
"""How the reference names its files."""
NORM_TOKENS = 64
"""Longest reply on which activation norms are measured."""

Row = dict[str, Any]


def interop(config: InteropConfig) -> Row:
    """Take a vector over from another tool, or hand a steering on to another engine, as the two file names say.

    Returns:
        `out` and its `kind`, the `trait`, and the `layers` that the vector has or that are steered.

    Raises:
        PersonavecError: Bad input.
    """
    if not config.source or config.out is None:
        raise ConfigError("expected IN and OUT, got one or none; for example: personavec interop in.pt out.safetensors")
    if config.out.exists():
        raise ConfigError(f"expected a new file or folder, got {config.out}, which exists; name another, or remove it")
    take = Path(config.source).suffix in FOREIGN
    if take != (config.out.suffix == ".safetensors"):
        raise ConfigError(
            f"expected .pt or .gguf to .safetensors, or VEC:COEF[@LAYER] to .gguf, .pt or a folder, got "
            f"{config.source} to {config.out}; correct the names"
        )
    if not take and (config.trait or config.norms or config.layer is not None):
        raise ConfigError(
            "expected --trait, --layer and --norms with a vector to take over, got VEC:COEF; leave them out"
        )
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"expected a folder that can be written, got {config.out.parent} ({error.strerror}); choose another OUT"
        ) from error
    return _take_over(config, config.out) if take else _hand_on(config, config.out)


def _take_over(config: InteropConfig, out: Path) -> Row:
    """A vector of another tool, with a card."""
    source = Path(config.source)
    named = NAMED.fullmatch(source.stem)
    trait = load_trait(config.trait) if config.norms else None
    name = trait.name if trait else config.trait or (named["trait"] if named else source.stem)
    check_name(name)
    model = load_subject(config)
    direction, absent = FOREIGN[source.suffix](source, model.identity)
    held = [layer for layer in range(model.n_layers) if layer not in absent]
    card = Card(
        name,
        model.identity,
        named["position"].replace("_", " ") if named else "imported",
        layer=held[0] if len(held) == 1 else config.layer,
        details={"absent_layers": list(absent), "imported_from": source.name},
    )
    vector = PersonaVector(direction, card)
    if config.layer is not None:
        vector.check_layer(config.layer)
    if trait:
        vector = PersonaVector(direction, dataclasses.replace(card, activation_norms=_norms(model, trait)))
    vector.save(out)
    told = {"absent_layers": list(absent), "layer": card.layer, "activation_norms": bool(trait)}
    return {"out": str(out), "kind": "vector", "trait": name, "model": config.model, "layers": held} | told


def _hand_on(config: InteropConfig, out: Path) -> Row:
    """A steering in the form of another engine, which applies it at every position."""
    steering = parse_steering(config.source)
    if not steering.active:
        raise ConfigError(f"expected a coef other than 0, got {config.source}; nothing would be steered")
    model = load_subject(config)
    vector, card = steering.vector, steering.vector.card
    vector.check_model(model.identity)
    told: Row = {"trait": card.trait, "model": config.model, "coef": steering.coef, "dose": None}
    if steering.layer is not None and card.activation_norms:
        told["dose"] = vector.dose(steering.layer, steering.coef)
    if out.suffix == ".gguf":
        architecture = model.hf.config.get_text_config().model_type
        return {"out": str(out), "kind": "gguf", "layers": list(to_gguf(steering, architecture, out))} | told
    if out.suffix == ".pt":
        return {"out": str(out), "kind": "lm-eval", "layers": list(to_lm_eval(steering, model, out))} | told
    return {"out": str(out), "kind": "baked"} | bake(model, steering, out) | told


def _norms(model: ChatModel, trait: Trait) -> tuple[float, ...]:
    """Activation norms over the model's greedy replies to the trait's held-out questions."""
    requests = [Request(model.render([{"role": "user", "content": question}])) for question in trait.evaluate]
    sampling = Sampling(max_new_tokens=NORM_TOKENS, temperature=0)
    rows: list[Row] = []
    with stage("replies for activation norms", len(requests)) as advance:
        for batch in batches(requests, sampling.max_new_tokens, Writing.batch_tokens):
            some = [requests[index] for index in batch]
            for request, reply in zip(some, generate(model, some, sampling), strict=True):
                skipped = model.reasoning_tokens(request.prompt, reply.ids)
                if skipped < len(reply.ids):
                    rows.append({"prompt_ids": request.prompt, "response_ids": reply.ids, "reasoning_tokens": skipped})
            advance(len(batch))
    if not rows:
        raise DataError(f"expected replies of {model.identity.id} to read, got empty ones only; leave out --norms")
    return activation_norms(model, rows)
