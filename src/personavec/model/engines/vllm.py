"""`vllm:URL[,URL…]`: the model behind vLLM's servers with our plugin; token ids in, token ids out."""

import asyncio
import base64
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from personavec.errors import ModelError
from personavec.model.activations import spans_of
from personavec.model.chat_model import ChatModel
from personavec.model.engines.engine import ModelEngine, Order, Row, WrittenReply
from personavec.model.engines.introduction import GENERATE, VECTORS, Introduction, introduce, urls_of
from personavec.model.engines.servers import SLOTS, Away, ModelServer, Servers
from personavec.model.sampling import COLDEST, Sampling

READINGS = "/v1/personavec/readings"
TOGETHER = 8
"""Conversations whose readings are fetched by one call."""
BATCH_NUMBERS = 2**26
"""Of activations that are held at once."""

Ids = Sequence[int]
Segment = tuple[int, int]
"""Positions, from and up to."""
Watched = tuple[str, int]
"""Content hash of a vector, and a layer."""


class VllmEngine:
    """Servers of one model, each with all of it; what one of them cannot do now, another does, or it later."""

    def __init__(self, urls: Sequence[str], model: ChatModel) -> None:
        """Find out whether the servers are there, and of this model.

        Args:
            urls: Their addresses.
            model: Without its weights.

        Raises:
            ModelError: One is away, of another model, without the plugin, of another version, or unlike the others.
        """
        self._model = model
        self._there: dict[str, set[str]] = {}
        """Content hashes of the vectors that each server has."""
        self.servers = Servers(urls, self._greet)
        self._first: Introduction | None = None
        told: list[Introduction] = self.servers.each(self._introduce)
        self._first = told[0]
        for url, other in zip(urls, told, strict=True):
            self._first.check_alike(other, url)
        self.context = self._first.longest - 1  # a conversation that is read is a prompt, behind which one is drawn
        self.name, self.dtype = f"vLLM {self._first.vllm}", self._first.dtype
        self.commit = self._first.commit

    async def _introduce(self, server: ModelServer) -> Introduction:
        told = await introduce(server, self._model)
        self._there[server.url] = set(told.vectors)
        return told

    async def _greet(self, server: ModelServer) -> None:
        told = await self._introduce(server)
        if self._first is not None:
            self._first.check_alike(told, server.url)

    def write(self, orders: Sequence[Order], sampling: Sampling) -> Iterator[list[WrittenReply]]:
        """Write replies; yields those that have come, in any order; see `ModelEngine`."""
        jobs = [partial(self._write, order, sampling) for order in orders]
        for answers in self.servers.answers(jobs):
            yield [WrittenReply(place, *answer) for place, answer in answers]

    async def _write(self, order: Order, sampling: Sampling, server: ModelServer) -> tuple[tuple[int, ...], str]:
        await self._supply(order.vectors, server)
        persona = {"steering": list(order.steering)}
        choice = await self._generate(server, order.prompt, self._settings(order, sampling), persona)
        ids = choice["token_ids"]
        if ids and ids[-1] in self._model.stop_ids:
            return tuple(ids[:-1]), "stop"
        return tuple(ids), "length"

    def _settings(self, order: Order, sampling: Sampling) -> dict[str, Any]:
        greedy = sampling.temperature < COLDEST
        drawing = {"temperature": 0.0} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p}
        return drawing | {
            "max_tokens": sampling.max_new_tokens,
            "seed": order.seed,
            "stop_token_ids": list(self._model.stop_ids),
            "ignore_eos": True,  # those above are all that end a reply
        }

    async def stream(
        self,
        server: ModelServer,
        order: Order,
        sampling: Sampling,
        watch: Sequence[Watched],
        top: int | None,
        name: str,
    ) -> AsyncGenerator[dict[str, Any]]:
        """The parts of a reply as they come: `token_ids`, `logprobs`, and `finish_reason` of the last.

        Args:
            server: Who writes it.
            order: What.
            sampling: How.
            watch: Vectors by content hash, and layers, whose projections are kept for `projections`.
            top: How many of the most probable tokens are told of each token; None for no log-probabilities.
            name: Of the reply, for `projections`.

        Raises:
            Away: The server is not there, or went.
            ModelError: It refuses.
        """
        await self._supply(order.vectors, server)
        looks = [{"vector": content_hash, "layer": layer} for content_hash, layer in watch]
        persona = {"steering": list(order.steering)} | ({"watch": looks, "id": name} if looks else {})
        settings = self._settings(order, sampling) | ({} if top is None else {"logprobs": top})
        async for part in server.stream(GENERATE, _sent(order.prompt, settings, persona) | {"stream": True}):
            for choice in part["choices"]:
                yield choice

    async def prompt_logprobs(self, server: ModelServer, order: Order, top: int) -> list[dict[int, float]]:
        """Log-probability of each token of a prompt but the first, by id, the `top` most probable ones beside it.

        Raises:
            Away: The server is not there, or went.
            ModelError: It refuses.
        """
        await self._supply(order.vectors, server)
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top}
        choice = await self._generate(server, order.prompt, settings, {"steering": list(order.steering)})
        try:
            told = [
                {int(token): float(entry["logprob"]) for token, entry in at.items()}
                for at in choice["prompt_logprobs"][1:]
            ]
            if [token in at for token, at in zip(order.prompt[1:], told, strict=True)].count(False):
                raise KeyError("token")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Away(f"an answer without log-probabilities ({type(error).__name__})") from error
        return told

    def check_watched(self, vectors: Mapping[str, str]) -> None:
        """Check that servers can read along vectors, content hashes by trait: those given later can only steer.

        Raises:
            ModelError: One was not in their folder when they started.
        """
        folder = self._first.folder if self._first else frozenset()
        for trait, content_hash in vectors.items():
            if content_hash not in folder:
                raise ModelError(
                    f"expected {trait}, which is to be watched, in the servers' folder of vectors, got none of that "
                    "content; put its file into their --vectors and start them again, or pass --watch none"
                )

    async def projections(self, server: ModelServer, name: str) -> list[list[float]] | None:
        """By token what was watched of a reply, the last prompt token first; None if the server has none of it."""
        told = (await server.post(READINGS, {"ids": [name]})).get(name)
        if told is None or told["error"]:
            return None
        columns = [[float("nan") if value is None else value for value in column] for column in told["watch"]]
        return [list(row) for row in zip(*columns, strict=True)]

    async def _generate(
        self, server: ModelServer, prompt: Ids, settings: Mapping[str, Any], persona: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The choice that a server answers to token ids, `prompt_logprobs` beside it."""
        answer = await server.post(GENERATE, _sent(prompt, settings, persona))
        try:
            choice = dict(answer["choices"][0])
            ended, ids = choice["finish_reason"], choice["token_ids"]
            if not all(type(token) is int for token in ids):
                raise TypeError("no token ids")
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Away(f"an answer without token ids ({type(error).__name__})") from error
        if ended not in ("stop", "length"):
            raise Away(f"a reply that ended by {ended}")
        return choice | {"prompt_logprobs": answer.get("prompt_logprobs")}

    async def _supply(self, vectors: Mapping[str, Callable[[], bytes]], server: ModelServer) -> None:
        """Give a server the vectors that it lacks."""
        there = self._there[server.url]
        if vectors.keys() <= there:
            return
        async with server.lock:
            for content_hash in vectors.keys() - there:
                if self._first is not None and not self._first.accepts:
                    raise ModelError(
                        f"expected the vector {content_hash[:12]} in the folder of {server.url}, got a server that has "
                        "others and takes none; start it with --accept-vectors DIR, or put the file into its folder"
                    )
                await server.post(VECTORS, vectors[content_hash]())
                there.add(content_hash)

    def means(
        self, rows: Sequence[Row], positions: Sequence[str], layers: Sequence[int] | None
    ) -> Iterator[tuple[list[int], Float[Tensor, "batch span layer d_model"]]]:
        """Mean activations of conversations, see `ModelEngine`; of all layers an idle one repeats the one before it."""
        chosen = range(self._model.n_layers) if layers is None else list(layers)
        spans = [[spans_of(row)[kind] for kind in positions] for row in rows]

        def mean(place: int, cut: Sequence[Segment], read: Sequence[Any]) -> Float[Tensor, "span layer d_model"]:
            segments = torch.from_numpy(np.stack([_decoded(each["mean"], chosen) for each in read]))
            return torch.stack([_over(span, cut, segments) for span in spans[place]])

        idle = self.idle_layers() if layers is None else ()
        size = len(positions) * len(chosen) * self._model.identity.d_model
        for batch, averages in self._read(rows, spans, mean, max(1, BATCH_NUMBERS // size)):
            for layer in idle:
                averages[:, :, layer] = averages[:, :, layer - 1] if layer else 0.0
            yield batch, averages

    def gradients(
        self,
        rows: Sequence[Row],  # noqa: ARG002 - as in `ModelEngine`
        layers: Sequence[int],  # noqa: ARG002
    ) -> Iterator[tuple[list[int], Float[Tensor, "batch 1 layer d_model"]]]:
        """None: vLLM does not run backwards."""
        raise ModelError(
            f"expected the weights of {self._model.identity.id} here for a gradient, got {self.name}, which does not "
            "run backwards; pass --engine hf, or another --cost"
        )

    def norms(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], Float[Tensor, "batch layer"]]]:
        """Mean length of the activations of each conversation's reply, see `ModelEngine`."""
        idle = self.idle_layers()
        spans = [[spans_of(row)["response avg"]] for row in rows]

        def norm(_: int, __: Sequence[Segment], read: Sequence[Any]) -> Float[Tensor, " layer"]:
            return torch.tensor([float(read[0]["norm"][str(layer)]) for layer in range(self._model.n_layers)])

        for batch, norms in self._read(rows, spans, norm, len(rows)):
            for layer in idle:
                norms[:, layer] = norms[:, layer - 1] if layer else 0.0
            yield batch, norms

    def idle_layers(self) -> tuple[int, ...]:
        """Blocks that do not run on text alone: nothing was added to their sums."""
        if not hasattr(self, "_idle"):
            ids = self._model.render([{"role": "user", "content": "Hello"}])  # padding may be zeros all the way up
            row = {"prompt_ids": ids, "response_ids": ()}

            def runs(_: int, __: Sequence[Segment], read: Sequence[Any]) -> Tensor:
                return torch.tensor([read[0]["norm"][str(layer)] > 0 for layer in range(self._model.n_layers)])

            ((_, ran),) = self._read([row], [[(0, len(ids))]], runs, 1)
            self._idle = tuple(layer for layer, there in enumerate(ran[0].tolist()) if not there)
        return self._idle

    def _read(
        self,
        rows: Sequence[Row],
        spans: Sequence[Sequence[Segment]],
        make: Callable[[int, Sequence[Segment], Sequence[Any]], Tensor],
        most: int,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Have conversations read; yields their places, and what is made of the readings of each one's segments."""
        together = min(TOGETHER, most)
        groups = [list(range(len(rows)))[start : start + together] for start in range(0, len(rows), together)]
        cuts = [segments(each) for each in spans]

        async def read(places: Sequence[int], server: ModelServer) -> list[Tensor]:
            names = [uuid.uuid4().hex for _ in places]
            asked = []
            for place, name in zip(places, names, strict=True):
                ids = [*rows[place]["prompt_ids"], *rows[place]["response_ids"]]
                persona = {"spans": [list(each) for each in cuts[place]], "id": name}
                asked.append(self._generate(server, ids, {"max_tokens": 1, "temperature": 0.0}, persona))
            await asyncio.gather(*asked)
            readings = await server.post(READINGS, {"ids": names})
            made = []
            for place, name in zip(places, names, strict=True):
                told = readings.get(name) or {"error": "no readings"}
                if told["error"]:
                    raise Away(f"a conversation that was not read ({told['error']})")
                try:
                    made.append(make(place, cuts[place], told["spans"]))
                except KeyError as error:
                    raise ModelError(
                        f"expected {server.url} to read layer {error}, got others; start it without --layers and "
                        "--no-means"
                    ) from error
            return made

        waiting: list[tuple[int, Tensor]] = []
        for answers in self.servers.answers([partial(read, group) for group in groups], max(1, SLOTS // TOGETHER)):
            waiting += [pair for place, made in answers for pair in zip(groups[place], made, strict=True)]
            while waiting:
                batch, waiting = waiting[:most], waiting[most:]
                yield [place for place, _ in batch], torch.stack([tensor for _, tensor in batch])

    def logprobs(
        self, prompts: Sequence[Ids], replies: Sequence[Ids], progress: Callable[[int], None]
    ) -> list[Float[Tensor, " seq"]]:
        """Log-probability of each reply's tokens after its prompt, see `ModelEngine`."""
        read = [place for place, reply in enumerate(replies) if len(reply)]
        out: list[Tensor] = [torch.empty(0)] * len(replies)
        progress(len(replies) - len(read))
        jobs = [partial(self._logprobs, prompts[place], replies[place]) for place in read]
        for answers in self.servers.answers(jobs):
            for place, logprobs in answers:
                out[read[place]] = torch.tensor(logprobs)
            progress(len(answers))
        return out

    async def _logprobs(self, prompt: Ids, reply: Ids, server: ModelServer) -> list[float]:
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        choice = await self._generate(server, [*prompt, *reply], settings, {})
        try:
            told = choice["prompt_logprobs"][-len(reply) :]
            return [float(entry[str(token)]["logprob"]) for entry, token in zip(told, reply, strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise Away(f"an answer without log-probabilities ({type(error).__name__})") from error


class RemoteModel(ChatModel):
    """A model that runs elsewhere: tokenizer, chat template and shape are here, weights are not."""

    engine: ModelEngine

    @property
    def numbers(self) -> str:
        """Number format, and who computes: a run stays on one of each."""
        return f"{self.engine.dtype} by {self.engine.name}"

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may have together."""
        return min(super().context, self.engine.context)

    def _gone(self) -> ModelError:
        return ModelError(
            f"expected the weights of {self.identity.id} in this process, got a model behind servers; this needs "
            "--engine hf"
        )


def connect(engine: str, name: str, trust_remote_code: bool = False, *, plain_template: bool = False) -> RemoteModel:
    """A model behind servers.

    Args:
        engine: "vllm:URL[,URL…]".
        name: Its Hugging Face id, folder, GGUF file or alias, as for `ChatModel.load`.
        trust_remote_code: Run code that the model repository ships.
        plain_template: Give a model without a chat template a plain-text one (for judges only).

    Raises:
        ModelError: As `ChatModel.load`; or a server is away, or not of this model, see `VllmEngine`.
        ConfigError: No such engine.
    """
    urls = urls_of(engine)
    model = RemoteModel.load(name, weights=False, trust_remote_code=trust_remote_code, plain_template=plain_template)
    assert isinstance(model, RemoteModel)
    model.engine = VllmEngine(urls, model)
    model.identity = model.identity.by_name(model.engine.commit)
    return model


def _sent(prompt: Ids, settings: Mapping[str, Any], persona: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a request."""
    asked = {name: value for name, value in persona.items() if value}
    more = {"extra_args": {"persona": asked}} if asked else {}
    return {"token_ids": list(prompt), "sampling_params": dict(settings) | more}


def segments(spans: Sequence[Segment]) -> list[Segment]:
    """Segments that do not overlap and of which each of some spans is made, in order."""
    edges = sorted({edge for span in spans for edge in span})
    pairs = pairwise(edges)
    return [(a, b) for a, b in pairs if any(start <= a and b <= stop for start, stop in spans)]


def _over(span: Segment, cut: Sequence[Segment], means: Float[Tensor, "segment *axes"]) -> Float[Tensor, "*axes"]:
    """The mean over a span from those over the segments that it is made of."""
    weights = [(b - a) / (span[1] - span[0]) if span[0] <= a and b <= span[1] else 0.0 for a, b in cut]
    mean: Tensor = torch.einsum("s,s...->...", torch.tensor(weights), means)
    return mean


def _decoded(mean: Mapping[str, str], layers: Sequence[int]) -> Float[np.ndarray, "layer d_model"]:
    return np.stack([np.frombuffer(base64.b64decode(mean[str(layer)]), "<f4") for layer in layers]).astype(np.float32)
