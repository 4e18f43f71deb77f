"""A server checks itself before it serves: steered requests against an unsteered one and against edits made by hand.

All of it goes the way that requests go: admission, batches, graphs, readings.
"""

import asyncio
import base64
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from personavec.vllm.asked import FIELD, SELF
from personavec.vllm.settings import Refusal, Settings, StoredVector

PROMPT_TOKENS, REPLY_TOKENS = 24, 4
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference from an edit made by hand, as a share of the stream's length."""

Vector = NDArray[np.float32]


class _Seen(NamedTuple):
    """Of one request: what it wrote, and the last token of the prompt at the layer that is tried."""

    tokens: tuple[int, ...]
    projection: float
    stream: Vector | None


async def check_server(engine: Any, vectors: Mapping[str, StoredVector], settings: Settings, fetch: Any) -> None:
    """Try every operation on a few tokens.

    Args:
        engine: The client of vLLM's engine.
        vectors: The operator's.
        settings: Of the server.
        fetch: Gets readings by id.

    Raises:
        Refusal: What the model did is not what was asked for.
    """
    content_hash, layer = tried(vectors, settings)
    vector = vectors[content_hash]
    unit, here = vector.unit(layer).numpy(), vector.direction[layer].numpy()
    model = engine.vllm_config.model_config
    prompt = [(7919 * (place + 3)) % model.get_vocab_size() for place in range(PROMPT_TOKENS)]
    look: dict[str, Any] = {"watch": [{"vector": content_hash, "layer": layer}]}
    if settings.means:
        look |= {"spans": [[PROMPT_TOKENS - 1, PROMPT_TOKENS]]}

    async def ask(name: str, steering: dict[str, Any] | None) -> _Seen:
        reading = f"{SELF}{name} {uuid.uuid4().hex}"  # several servers of one engine may check themselves at once
        persona = look | {"id": reading}
        if steering is not None:
            persona |= {"steering": [{"vector": content_hash, "layer": layer, **steering}]}
        tokens = await _write(engine, prompt, f"personavec-selfcheck-{name}".replace(" ", "-"), {FIELD: persona})
        return _seen(tokens, (await fetch(engine, [reading])).get(reading), layer)

    async def ask_all(wanted: Mapping[str, dict[str, Any] | None]) -> dict[str, _Seen]:
        answers = await asyncio.gather(*(ask(name, steering) for name, steering in wanted.items()))
        return dict(zip(wanted, answers, strict=True))

    bare = await _write(engine, prompt, "personavec-selfcheck-bare", None)
    seen = await ask_all({"nothing": None, "coef 0": {"coef": 0.0}, "ablate": {"op": "ablate"}})
    plain = seen["nothing"]
    size = float(np.linalg.norm(here))
    shift, bound = 0.5 * size, plain.projection - 0.25 * size
    seen |= await ask_all(
        {
            "add": {"coef": 0.5},
            "cap": {"op": "cap", "ceiling": bound},
            "a closed gate": {"coef": 0.5, "above": plain.projection + size},
            "an open gate": {"coef": 0.5, "above": plain.projection - size},
            "nothing again": None,
        }
    )
    along = {"add": shift, "an open gate": shift, "ablate": -plain.projection, "cap": bound - plain.projection}
    length = size if plain.stream is None else max(size, float(np.linalg.norm(plain.stream)))
    tolerance = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    for name, answer in seen.items():
        change = along.get(name, 0.0)
        off = abs(answer.projection - plain.projection - change)
        if answer.stream is not None and plain.stream is not None:
            off = max(off, float(np.linalg.norm(answer.stream - plain.stream - change * unit)))
        if not off <= tolerance * length:
            raise _refused(f"{name} to change layer {layer} as by hand, within {tolerance:g}", f"{off / length:.2g}")
        if name not in along and model.dtype == torch.float32 and answer.tokens != bare:  # others may round another way
            raise _refused(f"{name} to write the unsteered tokens {list(bare)}", str(list(answer.tokens)))


def tried(vectors: Mapping[str, StoredVector], settings: Settings) -> tuple[str, int]:
    """A vector and a layer to try: the first that has a direction there.

    Raises:
        Refusal: All are zero.
    """
    for content_hash, vector in vectors.items():
        layers = list(range(len(vector.direction)) if settings.layers is None else settings.layers)
        for layer in [*layers[len(layers) // 2 :], *layers]:
            if layer not in vector.absent and vector.direction[layer].any():
                return content_hash, layer
    raise Refusal(f"expected a vector with a direction in {settings.folder}, got zeros alone; extract one")


async def _write(engine: Any, prompt: list[int], name: str, extra: dict[str, Any] | None) -> tuple[int, ...]:
    from vllm.sampling_params import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=REPLY_TOKENS, ignore_eos=True, extra_args=extra)
    outputs = [output async for output in engine.generate({"prompt_token_ids": prompt}, sampling, name)]
    return tuple(outputs[-1].outputs[0].token_ids)


def _seen(tokens: tuple[int, ...], readings: dict[str, Any] | None, layer: int) -> _Seen:
    if readings is None or readings["error"] or not readings["watch"][0]:
        raise _refused("readings of a request", "none" if readings is None else str(readings["error"]))
    stream = None
    if readings["spans"]:
        stream = np.frombuffer(base64.b64decode(readings["spans"][0]["mean"][str(layer)]), "<f4")
    return _Seen(tokens, readings["watch"][0][0], stream)


def _refused(wanted: str, got: str) -> Refusal:
    return Refusal(f"expected {wanted}, got {got}; this server would not steer as asked, so it does not serve")
