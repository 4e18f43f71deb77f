"""What a turn of a conversation may say, as OpenAI's clients write it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from personavec.data.turns import read_turn

HALF = "text without half a surrogate pair"


def _whole(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):  # JSON can spell it
        raise ValueError(f"Input should be {HALF}")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


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


class _Part(BaseModel):
    type: Literal["text"]
    text: Text


Role = Literal["system", "developer", "user", "assistant"]


def plain(role: Role, content: Any) -> dict[str, str]:
    """A turn as a chat template takes it, of a text or its parts."""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": "system" if role == "developer" else role, "content": text}


class _CalledFunction(_Asked):
    name: Name
    arguments: Text


class _Called(_Asked):
    id: Text | None = None
    type: Literal["function"] = "function"
    function: _CalledFunction


class ChatTurn(BaseModel):
    """A turn of a conversation."""

    items: ClassVar = ("content", _Part)

    role: Role | Literal["tool"]
    content: Text | list[_Part]
    tool_calls: list[_Called] | None = None
    tool_call_id: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _calling(cls, data: Any) -> Any:
        """A turn that calls need not say anything."""
        calls = isinstance(data, dict) and data.get("tool_calls")
        return {**data, "content": ""} if calls and data.get("content") is None else data

    @model_validator(mode="after")
    def _of_its_role(self) -> "ChatTurn":
        if self.tool_calls and self.role != "assistant":
            raise ValueError("Input should be a turn of the assistant where it calls tools")
        if (self.role == "tool") != bool(self.tool_call_id):
            raise ValueError("Input should be a turn with a tool_call_id where it is a tool's, and without elsewhere")
        return self

    @property
    def shown(self) -> dict[str, Any]:
        """As a chat template takes it.

        Raises:
            DataError: What a call says is not to be shown.
        """
        if self.role != "tool" and not self.tool_calls:
            return dict(plain(self.role, self.content))
        more = {"tool_calls": [call.model_dump(exclude_none=True) for call in self.tool_calls or ()] or None}
        return read_turn(
            {**plain("user", self.content), "role": self.role, "tool_call_id": self.tool_call_id, **more}, 0
        ).message
