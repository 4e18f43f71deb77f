"""What a request may say: OpenAI's fields, and `persona`; every wrong field is refused with its name."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from personavec.errors import DataError
from personavec.server.api.tools import Tool
from personavec.server.api.turns import HALF, ChatTurn, Name, Text, _Asked, _Strict
from personavec.server.refused import Refused

IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "parallel_tool_calls"}
    | {"prompt_cache_key", "prompt_cache_retention", "cache_control"}
)
"""Fields that change no reply, of requests, turns and parts."""
NOTHING: tuple[Any, ...] = (None, 0, "", [], {})
INERT: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "reasoning": ({"effort": None}, {"effort": "none"}, {"effort": None, "summary": None}),
    "truncation": ("disabled",),
    "modalities": (["text"],),
    "best_of": (1,),
    "repetition_penalty": (1,),
    "top_k": (-1,),
}
"""Fields that are taken with these values alone, or one that says nothing: without tools a choice of them is none."""


LARGEST = 1e30
"""Of the numbers in a steering: activations are float32."""


Number = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]


class SteeringSpec(_Strict):
    """A steering, as data."""

    vector: Name
    coef: Number | None = None
    dose: Number | None = None
    layer: Annotated[int, Field(ge=0, strict=True)] | Literal["all"] | None = None
    positions: Literal["all", "prompt", "response"] = "response"
    op: Literal["add", "ablate", "cap"] = "add"
    floor: Number | None = None
    ceiling: Number | None = None
    above: Number | None = None
    below: Number | None = None


class WatchSpec(_Strict):
    """A vector to read, at a layer that is not its card's."""

    vector: Name
    layer: Annotated[int, Field(ge=0, strict=True)] | Literal["all"] | None = None


class PersonaSpec(_Strict):
    """What is steered and watched in this request; what is left out is as the server was started."""

    steering: Annotated[list[SteeringSpec], Field(max_length=16)] | None = None
    watch: Annotated[list[Name | WatchSpec], Field(max_length=64)] | None = None
    conversation: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None


class _StreamOptions(_Asked):
    include_usage: bool = False


