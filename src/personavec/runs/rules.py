"""What a value must be, said where it is declared: `rollouts: Annotated[int, at_least(1)] = 1`, or short `Count`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

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
EACH_ONCE = Rule(lambda value: len(set(value)) == len(value), "each once")


def check(declared: Any, values: Mapping[str, Any]) -> None:
    """Check values against the rules of a class or function that declares them; None is "not given".

    An argument of a function whose type is a class of ours has to be one of those.

    Raises:
        ConfigError: A value breaks its rule, or is of another class.
    """
    hints = {} if isinstance(declared, type) else get_type_hints(declared)
    for name in hints.keys() & values.keys():
        hint, value = hints[name], values[name]
        if isinstance(hint, type) and hint.__module__.startswith("personavec.") and not isinstance(value, hint):
            raise ConfigError(
                f"expected {name} to be a {hint.__name__}, got {type(value).__name__}; make a {hint.__name__} of it"
            )
    for name, marks in _marks(declared).items():
        value = values.get(name)
        for rule in marks:
            if isinstance(rule, Rule) and value is not None and not rule.holds(value):
                raise ConfigError(f"expected {name} {rule.text}, got {value}; correct it")


def settings(declared: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values that a class or function declares, those that a resumed run must have as well: plain and not free.

    Objects (a model, vectors, a judge) are left out: what they hold goes into a run's inputs.

    Raises:
        ConfigError: A value breaks its rule.
    """
    check(declared, values)
    marks = _marks(declared)
    return {name: values[name] for name in marks if name in values and _plain(values[name]) and FREE not in marks[name]}


def _marks(declared: Any) -> dict[str, tuple[Any, ...]]:
    """What stands beside the types of a class's fields, or of a function's keyword-only parameters."""
    hints = get_type_hints(declared, include_extras=True)
    if not isinstance(declared, type):
        parameters = signature(declared).parameters.values()
        hints = {each.name: hints[each.name] for each in parameters if each.kind is each.KEYWORD_ONLY}
    return {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
