"""Generating replies: a stream of token columns, and batches as a loop over it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from personavec.errors import ConfigError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.engines.engine import ModelEngine
from personavec.model.hooks import BlockFn, attach
from personavec.model.kv_cache import attends, cached, empty, make_room, using
from personavec.model.machine.limits import habits, in_parts
from personavec.model.sampling import COLDEST, Sampling
from personavec.model.template import Message
from personavec.steering.orders import make_orders
from personavec.steering.steer import Steered, Steering, steer

COMPACT = 0.125
"""Share of ended rows at which a batch is packed; packing copies the cache."""


@dataclass(frozen=True)
class Request:
    """One reply to write."""

    prompt: tuple[int, ...]
    """Token ids up to where the reply begins."""
    steering: tuple[Steering, ...] = ()
    seed: tuple[int, ...] = (0,)
    """Identifies the row: its random numbers depend on nothing else, whatever batch it runs in."""


class Reply(NamedTuple):
    """One reply as it was generated."""

    ids: tuple[int, ...]
    """Token ids, without the end-of-turn token."""
    finish: Literal["stop", "length"]


class Step(NamedTuple):
    """One column of tokens, on the CPU."""

    rows: Int[Tensor, " alive"]
    """Which requests are still running."""
    tokens: Int[Tensor, " alive"]
    """The token each of them drew."""
    projections: Float[Tensor, "alive watched"]
    """Projections of the token each row read to draw it: first the last prompt token, then its own tokens."""


class Watch(NamedTuple):
    """A direction to read at every step."""

    layer: int
    unit: Float[Tensor, " d_model"]
    vector: str = ""
    """Content hash of the vector that it is of: its name where the model runs elsewhere."""


Following = tuple[Float[Tensor, "alive vocab"], Float[Tensor, "alive watched"]]
"""Logits of the token that follows each row, and the projections of the one just read."""


@torch.inference_mode()
def stream(
    model: ChatModel, requests: Sequence[Request], sampling: Sampling, watch: Sequence[Watch] = ()
) -> Iterator[Step]:
    """Write replies to a batch of requests, one column of tokens at a time.

    Equal prompts are read once, whatever the number of replies to them, unless they are steered differently.

    A token is waited for once: with it comes whether its logits were finite, and what was read of the one before. Which
    rows go on is decided here.

    Raises:
        ModelError: The model's output is not finite.
    """
    numbers = torch.stack([uniforms(request.seed, sampling.max_new_tokens) for request in requests]).to(model.device)
    reader: Cached | Anew = Anew(model, requests)
    if cached(model):
        reader = Cached(model, requests, sampling.max_new_tokens)
    tokens = torch.tensor([request.prompt[-1:] for request in requests], device=model.device)
    alive = torch.arange(len(requests))
    ended = torch.zeros(len(requests), dtype=torch.bool)
    stop = torch.tensor(model.stop_ids)
    lengths = [len(request.prompt) for request in requests]
    with steer(model, [request.steering for request in requests], lengths) as steered, watching(model, watch) as seen:
        for step in range(sampling.max_new_tokens):
            logits, projections = reader.read(tokens, steered, seen)
            drawn = draw(logits, numbers[:, step], sampling)
            told, read = _told(drawn, projections)
            check_finite(told[~ended])
            yield Step(alive[~ended], told[~ended], read[~ended])
            ended = ended | torch.isin(told, stop)
            if ended.all():
                return
            tokens = drawn.clamp(min=0)[:, None]
            if ended.sum() >= COMPACT * len(ended):
                here = (~ended).nonzero()[:, 0]
                kept, alive, ended = here.to(model.device), alive[here], ended[here]
                reader.keep(kept)
                tokens, numbers = tokens[kept], numbers[kept]
                steered.keep(alive.to(model.device))


def _told(
    drawn: Int[Tensor, " alive"], projections: Float[Tensor, "alive watched"]
) -> tuple[Int[Tensor, " alive"], Float[Tensor, "alive watched"]]:
    """Both on the CPU, in one transfer."""
    if drawn.device.type == "cpu" or not projections.shape[1]:
        return drawn.cpu(), projections.cpu()
    both = torch.cat([drawn[:, None].double(), projections.double()], dim=1).cpu()  # exact for each
    return both[:, 0].long(), both[:, 1:].float()


class Cached:
    """Reads one token a row and step; what stands before it is in a cache."""

    def __init__(self, model: ChatModel, requests: Sequence[Request], room: int) -> None:
        self.model, self.cache = model, empty(model)
        self.mask = self._prefill(requests)
        make_room(self.cache, room)
        self.positions = torch.tensor([len(request.prompt) - 1 for request in requests], device=model.device)[:, None]
        # a mask that is all ones would be looked at, and so waited for
        padded = habits(model.device).padding > 0 or len({len(request.prompt) for request in requests}) > 1
        self.masked = attends(self.cache) and padded

    def _prefill(self, requests: Sequence[Request]) -> Int[Tensor, "batch seq"]:
        """Read every distinct prompt up to its last token into the cache, a row per request; returns its mask."""
        model = self.model
        keys = [
            (request.prompt, tuple(s for s in request.steering if s.active and s.positions != "response"))
            for request in requests
        ]
        distinct = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        inputs = model.inputs([prompt[:-1] for prompt, _ in distinct], left=True)
        mask: Tensor = inputs["attention_mask"]
        if not mask.any():  # prompts of one token: there is nothing to read
            return mask.new_ones((len(requests), 0))
        steering = [applied if len(prompt) > 1 else () for prompt, applied in distinct]
        with steer(model, steering, [len(prompt) for prompt, _ in distinct]):
            # without the head: on a strided last column it would expand its weights once per row
            model.decoder(**inputs | using(model, self.cache))
        rows = torch.tensor([distinct[key] for key in keys], device=model.device)
        self.cache.reorder_cache(rows)  # type: ignore[arg-type]
        return mask[rows]

    def read(self, tokens: Int[Tensor, "alive 1"], _: Steered, seen: Sequence[Tensor]) -> Following:
        """Read the next token of every row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], dim=1)
        out = self.model.hf(
            input_ids=tokens,
            attention_mask=self.mask if self.masked else None,
            position_ids=self.positions,
            logits_to_keep=1,
            **using(self.model, self.cache),
        )
        self.positions = self.positions + 1
        return out.logits[:, -1].to(tokens.device), _stacked(seen, len(tokens), tokens.device)

    def keep(self, kept: Int[Tensor, " kept"]) -> None:
        """Only these rows go on."""
        self.cache.reorder_cache(kept)  # type: ignore[arg-type]
        self.mask, self.positions = self.mask[kept], self.positions[kept]


