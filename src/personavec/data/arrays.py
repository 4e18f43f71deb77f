"""JSON as the readers take it: every value that JSON can spell, and arrays item by item."""

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

BLOCK = 1 << 18
"""Bytes that are read at once, at least."""
LONGEST_NUMBER = 4000
"""Digits of an integer that Python converts."""
CUT = 16
"""Characters before the end of what is held in which an error may come from the cut: of a word, a number, an escape."""
SPACE = re.compile(r"[ \t\n\r]*")


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= LONGEST_NUMBER else float(digits)


class TwiceError(ValueError):
    """A name stands twice where each is to stand once: nobody can say which value is meant."""

    def __init__(self, kind: str, names: Sequence[str]) -> None:
        super().__init__(f"the {kind} {twice(names)[:60]!r} twice")


def twice(names: Sequence[str]) -> str:
    """The first name that stands a second time; empty where each stands once."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), "")  # type: ignore[func-returns-value]


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise TwiceError("key", [key for key, _ in pairs])
    return fields


DECODER = json.JSONDecoder(parse_int=_integer, object_pairs_hook=_object)
"""Reads what `json.loads` does, and integers of any length, but no object that holds a key twice."""
PLAIN = json.JSONDecoder(parse_int=_integer)
"""Finds the end of one that does."""


def items(file: io.BufferedReader, longest: int) -> Iterator[Any]:
    """Items of an array, each as it would be read by itself.

    Args:
        file: Of UTF-8.
        longest: Characters of an item.

    Yields:
        The item, or in the place of one that holds a key twice the error.

    Raises:
        ValueError: From here on it is no array of JSON.
    """
    held = _Held(file, longest)
    if held.next() != "[":
        raise ValueError("no array")
    held.at += 1
    if held.next() != "]":
        yield held.item()
        while (mark := held.next()) == ",":
            held.at += 1
            held.next()
            yield held.item()
        if mark != "]":
            raise ValueError(f"{mark!r} in the place of a comma" if mark else "an array without an end")
    held.at += 1
    if rest := held.next():
        raise ValueError(f"{rest!r} after the end of the array")


class _Held:
    """As much of a file's text as an item needs."""

    def __init__(self, file: io.BufferedReader, longest: int) -> None:
        self._file, self._longest = file, longest
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._broken: UnicodeDecodeError | None = None
        self._text, self.at = "", 0

    def next(self) -> str:
        """The next character that is no space, which stays; nothing at the end."""
        while True:
            found = SPACE.match(self._text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self._text) or not self._more():
                return self._text[self.at : self.at + 1]

    def item(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._decoded()
                if end >= len(self._text) - 2 and self._more():  # a number may go on: 1, 1.5, 1e+5
                    continue
            except json.JSONDecodeError as error:
                cut = "Unterminated" in error.msg or error.pos >= len(self._text) - CUT
                if cut and self._more():
                    continue
                raise
            except RecursionError:
                raise ValueError("JSON that is nested too deep") from None
            self.at = end
            return value

    def _decoded(self) -> tuple[Any, int]:
        try:
            return DECODER.raw_decode(self._text, self.at)
        except TwiceError as error:
            return error, PLAIN.raw_decode(self._text, self.at)[1]

    def _more(self) -> bool:
        """Read on; whether there was more."""
        if self._broken:
            raise self._broken
        if len(self._text) - self.at > self._longest:
            raise ValueError(f"a row of more than {self._longest:,} bytes")
        data = self._file.read(max(BLOCK, len(self._text) - self.at))
        try:
            text = self._decode(data, not data)
        except UnicodeDecodeError as error:  # what stands before is good
            self._broken, text = error, error.object[: error.start].decode()
        if data:
            self._text, self.at = self._text[self.at :] + text, 0
        return bool(data)
