"""One turn of a conversation: who speaks, the text, what a chat template shows besides, and whether it is learned."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from personavec.data.shapes import from_json, shown
from personavec.errors import DataError

Message = dict[str, Any]
"""A turn as chat templates take it: `role` and `content`, and of agents' turns `name`, `tool_calls`, `tool_call_id` and
`reasoning_content`."""

ROLES = {"human": "user", "prompter": "user", "developer": "system"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant")
ROLES |= dict.fromkeys(("function", "observation", "ipython", "function_response", "tool_response"), "tool")
"""Other names of roles, in any letter case: ShareGPT's, OASST's and OpenAI's."""
CALLS = frozenset({"function_call", "tool_call"})
"""Names of the assistant's role for a turn that is a call, as JSON text (ShareGPT)."""
KNOWN = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")
MORE = frozenset({*REASONING, "name", "tool_calls", "function_call", "tool_call_id"})
"""Fields of a turn that a chat template may show."""
MARKS = ("train", "training", "trained", "loss")
"""Fields of a turn that say whether a model is to learn it, besides `weight`."""
MARKED = frozenset({*MARKS, "weight"})


class Said(NamedTuple):
    """A turn."""

    message: Message
    learned: bool = True
    """Whether a model may learn it, if it is a reply."""

    @property
    def empty(self) -> bool:
        """Whether nothing is said, and nothing called."""
        return not self.message["content"].strip() and "tool_calls" not in self.message


def _given(turn: Mapping[str, Any], *names: str) -> Any:
    """The first of some fields that is not null: null and absent are one."""
    return next((value for name in names if (value := turn.get(name)) is not None), None)


def role_of(turn: Any) -> Any:
    """Who speaks, by the role's plain name where it is known."""
    role = _given(turn, "role", "from") if isinstance(turn, Mapping) else None
    plain = str(role).lower()
    return "assistant" if plain in CALLS else ROLES.get(plain, plain if plain in KNOWN else role)


def read_turn(turn: Any, number: int) -> Said:
    """Read a turn of any known form.

    Raises:
        DataError: It is none; the message says which.
    """
    if not isinstance(turn, Mapping):
        raise DataError(f"expected turns with role and content, got {shown(turn)} as turn {number}")
    role = turn.get("role")
    content = turn.get("content")
    if role not in KNOWN:
        role = role_of(turn)
    if content is None:
        content = turn.get("value")
    if role is None:
        keys = ", ".join(map(shown, list(turn)[:8])) or "nothing"
        raise DataError(f"expected role and content, or from and value, in each turn, got {keys} in turn {number}")
    if role not in KNOWN:
        raise DataError(f"expected the roles {', '.join(KNOWN)}, got {shown(role)} in turn {number}")
    more: Message = {}
    if role == "assistant" and str(_given(turn, "role", "from")).lower() in CALLS:
        more, content = {"tool_calls": _calls(content, number)}, ""
    elif isinstance(content, list) or not MORE.isdisjoint(turn):
        more, content = _more(turn, content, number)
    learned = MARKED.isdisjoint(turn) or _learned(turn, role, number)
    return Said({"role": role, "content": text_of(content, f"turn {number}"), **more}, learned)


def _more(turn: Mapping[str, Any], content: Any, number: int) -> tuple[Message, Any]:
    """What a turn has besides its text, and the text."""
    reasoning = [text_of(text, f"turn {number}") for name in REASONING if (text := turn.get(name))][:1]
    if isinstance(content, list):  # parts may hold reasoning, too
        thoughts = [part for part in content if isinstance(part, Mapping) and part.get("type") in REASONING]
        reasoning += [text_of(_given(part, "thinking", "reasoning", "text"), f"turn {number}") for part in thoughts]
        content = [part for part in content if part not in thoughts]
    more: Message = {"reasoning_content": "".join(reasoning)} if reasoning else {}
    if calls := _given(turn, "tool_calls", "function_call"):
        more["tool_calls"] = _calls(calls, number)
        content = "" if content is None else content
    for name in ("tool_call_id", "name"):
        if turn.get(name):
            more[name] = text_of(turn[name], f"{name} of turn {number}")
    return more, content


def _calls(calls: Any, number: int) -> list[Message]:
    """Calls of functions in the one form that chat templates know: arguments as an object, not as text."""
    calls = from_json(calls) if isinstance(calls, str) else calls
    called = []
    for call in [calls] if isinstance(calls, Mapping) else calls if isinstance(calls, list | tuple) else [None]:
        call = call if isinstance(call, Mapping) else {}
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"expected calls of functions with name and arguments in turn {number}, got {shown(calls)}")
        given = function.get("arguments", function.get("parameters"))
        arguments = from_json(given) if isinstance(given, str) else {} if given is None else given
        named = {"id": call["id"]} if call.get("id") else {}
        called.append({"type": "function", **named, "function": {"name": function["name"], "arguments": arguments}})
    return called


def _learned(turn: Mapping[str, Any], role: str, number: int) -> bool:
    """Whether a turn's marks let a model learn it."""
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise DataError(f"expected a weight of 0 or 1 in turn {number}, got {shown(weight)}")
    marks = {name: turn[name] for name in MARKS if turn.get(name) is not None}
    for name, mark in marks.items():
        if not isinstance(mark, bool):
            raise DataError(f"expected true or false as {name} of turn {number}, got {shown(mark)}")
        if mark and role != "assistant":
            raise DataError(f"expected the assistant's turns alone to be learned, got {name} in turn {number} ({role})")
    return weight != 0 and all(marks.values())


def text_of(content: Any, where: str) -> str:
    """A text, or parts of text as the OpenAI API has them.

    Raises:
        DataError: It is none, or no text that can be encoded.
    """
    if not isinstance(content, str) and isinstance(content, Sequence):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise DataError(f"expected text in {where}, got {shown(content)}")
    try:
        content.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise DataError(f"expected text in {where}, got half a character at {error.start}") from error
    return content
