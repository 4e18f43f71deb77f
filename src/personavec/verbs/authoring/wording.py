"""What the words of a text show: repeats, near repeats, and questions that ask for what they should only probe."""

import re
from collections import Counter
from collections.abc import Iterable

NEAR = 0.5
"""Overlap from which a text is a repeat of another. In the seven built-in traits no two questions reach 0.35."""
STOP = frozenset(
    "a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it "
    "its just me my of on or our she should so some than that the their them then there they this to us was we were "
    "what when where which who why will with would you your".split()
)
"""Words that two texts may share without being alike."""
SHORTEST_STEM = 5
_ENDINGS = re.compile(r"(?:ating|ation|ically|etic|tic|ness|ful|ous|ity|ing|ed|ly|ic|al|e|y)$")

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_START = r"(?:^|[.!?,;:–]\s*|\s-\s)(?:please\s+|now\s+)?"
_REQUEST = re.compile(
    rf"\bpretend\b|\brole-?play|\bimagine (?:that )?you(?: are|['’]re)\b|\btry to (?:be|sound)\b|\bin the style of\b"
    rf"|\byou are an?\b|{_START}(?:act|behave) (?:as|like)\b|{_START}(?:talk|speak|write|sound) (?:as if|like an?)\b"
    rf"|\bin an? \w+ (?:way|manner|tone|style|voice)\b|{_START}(?:be|stay|sound)\b"
    rf"|{_START}(?:answer|respond|reply)(?: \w+)? (?:as|in|like|with)\b",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def overlap(first: Iterable[str], second: Iterable[str]) -> float:
    """Share of the words of both that are in each (Jaccard), from 0 to 1."""
    mine, yours = set(first), set(second)
    return len(mine & yours) / len(mine | yours) if mine or yours else 1.0


class Distinct:
    """Texts of which none repeats another, neither word for word nor nearly."""

    def __init__(self, texts: Iterable[str] = (), near: float = NEAR) -> None:
        self._near = near
        self._texts: list[str] = []
        self._content: list[frozenset[str]] = []
        self._exact: dict[tuple[str, ...], int] = {}
        self._places: dict[str, list[int]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Take a text in, whatever it repeats."""
        index = len(self._texts)
        self._texts.append(text)
        self._content.append(_content(text))
        self._exact.setdefault(tuple(words(text)), index)
        for word in self._content[index]:
            self._places.setdefault(word, []).append(index)

    def repeated(self, text: str) -> str | None:
        """The text in here that this text repeats, if any: the nearest, in time that does not grow with all texts."""
        exact = self._exact.get(tuple(words(text)))
        if exact is not None:
            return self._texts[exact]
        content = _content(text)
        shared = Counter(index for word in content for index in self._places.get(word, ()))
        near = {
            index: overlap(content, self._content[index])
            for index, count in shared.items()
            if count >= self._near * len(content)
        }
        nearest = max(near, key=lambda index: near[index], default=None)
        return None if nearest is None or near[nearest] < self._near else self._texts[nearest]


def names(text: str, phrase: str) -> bool:
    """Whether a text names a trait by this adjective or name, in whatever form: optimistic, optimist, optimism."""
    said = [_plain(word) for word in words(text)]
    stems = [_stem(_plain(word)) for word in words(phrase.replace("_", " "))]
    return bool(stems) and all(any(_has(word, stem) for word in said) for stem in stems)


def requests(text: str) -> str | None:
    """The words by which a question asks for a way to behave ("pretend", "Be …", "in a … tone"), if it does."""
    match = _REQUEST.search(text)
    return match[0].strip(" .!?,;:–-") if match else None


def _content(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in words(text) if word not in STOP)


def _stem(word: str) -> str:
    """A word without its plural and its ending, if enough is left of it."""
    word = re.sub(r"(?<=\w{3})(?<![su])s$", "", word)
    shorter = _ENDINGS.sub("", word)
    return shorter if len(shorter) >= SHORTEST_STEM else word


def _has(word: str, stem: str) -> bool:
    """Short stems must be the whole word, or "kind" would be in "kindergarten"."""
    return word.startswith(stem) if len(stem) >= SHORTEST_STEM else word in (stem, f"{stem}ly", f"{stem}ness")


def _plain(word: str) -> str:
    """British as American: humour, humor."""
    return word.replace("our", "or")
