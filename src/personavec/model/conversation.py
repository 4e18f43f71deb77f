"""Recorded conversations as the model reads and writes them: token ids, piece by piece, each ending with a reply."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from personavec.data.sample import Sample
from personavec.model.chat_model import ChatModel

Ids = tuple[int, ...]


class Piece(NamedTuple):
    """A reply, and what stands between it and the reply before."""

    anew: bool
    """Whether it begins a sequence of its own: the template writes what came before otherwise now."""
    prompt: Ids
    """From the end of the piece before up to where the reply begins."""
    reply: Ids
    """The reply, the token that ends it, and what the template writes after that."""
    learned: bool = True
    """Whether a model may learn it."""


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
    turns, policy, tools = model.template.inert(sample.turns, system, sample.tools)
    moved = len(turns) - len(sample.turns)  # by the system turn that a policy puts first
    done = ""
    cuts: list[int] = []
    learned: list[bool] = []
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant" or place - moved < sample.begin:
            continue
        before = model.template.text(turns[:place], policy, tools=tools)
        after = model.template.text(turns[: place + 1], policy, open_reply=False, tools=tools)
        begin = len(before)
        if not after.startswith(before):
            begin = model.template.reply_start(turns[:place], policy, after, tools)
        if done and not after[:begin].startswith(done):
            yield from _sequence(model, done, cuts, learned)
            cuts, learned = [], []
        done, cuts, learned = after, [*cuts, begin, len(after)], [*learned, place - moved not in sample.unlearned]
    yield from _sequence(model, done, cuts, learned)


def _sequence(model: ChatModel, text: str, cuts: Sequence[int], learned: Sequence[bool]) -> Iterator[Piece]:
    """The replies of a text that is encoded as a whole; the cuts are where each begins and ends."""
    ids, places = model.template.encode(text, cuts)
    done = 0
    for begin, end, learn in zip(places[::2], places[1::2], learned, strict=True):
        yield Piece(not done, ids[done:begin], ids[begin:end], learn)
        done = end


def response_of(model: ChatModel, sample: Sample, system: str) -> tuple[Ids, Ids]:
    """The prompt of a row's response, and the response up to the token that ends it, as `spans` reads them.

    Raises:
        ModelError: The chat template cannot render it.
    """
    if not sample.said and model.template.as_it_is(sample.response):
        turns, policy, tools = model.template.inert(sample.messages, system, sample.tools)
        before = model.template.text(turns, policy, tools=tools)
        ids, (begin,) = model.template.encode(f"{before}{sample.response}{model.template.tail}", [len(before)])
        prompt, reply = ids[:begin], ids[begin:]
        return prompt, reply[: _length(model, reply)]
    (piece,) = pieces(model, replace(sample, begin=len(sample.messages)), system)
    return piece.prompt, piece.reply[: _length(model, piece.reply)]


def _length(model: ChatModel, reply: Ids) -> int:
    """Tokens of a reply before the one that ends it."""
    return min((reply.index(token) for token in model.stop_ids if token in reply), default=len(reply))


class Span(NamedTuple):
    """Where a reply stands in a sequence of token ids."""

    sequence: int
    begin: int
    """Its first token; the one before is the last prompt token."""
    counted: int
    """Its first token after the reasoning, where that does not count."""
    end: int
    """After its last token, before the one that ends it."""


def spans(model: ChatModel, sample: Sample, system: str, reasoning: str = "out") -> tuple[list[list[int]], list[Span]]:
    """A conversation as sequences of token ids (one, unless `pieces` begins anew), and the place of every reply.

    Raises:
        ModelError: The chat template cannot render it.
    """
    sequences: list[list[int]] = []
    replies: list[Span] = []
    for piece in pieces(model, sample, system):
        if piece.anew:
            sequences.append([])
        ids = sequences[-1]
        ids += piece.prompt
        begin = len(ids)
        length = _length(model, piece.reply)
        skipped = 0 if reasoning == "in" else model.reasoning_tokens(ids, piece.reply[:length])
        replies.append(Span(len(sequences) - 1, begin, begin + skipped, begin + length))
        ids += piece.reply
    return sequences, replies


def token_texts(model: ChatModel, ids: Sequence[int]) -> list[str]:
    """Text of each token, which together are the whole; a character of several tokens stands at the last of them."""
    texts: list[str] = []
    before = begin = 0  # from `before` on, tokens are decoded together: some begin with a space only after others
    for end in range(1, len(ids) + 1):
        text = model.decode(ids[before:end])
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
        else:
            texts.append(text[len(model.decode(ids[before:begin])) :])
            before, begin = begin, end
    return texts
