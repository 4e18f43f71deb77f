"""From a request to rows of the engine, and from their replies to the log."""

import asyncio
import secrets
import sqlite3
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.engines.vllm import VllmEngine
from personavec.model.sampling import Sampling
from personavec.model.spelling import Spelling
from personavec.runs.rules import check
from personavec.server.api.echo import echo
from personavec.server.api.forms import JsonForm, JsonForms
from personavec.server.api.protocol import AskedBody, CompletionBody
from personavec.server.api.tools import MARK, reads_calls
from personavec.server.catalogue import Applied, Catalogue, Seen, describe
from personavec.server.exchange import Exchange
from personavec.server.limits import LOG
from personavec.server.log import Log, LoggedTurn, Metrics
from personavec.server.refused import Refused
from personavec.server.reply import RunningReply
from personavec.server.terms import Terms
from personavec.server.writing.elsewhere import RemoteEngine
from personavec.server.writing.engine import Engine
from personavec.server.writing.job import Full, Job
from personavec.steering.notation import Steers, in_order
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.verbs.monitor.calibration import KINDS, Calibration

DEFAULT_TOKENS = 256
"""Longest reply where a request does not say."""
BEFORE = (
    "a steering of the response begins at the last token of the prompt, so the prompt's log-probabilities are those "
    'without it; for steered ones ask for positions "all"'
)


