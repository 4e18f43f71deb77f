"""What a value must be, said where it is declared: `rollouts: Annotated[int, at_least(1)] = 1`, or short `Count`."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints, is_typeddict

from personavec.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """A condition, and how an error says it."""

    holds: Callable[[Any], bool]
    text: str


def at_least(low: float) -> Rule:
    """`low` or more."""
    return Rule(lambda value: value >= low, f"at least {low:g}")


def above(low: float) -> Rule:
    """More than `low`, and finite."""
    return Rule(lambda value: low < value < math.inf, f"above {low:g}")


def between(low: float, high: float) -> Rule:
    """More than `low`, less than `high`."""
    return Rule(lambda value: low < value < high, f"between {low:g} and {high:g}")


FREE = "free"
"""Marks an option that a resumed run may change: it changes results by rounding at most, or only adds to them."""

Free = Annotated[T, FREE]
Store = Annotated[str | Path | None, FREE]
"""Folder that a verb keeps its work in, so that a killed call resumes; None keeps nothing."""
Count = Annotated[int, at_least(1)]
OptionalCount = Annotated[int | None, at_least(1)]
Natural = Annotated[int, Rule(lambda value: value >= 0, "0 or more")]
Seed = Natural
Positive = Annotated[float, above(0)]
Percent = Annotated[float, Rule(lambda value: 0 <= value <= 100, "from 0 to 100")]
Share = Annotated[float, Rule(lambda value: 0 < value <= 1, "above 0 and at most 1")]
Temperature = Annotated[float, Rule(lambda value: value >= 0, "0 or more")]
LARGEST_DOSE = 10.0
"""Ten times the activations' own length: far beyond where any model still writes text."""
DOSES = Rule(
    lambda value: len(value) > 0 and all(0 < dose <= LARGEST_DOSE for dose in value) and len({*value}) == len(value),
    f"above 0 and at most {LARGEST_DOSE:g}, each once (both signs are tried)",
)
NUMBERS: dict[Any, Any] = {int: Integral, float: Real, bool: bool}
WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
EACH_ONCE = Rule(lambda value: len(set(value)) == len(value), "each once")


def check(declared: Any, values: Mapping[str, Any]) -> None:
    """Check values against what a class or function declares of them: types, choices and rules; None is "not given".

    Types of others (arrays, data sets) are not looked at: what takes them reads them. Options behind `**` have to be
    names of the `TypedDict` that says which.

    Raises:
        ConfigError: A value is of another type, no choice, or breaks its rule; or an option is not there.
    """
    hints = get_type_hints(declared, include_extras=True)
    for name, hint in hints.items():
        if name not in values:
            continue
        value = values[name]
        if get_origin(hint) is Unpack:
            _check_names(get_type_hints(get_args(hint)[0]), value, hints)
        elif value is not None or isinstance(hint, type):
            if not _fits(value, hint):
                got = repr(value) if isinstance(value, str | int | float) else type(value).__name__
                what = f"make a {hint.__name__} of it" if _ours(hint) else "correct it"
                raise ConfigError(f"expected {name} to be {_words(hint)}, got {got}; {what}")
            for rule in getattr(hint, "__metadata__", ()):
                if isinstance(rule, Rule) and not rule.holds(value):
                    raise ConfigError(f"expected {name} {rule.text}, got {value}; correct it")


def _check_names(known: Mapping[str, Any], given: Mapping[str, Any], beside: Mapping[str, Any]) -> None:
    for name in (each for each in given if each not in known):
        options = [*known, *beside]
        near = get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"these go on: {', '.join(known)}"
        raise ConfigError(f"expected an option of this function, got {name}; {hint}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as far as builtins, choices and classes of ours say so."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin in (tuple, Sequence) and (origin is Sequence or inner[1:] == (...,)):
        several = isinstance(value, Collection) and not isinstance(value, str)
        return several and all(_fits(each, inner[0]) for each in value)
    if hint in NUMBERS:
        return isinstance(value, NUMBERS[hint]) and (hint is bool or not isinstance(value, bool))
    return isinstance(value, hint) if _ours(hint) or hint in (str, type(None)) else True


def _ours(hint: Any) -> bool:
    return isinstance(hint, type) and hint.__module__.startswith("personavec.") and not is_typeddict(hint)


def _words(hint: Any) -> str:
    """A type as an error says it: "one of raw, proxy", "a whole number"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if inner[1:] else str(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in inner if each is not type(None))
    if origin in (tuple, Sequence):
        return f"several, each {_words(inner[0])}"
    return WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def settings(declared: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values that a class or function declares, those that a resumed run must have as well: plain and not free.

    Objects (a model, vectors, a judge) are left out: what they hold goes into a run's inputs.

    Raises:
        ConfigError: A value breaks its rule.
    """
    check(declared, values)
    hints = get_type_hints(declared, include_extras=True)
    if not isinstance(declared, type):  # of a function its keyword-only parameters
        parameters = signature(declared).parameters.values()
        hints = {each.name: hints[each.name] for each in parameters if each.kind is each.KEYWORD_ONLY}
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: values[name] for name in marks if name in values and _plain(values[name]) and FREE not in marks[name]}


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
