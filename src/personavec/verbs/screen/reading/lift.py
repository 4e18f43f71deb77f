"""How much likelier an instruction to show the trait makes a row's reply."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.model.logits import reply_logprobs
from personavec.runs.run import Row
from personavec.verbs.screen.reading.rows import RowReader

BATCH = 32
"""Rows read at a time: how far progress is told."""


def likelihood_lifts(reader: RowReader, rows: Sequence[Row]) -> Iterator[tuple[list[int], Float[ndarray, "row name"]]]:
    """The mean over instructions of log p(reply | instruction, prompt) less log p(reply | prompt), in nats a token.

    Rows that a trait's instructions make likelier are those that a model with the trait would rather write. Reasoning
    that does not count is read and left out. nan where the model's numbers overflow.

    Args:
        reader: How; its `instructions` are by direction.
        rows: As `encode` makes them.

    Returns:
        Some rows' places, and for each the lift of every direction's trait.

    Source: logit-linear selection (arXiv 2602.04863).
    """
    names = reader.directions.names
    for begin in range(0, len(rows), BATCH):
        places = [*range(begin, min(begin + BATCH, len(rows)))]
        asked = [prompts_of(rows[place], names) for place in places]
        replies = [rows[place]["response_ids"] for place, prompts in zip(places, asked, strict=True) for _ in prompts]
        read = iter(reply_logprobs(reader.model, [prompt for prompts in asked for prompt in prompts], replies))
        lifts = np.empty((len(places), len(names)))
        for lift, place in zip(lifts, places, strict=True):
            skipped = rows[place]["reasoning_tokens"]
            plain = float(next(read)[skipped:].double().mean())
            for at, name in enumerate(names):
                told = [float(next(read)[skipped:].double().mean()) for _ in rows[place]["instructed_ids"][name]]
                lift[at] = np.mean(told) - plain
        yield places, np.where(np.isfinite(lifts).all(axis=1, keepdims=True), lifts, np.nan)


def prompts_of(row: Row, names: Sequence[str]) -> list[tuple[int, ...]]:
    """What a row's reply is read after: its prompt, and the same under every instruction, direction by direction."""
    return [row["prompt_ids"], *(prompt for name in names for prompt in row["instructed_ids"][name])]