class Anew:
    """Reads all that stands before a token at every step, rows of one length together: for models without a cache."""

    def __init__(self, model: ChatModel, requests: Sequence[Request]) -> None:
        self.model, self.alive = model, torch.arange(len(requests), device=model.device)
        self.rows = [list(request.prompt[:-1]) for request in requests]

    def read(self, tokens: Int[Tensor, "alive 1"], steered: Steered, seen: Sequence[Tensor]) -> Following:
        """Read every row with its next token."""
        self.rows = [[*row, token] for row, token in zip(self.rows, tokens[:, 0].tolist(), strict=True)]
        logits: list[Tensor] = [torch.empty(0)] * len(self.rows)
        projections = list(logits)
        for length in {len(row) for row in self.rows}:
            group = [index for index, row in enumerate(self.rows) if len(row) == length]
            steered.keep(self.alive[group])
            ids = torch.tensor([self.rows[index] for index in group], device=tokens.device)
            last = self.model.hf(input_ids=ids, use_cache=False).logits[:, -1].to(tokens.device)
            for index, row, read in zip(group, last, _stacked(seen, len(group), tokens.device), strict=True):
                logits[index], projections[index] = row, read
        return torch.stack(logits), torch.stack(projections)

    def keep(self, kept: Int[Tensor, " kept"]) -> None:
        """Only these rows go on."""
        self.alive, self.rows = self.alive[kept], [self.rows[index] for index in kept.tolist()]


def _stacked(seen: Sequence[Tensor], rows: int, device: torch.device) -> Float[Tensor, "rows watched"]:
    return torch.stack(list(seen), dim=1) if seen else torch.zeros((rows, 0), device=device)


@contextmanager
def watching(model: ChatModel, watch: Sequence[Watch]) -> Iterator[list[Float[Tensor, " batch"]]]:
    """The projections of each row's last token, one entry per watched direction, overwritten at every forward pass."""
    seen: list[Tensor] = [torch.empty(0)] * len(watch)
    if not watch:
        yield seen
        return
    units = [watched.unit for watched in watch]

    def at(layer: int) -> BlockFn:
        def fn(rows: Tensor) -> None:
            for index, watched in enumerate(watch):
                if watched.layer == layer:
                    units[index] = units[index].to(rows.device)
                    seen[index] = (rows[:, -1].float() @ units[index]).to(model.device)

        return fn

    with attach(model, lambda _: None, {watched.layer: at(watched.layer) for watched in watch}):
        yield seen


def draw(
    logits: Float[Tensor, "batch vocab"], uniform: Float[Tensor, " batch"], sampling: Sampling
) -> Int[Tensor, " batch"]:
    """Draw one token a row by inverting the cumulative distribution at one uniform number a row.

    The same distribution as `torch.multinomial`, which draws a random number per vocabulary entry instead. Where a
    row's logits are not finite, its token is -1, see `check_finite`: no GPU is waited for to know it.
    """
    if sampling.temperature < COLDEST:
        top, greedy = logits.max(dim=-1)
        return greedy.where(torch.isfinite(top), -1)
    size = habits(logits.device).draw_rows
    parts = zip(torch.split(logits, size), torch.split(uniform, size), strict=True)
    return torch.cat([_sample(rows, numbers, sampling) for rows, numbers in parts])


