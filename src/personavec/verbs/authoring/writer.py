"""A language model that writes texts in a given form: JSON, checked against a schema, sent back with what is wrong."""

import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Unpack

from personavec.errors import ConfigError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.endpoint import FILTER, REFUSAL, Answer, CallLimits, Endpoint, Failure, Request
from personavec.model.sampling import Sampling
from personavec.runs.fetch import cache_folder
from personavec.steering.generate import Request as LocalRequest
from personavec.steering.generate import batches, generate
from personavec.verbs.authoring.forms import NO_JSON, F, Form, instruction, opening, read

ATTEMPTS = 2
"""How often an answer is asked for until it has the form, the first time included."""
HOPELESS = 12
"""Answers that a writer may give before the first one in the form asked for; then it is given up."""
SHOWN = 1000
"""Characters of an unusable answer that its writer is shown again."""
LOCAL_BATCH_TOKENS = 16384
LOCAL_TEMPERATURE = 0.7
"""Of hf: writers; servers keep their own."""
FORMATS = (("json_schema", True), ("json_object", True), (None, True), (None, False))
"""How a server is asked, best first: with which response format, and whether with a seed."""
UNSUPPORTED = (400, 422, 501)
"""What servers say to parameters that they do not know."""

_REFUSAL = re.compile(
    r"\W*(?:(?:I['’]m )?sorry,? (?:but )?)?I(?:['’]m| am)? "
    r"(?:can(?:no|['’])t|won['’]t|will not|unable|not able|must decline)",
    re.IGNORECASE,
)

Conversation = list[dict[str, str]]


class Unwritten(NamedTuple):
    """An answer that never came in the form asked for."""

    kind: Literal["invalid", "refused", "failed"]
    """failed: the server did not answer this one."""
    reason: str


@dataclass
class Tally:
    """What became of the answers asked for, retries and answers from the cache included."""

    asked: int = 0
    retried: int = 0
    valid: int = 0
    invalid: int = 0
    refused: int = 0
    failed: int = 0
    items_dropped: int = 0
    """Items of a list, in a valid answer, that did not have the form of the others."""


class Server:
    """`openai:MODEL`: a writer behind any OpenAI-compatible server, asked in the strictest way that it allows."""

    at_once = 32

    def __init__(self, endpoint: Endpoint, seed: int) -> None:
        self.endpoint, self.id, self._seed = endpoint, f"openai:{endpoint.model}", seed
        self.inputs: dict[str, str] = {}
        self._formats = list(FORMATS)
        self._settled = False

    def write(self, conversations: Sequence[Conversation], form: type[Form], draw: int) -> list[Answer | Failure]:
        """Answers to conversations, other ones for another draw.

        Raises:
            ModelError: The server cannot be used, or the budget is spent.
        """
        while not self._settled:  # found out with a single question, before the others are sent
            answer = self.endpoint.first(self._request(conversations[0], form, draw))
            if isinstance(answer, Answer):
                self._settled = True
            elif answer.status not in UNSUPPORTED:
                raise self.endpoint.unusable(answer.reason, answer.status)
            elif len(self._formats) > 1:
                self._formats.pop(0)
            else:
                raise ModelError(
                    f"expected {self.id} to answer a chat, got {answer.reason}; check --writer-url and the model's name"
                )
        return self.endpoint.ask_all([self._request(conversation, form, draw) for conversation in conversations])

    def _request(self, conversation: Conversation, form: type[Form], draw: int) -> Request:
        kind, seeded = self._formats[0]
        request: dict[str, Any] = {"messages": conversation, "_draw": self._seed * 1000 + draw}
        if seeded:
            request["seed"] = request["_draw"]
        if kind == "json_schema":
            schema = {"name": form.__name__.lower(), "schema": form.model_json_schema(), "strict": True}
            request["response_format"] = {"type": kind, "json_schema": schema}
        elif kind:
            request["response_format"] = {"type": kind}
        return request


class Local:
    """`hf:MODEL`: a writer on this machine."""

    at_once = 8

    def __init__(self, model: ChatModel, max_tokens: int, seed: int) -> None:
        self.id = f"hf:{model.identity.id}"
        self.inputs = {"writer": model.identity.revision, "numbers": model.numbers}
        self._model, self._max_tokens, self._seed = model, max_tokens, seed

    def write(self, conversations: Sequence[Conversation], form: type[Form], draw: int) -> list[Answer | Failure]:
        """Answers to conversations, other ones for another draw; all begin as the form does."""
        begun = opening(form)
        marks = [zlib.crc32(json.dumps(conversation).encode()) for conversation in conversations]
        requests = [
            LocalRequest(self._model.render(conversation) + self._model.reply_ids(begun), seed=(self._seed, draw, mark))
            for conversation, mark in zip(conversations, marks, strict=True)
        ]
        full = f"a prompt that leaves no room in {self._model.context} tokens"
        answers: list[Answer | Failure] = [Failure(full) for _ in requests]
        fitting = [row for row, request in enumerate(requests) if len(request.prompt) < self._model.context]
        for batch in batches([requests[row] for row in fitting], self._max_tokens, LOCAL_BATCH_TOKENS):
            rows = [fitting[place] for place in batch]
            room = self._model.context - max(len(requests[row].prompt) for row in rows)
            sampling = Sampling(min(self._max_tokens, room), LOCAL_TEMPERATURE)
            replies = generate(self._model, [requests[row] for row in rows], sampling)
            for row, reply in zip(rows, replies, strict=True):
                answers[row] = Answer(begun + self._model.decode(reply.ids), reply.finish)
        return answers


