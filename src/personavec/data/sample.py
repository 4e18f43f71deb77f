"""One row of a data set as a conversation: messages up to where the reply begins, and the reply."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from personavec.errors import DataError

Turn = Literal["first", "last"]
Message = dict[str, str]

LONGEST_ID, LONGEST_SOURCE = 1000, 200
"""Characters: of an id, which is refused beyond, and of a source, which is cut."""

SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt/response": ("prompt", "response"),
    "prompt/completion": ("prompt", "completion"),
    "instruction/output": ("instruction", "output"),
}
"""Shapes of rows, and the keys by which each is known."""
ROLES = {"human": "user"} | dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model"), "assistant")
"""Other names of roles, as ShareGPT has them."""
KNOWN = ("system", "user", "assistant")


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
    turns = list(_turns(row, kind))
    name = _label(row, "id")
    if len(name) > LONGEST_ID:
        raise DataError(f"expected an id of at most {LONGEST_ID:,} characters, got {len(name):,}")
    first = row[SHAPES[kind][0]]
    begin = 0 if len(SHAPES[kind]) == 1 else 1 if isinstance(first, str) else len(first)
    end = _reply(turns, turn, begin)
    return Sample(
        place,
        where,
        tuple(turns[:end]),
        turns[end]["content"],
        name or None,
        _label(row, label)[:LONGEST_SOURCE] or None,
        len(turns) - end - 1,
        begin,
    )


def _turns(row: Mapping[str, Any], shape: str) -> Iterator[Message]:
    if shape in ("messages", "conversations"):
        turns = row[shape]
        if isinstance(turns, str) or not isinstance(turns, Sequence) or not turns:
            raise DataError(f"expected a list of turns in {shape}, got {_shown(turns)}")
        for number, turn in enumerate(turns):
            if not isinstance(turn, Mapping):
                raise DataError(f"expected turns with role and content, got {_shown(turn)} as turn {number}")
            role = turn.get("role", turn.get("from"))
            role = ROLES.get(str(role), role)
            if role not in KNOWN:
                raise DataError(f"expected the roles {', '.join(KNOWN)}, got {_shown(role)} in turn {number}")
            content = turn["content"] if "content" in turn else turn.get("value")
            yield {"role": str(role), "content": _text(content, f"turn {number}")}
        return
    prompt_key, reply_key = SHAPES[shape]
    prompt = row[prompt_key]
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):  # TRL's conversational prompt/completion
        yield from _turns({"messages": prompt}, "messages")
    else:
        text = _text(prompt, prompt_key)
        given = _text(row["input"], "input").strip() if row.get("input") and shape == "instruction/output" else ""
        yield {"role": "user", "content": f"{text}\n\n{given}" if given else text}
    reply = row[reply_key]
    if isinstance(reply, Sequence) and not isinstance(reply, str):
        yield from _turns({"messages": reply}, "messages")
    else:
        yield {"role": "assistant", "content": _text(reply, reply_key)}


def _reply(turns: Sequence[Message], which: Turn, begin: int) -> int:
    """Where the response stands, not before `begin`; the turns before it must alternate, from the user's on."""
    replies = [index for index, turn in enumerate(turns) if turn["role"] == "assistant" and index >= begin]
    if not replies:
        raise DataError("expected an assistant turn, got none")
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
