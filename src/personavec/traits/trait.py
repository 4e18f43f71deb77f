"""Traits: what a character trait is, in words a model can be told.

A trait file holds contrastive instruction pairs, two disjoint sets of questions (one to extract the vector,
one to evaluate it) and a rubric for the judge. Seven are built in; any other is a JSON file of the same form.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from personavec.errors import ConfigError, TraitError

Side = Literal["pos", "neg"]

MIN_PAIRS = 2
"""With one pair the vector would carry that pair's wording as much as the trait."""
MIN_QUESTIONS = 2
"""Judges are cross-validated and intervals clustered by question."""

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
            question is there twice, the sides of a pair are equal, or a question is in both sets.
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
    evaluate: tuple[str, ...]
    """Held-out questions answered to measure the trait; none of them is in `extract`."""
    rubric: str
    """Tells a judge what 0, 50 and 100 look like; plain text that is never used as a format string."""

    def __post_init__(self) -> None:
        check_name(self.name)
        texts = {"adjective": self.adjective, "rubric": self.rubric}
        texts |= {f"pairs[{i}].{side}": text for i, p in enumerate(self.pairs) for side, text in asdict(p).items()}
        texts |= {f"questions.extract[{i}]": text for i, text in enumerate(self.extract)}
        texts |= {f"questions.evaluate[{i}]": text for i, text in enumerate(self.evaluate)}
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
        for key, questions in (("extract", self.extract), ("evaluate", self.evaluate)):
            if len(questions) < MIN_QUESTIONS:
                raise TraitError(
                    f"expected at least {MIN_QUESTIONS} questions in questions.{key} (20 is usual), "
                    f"got {len(questions)}; add some"
                )
            _require_distinct(f"questions.{key}", questions)
        known = {_fold(question) for question in self.extract}
        shared = [question for question in self.evaluate if _fold(question) in known]
        if shared:
            raise TraitError(
                f"expected no question in both sets, got {len(shared)} shared, such as {shared[0]!r}; "
                "replace them in questions.evaluate"
            )

    @classmethod
    def of(
        cls,
        name: str,
        *,
        pairs: Iterable[Pair | tuple[str, str]],
        extract: Iterable[str],
        evaluate: Iterable[str],
        adjective: str = "",
        antonym: str = "",
        description: str = "",
        rubric: str = "",
    ) -> "Trait":
        """A trait from lists of texts: `Trait.of("terse", pairs=[("Be brief.", "Be wordy."), …], extract=[…], …)`.

        Args:
            name: Names its files.
            pairs: Instructions that command the trait and its opposite.
            extract: Questions answered to find the vector.
            evaluate: Held-out questions.
            adjective: Completes "You are a/an … assistant."; default the name.
            antonym: The same on the negative side.
            description: For people.
            rubric: What 0, 50 and 100 look like, for judges that read one; default one of the adjective.

        Raises:
            TraitError: As for every trait, or something in a list is no text.
        """
        adjective = adjective or name
        rubric = rubric or f"0: not {adjective} at all. 50: somewhat {adjective}. 100: as {adjective} as can be."
        texts = {"name": name, "adjective": adjective, "antonym": antonym, "description": description, "rubric": rubric}
        questions = {"extract": list(extract), "evaluate": list(evaluate)}
        return _parse(texts | {"pairs": [_sides(pair) for pair in pairs], "questions": questions})

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
            "questions": {"extract": list(self.extract), "evaluate": list(self.evaluate)},
            "rubric": self.rubric,
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


