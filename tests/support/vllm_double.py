"""A server that answers as vLLM with our plugin does, by our own loop: so the client is tested without vLLM.

What a request may ask for is checked by the plugin's own code.
"""

import asyncio
import base64
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from support.served import Listening

import personavec
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request as ReplyRequest
from personavec.steering.generate import stream
from personavec.steering.steer import Steering, steer
from personavec.steering.vector import PersonaVector, load_vector
from personavec.vllm.asked import Asked, read
from personavec.vllm.settings import Settings, StoredVector

SAMPLING_PARAMS = {
    *("temperature", "top_p", "max_tokens", "seed", "stop_token_ids", "ignore_eos", "prompt_logprobs", "extra_args")
}
"""Those of vLLM's that the client may send."""
LOCK = threading.Lock()
"""Several servers may have one model, whose hooks are for one of them at a time."""


@dataclass
class Manners:
    """What the server does besides answering."""

    plugin: bool = True
    accepts: bool = True
    text: bool = False
    """Answer in text, as a gateway might."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Of what it says of itself."""
    faults: int = 0
    """Calls that are answered with 503 before anything else."""
    poison: int = -1
    """A token that makes every call fail that has it."""
    crash_after: int = 0
    """Go down without a word in the call after so many."""
    hold: int = 0
    """Answer nothing before so many calls have come together."""


