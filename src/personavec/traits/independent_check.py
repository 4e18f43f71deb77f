"""How a plain program sees a trait in a reply: the check that no language model makes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal, get_args

from personavec.errors import TraitError

Kind = Literal["sentiment", "phrases", "length"]
Direction = Literal["more", "less"]
RELEVANT: dict[str, float] = {"sentiment": 0.05, "phrases": 0.05, "length": 2.0}
"""Differences below these are none, in units of each kind: a twentieth of the scale, and two words."""
UNITS: dict[str, str] = {"sentiment": "sentiment, -1 to 1", "phrases": "share of replies", "length": "words"}


@dataclass(frozen=True)
class IndependentCheck:
    """What is counted in a reply, and whether the trait means more or less of it.

    Raises:
        TraitError: An unknown kind or direction, phrases where none belong or none where they do, or a bad pattern.
    """

    kind: Kind
    """`sentiment` by VADER's word list, `phrases` as patterns, `length` in words."""
    direction: Direction
    """Which way it moves where the trait is shown."""
    phrases: tuple[str, ...] = ()
    """Regular expressions, in any case; a reply that matches one of them counts as 1, any other as 0."""
    what: str = ""
    """What `phrases` count, for people: "share of replies that ask something back"."""

    def __post_init__(self) -> None:
        for name, choices in (("kind", get_args(Kind)), ("direction", get_args(Direction))):
            if getattr(self, name) not in choices:
                given = getattr(self, name)
                raise TraitError(
                    f"expected one of {', '.join(choices)} in independent_check.{name}, got {given!r}; correct it"
                )
        if (self.kind == "phrases") != bool(self.phrases):
            raise TraitError(
                f"expected independent_check.phrases with the kind phrases alone, got {len(self.phrases)} with "
                f"{self.kind}; correct one of them"
            )
        for phrase in self.phrases:
            try:
                re.compile(phrase)
            except (re.error, RecursionError, OverflowError) as error:
                raise TraitError(
                    f"expected regular expressions in independent_check.phrases, got {phrase[:60]!r} ({error}); "
                    "correct it"
                ) from error

    @classmethod
    def of(cls, data: Any) -> "IndependentCheck":
        """From the object in a trait file.

        Raises:
            TraitError: It is not one.
        """
        if not isinstance(data, Mapping) or not data.keys() <= {"kind", "direction", "phrases", "what"}:
            got = ", ".join(map(str, data)) if isinstance(data, Mapping) else repr(data)
            raise TraitError(f"expected kind, direction, phrases and what in independent_check, got {got}; correct it")
        phrases = data.get("phrases", [])
        if not isinstance(phrases, list) or not all(isinstance(each, str) and each for each in phrases):
            raise TraitError("expected a list of texts in independent_check.phrases, got something else; correct it")
        what = data.get("what") or ""
        if not isinstance(what, str):
            raise TraitError(f"expected text in independent_check.what, got {what!r:.60}; put it in quotes")
        return cls(data.get("kind"), data.get("direction"), tuple(phrases), what)  # type: ignore[arg-type]

    def fields(self) -> dict[str, Any]:
        """The object of a trait file."""
        extra = {"phrases": list(self.phrases), "what": self.what} if self.kind == "phrases" else {}
        return {"kind": self.kind, "direction": self.direction, **extra}

    @property
    def sign(self) -> int:
        """1 if the trait means more of it, -1 if less."""
        return 1 if self.direction == "more" else -1

    @property
    def unit(self) -> str:
        """What its values are, for people."""
        return self.what or UNITS[self.kind]

    def values(self, answers: Sequence[str]) -> list[float]:
        """What is counted, one value a reply; nan for empty replies."""
        count = self._counter()
        return [float(count(answer)) if answer.strip() else nan for answer in answers]

    def _counter(self) -> Callable[[str], float]:
        if self.kind == "sentiment":
            from vader import polarity_scores

            return lambda answer: float(polarity_scores(answer)["compound"])
        if self.kind == "length":
            return lambda answer: len(answer.split())
        pattern = re.compile("|".join(f"(?:{phrase})" for phrase in self.phrases), re.IGNORECASE)
        return lambda answer: pattern.search(answer) is not None
