"""One row of a data set as a conversation: messages up to where the reply begins, and the reply."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from personavec.data.shapes import CHATS, GIVEN, SHAPES, SYSTEM, TOOLS, listed, shape_of, shown, tools_of
from personavec.data.turns import Message, Said, read_turn, role_of, text_of
from personavec.errors import DataError

Turn = Literal["first", "last", "every", "whole"]
"""Which reply of a row is the response: the first, the last or each in turn that a model is to learn; or the last."""

LONGEST_ID, LONGEST_SOURCE = 1000, 200
"""Characters: of an id, which is refused beyond, and of a source, which is cut."""
IDS = ("id", "conversation_id", "conversation_hash")
"""Fields that name a row, the first of them that it has; those after the first in LMSYS-Chat-1M and WildChat alone."""
FOLLOWS = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
"""Whose turn may come before."""
NOTHING_LEARNED = "expected a reply to be learned, got weight 0, label false or another mark against it at all of them"


@dataclass(frozen=True)
class Sample:
    """A conversation from a data set."""

    row: int
    """Its place in the data set, from 0, unusable rows counted; of replies taken in turn, the reply's place."""
    where: str
    """For people: file and line."""
    messages: tuple[Message, ...]
    """Turns up to where the reply begins, the last one the user's or a tool's."""
    response: str
    """Its text; of a reply that is nothing but calls, those as JSON."""
    id: str | None = None
    source: str | None = None
    more_turns: int = 0
    """Turns of the row that are neither in `messages` nor the response."""
    begin: int = 0
    """Assistant turns before this place belong to the prompt."""
    unlearned: tuple[int, ...] = ()
    """Places of replies that no model is to learn: their turns say so."""
    said: Message | None = None
    """The reply's turn, if it has more than a text."""
    tools: tuple[Any, ...] = ()
    """What the model could call, as chat templates take it."""
    conversation: int | None = None
    """Place of its row in the data set, where several replies of a row are taken."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Sample":
        """From its fields as JSON has them."""
        return cls(**{**fields, **{name: tuple(fields[name]) for name in ("messages", "unlearned", "tools")}})

    @property
    def turns(self) -> list[Message]:
        """All of it, the reply included."""
        return [*self.messages, self.said or {"role": "assistant", "content": self.response}]

    def instructed(self, instruction: str, own: str = "") -> "Sample":
        """The same row with an instruction before its system prompt, which is `own` where it has none."""
        rest = self.messages
        if rest[0]["role"] == "system":
            own, rest = rest[0]["content"], rest[1:]
        system = f"{instruction}\n\n{own}" if own else instruction
        messages = ({"role": "system", "content": system}, *rest)
        moved = len(messages) - len(self.messages)
        unlearned = tuple(place + moved for place in self.unlearned)
        return replace(self, messages=messages, begin=self.begin + moved, unlearned=unlearned)


def to_sample(
    row: Any, place: int, where: str, turn: Turn = "first", shape: str | None = None, label: str = "source"
) -> Sample:
    """Read a row of any known shape, see `to_samples`, with one reply as the response."""
    (sample,) = to_samples(row, place, where, turn, shape, label)
    return sample


def unread(row: Mapping[str, Any], shape: str, label: str) -> list[str]:
    """Fields of a row that hold something and of which nothing is read."""
    read = {*SHAPES[shape], *SYSTEM, *TOOLS, *IDS, "history", label}
    read |= set() if shape in CHATS else {*GIVEN, "label"}
    return [str(name) for name, value in row.items() if name not in read and value not in (None, "", [], {})]


def to_samples(
    row: Any, place: int, where: str, turn: Turn = "first", shape: str | None = None, label: str = "source"
) -> list[Sample]:
    """Read a row of any known shape.

    Args:
        row: As it stands in the data set; its `id` is taken along.
        place: Of the row in the data set.
        where: For people.
        turn: Which assistant turn is the response: the first one (as the paper does), the last, or every one, which
            gives several samples.
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
    ends = _replies(said, turn, begin)
    messages = tuple([each.message for each in said[: ends[-1]]])
    tools = tools_of(row)
    return [
        Sample(
            place,
            where,
            messages[:end],
            reply["content"] if reply["content"].strip() else json.dumps(reply["tool_calls"], ensure_ascii=False),
            name or None,
            _label(row, label)[:LONGEST_SOURCE] or None,
            0 if turn == "every" else total - end - 1,
            begin,
            tuple([index for index, each in enumerate(said[: end + 1]) if not each.learned or each.empty]),
            reply if len(reply) > 2 else None,
            tools,
            place if turn == "every" else None,
        )
        for end in ends
        for reply in (said[end].message,)
    ]


