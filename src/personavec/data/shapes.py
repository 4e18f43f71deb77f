"""Shapes of rows that widely used data sets have: where their turns are, and where prompt and reply."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from personavec.data.arrays import DECODER, TwiceError
from personavec.errors import DataError

SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "conversation": ("conversation",),
    "data": ("data",),
    "prompt/response": ("prompt", "response"),
    "prompt/completion": ("prompt", "completion"),
    "question/response": ("question", "response"),
    "question/answer": ("question", "answer"),
    "instruction/output": ("instruction", "output"),
    "instruction/response": ("instruction", "response"),
}
"""Shapes of rows, and the keys by which each is known."""
CHATS = frozenset({"messages", "conversations", "conversation", "data"})
"""Shapes that are a list of turns."""
GIVEN = ("input", "context")
"""Fields that what is asked is about: after the instruction or the question. Beside a prompt, which is whole, none."""
SYSTEM = ("system", "system_prompt")
"""Fields beside the turns that hold a system prompt."""
TOOLS = ("tools", "functions")
"""Fields beside the turns that hold what a model could call."""

ASK = "write it as messages, or as prompt and completion"
OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("chosen", "rejected"),
        "a chosen and a rejected reply; screen takes those with --side both, TRL's DPOTrainer trains on them with "
        "PreventativeSteering as a callback; for anything else write one of the replies as prompt and completion",
    ),
    (
        ("message_id", "parent_id", "text"),
        "a single message of a tree (OASST); put each reply behind the messages that it answers, by parent_id, and "
        "write that as messages",
    ),
    (("message_tree_id", "prompt"), f"a tree of replies (OASST); take a path through it, and {ASK}"),
    (("text",), f"text alone, which does not say who speaks; {ASK}"),
)
"""Keys of rows that are known and cannot be read, and what is said of them."""


def shape_of(row: Any) -> str:
    """The shape of a row: the first whose keys hold something, or else are there.

    Raises:
        DataError: It has none of them.
    """
    if isinstance(row, Mapping):
        held = {key for key, value in row.items() if value is not None}
        for shape, keys in SHAPES.items():
            if held.issuperset(keys):
                return shape
        for keys, got in OTHERS:
            if all(key in row for key in keys):
                raise DataError(f"expected a conversation, got {got}")
        for shape, keys in SHAPES.items():
            if all(key in row for key in keys):
                return shape
    raise DataError(f"expected {' or '.join(SHAPES)}, got {outline(row)}")


def outline(row: Any) -> str:
    """What a row is, for errors: its keys, or its type."""
    if isinstance(row, Mapping):
        return f"the keys {', '.join(map(shown, list(row)[:8]))}"
    return f"{type(row).__name__} instead of an object"


def listed(turns: Any, where: str) -> Sequence[Any]:
    """Turns in whatever form they stand: a list, the same as JSON text, lists by field, texts or pairs in turn.

    Raises:
        DataError: There are none.
    """
    if isinstance(turns, str):
        turns = from_json(turns)
    if isinstance(turns, Mapping):
        turns = _unpacked(turns, where)
    if isinstance(turns, str) or not isinstance(turns, Sequence) or not turns:
        raise DataError(f"expected a list of turns in {where}, got {shown(turns)}")
    if isinstance(turns[0], str) and all(isinstance(turn, str) for turn in turns):
        decoded = [from_json(turn) for turn in turns]
        if all(isinstance(turn, Mapping) for turn in decoded):
            return decoded
        if where in CHATS:  # LIMA and UltraChat
            return [{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), turns)]
    if isinstance(turns[0], Mapping) and {"input", "output"} <= turns[0].keys() and not _speaks(turns[0]):  # Capybara
        if not all(isinstance(turn, Mapping) and {"input", "output"} <= turn.keys() for turn in turns):
            raise DataError(f"expected an input and an output in every turn of {where}, got one without")
        pair = ("input", "user"), ("output", "assistant")
        return [{"role": role, "content": turn[key]} for turn in turns for key, role in pair]
    return turns


def _speaks(turn: Mapping[str, Any]) -> bool:
    return turn.get("role") is not None or turn.get("from") is not None


def _unpacked(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Turns from a list for each of their fields, as Parquet files of the Hub have them."""
    lists = {key: value for key, value in columns.items() if value is not None}
    lengths = {len(value) if isinstance(value, list | tuple) else -1 for value in lists.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise DataError(f"expected a list of turns in {where}, or equally long lists by field, got {shown(columns)}")
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]


def from_json(text: str) -> Any:
    """What a text means as JSON, if it begins as a list or an object does; else the text.

    Raises:
        DataError: An object in it holds a key twice.
    """
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    try:
        return DECODER.decode(text)
    except TwiceError as error:
        raise DataError(f"expected JSON, got {error} in one object") from error
    except (ValueError, RecursionError):
        return text


def tools_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the model could call, as chat templates take it.

    Raises:
        DataError: Something else stands there.
    """
    for name in TOOLS:
        if not (held := row.get(name)):
            continue
        held = from_json(held) if isinstance(held, str) else held
        if isinstance(held, Mapping) or not isinstance(held, Sequence) or not all(isinstance(t, Mapping) for t in held):
            raise DataError(f"expected a list of tools in {name}, got {shown(held)}")
        return tuple(tool if "function" in tool else {"type": "function", "function": dict(tool)} for tool in held)
    return ()


def shown(value: Any) -> str:
    """A value on one line, cut."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