class Writer:
    """A model that fills in forms."""

    def __init__(self, backend: Server | Local) -> None:
        self._backend = backend
        self.id = backend.id
        self.at_once = backend.at_once
        """Prompts worth asking before what came back is put on the disk."""
        self.inputs = backend.inputs
        """What its texts depend on besides the options."""
        self.options: dict[str, Any] = {"writer": self.id}
        """What a resumed run must have the same."""
        self.tally = Tally()
        self._last = ""
        self.able = False
        """Whether it is known to keep to a form: it did so, now or earlier in the run."""

    def ask(self, prompt: str, form: type[F], draw: int = 0) -> F | Unwritten:
        """One form; see `ask_all`."""
        return self.ask_all([prompt], form, draw)[0]

    def ask_all(self, prompts: Sequence[str], form: type[F], draw: int = 0) -> list[F | Unwritten]:
        """A filled-in form for each prompt. A writer is shown what is wrong with an unusable answer, and tries again.

        A refusal is not argued with.

        Args:
            prompts: What to write; the form is added to it.
            form: What to fill in.
            draw: Another draw gives other answers to the same prompts.

        Raises:
            ModelError: The writer cannot be used at all, or never once kept to a form.
        """
        conversations: list[Conversation] = [
            [{"role": "user", "content": f"{prompt}\n\n{instruction(form)}"}] for prompt in prompts
        ]
        forms: list[F | Unwritten] = [Unwritten("failed", "not asked")] * len(prompts)
        waiting = list(range(len(prompts)))
        for attempt in range(ATTEMPTS):
            answers = self._backend.write([conversations[index] for index in waiting], form, draw * ATTEMPTS + attempt)
            again = []
            for index, answer in zip(waiting, answers, strict=True):
                filled = forms[index] = self._read(answer, form)
                self.tally.retried += attempt > 0
                if isinstance(answer, Answer) and isinstance(filled, Unwritten) and filled.kind == "invalid":
                    conversations[index] = [*conversations[index], *_correction(answer.text, filled.reason)]
                    again.append(index)
            if not again:
                break
            waiting = again
        unusable = self.tally.invalid + self.tally.refused
        if not self.able and unusable >= HOPELESS:
            raise ModelError(
                f"expected {self.id} to answer with JSON of the form asked for, got none in {unusable} answers (the "
                f"last: {self._last!r}); choose a larger writer"
            )
        return forms

    def _read(self, answer: Answer | Failure, form: type[F]) -> F | Unwritten:
        outcome = _usable(answer, form)
        self.tally.asked += 1
        if isinstance(outcome, Unwritten):
            setattr(self.tally, outcome.kind, getattr(self.tally, outcome.kind) + 1)
            self._last = _short(answer.text) if isinstance(answer, Answer) else self._last
            return outcome
        value, dropped = outcome
        self.able = True
        self.tally.valid += 1
        self.tally.items_dropped += dropped
        return value

    @property
    def usage(self) -> dict[str, Any]:
        """What was asked, and what became of it."""
        server = self._backend.endpoint.usage if isinstance(self._backend, Server) else None
        return asdict(self.tally) | {"server": server and asdict(server)}


def load_writer(
    spec: str | ChatModel,
    *,
    url: str | None = None,
    answer_tokens: int = 2048,
    seed: int = 0,
    load: Callable[..., ChatModel] = ChatModel.load,
    **limits: Unpack[CallLimits],
) -> Writer:
    """Make a writer.

    Args:
        spec: openai:MODEL, hf:MODEL, or a model.
        url: Server of openai:MODEL; default OpenAI's.
        answer_tokens: Longest answer of a model in this process; a server decides by itself.
        seed: Of its texts.
        load: Makes a model from a name.
        limits: How a server may be asked.

    Raises:
        ConfigError: No such kind of writer.
        ModelError: Its model cannot be loaded, or its server needs a key.
    """
    kind, _, name = spec.partition(":") if isinstance(spec, str) else ("hf", "", "")
    if kind == "openai" and name:
        writer = Writer(Server(Endpoint(name, url, cache_folder() / "answers.sqlite", **limits), seed))
        writer.options |= {"seed": seed, "writer_url": url}
        return writer
    if kind == "hf" and url is None and (name or not isinstance(spec, str)):
        writer = Writer(Local(load(name) if isinstance(spec, str) else spec, answer_tokens, seed))
        writer.options |= {"seed": seed, "writer_tokens": answer_tokens}
        return writer
    raise ConfigError(
        f"expected the writer openai:MODEL (perhaps with --writer-url) or hf:MODEL, got {spec}"
        f"{' with --writer-url' * (url is not None)}; correct it"
    )


def writer_of(writer: str | ChatModel | Writer) -> Writer:
    """The writer that a verb was given, or was given the name or the model of.

    Raises:
        ConfigError: As `load_writer`.
        ModelError: Likewise.
    """
    return writer if isinstance(writer, Writer) else load_writer(writer)


def _usable(answer: Answer | Failure, form: type[F]) -> tuple[F, int] | Unwritten:
    """The form in an answer, and how many items of its lists were dropped; or why there is none."""
    if isinstance(answer, Failure):
        return Unwritten("failed", answer.reason)
    filled = read(answer.text, form)
    if not isinstance(filled, str):
        return filled
    if answer.finish in (FILTER, REFUSAL) or (filled == NO_JSON and _REFUSAL.match(answer.text)):
        return Unwritten("refused", f"refused: {_short(answer.text)!r}")
    return Unwritten("invalid", filled + " (it was cut off)" * (answer.finish == "length"))


def _correction(said: str, reason: str) -> Conversation:
    advice = (
        f"This cannot be used: {reason}. Write it again, as one JSON object of the form asked for and nothing else."
    )
    return [{"role": "assistant", "content": said[:SHOWN] or "…"}, {"role": "user", "content": advice}]


def _short(text: str) -> str:
    return " ".join(text.split())[:80]