@dataclass
class Service:
    """A served model with all that belongs to it."""

    model: ChatModel
    terms: Terms
    engine: Engine | RemoteEngine
    catalogue: Catalogue
    log: Log
    metrics: Metrics
    watched: tuple[Seen, ...]
    steering: tuple[Steering, ...]
    calibration: Calibration | None = None
    spelling: Spelling = field(init=False)
    forms: JsonForms = field(init=False)
    started: float = field(default_factory=time.monotonic)
    logged: int = 0
    _tokenizing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set)

    def __post_init__(self) -> None:
        self.spelling = Spelling(self.model.tokenizer)
        self.forms = JsonForms(self.model, self.spelling)

    async def open(self, body: AskedBody) -> Exchange:
        """Check a request and hand its replies to the engine.

        Raises:
            Refused: It cannot be served, or not now.
        """
        if body.model not in (None, self.model.identity.id):
            raise Refused(
                404,
                f"expected the model {self.model.identity.id}, got {body.model}",
                param="model",
                code="model_not_found",
            )
        persona = body.persona
        applied = (
            Applied(self.steering, [describe(added) for added in self.steering], [])
            if persona.steering is None
            else self.catalogue.steer(persona.steering)
        )
        watched = self.watched if persona.watch is None else self.catalogue.watch(persona.watch)
        messages = body.said
        prompts = await self._prompts(body)
        longest = self._longest(body, [len(prompt) for prompt in prompts])
        exchange = Exchange(
            f"{body.prefix}{uuid.uuid4().hex}",
            body,
            messages,
            persona.conversation or uuid.uuid4().hex,
            max(1, sum(turn["role"] == "user" for turn in messages)),
            applied,
            watched,
        )
        if isinstance(body, CompletionBody) and body.echo:
            backend = self.model.tokenizer.backend_tokenizer
            exchange.echoes = [await asyncio.to_thread(echo, prompt, backend) for prompt in body.prompts]
        if body.scores_prompt and any(added.active and added.positions == "response" for added in applied.steering):
            applied.warnings.append(BEFORE)
        if body.form and not self.engine.holds_forms:
            raise Refused(
                400,
                "expected no form of the reply, got one; behind servers (--engine) replies are not held to one",
                param="response_format",
            )
        grammar = body.form and await asyncio.to_thread(self.forms.grammar, body.form[1], body.form[0])
        seed = secrets.randbits(63) if body.seed is None else body.seed % 2**63
        deadline = time.monotonic() + self.terms.deadline
        exchange.prompts = [
            [
                Job(
                    prompt,
                    Sampling(max(1, longest), body.temperature, body.top_p),
                    RunningReply(self.model, longest, body.stops, MARK if body.offered else ""),
                    exchange.teller(place * body.n + number),
                    (seed, number),  # that of a prompt which is alone in its request
                    applied.steering,
                    tuple(direction.watch for direction in watched),
                    body.top,
                    deadline,
                    form=JsonForm(grammar) if grammar else None,
                    scores_prompt=body.scores_prompt and not number,
                )
                for number in range(body.n)
            ]
            for place, prompt in enumerate(prompts)
        ]
        try:
            self.engine.submit(*exchange.prompts)
        except Full as error:
            if not self.engine.alive:
                raise Refused(503, str(error), kind="server_error", code="shutting_down") from None
            raise Refused(429, str(error), kind="rate_limit_error", code="queue_full") from None
        return exchange

    async def _prompts(self, body: AskedBody) -> list[tuple[int, ...]]:
        async with self._tokenizing:  # a tokenizer works for one caller at a time
            if isinstance(body, CompletionBody):
                return [await asyncio.to_thread(self._ids, prompt) for prompt in body.prompts]
            if body.offered and not reads_calls(self.model):
                how = f"its chat template does not mark calls as {MARK}{{…}}"
                problem = f"expected no tools, got one that cannot be obeyed here ({how}); leave it out"
                raise Refused(400, problem, param="tools")
            try:
                return [await asyncio.to_thread(self.model.render, body.said, self.terms.system, body.offered)]
            except ModelError as error:
                raise Refused(400, str(error), param=body.asks) from None

    def _ids(self, prompt: str | list[int]) -> tuple[int, ...]:
        ids = self.model.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
        size = self.model.hf.get_input_embeddings().weight.shape[0]
        if not ids or max(ids) >= size:
            got = max(ids) if ids else "none"
            raise Refused(
                400, f"expected a prompt of at least one token, with ids below {size}, got {got}", param="prompt"
            )
        return ids

    def _longest(self, body: AskedBody, prompts: Sequence[int]) -> int:
        """Tokens that each reply may have, by the tokens of the prompts."""
        room, replies = self.model.context - max(prompts), body.n * len(prompts)
        usual = min(DEFAULT_TOKENS, self.terms.max_tokens // replies, room)
        longest = max(usual, 1) if body.longest is None else body.longest
        if longest > room:
            raise Refused(
                400,
                f"expected prompt and reply to fit into {self.model.context} tokens, got {max(prompts)} and {longest}",
                param=body.asks,
                code="context_length_exceeded",
            )
        most = min(self.engine.rows, self.engine.queue)
        if longest * replies > self.terms.max_tokens or body.n > most or replies > self.engine.queue:
            raise Refused(
                400,
                f"expected at most {self.terms.max_tokens} tokens in all, of at most {most} replies to each of at most "
                f"{max(1, self.engine.queue // body.n)} prompts, got {len(prompts)} x {body.n} of {longest} tokens",
                param="max_tokens",
            )
        return longest

    async def close(self, exchange: Exchange) -> list[dict[str, Any]]:
        """Log the replies, once however often it is called; returns for each what an answer says of it.

        Raises:
            Refused: A reply could not be written.
        """
        if exchange.closing is None:
            exchange.closing = asyncio.create_task(self._close(exchange))
        return await asyncio.shield(exchange.closing)

    async def _close(self, exchange: Exchange) -> list[dict[str, Any]]:
        try:
            personas = await self._keep(exchange)
        except sqlite3.Error as error:
            LOG.error("the log cannot be written: %s", error)
            problem = "expected to keep the reply in the log, got a log that cannot be written; ask again later"
            raise Refused(503, problem, kind="server_error", code="log_unwritable") from None
        for job in exchange.jobs:
            if job.reply.finish == "deadline":
                wanted = f"within {self.terms.deadline:g} seconds, got none"
                wanted = wanted if self.engine.alive else "before the server was stopped; ask another one"
                raise Refused(504, f"expected the reply {wanted}", kind="timeout_error")
            if job.reply.finish == "error":
                raise Refused(500, job.reply.error or "the reply could not be written", kind="server_error")
        return personas

    async def _keep(self, exchange: Exchange) -> list[dict[str, Any]]:
        """Log and count the replies; returns for each what an answer says of it."""
        personas, turns = [], []
        for index, job in enumerate(exchange.jobs):
            projections = exchange.projections(index)
            alerts = await asyncio.to_thread(self.alerts, exchange, projections)
            personas.append({"projections": projections, "pieces": job.reply.pieces, "alerts": alerts})
            kept = {name: {k: v for k, v in read.items() if k != "tokens"} for name, read in projections.items()}
            turns.append(
                LoggedTurn(
                    f"{exchange.id}-{index}" if index else exchange.id,
                    exchange.conversation,
                    exchange.turn,
                    job.reply.finish or "cancelled",
                    len(job.prompt),
                    len(job.reply.ids),
                    exchange.applied.descriptions,
                    kept,
                    alerts,
                    exchange.messages if self.terms.keep_text else None,
                    job.reply.text if self.terms.keep_text else None,
                )
            )
            self.metrics.reply(kept, alerts)
            self.metrics.tokens.labels("written").inc(len(job.reply.ids))
        self.metrics.tokens.labels("read").inc(exchange.prompt_tokens - exchange.tokens_reused)
        self.metrics.tokens.labels("reused").inc(exchange.tokens_reused)
        if exchange.first_token:
            self.metrics.first_token.observe(exchange.first_token - exchange.began)
        self.metrics.latency.observe(time.monotonic() - exchange.began)
        await asyncio.to_thread(self.log.add, turns)
        self.logged += len(turns)
        return personas

    def abandon(self, exchange: Exchange) -> None:
        """Log the replies of a client that left, once the engine has ended them."""

        async def finish() -> None:
            while any(job.reply.finish is None for job in exchange.jobs):
                await asyncio.sleep(0.01)
                if time.monotonic() > exchange.latest:
                    exchange.expire()
            with suppress(Refused):
                await self.close(exchange)

        task = asyncio.create_task(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, seconds: float) -> None:
        """End what is under way, log it, and close the log."""
        await asyncio.to_thread(self.engine.close, seconds)
        await asyncio.gather(*self._tasks)
        self.log.close()

    def band(self, name: str) -> dict[str, Any] | None:
        """The usual range of a vector's projections, by kind; None without a calibration of it."""
        vector_hash = self.catalogue.vectors[name].content_hash
        if self.calibration is None or vector_hash not in self.calibration.vectors:
            return None
        bands = {kind: self.calibration.band(vector_hash, kind) for kind in KINDS}
        return {kind: {"low": band.low, "high": band.high} for kind, band in bands.items()}

    def alerts(self, exchange: Exchange, projections: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Alerts of a reply, for what lies outside the calibrated bands, and for drift over its conversation."""
        if self.calibration is None:
            return []
        alerts, earlier = [], self.log.turns(exchange.conversation)
        for name, read in projections.items():
            vector = self.catalogue.vectors.get(name)  # None at a layer that is not the card's, and not calibrated
            if vector is None or vector.content_hash not in self.calibration.vectors:
                continue
            values = {"prompt last": read["prompt_last"], "response avg": read["response_avg"]}
            alerts += self.calibration.check(vector.content_hash, values)
            drift = self.calibration.drift(vector.content_hash)
            before = {turn["turn"]: turn["projections"].get(name, {}).get("response_avg") for turn in earlier}
            before = {turn: value for turn, value in before.items() if turn < exchange.turn}
            past = [value for _, value in sorted(before.items()) if value is not None]
            if drift is not None and read["response_avg"] is not None:
                raised = [drift.add(value) for value in (*past, read["response_avg"])]
                alerts += [raised[-1]] if raised[-1] else []
        return [alert | {"turn": exchange.turn} for alert in alerts]


def assemble(
    model: ChatModel,
    terms: Terms,
    *,
    vectors: Sequence[str | Path | PersonaVector],
    steer: Steers,
    watch: Sequence[str],
    calibration: str | Path | Calibration | None,
    log: str | Path,
    retention_days: float | None,
) -> Service:
    """A service of a model; `serve` says what its arguments mean.

    Raises:
        PersonavecError: A vector, the calibration or the log cannot be used.
    """
    check(assemble, locals())
    steering = in_order(steer, model.identity)
    catalogue = Catalogue.load(vectors, model.identity, terms.max_dose, terms.guard)
    watched = catalogue.defaults(watch)
    if calibration is not None:
        calibration = calibration if isinstance(calibration, Calibration) else Calibration.load(Path(calibration))
        calibration.check_model(model.identity.id, model.identity.revision)
        for seen in watched:
            calibration.check_vector(catalogue.vectors[seen.vector].content_hash, seen.vector, seen.layer)
    kept = Log(Path(log), retention_days)
    engine: Engine | RemoteEngine
    if isinstance(model.engine, VllmEngine):
        model.engine.check_watched({seen.vector: seen.watch.vector for seen in watched})
        engine = RemoteEngine(model, terms.rows_at_once, terms.queue)
    else:
        engine = Engine(model, terms.rows_at_once, terms.queue, terms.prefix_mib * 2**20)
    return Service(model, terms, engine, catalogue, kept, Metrics(engine, catalogue), watched, steering, calibration)
