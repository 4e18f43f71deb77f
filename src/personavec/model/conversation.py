"""Recorded conversations as the model reads and writes them: token ids, piece by piece, each ending with a reply."""

from collections.abc import Iterator
from typing import NamedTuple

from personavec.data.sample import Sample
from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel

Ids = tuple[int, ...]


class Piece(NamedTuple):
    """A reply, and what stands between it and the reply before."""

    anew: bool
    """Whether it begins a sequence of its own: the template writes what came before otherwise now."""
    asked: Ids
    """From the end of the piece before up to where the reply begins."""
    reply: Ids
    """The reply, the token that ends it, and what the template writes after that."""


def pieces(model: ChatModel, sample: Sample, system: str) -> Iterator[Piece]:
    """Every reply of a conversation, in order.

    A chat template that writes an earlier turn otherwise once another follows (reasoning models do) makes each reply a
    sequence of its own.

    Args:
        model: Whose tokens and chat template.
        sample: A row, its last assistant turn as the response.
        system: System-prompt policy of rows without a system turn, see `ChatModel.render`.

    Raises:
        ModelError: The chat template cannot render it.
    """
    turns = [*sample.messages, {"role": "assistant", "content": sample.response}]
    done = ""
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant" or place < sample.begin:
            continue
        before = model.text(turns[:place], system)
        after = model.text(turns[: place + 1], system, open_reply=False)
        if not after.startswith(before):
            raise ModelError(
                f"expected a chat template that puts replies where it opens them, got {model.identity.id}'s"
            )
        anew = not (done and before.startswith(done))
        yield Piece(anew, model.encode(before[0 if anew else len(done) :]), model.encode(after[len(before) :]))
        done = after
