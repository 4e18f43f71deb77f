"""Preferences: rows of a chosen and a rejected reply, each of which is read as a conversation of its own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args

from personavec.data.dataset import Dataset
from personavec.data.readers import Raw
from personavec.data.shapes import CHATS, from_json, outline, shown
from personavec.data.turns import role_of
from personavec.errors import DataError

Side = Literal["chosen", "rejected"]
"""Of a row of preferences: the reply that training learns, or the one that it unlearns."""
SIDES: tuple[Side, ...] = get_args(Side)
OPENING = ("system", "user")
"""Roles that a conversation begins with, as a reply does not."""


@dataclass(frozen=True)
class PreferredSide(Dataset):
    """A data set of preferences, of whose replies one side is read; its rows are written as they stand."""

    whole: Dataset
    side: Side
    others: bool
    """Whether rows that hold no two replies are read as they are; else they are unusable."""

    @classmethod
    def of(cls, whole: Dataset, side: Side, *, others: bool = False) -> "PreferredSide":
        """One side of a data set."""
        return cls(whole.name, whole.files, whole, side, others)

    @property
    def original(self) -> Dataset:
        """Rows as they stand."""
        return self.whole

    def fingerprint(self) -> dict[str, str]:
        """That of the data set; the side is an option of whoever reads it."""
        return self.whole.fingerprint()

    def called(self, shape: str) -> str:
        """What rows are called whose side has a shape."""
        return shape if self.others else f"chosen and rejected replies, of which the {self.side} one is read"

    def rows(self) -> Iterator[Raw]:
        """All rows, each ending in the reply of the side."""
        return map(self._sided, self.whole.rows())

    def _sided(self, raw: Raw) -> Raw:
        if raw.error or (self.others and not is_preference(raw.value)):
            return raw
        try:
            return raw._replace(value=of_side(raw.value, self.side))
        except DataError as error:
            return raw._replace(error=str(error))


def is_preference(row: Any) -> bool:
    """Whether a row holds a chosen and a rejected reply."""
    return isinstance(row, Mapping) and all(row.get(side) is not None for side in SIDES)


def of_side(row: Any, side: Side) -> Any:
    """A row of preferences as a conversation that ends in one of its two replies.

    Replies are texts behind `prompt`, turns behind it, or whole conversations. Replies in what both begin with are
    context. What else the row holds goes along.

    Raises:
        DataError: The row lacks one of the replies, or they stand in no such form.
    """
    if not is_preference(row):
        raise DataError(f"expected a chosen and a rejected reply, got {outline(row)}")
    prompt = None if row.get("prompt") is None else _read(row["prompt"], "prompt")
    replies = [_read(row[name], name) for name in SIDES]
    reply = replies[SIDES.index(side)]
    others = {key: value for key, value in row.items() if key not in {"prompt", *CHATS, *SIDES}}
    if isinstance(reply, str) and prompt is None:
        raise DataError(f"expected a prompt beside texts in {' and '.join(SIDES)}, got none; or write both as turns")
    if isinstance(reply, str) and isinstance(prompt, str):
        return others | {"prompt": prompt, "completion": reply}
    conversations = [_conversation(prompt, each) for each in replies]
    turns = conversations[SIDES.index(side)]
    pairs = list(zip(*conversations, strict=False))[: min(map(len, conversations)) - 1]
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return others | {"messages": [*map(_context, turns[:shared]), *turns[shared:]]}


def _read(value: Any, name: str) -> str | list[Any]:
    """A text, or turns, which may be JSON in a text."""
    turns = from_json(value) if isinstance(value, str) else value
    listed = isinstance(turns, Sequence) and not isinstance(turns, str) and (turns or not isinstance(value, str))
    if listed and all(isinstance(turn, Mapping) for turn in turns):
        return [*turns]
    if isinstance(value, str):
        return value
    raise DataError(f"expected a text or a list of turns in {name}, got {shown(value)}")


def _conversation(prompt: str | list[Any] | None, reply: str | list[Any]) -> list[Any]:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
    said = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else reply
    return said if said and role_of(said[0]) in OPENING else [*asked, *said]


def _context(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    """A turn whose text no model is to learn."""
    return {**turn, "weight": 0} if role_of(turn) == "assistant" else turn
