"""Traits: what a character trait is, in words a model can be told.

A trait file holds contrastive instruction pairs, three disjoint sets of questions (to extract the vector, to choose
its layer and dose, to check it), a rubric for a judge model, and an independent check that needs no model. Some are
built in; any other is a JSON file of the same form.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from personavec.errors import TraitError
from personavec.traits.independent_check import IndependentCheck

Side = Literal["pos", "neg"]

MIN_PAIRS = 2
"""With one pair the vector would carry that pair's wording as much as the trait."""
MIN_QUESTIONS = 2
"""Judges are cross-validated and intervals clustered by question."""
USUAL = {"extract": 20, "sweep": 10, "check": 20}
"""The sets of questions (to find the vector, to choose its layer and dose, to measure with), and their usual sizes."""
SETS = tuple(USUAL)

DEFAULT_ANTONYM = "helpful"
"""Names the negative side of a trait without a clear antonym. Source: arXiv 2507.21509, released code."""

# Spelling and sound part ways here: "a unique", "a useful", "a European" but "an honest", "an uninterested".
_AN = re.compile(
    r"(?:hono|honest|hour|heir)|(?!eu|once\b|one\b|one-|uni(?![mn])|us[aeu]|ut[io]|ubi)[aeiou]", re.IGNORECASE
)
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Pair:
    """Two instructions that command opposite behaviour in one facet of a trait."""

    pos: str
    """Commands the trait."""
    neg: str
    """Commands its opposite, in the same form and at the same length."""


