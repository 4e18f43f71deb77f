"""Turns of recorded conversations with their projections, in a table that grows part by part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from personavec.data.dataset import Bad, Dataset
from personavec.data.sample import Sample
from personavec.errors import DataError, ModelError
from personavec.model.activations import by_length, token_projections
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import pieces
from personavec.runs.progress import stage
from personavec.runs.run import Run
from personavec.steering.projection import Directions
from personavec.verbs.monitor.calibration import EVERY
from personavec.verbs.monitor.options import MonitorConfig

TABLE = "turns.jsonl"
PART = 64
"""Conversations read between two writes: what a kill may cost."""
SYSTEM = "system"
"""What to group by for groups of one system prompt."""

Row = dict[str, Any]


class Turn(NamedTuple):
    """Where a reply stands in a sequence."""

    sequence: int
    begin: int
    """Its first token; the one before is the last prompt token."""
    counted: int
    """Its first token after the reasoning."""
    end: int


@dataclass
class Spoken:
    """A conversation as token ids."""

    row: Row
    """What is known of it."""
    sequences: list[list[int]] = field(default_factory=list)
    """One, unless the chat template writes earlier turns otherwise once others follow."""
    turns: list[Turn] = field(default_factory=list)


@dataclass(frozen=True)
class TurnCensus:
    """What a data set holds."""

    conversations: int
    """That can be used."""
    skipped: tuple[Row, ...]
    """Rows that cannot, with the reason."""
    unread_turns: int
    """Conversations with turns after the last reply, which are not read."""


def take_census(run: Run, data: Dataset, model: ChatModel, config: MonitorConfig) -> TurnCensus:
    """Look at every row before any is read; lists the unusable ones in skipped.jsonl.

    Raises:
        DataError: A row cannot be used and is not to be skipped, or none can.
    """
    skipped: list[Row] = []
    usable = unread = 0
    for sample in _samples(data, config):
        try:
            spoken(model, sample, config)
        except (DataError, ModelError) as error:
            if config.on_error == "stop":
                advice = "correct that row, or pass --on-error skip"
                raise DataError(f"{sample.where}: {error}; {advice}") from error
            skipped.append({"row": sample.row, "where": sample.where, "reason": str(error)})
        else:
            usable += 1
            unread += isinstance(sample, Sample) and sample.more_turns > 0
    if not usable:
        raise DataError(
            f"expected conversations in {data.name}, got none that can be used and {len(skipped)} skipped; check them"
        )
    run.write_rows("skipped.jsonl", skipped)
    return TurnCensus(usable, tuple(skipped), unread)


def _samples(data: Dataset, config: MonitorConfig) -> Iterator[Sample | Bad]:
    label = config.group_by if config.group_by not in ("", SYSTEM) else "source"
    return data.samples("last", label)


def spoken(model: ChatModel, sample: Sample | Bad, config: MonitorConfig) -> Spoken:
    """A conversation as token ids, with the place of every reply.

    Raises:
        DataError: The row cannot be used, or does not fit into the context.
        ModelError: The chat template cannot render it.
    """
    if isinstance(sample, Bad):
        raise DataError(sample.reason)
    group = sample.source if config.group_by not in ("", SYSTEM) else None
    if config.group_by == SYSTEM and sample.messages[0]["role"] == "system":
        group = sample.messages[0]["content"]
    found = Spoken(
        {"conversation": sample.row, "name": sample.id, "where": sample.where, "group": group or EVERY},
    )
    for piece in pieces(model, sample, config.system):
        if piece.anew:
            found.sequences.append([])
        ids = found.sequences[-1]
        ids += piece.asked
        begin = len(ids)
        said = next((place for place, token in enumerate(piece.reply) if token in model.stop_ids), len(piece.reply))
        skipped = 0 if config.reasoning == "in" else model.reasoning_tokens(ids, piece.reply[:said])
        found.turns.append(Turn(len(found.sequences) - 1, begin, begin + skipped, begin + said))
        ids += piece.reply
    longest = max(map(len, found.sequences))
    if longest > model.context:
        raise DataError(f"expected a conversation that fits into {model.context:,} tokens, got {longest:,}")
    return found


def read_turns(
    run: Run, data: Dataset, census: TurnCensus, model: ChatModel, read: Directions, config: MonitorConfig, title: str
) -> list[Row]:
    """The projections of every turn, in turns.jsonl; what is there is not read again.

    Raises:
        ModelError: Activations are not finite.
    """
    rows = {row["id"]: row for row in run.rows(TABLE)}
    bad = {row["row"] for row in census.skipped}
    usable = (sample for sample in _samples(data, config) if sample.row not in bad)
    with stage(title, census.conversations) as advance:
        while part := list(islice(usable, PART)):
            conversations = [spoken(model, sample, config) for sample in part]
            if not all(_id(own, turn) in rows for own in conversations for turn in range(len(own.turns))):
                fresh = [row for row in _read(model, conversations, read, config) if row["id"] not in rows]
                run.append(TABLE, fresh)
                rows |= {row["id"]: row for row in fresh}
            advance(len(part))
    return list(rows.values())


def _id(conversation: Spoken, turn: int) -> str:
    return f"{conversation.row['conversation']}-{turn + 1}"


def _read(model: ChatModel, conversations: Sequence[Spoken], read: Directions, config: MonitorConfig) -> list[Row]:
    """A row for every turn; each sequence is read once, along all vectors."""
    owners = [(place, which) for place, own in enumerate(conversations) for which in range(len(own.sequences))]
    ids = [conversations[place].sequences[which] for place, which in owners]
    found: dict[tuple[int, int], Row] = {}
    for batch in by_length(ids, config.read_tokens):
        projections, norms = token_projections(model, [ids[index] for index in batch], read.layers, read.units)
        if not projections.isfinite().all():
            raise ModelError(
                f"expected finite activations, got inf or nan while reading ({model.numbers}); pass --dtype float32"
            )
        for index, own, length in zip(batch, projections.double().numpy(), norms.double().numpy(), strict=True):
            place, which = owners[index]
            for number, turn in enumerate(conversations[place].turns):
                if turn.sequence == which:
                    found[place, number] = _row(conversations[place], number, own, length, read, config)
    return [found[key] for key in sorted(found)]


def _row(conversation: Spoken, number: int, own: Any, norms: Any, read: Directions, config: MonitorConfig) -> Row:
    """What is written of a turn, from projections and norms [seq, name] of its sequence."""
    turn = conversation.turns[number]
    last, counted = turn.begin - 1, slice(turn.counted, turn.end)
    vectors: Row = {}
    for column, (name, layer) in enumerate(zip(read.names, read.layers, strict=True)):
        said = own[counted, column]
        vectors[name] = {
            "layer": layer,
            "prompt_last": round(float(own[last, column]), 5),
            "cosine": round(float(own[last, column] / max(norms[last, column], np.finfo(np.float32).tiny)), 5),
            "response_avg": round(float(said.mean()), 5) if len(said) else None,
        }
        if config.tokens:
            vectors[name]["tokens"] = [round(float(value), 4) for value in said]
    return {
        "id": _id(conversation, number),
        **conversation.row,
        "turn": number + 1,
        "prompt_tokens": turn.begin,
        "response_tokens": turn.end - turn.counted,
        "vectors": vectors,
    }
