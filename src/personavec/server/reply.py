"""One reply as it grows: the text of every token, what was read at it, and when it is over."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tokenizers.decoders import DecodeStream

from personavec.model.chat_model import ChatModel

Finish = Literal["stop", "length", "cancelled", "deadline", "error"]


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities at one token."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most probable tokens, first to last."""


class News(NamedTuple):
    """What a reply has got since the last news."""

    pieces: list[str]
    """Text of its next tokens."""
    read: list[list[float]]
    """Projections at the tokens that were read next, the last prompt token first."""
    over: bool


@dataclass
class RunningReply:
    """What a row has written. Belongs to the engine's thread until it is over.

    Attributes:
        ids: Token ids, without the end-of-turn token.
        pieces: Text of each token; an unfinished character belongs to the token that completes it.
        read: Projections at the last prompt token, then at each token that was read; a list per watched direction.
        logprobs: For each token, by option: its log-probability and the most probable tokens.
        mark: Begins what is handed out at the end alone: calls of tools; empty where none are offered.
        finish: Why it ended, None while it runs.
        error: What went wrong.
    """

    model: ChatModel
    max_tokens: int
    stops: Sequence[str] = ()
    mark: str = ""
    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    read: list[list[float]] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    finish: Finish | None = None
    error: str | None = None
    text: str = ""
    _sent: int = 0
    _sent_text: int = 0
    _sent_read: int = 0

    def __post_init__(self) -> None:
        self._decoder = DecodeStream(skip_special_tokens=True)

    def add(self, token: int, logprobs: Logprobs | None = None) -> None:
        """Take a drawn token, unless none is to be written."""
        if not self.max_tokens:
            self.finish = "length"
            return
        if token in self.model.stop_ids:
            self.finish = "stop"
            return
        piece = self._decoder.step(self.model.tokenizer.backend_tokenizer, token) or ""
        before = len(self.text)
        self.ids.append(token)
        self.pieces.append(piece)
        self.text += piece
        if logprobs is not None:
            self.logprobs.append(logprobs)
        places = [place for stop in self.stops if (place := self.text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if places:
            self._cut(min(places))
        elif len(self.ids) == self.max_tokens:
            self.finish = "length"

    def news(self) -> News:
        """What was not handed out yet; text only as far as no stop text and no mark can begin in it."""
        safe = len(self.text) if self.finish else len(self.text) - self._open()
        if self.mark and not self.finish and (place := self.text.find(self.mark)) >= 0:
            safe = min(safe, place)
        pieces = []
        while self._sent < len(self.pieces) and self._sent_text + len(self.pieces[self._sent]) <= safe:
            pieces.append(self.pieces[self._sent])
            self._sent += 1
            self._sent_text += len(pieces[-1])
        read, self._sent_read = self.read[self._sent_read :], len(self.read)
        return News(pieces, read, self.finish is not None)

    def _open(self) -> int:
        """Characters at the end that may be the beginning of a stop text or the mark."""
        return max(
            (n for stop in (*self.stops, self.mark) for n in range(1, len(stop)) if self.text.endswith(stop[:n])),
            default=0,
        )

    def _cut(self, place: int) -> None:
        """End before a stop text; tokens behind it keep their place, without text."""
        self.text, self.finish, begin = self.text[:place], "stop", 0
        for index, piece in enumerate(self.pieces):
            self.pieces[index] = piece[: max(0, place - begin)]
            begin += len(piece)
