"""Turns of recorded conversations with their projections, in a table that grows part by part."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from personavec.data.dataset import Bad, Dataset, dataset_of
from personavec.data.sample import Sample
from personavec.errors import DataError, ModelError
from personavec.model.activations import by_length, token_projections
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import Span, spans
from personavec.model.machine.limits import Limit, in_parts
from personavec.runs.progress import stage
from personavec.runs.run import Run
from personavec.steering.projection import Directions
from personavec.verbs.monitor.calibration import EVERY
from personavec.verbs.monitor.served import served

TABLE = "turns.jsonl"
PART = 64
"""Conversations read between two writes: what a kill may cost."""
SHOWN_TEXT = 160
"""Characters of a reply next to its alert."""
SYSTEM = "system"
"""What to group by for groups of one system prompt."""

Conversations = str | Path | Iterable[Any] | Dataset
"""Recorded conversations: a data set, its path or name, rows, or lists of messages."""


class AlongVector(TypedDict):
    """A turn along one vector."""

    layer: int
    prompt_last: float
    cosine: float
    """Of the last prompt token."""
    response_avg: float | None
    """None for an empty reply."""
    tokens: NotRequired[list[float]]
    """Projection of every token of the reply."""


class About(TypedDict):
    """What is known of a conversation."""

    conversation: int
    """Its row."""
    name: str | None
    """Its id."""
    where: str
    group: str


class TurnRow(About):
    """A turn of the assistant, as the table holds it."""

    id: str
    turn: int
    """From 1."""
    prompt_tokens: int
    response_tokens: int
    vectors: dict[str, AlongVector]


class Spoken(NamedTuple):
    """A conversation as token ids."""

    about: About
    sequences: list[list[int]]
    turns: list[Span]


class TurnCensus(NamedTuple):
    """What a data set holds."""

    conversations: int
    """That can be used."""
    skipped: tuple[dict[str, Any], ...]
    """Rows that cannot, with the reason."""
    unread_turns: int
    """Conversations with turns after the last reply, which are not read."""


def conversations_of(data: Conversations, name: str, *, steered: bool = True) -> Dataset:
    """The data set of whatever conversations were given: also lists of messages, and the log or export of our server.

    Of those `steered` ones can be left out.

    Raises:
        DataError: As `dataset_of`.
    """
    if isinstance(data, str | Path) and (rows_served := served(Path(data), steered=steered)) is not None:
        return dataset_of(rows_served, str(data))
    named = isinstance(data, str | bytes | Path | Mapping | Dataset)
    if named or hasattr(data, "column_names") or not isinstance(data, Iterable):
        return dataset_of(data, name)
    rows: list[Any] = [{"messages": row} if isinstance(row, list | tuple) else row for row in data]
    return dataset_of(rows, name)


@dataclass(frozen=True)
class Recordings:
    """How recorded conversations are read: by whom, along what."""

    model: ChatModel
    directions: Directions
    system: str
    reasoning: Literal["out", "in"]
    group_by: str
    tokens: bool
    on_error: Literal["stop", "skip"]
    read_tokens: int | None

    def census(self, run: Run, data: Dataset) -> TurnCensus:
        """Look at every row before any is read; lists the unusable ones in skipped.jsonl.

        Raises:
            DataError: A row cannot be used and is not to be skipped, or none can.
        """
        skipped: list[dict[str, Any]] = []
        usable = unread = 0
        for sample in self._samples(data, announce=True):
            try:
                self.spoken(sample)
            except (DataError, ModelError) as error:
                if self.on_error == "stop":
                    advice = "correct that row, or pass --on-error skip"
                    raise DataError(f"{sample.where}: {error}; {advice}") from error
                skipped.append({"row": sample.row, "where": sample.where, "reason": str(error)})
            else:
                usable += 1
                unread += isinstance(sample, Sample) and sample.more_turns > 0
        if not usable:
            count = len(skipped)
            raise DataError(
                f"expected conversations in {data.name}, got none that can be used and {count} skipped; check them"
            )
        run.write_rows("skipped.jsonl", skipped)
        return TurnCensus(usable, tuple(skipped), unread)

    def usable(self, data: Dataset, census: TurnCensus) -> Iterator[Spoken]:
        """Every conversation that can be used, in order."""
        bad = {row["row"] for row in census.skipped}
        return (self.spoken(sample) for sample in self._samples(data) if sample.row not in bad)

    def read(self, run: Run, data: Dataset, census: TurnCensus, title: str) -> list[TurnRow]:
        """The projections of every turn, in turns.jsonl; what is there is not read again.

        Raises:
            ModelError: Activations are not finite.
        """
        rows = {row["id"]: cast(TurnRow, row) for row in run.rows(TABLE)}
        conversations = self.usable(data, census)
        with stage(title, census.conversations) as advance:
            while part := list(islice(conversations, PART)):
                if not all(_id(talk, turn) in rows for talk in part for turn in range(len(talk.turns))):
                    fresh = [row for row in _read(self, part) if row["id"] not in rows]
                    run.append(TABLE, fresh)
                    rows |= {row["id"]: row for row in fresh}
                advance(len(part))
        return list(rows.values())

    def beginnings(self, data: Dataset, conversations: Collection[int]) -> dict[int, list[str]]:
        """The beginnings of the replies of some conversations, by row and in the order of their turns."""
        texts: dict[int, list[str]] = {}
        for sample in self._samples(data) if conversations else ():
            if isinstance(sample, Sample) and sample.row in conversations:
                said = [turn["content"] for turn in sample.messages[sample.begin :] if turn["role"] == "assistant"]
                texts[sample.row] = [
                    text[:SHOWN_TEXT] + "…" * (len(text) > SHOWN_TEXT) for text in (*said, sample.response)
                ]
        return texts

    def _samples(self, data: Dataset, *, announce: bool = False) -> Iterator[Sample | Bad]:
        label = self.group_by if self.group_by not in ("", SYSTEM) else "source"
        return data.samples("whole", label, announce=announce)

    def spoken(self, sample: Sample | Bad) -> Spoken:
        """A conversation as token ids, with the place of every reply.

        Raises:
            DataError: The row cannot be used, or does not fit into the context.
            ModelError: The chat template cannot render it.
        """
        if isinstance(sample, Bad):
            raise DataError(sample.reason)
        group = sample.source if self.group_by not in ("", SYSTEM) else None
        if self.group_by == SYSTEM and sample.messages[0]["role"] == "system":
            group = sample.messages[0]["content"]
        sequences, turns = spans(self.model, sample, self.system, self.reasoning)
        longest = max(map(len, sequences))
        if longest > self.model.context:
            context = self.model.context
            raise DataError(f"expected a conversation that fits into {context:,} tokens, got {longest:,}")
        about: About = {
            "conversation": sample.row,
            "name": sample.id,
            "where": sample.where,
            "group": group or EVERY,
        }
        return Spoken(about, sequences, turns)


def _id(conversation: Spoken, turn: int) -> str:
    return f"{conversation.about['conversation']}-{turn + 1}"


def _read(recordings: Recordings, conversations: Sequence[Spoken]) -> list[TurnRow]:
    """A row for every turn; each sequence is read once, along all vectors."""
    model, directions = recordings.model, recordings.directions
    owners = [(place, which) for place, talk in enumerate(conversations) for which in range(len(talk.sequences))]
    ids = [conversations[place].sequences[which] for place, which in owners]
    rows: dict[tuple[int, int], TurnRow] = {}
    limit = Limit(recordings.read_tokens) if recordings.read_tokens else model.limits.screened

    def read(part: Sequence[int]) -> tuple[Tensor, Tensor]:
        return token_projections(model, [ids[index] for index in part], directions.layers, directions.units)

    parts = (done for batch in by_length(ids, limit) for done in in_parts(batch, read, limit))
    for batch, (projections, norms) in parts:
        if not projections.isfinite().all():
            raise ModelError(
                f"expected finite activations, got inf or nan while reading ({model.numbers}); pass --dtype float32"
            )
        for index, along, length in zip(batch, projections.double().numpy(), norms.double().numpy(), strict=True):
            place, which = owners[index]
            for number, turn in enumerate(conversations[place].turns):
                if turn.sequence == which:
                    rows[place, number] = _row(recordings, conversations[place], number, along, length)
    return [rows[key] for key in sorted(rows)]


def _row(
    recordings: Recordings,
    conversation: Spoken,
    number: int,
    projections: Float[ndarray, "seq name"],
    norms: Float[ndarray, "seq name"],
) -> TurnRow:
    """What is written of a turn, from what was read of its sequence."""
    turn, directions = conversation.turns[number], recordings.directions
    last, counted = turn.begin - 1, slice(turn.counted, turn.end)
    vectors: dict[str, AlongVector] = {}
    for column, (name, layer) in enumerate(zip(directions.names, directions.layers, strict=True)):
        reply, before = projections[counted, column], float(projections[last, column])
        vectors[name] = {
            "layer": layer,
            "prompt_last": round(before, 5),
            "cosine": round(float(before / max(norms[last, column], np.finfo(np.float32).tiny)), 5),
            "response_avg": round(float(reply.mean()), 5) if len(reply) else None,
        }
        if recordings.tokens:
            vectors[name]["tokens"] = [round(float(value), 4) for value in reply]
    return {
        "id": _id(conversation, number),
        **conversation.about,
        "turn": number + 1,
        "prompt_tokens": turn.begin,
        "response_tokens": turn.end - turn.counted,
        "vectors": vectors,
    }
