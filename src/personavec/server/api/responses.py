"""The Responses API, for text: a request's input and instructions, and the response with its events."""

import uuid
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from personavec.model.chat_model import ChatModel
from personavec.model.spelling import Spelling
from personavec.server.api.answers import Json, finite
from personavec.server.api.logprobs import entries
from personavec.server.api.protocol import AskedBody
from personavec.server.api.turns import Role, Text, _Strict, plain
from personavec.server.exchange import Exchange
from personavec.server.refused import Refused
from personavec.server.reply import News


class _InputPart(BaseModel):
    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Any = None
    logprobs: Any = None


class InputTurn(BaseModel):
    """A message of the input: one of a client's own, or the output of an earlier response."""

    items: ClassVar = ("content", _InputPart)

    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    persona: Any = None
    """Of an earlier response; it says nothing here."""
    role: Role
    content: Text | list[_InputPart]


class _TextFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"] = "text"
    wanted: Any = Field(None, alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class _TextAsked(_Strict):
    format: _TextFormat = Field(default_factory=lambda: _TextFormat.model_validate({}))


class ResponseBody(AskedBody):
    """Body of /v1/responses."""

    prefix: ClassVar = "resp_"
    asks: ClassVar = "input"
    items: ClassVar = ("input", InputTurn)

    input: Annotated[Text, Field(min_length=1)] | Annotated[list[InputTurn], Field(min_length=1)]
    instructions: Text | None = None
    text: _TextAsked = _TextAsked()
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: tuple[Literal["message.output_text.logprobs"], ...] = ()
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    n: Annotated[int, Field(ge=1, le=1)] = 1

    @property
    def said(self) -> list[dict[str, str]]:
        """The conversation as a chat template takes it."""
        turns = [] if self.instructions is None else [plain("system", self.instructions)]
        if isinstance(self.input, str):
            return [*turns, plain("user", self.input)]
        return [*turns, *(plain(turn.role, turn.content) for turn in self.input)]

    @property
    def form(self) -> tuple[str, Any] | None:
        """A JSON schema that the reply is held to, and the field that says it."""
        asked = self.text.format
        if asked.type == "text":
            return None
        return ("text", {"type": "object"}) if asked.type == "json_object" else ("text.format.schema", asked.wanted)

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are given next to each; None for no log-probabilities."""
        return self.top_logprobs if self.include or self.top_logprobs else None

    @property
    def longest(self) -> int | None:
        """Most tokens of the reply, as far as the request says."""
        return self.max_output_tokens or self.max_tokens


class ModelResponse:
    """The answer to a request, whole or in events; of both the last one has everything."""

    done = ""

    def __init__(self, exchange: Exchange, model: ChatModel, spelling: Spelling) -> None:
        self.exchange, self.model, self.spelling = exchange, model, spelling
        self._sent = 0
        self._item = f"msg_{uuid.uuid4().hex}"
        self._number = 0

    def whole(self, personas: list[Json]) -> Json:
        """A response object."""
        status = "incomplete" if self.exchange.jobs[0].reply.finish == "length" else "completed"
        return self._object(status, [self._message(status) | {"persona": personas[0]}]) | {"usage": self._usage()}

    def chunks(self, _: int, news: News) -> Iterator[Json]:
        """Events of what the reply has got; before the first of them, those that announce it."""
        values, keys = [list(map(finite, row)) for row in news.read], [seen.key for seen in self.exchange.watched]
        if not self._number and values:
            started = self._object("in_progress", [])
            started["persona"] |= {"prompt_last": dict(zip(keys, values[0], strict=True))}
            values = values[1:]
            yield self._event("response.created", response=started)
            yield self._event("response.in_progress", response=started)
            yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
            yield self._in_part("response.content_part.added", part=self._part("", []))
        if news.pieces or values:
            tokens = {key: [row[place] for row in values] for place, key in enumerate(keys)}
            persona = {"pieces": news.pieces, "tokens": tokens}
            delta, logprobs = "".join(news.pieces), self._logprobs(self._sent, len(news.pieces))
            self._sent += len(news.pieces)
            yield self._in_part("response.output_text.delta", delta=delta, logprobs=logprobs, persona=persona)

    def ending(self, personas: list[Json]) -> Iterator[Json]:
        """Events that end it."""
        text, response = self.exchange.jobs[0].reply.text, self.whole(personas)
        logprobs = self._logprobs(0, self._sent)
        yield self._in_part("response.output_text.done", text=text, logprobs=logprobs)
        yield self._in_part("response.content_part.done", part=self._part(text, logprobs))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: Refused) -> Json:
        """The event that ends it if it cannot be written."""
        told = {"code": "server_error", "message": str(error)}
        return self._event("response.failed", response=self._object("failed", []) | {"error": told})

    def _event(self, kind: str, **fields: Any) -> Json:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1} | fields

    def _in_part(self, kind: str, **fields: Any) -> Json:
        return self._event(kind, item_id=self._item, output_index=0, content_index=0, **fields)

    def _part(self, text: str, logprobs: list[Json]) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, begin: int, count: int) -> list[Json]:
        """Of some tokens of the reply, if they were asked for; here one that writes nothing has no bytes, not null."""
        tokens = self.exchange.jobs[0].reply.logprobs[begin : begin + count]
        told = entries(self.spelling, tokens, begin)
        for one in (each for entry in told for each in (entry, *entry["top_logprobs"])):
            one["bytes"] = one["bytes"] or []
        return told

    def _message(self, status: str, content: list[Json] | None = None) -> Json:
        if content is None:
            reply = self.exchange.jobs[0].reply
            content = [self._part(reply.text, self._logprobs(0, len(reply.pieces)))]
        return {"type": "message", "id": self._item, "role": "assistant", "status": status, "content": content}

    def _usage(self) -> Json:
        read, written = self.exchange.prompt_tokens, len(self.exchange.jobs[0].reply.ids)
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": self.exchange.tokens_reused, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }

    def _object(self, status: str, output: list[Json]) -> Json:
        exchange, body = self.exchange, self.exchange.body
        assert isinstance(body, ResponseBody)
        return {
            "id": exchange.id,
            "object": "response",
            "created_at": exchange.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.longest,
            "model": body.model or self.model.identity.id,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "top_logprobs": body.top_logprobs,
            "text": {"format": body.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
            "persona": exchange.shared(),
        }
