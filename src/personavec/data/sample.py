"""One row of a data set as a conversation: messages up to where the reply begins, and the reply."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from personavec.errors import DataError

Turn = Literal["first", "last", "whole"]
"""Which reply of a row is the response: the first or the last that a model is to learn, or the last of all."""
Message = dict[str, str]

LONGEST_ID, LONGEST_SOURCE = 1000, 200
"""Characters: of an id, which is refused beyond, and of a source, which is cut."""

SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "conversation": ("conversation",),
    "prompt/response": ("prompt", "response"),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
}
"""Shapes of rows, and the keys by which each is known."""
CHATS = frozenset({"messages", "conversations", "conversation"})
"""Shapes that are a list of turns."""
ROLES = {"human": "user", "developer": "system"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant")
"""Other names of roles, in any letter case: ShareGPT's and OpenAI's."""
KNOWN = ("system", "user", "assistant")
IDS = ("id", "conversation_id", "conversation_hash")
"""Fields that name a row, the first of them that it has; those after the first in LMSYS-Chat-1M and WildChat alone."""
SYSTEM = ("system", "system_prompt")
"""Fields beside the turns that hold a system prompt."""
UNREAD = ("tools", "functions")
"""Fields beside the turns that a model would see, and that cannot be read here: rows that have them are refused."""
UNREAD_IN_TURN = ("tool_calls", "function_call", "tool_call_id", "reasoning_content", "reasoning", "thinking")
MARKS = ("train", "training", "trained", "loss")
"""Fields of a turn that say whether a model is to learn it, besides `weight`."""


NOTHING_LEARNED = "expected a reply to be learned, got weight 0 or another mark against it at all of them"


@dataclass(frozen=True)
class Sample:
    """A conversation from a data set."""

    row: int
    """Its place in the data set, from 0, unusable rows counted."""
    where: str
    """For people: file and line."""
    messages: tuple[Message, ...]
    """Turns up to where the reply begins, the last one the user's."""
    response: str
    id: str | None = None
    source: str | None = None
    more_turns: int = 0
    """Turns of the row that are neither in `messages` nor the response."""
    begin: int = 0
    """Assistant turns before this place belong to the prompt."""
    unlearned: tuple[int, ...] = ()
    """Places of replies that no model is to learn: their turns say so."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Sample":
        """From its fields as JSON has them."""
        return cls(**{**fields, "messages": tuple(fields["messages"]), "unlearned": tuple(fields["unlearned"])})


def shape_of(row: Any) -> str:
    """The shape of a row.

    Raises:
        DataError: It has none of them.
    """
    if isinstance(row, Mapping):
        for shape, keys in SHAPES.items():
            if all(key in row for key in keys):
                return shape
    got = f"the keys {', '.join(map(_shown, list(row)[:8]))}" if isinstance(row, Mapping) else type(row).__name__
    raise DataError(f"expected {' or '.join(SHAPES)}, got {got}")


def to_sample(
    row: Any, place: int, where: str, turn: Turn = "first", shape: str | None = None, label: str = "source"
) -> Sample:
    """Read a row of any known shape.

    Args:
        row: As it stands in the data set; its `id` is taken along.
        place: Of the row in the data set.
        where: For people.
        turn: Which assistant turn is the response: the first one (as the paper does), or the last one.
        shape: That every row is to have.
        label: Field that is taken along as the source.

    Raises:
        DataError: The row is not usable; the message says what was expected and what is there.
    """
    kind = shape_of(row)
    if shape is not None and kind != shape:
        raise DataError(f"expected the shape of the first row, {shape}, got {kind}")
    name = next((text for key in (IDS if kind == "conversation" else IDS[:1]) if (text := _label(row, key))), "")
    if len(name) > LONGEST_ID:
        raise DataError(f"expected an id of at most {LONGEST_ID:,} characters, got {len(name):,}")
    before, spoken, total = _parts(row, kind)
    begin = 0 if kind in CHATS else len(before)
    said = [*before]
    for each in spoken:
        said.append(each)
        if turn == "first" and each.learned and each.message["role"] == "assistant" and len(said) > begin:
            break  # what comes after the reply is not read
    end = _reply(said, turn, begin)
    return Sample(
        place,
        where,
        tuple(each.message for each in said[:end]),
        said[end].message["content"],
        name or None,
        _label(row, label)[:LONGEST_SOURCE] or None,
        total - end - 1,
        begin,
        tuple(place for place, each in enumerate(said[: end + 1]) if not each.learned),
    )


class _Said(NamedTuple):
    message: Message
    learned: bool = True
    """Whether a model may learn it, if it is a reply."""


def _parts(row: Mapping[str, Any], shape: str) -> tuple[list[_Said], Iterator[_Said], int]:
    """What comes before the turns or the reply, the rest as it is read, and how many turns that is in all."""
    for name in UNREAD:
        if row.get(name):
            raise DataError(f"expected rows of text alone, got {name}, which cannot be read here; drop that field")
    before = [
        _Said({"role": "system", "content": text})
        for name in SYSTEM
        if row.get(name) is not None and (text := _text(row[name], name)).strip()
    ][:1]
    if shape in CHATS:
        turns = _listed(row[shape], shape)
        if before and _role(turns[0]) == "system":
            if _turn(turns[0], 0).message != before[0].message:
                raise DataError("expected one system prompt, got one beside the turns and another in turn 0")
            before = []
        return before, map(_turn, turns, range(len(turns))), len(before) + len(turns)
    prompt_key, reply_key = SHAPES[shape]
    prompt, reply = row[prompt_key], row[reply_key]
    before += _history(row.get("history"))
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):  # TRL's conversational prompt/completion
        before += map(_turn, _listed(prompt, prompt_key), range(len(prompt)))
    else:
        text = _text(prompt, prompt_key)
        given = _text(row["input"], "input").strip() if row.get("input") and shape == "instruction/output" else ""
        before.append(_Said({"role": "user", "content": f"{text}\n\n{given}" if given else text}))
    if isinstance(reply, Sequence) and not isinstance(reply, str):
        return before, map(_turn, _listed(reply, reply_key), range(len(reply))), len(before) + len(reply)
    return before, iter([_Said({"role": "assistant", "content": _text(reply, reply_key)})]), len(before) + 1


def _listed(turns: Any, where: str) -> Sequence[Any]:
    if isinstance(turns, str) or not isinstance(turns, Sequence) or not turns:
        raise DataError(f"expected a list of turns in {where}, got {_shown(turns)}")
    return turns


def _history(pairs: Any) -> list[_Said]:
    """Alpaca's earlier turns: pairs of what was asked and replied."""
    said: list[_Said] = []
    for number, pair in enumerate(pairs or ()):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise DataError(f"expected pairs of prompt and reply in history, got {_shown(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            said.append(_Said({"role": role, "content": _text(text, f"history {number}")}))
    return said


def _given(turn: Mapping[str, Any], *names: str) -> Any:
    """The first of some fields that is not null: null and absent are one."""
    return next((value for name in names if (value := turn.get(name)) is not None), None)


def _role(turn: Any) -> Any:
    role = _given(turn, "role", "from") if isinstance(turn, Mapping) else None
    plain = str(role).lower()
    return ROLES.get(plain, plain if plain in KNOWN else role)


def _turn(turn: Any, number: int) -> _Said:
    if not isinstance(turn, Mapping):
        raise DataError(f"expected turns with role and content, got {_shown(turn)} as turn {number}")
    role = _role(turn)
    if role not in KNOWN:
        raise DataError(f"expected the roles {', '.join(KNOWN)}, got {_shown(role)} in turn {number}")
    for name in UNREAD_IN_TURN:
        if turn.get(name):
            raise DataError(f"expected turns of text alone, got {name} in turn {number}, which cannot be read here")
    content = _text(_given(turn, "content", "value"), f"turn {number}")
    return _Said({"role": str(role), "content": content}, _learned(turn, str(role), number))


def _learned(turn: Mapping[str, Any], role: str, number: int) -> bool:
    """Whether a turn's marks let a model learn it."""
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise DataError(f"expected a weight of 0 or 1 in turn {number}, got {_shown(weight)}")
    marks = {name: turn[name] for name in MARKS if turn.get(name) is not None}
    for name, mark in marks.items():
        if not isinstance(mark, bool):
            raise DataError(f"expected true or false as {name} of turn {number}, got {_shown(mark)}")
        if mark and role != "assistant":
            raise DataError(f"expected the assistant's turns alone to be learned, got {name} in turn {number} ({role})")
    return weight != 0 and all(marks.values())


def _reply(said: Sequence[_Said], which: Turn, begin: int) -> int:
    """Where the response stands, not before `begin`; the turns before it must alternate, from the user's on."""
    turns = [each.message for each in said]
    replies = [index for index, turn in enumerate(turns) if turn["role"] == "assistant" and index >= begin]
    if not replies:
        raise DataError("expected an assistant turn, got none")
    if which != "whole" and not (replies := [index for index in replies if said[index].learned]):
        raise DataError(NOTHING_LEARNED)
    end = replies[0 if which == "first" else -1]
    before = [turn["role"] for turn in turns[: end + 1]]
    spoken = before[1:] if before[0] == "system" else before
    expected = ["user", "assistant"] * (len(spoken) // 2)
    if spoken != expected:
        raise DataError(f"expected user and assistant in turns, got {', '.join(before[:8])}{' …' * (len(before) > 8)}")
    if not turns[end]["content"].strip():
        raise DataError("expected a reply, got an empty one")
    if not turns[end - 1]["content"].strip():
        raise DataError("expected a prompt, got an empty one")
    return end


def _text(content: Any, where: str) -> str:
    if isinstance(content, Sequence) and not isinstance(content, str):  # parts, as the OpenAI API has them
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            content = "".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise DataError(f"expected text in {where}, got {_shown(content)}")
    try:
        content.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise DataError(f"expected text in {where}, got half a character at {error.start}") from error
    return content


def _label(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return _text(str(value), key) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