def builtin_names() -> tuple[str, ...]:
    """Names of the built-in traits, sorted."""
    folder = files("personavec") / "traits"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def load_trait(name_or_path: str | Path) -> Trait:
    """Loads a built-in trait by name, or a trait file by path.

    A file may also be the extract half of the reference implementation's two-file form (keys `instruction`,
    `questions`, `eval_prompt`). Its evaluation half is then found by writing "eval" for "extract" in the name
    of the folder or the file; name and adjective come from the file name, pairs and rubric from the extract
    half, and `eval_prompt` is kept as it stands.

    Args:
        name_or_path: A built-in name wins over a file or folder of the same name; write "./evil" for those.

    Raises:
        TraitError: No such trait, or its file is malformed (the message then begins with the file).
    """
    names = builtin_names()
    if isinstance(name_or_path, str) and name_or_path in names:
        text = (files("personavec") / "traits" / f"{name_or_path}.json").read_text(encoding="utf-8")
        return _parse(json.loads(text))
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(path.stem.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "give one of these"
        raise TraitError(
            f"expected a trait file or a built-in trait ({', '.join(names)}), got '{name_or_path}'; {hint}"
        )
    try:
        data = _read(path)
        return _parse_two_files(data, path) if "instruction" in data else _parse(data)
    except TraitError as error:
        raise TraitError(f"{path}: {error}") from error


def load_traits(names: Sequence[str | Trait]) -> list[Trait]:
    """Several traits, as `load_trait` takes them, or as they are.

    Raises:
        ConfigError: There are none, or one is there twice.
        TraitError: One cannot be read.
    """
    if not isinstance(names, Iterable) or not all(isinstance(each, str | Path | Trait) for each in names):
        raise TraitError(f"expected traits or their names, got {names}; pass a list of them")
    traits = [name if isinstance(name, Trait) else load_trait(name) for name in names]
    given = [trait.name for trait in traits]
    if not traits or len(set(given)) < len(given):
        raise ConfigError(
            f"expected one or more different traits, got {', '.join(given) or 'none'}; "
            "for example: personavec extract optimistic"
        )
    return traits


def trait_of(name: str, traits: Iterable[str | Path | Trait], advice: str = "pass it with --traits") -> Trait:
    """The trait of this name: one of those given, or built in.

    Args:
        name: Of the trait.
        traits: Traits to look among first, or their files.
        advice: What to do where there is none.

    Raises:
        TraitError: Neither.
    """
    loaded = (trait if isinstance(trait, Trait) else load_trait(trait) for trait in traits)
    given = {trait.name: trait for trait in loaded}
    try:
        return given.get(name) or load_trait(name)
    except TraitError as error:
        raise TraitError(f"expected the trait file of {name}, got none; {advice}") from error


def _parse(data: Mapping[str, object]) -> Trait:
    _require_keys(data, "name", "adjective", "antonym", "description", "pairs", "questions", "rubric")
    questions = data["questions"]
    if not isinstance(questions, dict):
        raise TraitError(
            f"expected an object with extract and evaluate in 'questions', got {_kind(questions)}; correct it"
        )
    return Trait(
        name=_text(data, "name"),
        adjective=_text(data, "adjective"),
        antonym=_text(data, "antonym"),
        description=_text(data, "description"),
        pairs=_pairs(data, "pairs"),
        extract=_texts(questions, "extract"),
        evaluate=_texts(questions, "evaluate"),
        rubric=_text(data, "rubric"),
    )


def _parse_two_files(data: Mapping[str, object], path: Path) -> Trait:
    here = path.absolute()
    places = [
        here.parent.parent / here.parent.name.replace("extract", "eval") / here.name,
        here.with_name(here.name.replace("extract", "eval")),
    ]
    places = [place for place in places if place != here]
    other = next((place for place in places if place.is_file()), None)
    if other is None:
        wanted = " or ".join(f"{place.parent.name}/{place.name}" for place in places)
        raise TraitError(
            f"expected the evaluation half of a two-file trait at {wanted or '*_eval, beside *_extract'}, "
            "got no such file; put it there and give the extract half"
        )
    name = path.stem.removesuffix("_extract")
    return Trait(
        name=name,
        adjective=name,
        antonym="",
        description="",
        pairs=_pairs(data, "instruction"),
        extract=_texts(data, "questions"),
        evaluate=_texts(_read(other), "questions"),
        rubric=_text(data, "eval_prompt"),
    )


def _read(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise TraitError(f"expected JSON, got {where}; correct {path.name} there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TraitError(f"expected readable UTF-8 text, got {error}; correct {path.name}") from error
    if not isinstance(data, dict):
        raise TraitError(f"expected a JSON object, got {_kind(data)}; see a built-in trait for the form")
    return data


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
        raise TraitError(f"expected text in '{key}', got {_kind(value)}; put it in quotes")
    return value


def _list(data: Mapping[str, object], key: str) -> list[object]:
    value = _get(data, key)
    if not isinstance(value, list):
        raise TraitError(f"expected a list in '{key}', got {_kind(value)}; correct it")
    return value


def _texts(data: Mapping[str, object], key: str) -> tuple[str, ...]:
    items = {f"{key}[{i}]": item for i, item in enumerate(_list(data, key))}
    return tuple(_text(items, where) for where in items)


def _pairs(data: Mapping[str, object], key: str) -> tuple[Pair, ...]:
    pairs = []
    for i, item in enumerate(_list(data, key)):
        where = f"{key}[{i}]"
        if not isinstance(item, dict):
            raise TraitError(f"expected pos and neg in '{where}', got {_kind(item)}; correct it")
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


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