class AskedBody(_Asked):
    """What bodies of all routes that write replies have in common."""

    model_config = ConfigDict(frozen=True)
    prefix: ClassVar[str]
    """What ids of its answers begin with."""
    asks: ClassVar[str]
    """The field that says what is to be answered."""
    items: ClassVar[tuple[str, type[BaseModel]] | None] = None
    """The field that is a list of objects, and what they are."""

    model: Name | None = None
    """The one that is served; may be left out."""
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1)] = 1
    stop: (
        Annotated[Text, Field(max_length=200)]
        | Annotated[list[Annotated[Text, Field(max_length=200)]], Field(max_length=4)]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    persona: PersonaSpec = PersonaSpec()

    @property
    def said(self) -> list[dict[str, Any]]:
        """The conversation as a chat template takes it; none if it is not one."""
        return []

    @property
    def offered(self) -> list[dict[str, Any]]:
        """Tools that a reply may call, as a chat template takes them."""
        return []

    @property
    def form(self) -> tuple[str, Any] | None:
        """A JSON schema that replies are held to, and the field that says it."""
        return None

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are given next to each; None for no log-probabilities."""
        return None

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are asked for."""
        return False

    @property
    def stops(self) -> Sequence[str]:
        """Texts that end a reply."""
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def longest(self) -> int | None:
        """Most tokens of a reply, as far as the request says."""
        return self.max_tokens


class NamedSchema(_Strict):
    """A JSON schema, and what it is called."""

    wanted: Any = Field(alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """Replies are held to the schema either way."""


class _Format(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class ChatBody(AskedBody):
    """Body of /v1/chat/completions."""

    prefix: ClassVar = "chatcmpl-"
    asks: ClassVar = "messages"
    items: ClassVar = ("messages", ChatTurn)

    messages: Annotated[list[ChatTurn], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: _Format | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def said(self) -> list[dict[str, Any]]:
        """The conversation as a chat template takes it."""
        try:
            return [turn.shown for turn in self.messages]
        except DataError as error:
            raise Refused(400, str(error), param="messages") from None

    @property
    def offered(self) -> list[dict[str, Any]]:
        """Tools that a reply may call, as a chat template takes them."""
        return [] if self.tool_choice == "none" else [tool.shown for tool in self.tools or ()]

    @property
    def longest(self) -> int | None:
        """Most tokens of a reply, as far as the request says."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def form(self) -> tuple[str, Any] | None:
        """A JSON schema that replies are held to, and the field that says it."""
        asked = self.response_format
        if asked is None or asked.type == "text":
            return None
        if asked.type == "json_object":
            return "response_format", {"type": "object"}
        if asked.json_schema is None:
            where = "response_format.json_schema"
            raise Refused(400, f"expected {where}, got none", param=where)
        return "response_format.json_schema.schema", asked.json_schema.wanted

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are given next to each; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


Prompt = Annotated[Text, Field(min_length=1)]
Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]


class CompletionBody(AskedBody):
    """Body of /v1/completions."""

    prefix: ClassVar = "cmpl-"
    asks: ClassVar = "prompt"

    prompt: Prompt | Ids | Annotated[list[Prompt], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    """Whether an answer begins with its prompt."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def longest(self) -> int | None:
        """Most tokens of a reply, as far as the request says; none may be written where the prompt is told."""
        if self.max_tokens == 0 and not self.echo:
            raise Refused(400, "expected max_tokens of at least 1 without echo, got 0", param="max_tokens")
        return self.max_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt's tokens are asked for."""
        return self.echo and self.logprobs is not None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each is replied to `n` times: texts, or token ids."""
        many = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if many else [self.prompt]  # type: ignore[return-value]

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are given next to each; None for no log-probabilities."""
        return self.logprobs


Body = TypeVar("Body", bound=AskedBody)


def read(body: bytes, kind: type[Body]) -> Body:
    """A request from its body.

    Raises:
        Refused: It is no JSON, has a wrong field, or a field that cannot be obeyed here.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"expected a JSON object, got a body that is none ({_no_json(error)})") from None
    _check_others(data, kind)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(error, data) from None


MISTAKEN = ("_type", "_parsing", "literal_error")
"""Ends of the kinds of errors that say little: of several things that a field may be, the value is another one."""


def _no_json(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"its byte {error.start} is not UTF-8"
    return "nested too deep" if isinstance(error, RecursionError) else "a number of too many digits"


def _check_others(data: Any, kind: type[BaseModel], *path: str) -> None:
    """Refuse fields that are not known and would change the reply; what is no object is left to the model."""
    if not isinstance(data, dict):
        return
    for name, value in data.items():
        idle = name in kind.model_fields or name in IGNORED or value in (*NOTHING, *INERT.get(name, ()))
        idle = idle or (name == "best_of" and value == data.get("n"))  # the best of as many as are answered
        if not idle:
            field = ".".join((*path, name))[:200]
            raise Refused(400, f"expected no {field}, got one that cannot be obeyed here; leave it out", param=field)
    within, items = getattr(kind, "items", None) or ("", kind)
    for number, item in enumerate(data[within] if isinstance(data.get(within), list) else ()):
        types = get_args(items.model_fields["type"].annotation) if "type" in items.model_fields else ()
        if not types or (
            isinstance(item, dict) and item.get("type", "message") in types
        ):  # of others the type is wrong
            _check_others(item, items, *path, within, str(number))


def _refusal(error: ValidationError, data: Any) -> Refused:
    """In words of the API: of the first wrong field, what was wrong deepest in it."""
    errors = error.errors(include_url=False, include_context=False)
    paths = [_path(one["loc"], data, one["type"] == "missing") for one in errors]
    field = [path for path in paths if path[:1] == paths[0][:1]]
    deepest = max(field, key=lambda path: (len(path), [int(part) if part.isdigit() else -1 for part in path]))
    here = [one for one, path in zip(errors, paths, strict=True) if path == deepest]
    here = [one for one in here if not one["type"].endswith(MISTAKEN)] or here
    where, kind = ".".join(deepest)[:200], here[0]["type"]
    if kind == "missing":
        return Refused(400, f"expected {where}, got none", param=where)
    if kind == "extra_forbidden":
        return Refused(400, f"expected no {where}, got one that is not known; leave it out", param=where)
    wanted = " or ".join(dict.fromkeys(map(_wanted, here)))
    return Refused(
        400, f"expected {where or 'the body'} to be {wanted}, got {_shown(here[0]['input'])}", param=where or None
    )


def _path(loc: Sequence[str | int], data: Any, missing: bool) -> tuple[str, ...]:
    """Where in a request something is wrong; between its fields a location has names of types."""
    path = []
    for number, part in enumerate(loc, 1):
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if inside:
            data = data[part]
        if inside or (missing and number == len(loc)):
            path.append(str(part))
    return tuple(path)


def _wanted(error: Any) -> str:
    if error["type"] in ("model_type", "model_attributes_type"):
        return "an object"
    if error["type"] == "string_unicode":
        return HALF
    begun, text = error["msg"].removeprefix("Value error, ").partition("Input should be ")[::2]
    return text or f"another one ({begun[:1].lower()}{begun[1:]})"


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)[:60]