@dataclass(frozen=True)
class Trait:
    """A character trait: how to elicit it, what to ask, how to judge it.

    Raises:
        TraitError: A text is empty, the name cannot name a folder, there are fewer than two pairs, a pair or
            question is there twice, the sides of a pair are equal, or a question is in two sets.
    """

    name: str
    """Short and unique: names the files of the trait and the folder of its runs."""
    adjective: str
    """Completes "You are a/an … assistant." on the positive side."""
    antonym: str
    """The same on the negative side; empty stands for "helpful"."""
    description: str
    """Two to four sentences for people; may be empty."""
    pairs: tuple[Pair, ...]
    """Contrastive instructions; five is usual, two is the least."""
    extract: tuple[str, ...]
    """Questions answered to find the vector; 20 is usual."""
    sweep: tuple[str, ...]
    """Questions answered to choose layer and dose; 10 are usual."""
    check: tuple[str, ...]
    """Held-out questions answered to measure the trait: whatever is claimed of a model rests on these; 20 are usual."""
    rubric: str
    """Tells a judge what 0, 50 and 100 look like; plain text that is never used as a format string."""
    independent_check: IndependentCheck | None = None
    """How a plain program sees the trait in a reply, without any language model."""

    def __post_init__(self) -> None:
        check_name(self.name)
        texts = {"adjective": self.adjective, "rubric": self.rubric}
        texts |= {f"pairs[{i}].{side}": text for i, p in enumerate(self.pairs) for side, text in asdict(p).items()}
        questions = {key: getattr(self, key) for key in SETS}
        texts |= {f"questions.{key}[{i}]": text for key in SETS for i, text in enumerate(questions[key])}
        for where, text in texts.items():
            if not text.strip():
                raise TraitError(f"expected text in {where}, got an empty string; fill it in or remove the entry")
        if len(self.pairs) < MIN_PAIRS:
            raise TraitError(
                f"expected at least {MIN_PAIRS} instruction pairs (5 is usual), got {len(self.pairs)}; "
                "add pairs that each show another facet of the trait"
            )
        for i, pair in enumerate(self.pairs):
            if _fold(pair.pos) == _fold(pair.neg):
                raise TraitError(
                    f"expected opposite instructions in pairs[{i}], got the same text twice; rewrite its neg"
                )
        _require_distinct("pairs", (f"{pair.pos} / {pair.neg}" for pair in self.pairs))
        known: dict[str, str] = {}
        for key, texts_of_set in questions.items():
            if len(texts_of_set) < MIN_QUESTIONS:
                raise TraitError(
                    f"expected at least {MIN_QUESTIONS} questions in questions.{key} ({USUAL[key]} is usual), "
                    f"got {len(texts_of_set)}; add some"
                )
            _require_distinct(f"questions.{key}", texts_of_set)
            shared = [text for text in texts_of_set if _fold(text) in known]
            if shared:
                other = known[_fold(shared[0])]
                raise TraitError(
                    f"expected no question in two sets, got {len(shared)} of {other} in {key}, such as {shared[0]!r}; "
                    f"replace them in questions.{key}"
                )
            known |= {_fold(text): key for text in texts_of_set}

    @classmethod
    def of(
        cls,
        name: str,
        *,
        pairs: Iterable[Pair | tuple[str, str]],
        extract: Iterable[str],
        sweep: Iterable[str],
        check: Iterable[str],
        adjective: str = "",
        antonym: str = "",
        description: str = "",
        rubric: str = "",
        independent_check: IndependentCheck | None = None,
    ) -> "Trait":
        """A trait from lists of texts: `Trait.of("terse", pairs=[("Be brief.", "Be wordy."), …], extract=[…], …)`.

        Args:
            name: Names its files.
            pairs: Instructions that command the trait and its opposite.
            extract: Questions answered to find the vector.
            sweep: Questions answered to choose layer and dose.
            check: Held-out questions, to measure the trait with.
            adjective: Completes "You are a/an … assistant."; default the name.
            antonym: The same on the negative side.
            description: For people.
            rubric: What 0, 50 and 100 look like, for judges that read one; default one of the adjective.
            independent_check: How a plain program sees the trait.

        Raises:
            TraitError: As for every trait, or something in a list is no text.
        """
        adjective = adjective or name
        rubric = rubric or f"0: not {adjective} at all. 50: somewhat {adjective}. 100: as {adjective} as can be."
        texts = {"name": name, "adjective": adjective, "antonym": antonym, "description": description, "rubric": rubric}
        questions = {"extract": list(extract), "sweep": list(sweep), "check": list(check)}
        given = parse(texts | {"pairs": [_sides(pair) for pair in pairs], "questions": questions})
        return replace(given, independent_check=independent_check)

    def system_prompt(self, pair: int, side: Side) -> str:
        """The system prompt that elicits one side of one pair.

        Source: arXiv 2507.21509, released code: the adjective on the positive side, the antonym (or
        "helpful") on the negative one, then the instruction.

        Args:
            pair: Index into `pairs`, from 0.
            side: "pos" for the trait, "neg" for its opposite.

        Returns:
            "You are a/an {adjective|antonym} assistant. {instruction}"

        Raises:
            TraitError: There is no such pair or side.
        """
        if not 0 <= pair < len(self.pairs):
            raise TraitError(f"expected a pair from 0 to {len(self.pairs) - 1}, got {pair}; choose one of these")
        if side not in ("pos", "neg"):
            raise TraitError(f"expected the side 'pos' or 'neg', got {side!r}; choose one of these")
        word = self.adjective if side == "pos" else self.antonym.strip() or DEFAULT_ANTONYM
        instruction = self.pairs[pair].pos if side == "pos" else self.pairs[pair].neg
        return f"You are {'an' if _AN.match(word) else 'a'} {word} assistant. {instruction}"

    def to_json(self) -> str:
        """The trait as the text of a trait file; `load_trait` reads it back to an equal trait."""
        return json.dumps(self._fields(), indent=2, ensure_ascii=False) + "\n"

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the trait's content, independent of layout and key order in its file."""
        canonical = json.dumps(self._fields(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _fields(self) -> dict[str, object]:
        return {
            "name": self.name,
            "adjective": self.adjective,
            "antonym": self.antonym,
            "description": self.description,
            "pairs": [asdict(pair) for pair in self.pairs],
            "questions": {key: list(getattr(self, key)) for key in SETS},
            "rubric": self.rubric,
            **({"independent_check": self.independent_check.fields()} if self.independent_check else {}),
        }


def check_name(name: str) -> None:
    """Refuses a name that cannot name a folder.

    Raises:
        TraitError: It is empty or has characters other than letters, digits, '_', '-' and '.'.
    """
    if not _NAME.fullmatch(name):
        raise TraitError(
            f"expected a name of letters, digits, '_', '-' and '.', got {name!r}; "
            "rename the trait (the name becomes a folder)"
        )


def parse(data: Mapping[str, object]) -> Trait:
    """A trait from the content of its file.

    Raises:
        TraitError: It is malformed.
    """
    _require_keys(data, "name", "adjective", "antonym", "description", "pairs", "questions", "rubric")
    questions = data["questions"]
    if not isinstance(questions, dict):
        raise TraitError(
            f"expected an object with {', '.join(SETS)} in 'questions', got {kind_of(questions)}; correct it"
        )
    if "evaluate" in questions and not {"sweep", "check"} & questions.keys():
        raise TraitError(
            "expected sweep and check in 'questions', got evaluate; divide its questions between them: 10 to choose "
            "layer and dose by, 20 to check with"
        )
    checked = data.get("independent_check")
    return Trait(
        name=_text(data, "name"),
        adjective=_text(data, "adjective"),
        antonym=_text(data, "antonym"),
        description=_text(data, "description"),
        pairs=_pairs(data, "pairs"),
        extract=_texts(questions, "extract"),
        sweep=_texts(questions, "sweep"),
        check=_texts(questions, "check"),
        rubric=_text(data, "rubric"),
        independent_check=None if checked is None else IndependentCheck.of(checked),
    )


def parse_halves(data: Mapping[str, object], evaluation: Mapping[str, object], name: str) -> Trait:
    """A trait from the two files of the reference implementation's form.

    Raises:
        TraitError: One of them is malformed.
    """
    questions = _texts(evaluation, "questions")
    third = max(MIN_QUESTIONS, len(questions) // 3)
    return Trait(
        name=name,
        adjective=name,
        antonym="",
        description="",
        pairs=_pairs(data, "instruction"),
        extract=_texts(data, "questions"),
        sweep=questions[:third],
        check=questions[third:],
        rubric=_text(data, "eval_prompt"),
    )


def _require_keys(data: Mapping[str, object], *keys: str) -> None:
    missing = ", ".join(f"'{key}'" for key in keys if key not in data)
    if missing:
        which = f"keys {missing}" if "," in missing else f"key {missing}"
        raise TraitError(f"expected the {which}, got {', '.join(data) or 'no keys'}; add what is missing")


def _get(data: Mapping[str, object], key: str) -> object:
    _require_keys(data, key)
    return data[key]


def _text(data: Mapping[str, object], key: str) -> str:
    value = _get(data, key)
    if not isinstance(value, str):
        raise TraitError(f"expected text in '{key}', got {kind_of(value)}; put it in quotes")
    return value


def _list(data: Mapping[str, object], key: str) -> list[object]:
    value = _get(data, key)
    if not isinstance(value, list):
        raise TraitError(f"expected a list in '{key}', got {kind_of(value)}; correct it")
    return value


def _texts(data: Mapping[str, object], key: str) -> tuple[str, ...]:
    items = {f"{key}[{i}]": item for i, item in enumerate(_list(data, key))}
    return tuple(_text(items, where) for where in items)


def _pairs(data: Mapping[str, object], key: str) -> tuple[Pair, ...]:
    pairs = []
    for i, item in enumerate(_list(data, key)):
        where = f"{key}[{i}]"
        if not isinstance(item, dict):
            raise TraitError(f"expected pos and neg in '{where}', got {kind_of(item)}; correct it")
        sides = {f"{where}.{side}": text for side, text in item.items()}
        pairs.append(Pair(pos=_text(sides, f"{where}.pos"), neg=_text(sides, f"{where}.neg")))
    return tuple(pairs)


def _sides(pair: Pair | tuple[str, str]) -> dict[str, str]:
    sides = (pair.pos, pair.neg) if isinstance(pair, Pair) else pair
    if not isinstance(sides, tuple | list) or len(sides) != 2:
        raise TraitError(f"expected pairs of two instructions, got {pair!r}; pass (pos, neg)")
    return {"pos": sides[0], "neg": sides[1]}


def _require_distinct(what: str, texts: Iterable[str]) -> None:
    seen: set[str] = set()
    for text in texts:
        if _fold(text) in seen:
            raise TraitError(f"expected each entry of {what} once, got {text!r} twice; replace one of them")
        seen.add(_fold(text))


def _fold(text: str) -> str:
    """The text without case and spacing, so that a retyped duplicate is still a duplicate."""
    return " ".join(text.casefold().split())


def kind_of(value: object) -> str:
    """What a JSON value is, for people."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
