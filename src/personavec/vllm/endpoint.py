"""Routes of the plugin: which vectors there are, and what was read of a request; a server checks itself first."""

import math
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from personavec.vllm.selfcheck import check_server
from personavec.vllm.settings import Refusal, Settings, StoredVector, StoredVectors, read_file, settings_of

HEADER_BYTES = 2**22
"""Room for the card of a vector."""


class PersonaEndpoint:
    """What `vllm.endpoint_plugins` takes; its routes begin with /v1, as vLLM's `--api-key` guards those."""

    name = "personavec"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/v1/personavec/vectors", vectors, methods=["GET"])
        app.add_api_route("/v1/personavec/vectors", accept, methods=["POST"])
        app.add_api_route("/v1/personavec/readings", readings, methods=["POST"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:  # noqa: ARG002 # as vLLM calls it
        """Check the server, before it serves.

        Raises:
            Refusal: What it does is not what was asked for.
        """
        if settings_of(engine_client.vllm_config) is None:
            raise Refusal("expected settings of personavec, got none; start with `python -m personavec.vllm`")
        processor = engine_client.input_processor
        await check_server(engine_client, processor.persona_vectors, processor.persona_settings, fetch)
        state.persona_engine, processor.persona_checked = engine_client, True


async def vectors(request: Request) -> JSONResponse:
    """The vectors that requests can name, by content hash, what can be asked for with them, and of whom."""
    engine = request.app.state.persona_engine
    processor = engine.input_processor
    stored, settings = processor.persona_vectors, processor.persona_settings
    layers = range(len(next(iter(stored.values())).direction)) if settings.layers is None else settings.layers
    return JSONResponse(
        {
            "vectors": [
                {"hash": content_hash, "trait": vector.trait, "layer": vector.layer, "absent": sorted(vector.absent)}
                | {"given": content_hash not in settings.hashes}
                for content_hash, vector in (stored | given(settings, stored)).items()
            ],
            "layers": list(layers),
            "edits": settings.edits,
            "means": settings.means,
            "version": settings.version,
            "accepts": settings.given is not None,
            "vllm": processor.persona_version,
            "model": described(engine.vllm_config.model_config),
        }
    )


def described(model: Any) -> dict[str, Any]:
    """A model as clients compare it with theirs."""
    text, served = model.hf_text_config, model.served_model_name
    return {
        "name": str(model.model),
        "served": served[0] if isinstance(served, list) else served,
        "revision": getattr(model.hf_config, "_commit_hash", None),
        "layers": text.num_hidden_layers,
        "d_model": text.hidden_size,
        "vocabulary": text.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "longest": model.max_model_len,
    }


def given(settings: Settings, stored: StoredVectors) -> dict[str, StoredVector]:
    """The vectors that clients gave, by whichever process."""
    found: dict[str, StoredVector] = {}
    for path in sorted(Path(settings.given).glob("*.safetensors")) if settings.given else ():
        with suppress(KeyError):  # it is of another model, or damaged
            found[path.stem] = stored[path.stem]
    return found


async def accept(request: Request) -> JSONResponse:
    """Keep a vector that a client gives, where the operator allows it; the body is its file."""
    processor = request.app.state.persona_engine.input_processor
    stored, settings = processor.persona_vectors, processor.persona_settings
    if settings.given is None:
        return _refused("expected no vector, got one; this server was started without --accept-vectors", 403)
    body, largest = b"", 4 * next(iter(stored.values())).direction.numel() + HEADER_BYTES
    async for part in request.stream():
        body += part
        if len(body) > largest:
            return _refused(f"expected a vector of at most {largest:,} bytes, got more; it is of another model", 413)
    folder = Path(settings.given)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "given.safetensors"
        path.write_bytes(body)
        try:
            content_hash, _ = read_file(path)
        except Refusal as error:
            return _refused(str(error), 400)
        path.rename(folder / f"{content_hash}.safetensors")
    try:
        stored[content_hash]
    except KeyError:
        return _refused("expected a vector of this server's model, got one of another shape", 400)
    return JSONResponse({"hash": content_hash})


def _refused(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": {"message": text}}, status_code=status)


async def readings(request: Request) -> JSONResponse:
    """What was read of some requests, `{"ids": […]}`; each is told once."""
    try:
        body = await request.json()
        ids = body["ids"]
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        return _refused('expected {"ids": […]} with ids of requests', 400)
    return JSONResponse(_finite(await fetch(request.app.state.persona_engine, ids)))


async def fetch(engine: Any, ids: list[str]) -> dict[str, Any]:
    """Readings by id, from all workers: those of a pipeline have a part of the layers each."""
    answers = await engine.collective_rpc("persona_readings", args=(ids,))
    merged: dict[str, Any] = {}
    for answer in answers:
        for name, there in answer.items():
            first = merged.setdefault(name, there)
            first["watch"] = [a if a is not None else b for a, b in zip(first["watch"], there["watch"], strict=True)]
            first["error"] = first["error"] or there["error"]
            for span, other in zip(first["spans"], there["spans"], strict=True):
                span["mean"] |= other["mean"]
                span["norm"] |= other["norm"]
    return merged


def _finite(value: Any) -> Any:
    """JSON has no inf and no nan: null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