@dataclass
class Double(Listening):
    """The server, in a thread of its own."""

    model: ChatModel
    vectors: Sequence[PersonaVector] = ()
    manners: Manners = field(default_factory=Manners)
    port: int = 0
    calls: int = 0
    most: int = 0
    """Calls that were under way at once."""
    accepted: dict[str, PersonaVector] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of all calls for replies and readings."""

    def __post_init__(self) -> None:
        self._now, self._readings = 0, dict[str, Any]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Double":
        app = FastAPI()
        app.get("/health")(lambda: Response())
        app.post("/inference/v1/generate")(self._generate)
        if self.manners.plugin:
            app.get("/v1/personavec/vectors")(self._introduce)
            app.post("/v1/personavec/vectors")(self._accept)
            app.post("/v1/personavec/readings")(self._fetch)
        self._listen(app)
        return self

    @property
    def _all(self) -> dict[str, PersonaVector]:
        return {vector.content_hash: vector for vector in self.vectors} | self.accepted

    async def _introduce(self) -> JSONResponse:
        config = self.model.hf.config
        listed = [
            {"hash": name, "trait": vector.card.trait, "layer": vector.card.layer, "given": name in self.accepted}
            for name, vector in self._all.items()
        ]
        told = {
            "vectors": listed,
            "accepts": self.manners.accepts,
            "version": personavec.__version__,
            "vllm": "0.32.0",
            "model": {
                "name": self.model.identity.id,
                "served": self.model.identity.id,
                "revision": None,
                "layers": self.model.n_layers,
                "d_model": self.model.identity.d_model,
                "vocabulary": config.get_text_config().vocab_size,
                "dtype": "float32",
                "longest": self.model.context,
            },
        }
        changes = dict(self.manners.changes)
        told["model"] = told["model"] | changes.pop("model", {})  # type: ignore[operator]
        return JSONResponse(told | changes)

    async def _accept(self, request: Request) -> JSONResponse:
        if not self.manners.accepts:
            return JSONResponse({"error": {"message": "expected no vectors, got one"}}, 403)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "given.safetensors"
            path.write_bytes(await request.body())
            vector = load_vector(path)
        self.accepted[vector.content_hash] = vector
        return JSONResponse({"hash": vector.content_hash})

    async def _fetch(self, request: Request) -> JSONResponse:
        ids = (await request.json())["ids"]
        return JSONResponse({name: self._readings.pop(name) for name in ids if name in self._readings})

    async def _generate(self, request: Request) -> Response:
        self._now, self.calls = self._now + 1, self.calls + 1
        self.most = max(self.most, self._now)
        try:
            body = await request.json()
            manners = self.manners
            if manners.faults > 0:
                manners.faults -= 1
                return JSONResponse({"error": {"message": "busy"}}, 503)
            if manners.crash_after and self.calls > manners.crash_after:
                manners.crash_after = 0
                self._server.should_exit = self._server.force_exit = True
                await asyncio.sleep(60)
            if manners.poison in body["token_ids"]:
                return JSONResponse({"error": {"message": "cannot"}}, 500)
            deadline = time.monotonic() + 20
            while self._now < manners.hold and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            manners.hold = 0
            if manners.text:
                return JSONResponse({"choices": [{"text": "Hello"}]})
            self.asked.append(body)
            try:
                return JSONResponse(await asyncio.to_thread(self._answer, body))
            except ValueError as error:
                return JSONResponse({"error": {"message": str(error)}}, 400)
        finally:
            self._now -= 1

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, settings = tuple(body["token_ids"]), body["sampling_params"]
        assert set(body) == {"token_ids", "sampling_params"} and settings.keys() <= SAMPLING_PARAMS
        if len(ids) + settings["max_tokens"] > self.model.context:
            raise ValueError(f"expected at most {self.model.context} tokens, got more")
        asked = self._asked((settings.get("extra_args") or {}).get("persona"))
        steering = tuple(self._steering(change) for change in asked.changes)
        with LOCK:
            told: dict[str, Any] = {"choices": [self._choice(ids, steering, settings)]}
            if (top := settings.get("prompt_logprobs")) is not None:
                told["prompt_logprobs"] = [None, *self._prompt_logprobs(ids, steering, top)]
            if asked.id:
                self._readings[asked.id] = {"error": None, "spans": self._spans(ids, steering, asked.spans)}
        return told

    def _asked(self, persona: Any) -> Asked:
        stored = {
            name: StoredVector(vector.card.trait, vector.direction, vector.card.layer, vector.absent)
            for name, vector in self._all.items()
        }
        return Asked() if persona is None else read(persona, stored, Settings("", ()), self.model.context)

    def _steering(self, change: Any) -> Steering:
        bounds = {name: getattr(change, name) for name in ("floor", "ceiling", "above", "below")}
        layer = "all" if change.layer is None else change.layer
        return Steering(self._all[change.vector], change.coef, layer, change.positions, change.op, **bounds)

    def _choice(self, ids: tuple[int, ...], steering: tuple[Steering, ...], settings: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(settings["max_tokens"], settings.get("temperature", 1.0), settings.get("top_p", 1.0))
        request, tokens = ReplyRequest(ids, steering, (settings.get("seed", 0),)), []
        stop = settings.get("stop_token_ids", [])
        for step in stream(self.model, [request], sampling):
            tokens.append(int(step.tokens[0]))
            if tokens[-1] in stop:
                break
        return {"token_ids": tokens, "finish_reason": "stop" if tokens[-1] in stop else "length"}

    def _prompt_logprobs(self, ids: tuple[int, ...], steering: tuple[Steering, ...], top: int) -> list[Any]:
        with steer(self.model, [steering], [len(ids)]), torch.inference_mode():
            logs = self.model.hf(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        best = logs.topk(top).indices.tolist()
        return [
            {str(token): {"logprob": float(at[token])} for token in [chosen, *others]}
            for chosen, others, at in zip(ids[1:], best, logs, strict=True)
        ]

    def _spans(self, ids: tuple[int, ...], steering: tuple[Steering, ...], spans: Sequence[Any]) -> list[Any]:
        weights = torch.zeros((1, len(spans), len(ids)))
        for row, (first, stop) in zip(weights[0], spans, strict=True):
            row[first:stop] = 1 / (stop - first)
        layers = list(range(self.model.n_layers))
        with steer(self.model, [steering], [len(ids)]):
            means = capture(self.model, [ids], weights, layers)[0]
            norms = capture(self.model, [ids], weights, layers, lambda stream: stream.norm(dim=-1, keepdim=True))[0]
        return [
            {
                "tokens": stop - first,
                "mean": {
                    str(layer): base64.b64encode(mean[layer].numpy().astype("<f4").tobytes()).decode()
                    for layer in layers
                },
                "norm": {str(layer): float(norm[layer]) for layer in layers},
            }
            for (first, stop), mean, norm in zip(spans, means, norms, strict=True)
        ]
