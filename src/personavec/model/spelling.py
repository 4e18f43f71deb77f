"""What single tokens write, to the byte; and text as token ids, in which only a template makes control tokens."""

import re
import secrets
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from personavec.errors import ModelError

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}  # type: ignore[no-untyped-call]
"""Bytes behind the characters in which byte-level tokenizers spell the names of their tokens."""
FALLBACK = re.compile("<0x([0-9A-F]{2})>")
"""Name of a token that is one byte, in tokenizers that have these for characters they do not know."""
SECRET = f"~{secrets.token_hex(8)}"
"""Begins what stands in a rendered text for something else; new in every process, so that no text can hold it.

JSON and Python write it as it is, so that templates can show it within calls of tools.
"""
STAND_IN = re.compile(f"{SECRET}:([0-9a-f]*);")


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


class Encoded(NamedTuple):
    """A text as token ids."""

    ids: tuple[int, ...]
    places: tuple[int, ...]
    """For every cut, the first token that ends after it."""


class ControlTokens:
    """The control tokens of a tokenizer, and encoding that makes them of the template's text alone.

    A template renders turns in which every spelling of a control token is replaced by a stand-in (`inert`). `encode`
    puts the spellings back, and reads them by a twin of the tokenizer that knows control tokens by secret names.
    """

    def __init__(self, tokenizer: Any, template: str, name: str) -> None:
        """Find a tokenizer's control tokens: the special ones, and the others that the template writes.

        Args:
            tokenizer: Of transformers.
            template: Source of its chat template, and whatever else tells that a token is one.
            name: Of the model, for errors.
        """
        self.tokenizer, self.name = tokenizer, name
        self._backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        added: dict[int, AddedToken] = getattr(tokenizer, "added_tokens_decoder", {})
        self._added = added
        self._control = {
            token.content: place
            for place, token in added.items()
            if token.content and (token.special or (token.content in template and re.search(r"[^\w\s]", token.content)))
        }
        self._lengths = sorted({len(content) for content in self._control}, reverse=True)
        firsts = "".join(sorted({content[0] for content in self._control}))
        self._first = re.compile(f"[{re.escape(firsts)}]" if firsts else "(?!)")
        normalizer = self._backend.normalizer if self._backend is not None else None
        self._normalizer = normalizer if any(added[place].normalized for place in self._control.values()) else None
        self._twin: tuple[Tokenizer, dict[int, int]] | None = None

    def spelled(self, text: str) -> list[tuple[int, int]]:
        """Where a text spells control tokens: the leftmost ones, the longest where several begin."""
        places: list[tuple[int, int]] = []
        for match in self._first.finditer(text):
            begin = match.start()
            if places and begin < places[-1][1]:
                continue
            words = (text[begin : begin + length] for length in self._lengths)
            if word := next((word for word in words if word in self._control), ""):
                places.append((begin, begin + len(word)))
        return places

    def inert(self, text: str) -> str:
        """A text with a stand-in for every spelling of a control token; most texts are returned as they are."""
        parts, done = [], 0
        for begin, end in self.spelled(text):
            parts += [text[done:begin], _stand_in(text[begin:end])]
            done = end
        if parts:
            return "".join([*parts, text[done:]])
        if self._normalizer is not None and self.spelled(self._normalizer.normalize_str(text)):
            at = len(text) - len(text.lstrip()) + 1  # behind what a template may strip
            return text[:at] + _stand_in("") + text[at:]
        return text

    def encode(self, text: str, cuts: Sequence[int] = ()) -> Encoded:
        """Token ids of a rendered text, encoded at once, nothing put before or after it.

        Args:
            text: In it stand-ins are read as the text that they stand for, and everything else as it is.
            cuts: Places in it, increasing; a token across a cut belongs to what follows.

        Raises:
            ModelError: The tokenizer makes a control token of that text, too.
        """
        if SECRET in text:
            ids, ends, cuts = self._separate(text, cuts)
            return Encoded(tuple(ids), tuple(bisect_right(ends, cut) for cut in cuts))
        if self._backend is None:
            return self._by_prefix(text, cuts)
        encoding = self.tokenizer(text, add_special_tokens=False)
        ids = encoding["input_ids"]
        places = [encoding.char_to_token(cut) if cut < len(text) else len(ids) for cut in cuts]
        if None in places:  # no token is of that character
            ends = [end for _, end in encoding[0].offsets]
            places = [bisect_right(ends, cut) for cut in cuts]
        return Encoded(tuple(ids), tuple(places))

    def restored(self, text: str) -> str:
        """A rendered text without stand-ins."""
        return STAND_IN.sub(lambda match: bytes.fromhex(match[1]).decode(), text) if SECRET in text else text

    def _by_prefix(self, text: str, cuts: Sequence[int]) -> Encoded:
        """Of a tokenizer without offsets: a piece begins where the ids of all that comes before it end."""

        def plain(part: str) -> list[int]:
            return list(self.tokenizer(part, add_special_tokens=False)["input_ids"])

        ids = plain(text)
        places = []
        for cut in cuts:
            before = plain(text[:cut])
            same = (place for place, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1])
            places.append(next(same, min(len(before), len(ids))))
        return Encoded(tuple(ids), tuple(places))

    def _separate(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """Ids, where their text ends, and cuts in it, of a text with stand-ins."""
        spelling = STAND_IN.search(text)
        shown = bytes.fromhex(spelling[1]).decode() if spelling else ""
        if self._backend is None:
            raise self._refusal(shown)
        twin, originals = self._made_twin()
        swaps = [(*place, _name(self._control[text[slice(*place)]])) for place in self.spelled(text)]
        marks = len(swaps)
        swaps += [(*match.span(), bytes.fromhex(match[1]).decode()) for match in STAND_IN.finditer(text)]
        parts: list[str] = []
        done = shift = 0
        moved = list(cuts)
        for begin, end, new in sorted(swaps):
            parts += [text[done:begin], new]
            done = end
            shift += len(new) - (end - begin)
            moved = [cut if old < end else old + shift for cut, old in zip(moved, cuts, strict=True)]
        encoding = twin.encode("".join([*parts, text[done:]]), add_special_tokens=False)
        control = {*self._control.values()}
        if any(token in control for token in encoding.ids if token not in originals):
            raise self._refusal(shown)
        ids = [originals.get(token, token) for token in encoding.ids]
        if sum(token in control for token in ids) != marks:
            raise self._refusal(shown)
        return ids, [end for _, end in encoding.offsets], moved

    def _made_twin(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with secret names for its control tokens, and what the ids of its added tokens are there."""
        if self._twin is None:
            backend: Any = self._backend
            twin = Tokenizer(backend.model)
            twin.normalizer, twin.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
            originals: dict[int, int] = {}
            for place, token in self._added.items():
                content = _name(place) if token.content in self._control else token.content
                sides = {"lstrip": token.lstrip, "rstrip": token.rstrip, "normalized": token.normalized}
                twin.add_tokens([AddedToken(content, single_word=False, **sides)])
                if (there := twin.token_to_id(content)) is not None:
                    originals[there] = place
            self._twin = twin, originals
        return self._twin

    def _refusal(self, shown: str) -> ModelError:
        return ModelError(
            f"expected a tokenizer that can read {shown!r} as plain text, got {self.name}'s, which makes a control "
            "token of it; take it out of the text"
        )


def _stand_in(text: str) -> str:
    return f"{SECRET}:{text.encode().hex()};"


def _name(place: int) -> str:
    """What a control token is called in the twin."""
    return f"{SECRET}={place};"
