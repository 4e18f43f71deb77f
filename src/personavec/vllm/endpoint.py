"""Routes of the plugin: which vectors there are, and what was read of a request; a server checks itself first."""

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from personavec.vllm.selfcheck import check_server
from personavec.vllm.settings import Refusal, settings_of


class PersonaEndpoint:
    """What `vllm.endpoint_plugins` takes; its routes begin with /v1, as vLLM's `--api-key` guards those."""

    name = "personavec"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/v1/personavec/vectors", vectors, methods=["GET"])
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
    """The vectors that requests can name, by content hash, and what can be asked for with them."""
    processor = request.app.state.persona_engine.input_processor
    stored, settings = processor.persona_vectors, processor.persona_settings
    layers = range(len(next(iter(stored.values())).direction)) if settings.layers is None else settings.layers
    return JSONResponse(
        {
            "vectors": [
                {"hash": content_hash, "trait": vector.trait, "layer": vector.layer, "absent": sorted(vector.absent)}
                for content_hash, vector in stored.items()
            ],
            "layers": list(layers),
            "edits": settings.edits,
            "means": settings.means,
            "version": settings.version,
        }
    )


async def readings(request: Request) -> JSONResponse:
    """What was read of some requests, `{"ids": […]}`; each is told once."""
    try:
        body = await request.json()
        ids = body["ids"]
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        return JSONResponse({"error": {"message": 'expected {"ids": […]} with ids of requests'}}, status_code=400)
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
    return merged


def _finite(value: Any) -> Any:
    """JSON has no inf and no nan: null."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