def _sample(
    logits: Float[Tensor, "batch vocab"], uniform: Float[Tensor, " batch"], sampling: Sampling
) -> Int[Tensor, " batch"]:
    logits = logits.float()
    # the largest is 0, so that no temperature makes any of them overflow
    mass = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature, dim=-1)
    if sampling.top_p >= 1:
        return _invert(mass.cumsum(-1), uniform)
    size = min(habits(logits.device).nucleus, mass.shape[1])
    while True:
        sorted_mass, order = mass.topk(size)
        running = sorted_mass.cumsum(-1)
        if size == mass.shape[1] or (running[:, -1] >= sampling.top_p).all():
            break
        size = min(8 * size, mass.shape[1])
    nucleus = sorted_mass * (running - sorted_mass < sampling.top_p)
    place = _invert(nucleus.cumsum(-1), uniform)
    return order.gather(1, place.clamp(min=0)[:, None])[:, 0].where(place >= 0, -1)


def _invert(cumulative: Float[Tensor, "batch n"], uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    target = uniform[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=cumulative.shape[1] - 1)
    return place.where(torch.isfinite(cumulative[:, -1]), -1)


def check_finite(drawn: Int[Tensor, " batch"]) -> None:
    """See to it that every token was drawn from finite logits.

    Raises:
        ModelError: One was not.
    """
    if (drawn < 0).any():
        raise ModelError("expected finite logits, got inf or nan; lower the steering coef (a dose under 1 is usual)")


def uniforms(seed: tuple[int, ...], count: int) -> Float[Tensor, " count"]:
    """The random numbers of a row, one for every token it may draw."""
    return torch.from_numpy(np.random.default_rng(seed).random(count, dtype=np.float32))


def batches(requests: Sequence[Request], max_new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Indices of requests, packed into batches of similar prompt length under a token budget.

    Depends on the requests alone, so that a resumed run makes the same batches.
    """
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt))
    packed: list[list[int]] = []
    for index in order:
        row_tokens = len(requests[index].prompt) + max_new_tokens
        if not packed or row_tokens * (len(packed[-1]) + 1) > batch_tokens:
            packed.append([])
        packed[-1].append(index)
    return packed


def generate(model: ChatModel, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
    """Write replies to one batch of requests, or to parts of it where a GPU has no memory for all."""
    if model.engine is not None:
        groups = elsewhere(model.engine, requests, sampling)
        replies = {place: reply for group in groups for place, reply in group}
        return [replies[place] for place in range(len(requests))]
    parts = in_parts(requests, lambda part: _generate(model, part, sampling))
    return [reply for _, replies in parts for reply in replies]


def _generate(model: ChatModel, requests: Sequence[Request], sampling: Sampling) -> list[Reply]:
    written: list[list[int]] = [[] for _ in requests]
    finished = set()
    for step in stream(model, requests, sampling):
        for row, token in zip(step.rows.tolist(), step.tokens.tolist(), strict=True):
            if token in model.stop_ids:
                finished.add(row)
            else:
                written[row].append(token)
    return [Reply(tuple(ids), "stop" if row in finished else "length") for row, ids in enumerate(written)]


def elsewhere(
    engine: ModelEngine, requests: Sequence[Request], sampling: Sampling
) -> Iterator[list[tuple[int, Reply]]]:
    """Have replies written by an engine; yields those that have come, with the places of their requests."""
    orders = make_orders([(request.prompt, request.steering, request.seed) for request in requests])
    for group in engine.write(orders, sampling):
        yield [(written.place, Reply(written.ids, written.finish)) for written in group]


def pieces(
    model: ChatModel,
    messages: str | Sequence[Message],
    *,
    steer: Steering | Sequence[Steering] = (),
    system: str = "template",
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """The text of a reply as it is written; see `ChatModel.chat`.

    Raises:
        ConfigError: The conversation leaves no room for a reply, or the steering is none.
        ModelError: As `ChatModel.chat`.
    """
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    steerings = tuple(steer) if isinstance(steer, Iterable) and not isinstance(steer, str) else (steer,)
    if wrong := [steering for steering in steerings if not isinstance(steering, Steering)]:
        raise ConfigError(f"expected steer=vector.at(…), got {wrong[0]!r}; say how much of a vector, and where")
    prompt = model.render(turns, system)
    if (room := model.context - len(prompt)) < 1:
        raise ConfigError(f"expected a prompt of less than {model.context} tokens, got {len(prompt)}; shorten it")
    sampling = Sampling(min(max_new_tokens, room), temperature, top_p)
    ids: list[int] = []
    written = 0
    for step in stream(model, [Request(prompt, steerings, (seed,))], sampling):
        token = int(step.tokens[0])
        if token in model.stop_ids:
            break
        ids.append(token)
        text = model.decode(ids)
        if not text.endswith("\ufffd"):  # the rest of a character may still come
            yield text[written:]
            written = len(text)
    yield model.decode(ids)[written:]
