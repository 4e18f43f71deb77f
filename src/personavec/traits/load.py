"""Traits by name or file: those that are built in, trait files, and the two-file form of others."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from personavec.errors import ConfigError, TraitError
from personavec.runs.json_files import read_json
from personavec.traits.trait import Trait, kind_of, parse, parse_halves


def builtin_names() -> tuple[str, ...]:
    """Names of the built-in traits, sorted."""
    folder = files("personavec") / "traits"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def load_trait(name_or_path: str | Path) -> Trait:
    """Loads a built-in trait by name, or a trait file by path.

    A file may also be the extract half of the reference implementation's two-file form (keys `instruction`,
    `questions`, `eval_prompt`). Its evaluation half is then found by writing "eval" for "extract" in the name
    of the folder or the file; name and adjective come from the file name, pairs and rubric from the extract
    half, and `eval_prompt` is kept as it stands. The first third of its evaluation questions goes to the sweep.

    Args:
        name_or_path: A built-in name wins over a file or folder of the same name; write "./evil" for those.

    Raises:
        TraitError: No such trait, or its file is malformed (the message then begins with the file).
    """
    names = builtin_names()
    if isinstance(name_or_path, str) and name_or_path in names:
        text = (files("personavec") / "traits" / f"{name_or_path}.json").read_text(encoding="utf-8")
        return parse(json.loads(text))
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(path.stem.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "give one of these"
        raise TraitError(
            f"expected a trait file or a built-in trait ({', '.join(names)}), got '{name_or_path}'; {hint}"
        )
    try:
        data = _read(path)
        return _parse_two_files(data, path) if "instruction" in data else parse(data)
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
    return parse_halves(data, _read(other), path.stem.removesuffix("_extract"))


def _read(path: Path) -> dict[str, object]:
    try:
        data = read_json(path)
    except ValueError as error:
        raise TraitError(f"expected JSON in UTF-8, got {error}; correct {path.name}") from error
    if not isinstance(data, dict):
        raise TraitError(f"expected a JSON object, got {kind_of(data)}; see a built-in trait for the form")
    return data