def _parts(row: Mapping[str, Any], shape: str) -> tuple[list[Said], Iterator[Said], int]:
    """What comes before the turns or the reply, the rest as it is read, and how many turns that is in all."""
    before = [
        Said({"role": "system", "content": text})
        for name in SYSTEM
        if row.get(name) is not None and (text := text_of(row[name], name)).strip()
    ][:1]
    history = _history(row["history"]) if row.get("history") else []
    if shape in CHATS:
        turns = listed(row[shape], shape)
        if before and role_of(turns[0]) == "system":
            if read_turn(turns[0], 0).message != before[0].message:
                raise DataError("expected one system prompt, got one beside the turns and another in turn 0")
            before = []
        before += history
        return before, map(read_turn, turns, range(len(turns))), len(before) + len(turns)
    prompt_key, reply_key = SHAPES[shape]
    before += history
    before += _asked(row, prompt_key)
    reply, learned = row[reply_key], row.get("label") is not False  # KTO: a reply that is to be unlearned
    if not isinstance(reply, str) and isinstance(reply, Sequence):
        turns = listed(reply, reply_key)
        said = (each._replace(learned=each.learned and learned) for each in map(read_turn, turns, range(len(turns))))
        return before, said, len(before) + len(turns)
    answer = Said({"role": "assistant", "content": text_of(reply, reply_key)}, learned)
    return before, iter([answer]), len(before) + 1


def _asked(row: Mapping[str, Any], key: str) -> list[Said]:
    """What a reply answers: turns, or a text with what it is about."""
    prompt = row[key]
    about: list[str] = []
    for name in GIVEN:
        if row.get(name) and (text := text_of(row[name], name).strip()):
            about.append(text)
    if about and key == "prompt":
        name = next(name for name in GIVEN if row.get(name))
        raise DataError(
            f"expected the whole prompt in prompt, got {name} beside it; put it in there, or drop that field"
        )
    if not isinstance(prompt, str) and isinstance(prompt, Sequence):  # TRL's conversational prompt/completion
        turns = listed(prompt, key)
        return [*map(read_turn, turns, range(len(turns)))]
    text = text_of(prompt, key)
    return [Said({"role": "user", "content": "\n\n".join([text, *about]) if about else text})]


def _history(pairs: Any) -> list[Said]:
    """Alpaca's earlier turns: pairs of what was asked and replied."""
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        raise DataError(f"expected pairs of prompt and reply in history, got {shown(pairs)}")
    said: list[Said] = []
    for number, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise DataError(f"expected pairs of prompt and reply in history, got {shown(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            said.append(Said({"role": role, "content": text_of(text, f"history {number}")}))
    return said


def _replies(said: Sequence[Said], which: Turn, begin: int) -> list[int]:
    """Where the responses stand, not before `begin`; the turns before them must alternate, from the user's on."""
    roles = [each.message["role"] for each in said]
    replies = [index for index, role in enumerate(roles) if role == "assistant" and index >= begin]
    if not replies:
        raise DataError("expected an assistant turn, got none")
    last = replies[-1]
    if which != "whole" and not (replies := [index for index in replies if said[index].learned]):
        raise DataError(NOTHING_LEARNED)
    replies = replies if which == "every" else replies[:1] if which == "first" else replies[-1:]
    end = last if which == "every" else replies[-1]
    before = roles[: end + 1]
    spoken = before[1:] if before[0] == "system" else before
    follow = all(first in FOLLOWS.get(second, ()) for first, second in pairwise(spoken))
    if spoken[0] != "user" or not follow:
        raise DataError(f"expected user and assistant in turns, got {', '.join(before[:8])}{' …' * (len(before) > 8)}")
    if said[end].empty or not (replies := [reply for reply in replies if not said[reply].empty]):
        raise DataError("expected a reply, got an empty one")
    if roles[end - 1] == "user" and said[end - 1].empty:
        raise DataError("expected a prompt, got an empty one")
    return replies


def _label(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return text_of(str(value), key) if isinstance(value, str | int) and not isinstance(value, bool) else ""
