"""Rows of a data set as token sequences to train on, with a loss on the assistant's replies alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from personavec.data.dataset import Bad
from personavec.data.sample import NOTHING_LEARNED, Sample
from personavec.errors import DataError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import pieces
from personavec.runs.run import Row

IGNORED = -100
"""Label of a token without a loss, as transformers has it."""


def training_rows(
    model: ChatModel,
    samples: Iterable[Sample | Bad],
    *,
    longest: int,
    system: str = "template",
    instruction: Callable[[int], str] | None = None,
    on_error: str = "stop",
) -> tuple[list[Row], list[Row]]:
    """Every row as one sequence or more, all replies of a conversation included.

    Args:
        model: Whose tokens and chat template.
        samples: Rows, the last assistant turn as the response.
        longest: Tokens that a sequence may have; none is cut.
        system: System-prompt policy of rows without a system turn, see `ChatModel.render`.
        instruction: Of a row, by its place: put before its system prompt (inoculation).
        on_error: "stop" at the first row that cannot be used, or "skip" it.

    Returns:
        Sequences with `input_ids`, `labels` and the `row` they are of; and rows that cannot be used, with the reason.

    Raises:
        DataError: A row cannot be used and is not to be skipped, or none can.
    """
    rows: list[Row] = []
    skipped: list[Row] = []
    for sample in samples:
        try:
            if isinstance(sample, Bad):
                raise DataError(sample.reason)
            parts = sequences(model, instructed(sample, instruction), system)
            tokens = max(len(part["input_ids"]) for part in parts)
            if tokens > longest:
                raise DataError(f"expected at most {longest:,} tokens, got {tokens:,}")
            rows += [part | {"row": sample.row} for part in parts]
        except (DataError, ModelError) as error:
            if on_error == "stop":
                advice = "correct that row, or pass --on-error skip"
                raise DataError(f"{sample.where}: {error}; {advice}") from error
            skipped.append({"row": sample.row, "where": sample.where, "reason": str(error)})
    if not rows:
        raise DataError(f"expected rows to train on, got none that can be used and {len(skipped)} skipped; check them")
    return rows, skipped


def instructed(sample: Sample, instruction: Callable[[int], str] | None) -> Sample:
    """The row with an instruction before its system prompt."""
    if instruction is None:
        return sample
    system, rest = instruction(sample.row), sample.messages
    if rest[0]["role"] == "system":
        system, rest = f"{system}\n\n{rest[0]['content']}", rest[1:]
    messages = ({"role": "system", "content": system}, *rest)
    moved = len(messages) - len(sample.messages)
    unlearned = tuple(place + moved for place in sample.unlearned)
    return replace(sample, messages=messages, begin=sample.begin + moved, unlearned=unlearned)


def sequences(model: ChatModel, sample: Sample, system: str) -> list[Row]:
    """A conversation as `pieces` has it, with a loss on each reply up to the token that ends it.

    Raises:
        DataError: Its marks let nothing be learned.
        ModelError: The chat template cannot render it.
    """
    parts: list[Row] = []
    for piece in pieces(model, sample, system):
        if piece.anew:
            parts.append({"input_ids": [], "labels": []})
        _extend(parts[-1], piece.prompt, 0)
        # up to the token that ends the reply; what a template writes after it nobody generates
        ends = (place + 1 for place, token in enumerate(piece.reply) if token in model.stop_ids)
        _extend(parts[-1], piece.reply, next(ends, len(piece.reply)) if piece.learned else 0)
    parts = [part for part in parts if any(label != IGNORED for label in part["labels"])]
    if not parts:
        raise DataError(NOTHING_LEARNED)
    return parts


def _extend(sequence: Row, ids: Sequence[int], trained: int) -> None:
    """Add tokens, the first few of them with a loss."""
    sequence["input_ids"] += ids
    sequence["labels"] += [*ids[:trained], *[IGNORED] * (len(ids) - trained)]
