"""Rows of a data set as token sequences to train on, with a loss on the assistant's replies alone."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from personavec.data.dataset import Bad
from personavec.data.sample import NOTHING_LEARNED, Sample
from personavec.errors import DataError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import pieces
from personavec.model.template import POLICIES
from personavec.runs.progress import tell
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
    name: str = "the data",
) -> tuple[list[Row], list[Row]]:
    """Every row as one sequence or more, all replies of a conversation included.

    Args:
        model: Whose tokens and chat template.
        samples: Rows, the last assistant turn as the response.
        longest: Tokens that a sequence may have; none is cut.
        system: System-prompt policy of rows without a system turn, see `ChatModel.render`.
        instruction: Of a row, by its place: put before its system prompt (inoculation).
        on_error: "stop" at the first row that cannot be used, or "skip" it.
        name: Of the data set.

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
            own = "" if system in POLICIES else system
            told = sample if instruction is None else sample.instructed(instruction(sample.row), own)
            parts = sequences(model, told, system)
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
        raise DataError(
            f"expected rows to train on in {name}, got none that can be used and {len(skipped)} skipped; check them"
        )
    return rows, skipped


def mixed_in(rows: Sequence[Row], benign: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Random benign sequences, `share` for each one of the data; all of them where there are fewer.

    Raises:
        DataError: That is none.
    """
    wanted = round(share * len(rows))
    if not wanted:
        raise DataError(f"expected a benign row or more, got a share of {share:g} of {len(rows)} rows; raise the share")
    if len(benign) < wanted:
        tell(
            f"expected {wanted:,} benign rows for {len(rows):,} of the data, got {len(benign):,}: all of them are taken"
        )
        return [*benign]
    return [benign[place] for place in sorted(np.random.default_rng(seed).choice(len(benign), wanted, replace=False))]


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
