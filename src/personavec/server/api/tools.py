"""Tools that a client offers, and the calls that a reply makes of them, as OpenAI's clients write and read them."""

import json
import re
import uuid
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from personavec.model.chat_model import ChatModel
from personavec.runs.json_files import parse_json

MARK = "<tool_call>"
"""What begins a call in the replies of Hermes, Qwen and their kin: it holds a JSON object with name and arguments."""
CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
OTHERWISE = "<function="
"""In a chat template: the mark holds something else than JSON."""


def _writable(value: Any) -> Any:
    try:
        return parse_json(json.dumps(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Input should be JSON without {error}") from None


class OfferedFunction(BaseModel):
    """What a model may call."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Annotated[str, AfterValidator(_writable)] | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_writable)] | None = None
    strict: bool | None = None
    """Calls are not held to the parameters either way."""


class Tool(BaseModel):
    """A tool: functions are the only kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["function"]
    function: OfferedFunction

    @property
    def shown(self) -> dict[str, Any]:
        """As a chat template takes it."""
        return {"type": "function", "function": self.function.model_dump(exclude={"strict"}, exclude_none=True)}


def reads_calls(model: ChatModel) -> bool:
    """Whether a model was told to make calls in the form that is read here."""
    tokenizer: Any = model.tokenizer
    written = tokenizer.get_chat_template(tools=[{}])
    return MARK in written and OTHERWISE not in written and MARK not in tokenizer.all_special_tokens


def split(text: str) -> tuple[str, list[dict[str, Any]]]:
    """What a reply says besides its calls, and those; where one of them cannot be read, the whole text and none."""
    calls = []
    for written in CALL.findall(text):
        try:
            call = parse_json(written, strict=False)
        except ValueError:
            return text, []
        arguments = call.get("arguments", {}) if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
            return text, []
        function = {"name": call["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
        calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
    return (CALL.sub("", text).strip() if calls else text), calls
