"""What single tokens write, to the byte: a token may be a part of a character."""

import re
from functools import cache
from typing import Any, NamedTuple

from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
"""Bytes behind the characters in which byte-level tokenizers spell the names of their tokens."""
FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""Name of a token that is one byte, in tokenizers that have these for characters they do not know."""


class Spelled(NamedTuple):
    """A token as text and as bytes."""

    text: str
    """Of a part of a character, its bytes: `bytes:\\xf0\\x9f`."""
    bytes: bytes | None
    """Joined over the tokens of a reply they are its text; None if the token writes nothing there."""


class Spelling:
    """Spells tokens of a tokenizer.

    Args:
        tokenizer: Of transformers, with a fast backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._special = {number for number, added in self._backend.get_added_tokens_decoder().items() if added.special}
        ids = self._backend.encode("a", add_special_tokens=False).ids
        self._before = ids[-1:]
        """Some tokenizers drop the space that begins a text: other tokens are read behind this one."""
        self.spell = cache(self._spell)

    def _spell(self, token: int, first: bool = False) -> Spelled:
        """Spell a token, as the first of a text or as a later one."""
        name, text = self._backend.id_to_token(token), self._text(token, first)
        if name is None or token in self._special:
            return Spelled(text, None)
        if "\ufffd" not in text:
            return Spelled(text, text.encode())
        byte = FALLBACK.fullmatch(name)
        if byte is None and not set(name) <= BYTES.keys():
            return Spelled(text, text.encode())
        part = bytes.fromhex(byte[1]) if byte else bytes(BYTES[character] for character in name)
        return Spelled("bytes:" + "".join(f"\\x{value:02x}" for value in part), part)

    def _text(self, token: int, first: bool) -> str:
        before = [] if first else self._before
        begun, both = (self._backend.decode(ids, skip_special_tokens=False) for ids in (before, [*before, token]))
        return str(both.removeprefix(begun))
