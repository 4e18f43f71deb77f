"""What a request may say: OpenAI's fields, and `persona`; every wrong field is refused with its name."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from personavec.server.refused import Refused

IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)
"""Fields of OpenAI's that change nothing here."""
INERT: dict[str, Any] = {
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "function_call": "none",
    "reasoning_effort": "none",
    "modalities": ["text"],
    "suffix": "",
    "best_of": 1,
    "repetition_penalty": 1,
    "top_k": -1,
    "min_p": 0,
}
"""Fields that are taken with this value alone."""


LARGEST = 1e30
"""Of the numbers in a steering: activations are float32."""


def _whole(text: str) -> str:
    text.encode()  # JSON can spell half a surrogate pair; the error it raises here becomes a refusal
    return text


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]


class _Asked(BaseModel):
    """Null is "not given" for every field that may be left out."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            name: value
            for name, value in data.items()
            if value is not None or (name in fields and fields[name].is_required())
        }


class _Strict(_Asked):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


class _Body(_Asked):
    model_config = ConfigDict(extra="allow", frozen=True)

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


class _Part(BaseModel):
    type: Literal["text"]
    text: Text


class ChatTurn(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_Part]

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(_Body):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatTurn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def longest(self) -> int | None:
        """Most tokens of a reply, as far as the request says."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are given next to each; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(_Body):
    """Body of /v1/completions."""

    prompt: (
        Annotated[Text, Field(min_length=1)]
        | Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def top(self) -> int | None:
        """How many of the most probable tokens are given next to each; None for no log-probabilities."""
        return self.logprobs


Body = TypeVar("Body", ChatBody, CompletionBody)


def read(body: bytes, kind: type[Body]) -> Body:
    """A request from its body.

    Raises:
        Refused: It is no JSON, has a wrong field, or a field that cannot be obeyed here.
    """
    try:
        data = json.loads(body)
        content = kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        raise Refused(
            400, f"expected another {where or 'body'}, got one refused: {first['msg']}", param=where
        ) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or nesting beyond measure
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise Refused(400, f"expected a JSON object, got a body that is none ({reason})") from None
    for name, value in (content.model_extra or {}).items():
        if name not in IGNORED and value not in (None, 0, "", [], {}, INERT.get(name)):
            field = name[:100]
            raise Refused(400, f"expected no {field}, got one that cannot be obeyed here; leave it out", param=field)
    return content
