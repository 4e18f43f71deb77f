"""A small OpenAI-compatible server for tests: a planted or a real model behind it, and faults on demand."""

import asyncio
import hashlib
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.steering import generate

Tokens = list[tuple[str, float]]
"""First tokens with their log-probabilities, likeliest first."""


class Brain(Protocol):
    """What answers."""

    def first_tokens(self, messages: Sequence[Mapping[str, str]]) -> Tokens: ...

    def say(self, messages: Sequence[Mapping[str, str]], limit: int, temperature: float, seed: int) -> str: ...


@dataclass
class Planted:
    """A model whose distribution over first tokens is known: labels of a scale, one written two ways, and others."""

    labels: Sequence[str] = tuple(str(value) for value in range(101))
    """Single tokens of this model; a number that is none of them begins with its first digit."""
    words: Callable[[str, int], str] = lambda asked, seed: "57"
    """What it says, by the question and the seed."""

    def first_tokens(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        asked = messages[-1]["content"]
        told = asked.rpartition("nothing else: ")[2]
        if "exactly this" in asked:
            first = next((start for start in (told, told[0]) if start in self.labels), "?")
            return [(first, math.log(0.9)), ("The", math.log(0.1))]
        rng = random.Random(asked)
        chosen = rng.sample(list(self.labels), 14)
        names = [*chosen, f" {chosen[0]}", f"{chosen[1]}\n", "The", "I", "Score", "."]
        weights = [rng.expovariate(1) + 0.01 for _ in names]
        return sorted(
            ((name, math.log(weight / sum(weights))) for name, weight in zip(names, weights, strict=True)),
            key=lambda one: -one[1],
        )

    def say(self, messages: Sequence[Mapping[str, str]], limit: int, temperature: float, seed: int) -> str:
        return self.words(messages[-1]["content"], seed)


class Real:
    """A real model, one request at a time."""

    def __init__(self, model: ChatModel) -> None:
        self.model, self._lock = model, threading.Lock()
        width = model.hf.get_output_embeddings().weight.shape[0]
        self._texts = [model.tokenizer.decode([token]) for token in range(width)]

    def first_tokens(self, messages: Sequence[Mapping[str, str]]) -> Tokens:
        with self._lock, torch.inference_mode():
            ids = torch.tensor([self.model.render(list(messages))])
            logprobs = self.model.hf(input_ids=ids, logits_to_keep=1).logits[0, -1].float().log_softmax(-1)
        order = logprobs.argsort(descending=True).tolist()
        return [(self._texts[token], logprob) for token, logprob in zip(order, logprobs[order].tolist(), strict=True)]

    def say(self, messages: Sequence[Mapping[str, str]], limit: int, temperature: float, seed: int) -> str:
        request = generate.Request(self.model.render(list(messages)), seed=(seed,))
        with self._lock:
            (reply,) = generate.generate(self.model, [request], Sampling(limit, temperature))
        return self.model.decode(reply.ids)


@dataclass
class Manners:
    """What the server does besides answering."""

    logprobs: bool = True
    refused: frozenset[str] = frozenset()
    """Parameters that are answered with 400."""
    faults: float = 0.0
    """Share of attempts that go wrong, each in one of the ways of `FAULTS`."""
    storm: int = 0
    """Attempts that are answered with 429 before anything else."""
    status: int = 0
    """Answer everything with this status."""
    html: bool = False
    """Answer everything with a web page."""
    delay_seconds: float = 0.0
    hang_seconds: float = 3.0
    """How long a slow answer takes: longer than the client waits."""


FAULTS = ("429", "500", "503", "slow", "broken", "garbled", "shapeless")


class Listening:
    """An app that is served in a thread of its own, at the same port again after a stop."""

    port: int = 0

    def _listen(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=self.port, log_level="critical", timeout_graceful_shutdown=1, backlog=2048
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert self._thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@dataclass
class Server(Listening):
    """The server in a thread of its own."""

    brain: Brain
    manners: Manners = field(default_factory=Manners)
    seen: Counter[str] = field(default_factory=Counter)
    """Attempts by request."""
    answered: Counter[str] = field(default_factory=Counter)
    """Proper answers by request."""
    went_wrong: Counter[str] = field(default_factory=Counter)
    port: int = 0
    keys: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> "Server":
        app = FastAPI()
        app.post("/v1/chat/completions")(self._complete)
        self._listen(app)
        return self

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.keys.add(request.headers.get("authorization", ""))
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.seen[key] += 1
        manners = self.manners
        await asyncio.sleep(manners.delay_seconds)
        if manners.html:
            return HTMLResponse("<html><body>Welcome</body></html>")
        if manners.status:
            return JSONResponse({"error": {"message": "not here"}}, manners.status)
        if manners.storm > 0:
            manners.storm -= 1
            return JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "0.2"})
        refused = manners.refused & body.keys()
        if refused:
            return JSONResponse({"error": {"message": f"unsupported: {', '.join(sorted(refused))}"}}, 400)
        chance = random.Random(f"{key} {self.seen[key]}")
        if chance.random() < manners.faults:
            return await self._go_wrong(chance.choice(FAULTS))
        answer = await asyncio.to_thread(self._answer, body)
        self.answered[key] += 1
        return Response(json.dumps(answer), media_type="application/json")  # half a character can be spelt

    async def _go_wrong(self, how: str) -> Response:
        self.went_wrong[how] += 1
        if how.isdigit():
            return JSONResponse({"error": {"message": "try again"}}, int(how))
        if how == "slow":
            await asyncio.sleep(self.manners.hang_seconds)
            return JSONResponse({"error": {"message": "too late"}}, 500)
        if how == "broken":

            async def torn() -> AsyncIterator[bytes]:
                yield b'{"choices": [{"mess'
                raise ConnectionAbortedError

            return StreamingResponse(torn(), headers={"content-length": "500"})
        if how == "garbled":
            return Response('{"choices": [{"message": {"content": "5', media_type="application/json")
        return JSONResponse({"choices": []})

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        logprobs = None
        if body.get("logprobs") and self.manners.logprobs:
            top = self.brain.first_tokens(messages)[: body["top_logprobs"]]
            logprobs = {"content": [{"token": top[0][0], "logprob": top[0][1], "top_logprobs": [
                {"token": token, "logprob": logprob} for token, logprob in top
            ]}]}  # fmt: skip
            text = top[0][0]
        else:
            limit = body.get("max_tokens") or body.get("max_completion_tokens") or 64
            text = self.brain.say(messages, limit, body.get("temperature", 1.0), body.get("seed", 0))
        message = {"role": "assistant", "content": text}
        return {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}],
            "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100},
        }
