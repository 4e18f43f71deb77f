"""What a value must be is said where it is declared, and so is whether a resumed run may change it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Unpack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.errors import ConfigError
from personavec.runs.rules import (
    DOSES,
    EACH_ONCE,
    Count,
    Free,
    Percent,
    Positive,
    Rule,
    Seed,
    Store,
    above,
    check,
    settings,
)


@dataclass(frozen=True)
class Options:
    rollouts: Count = 1
    seed: Seed = 0
    rate: Positive = 1.0
    floor: Percent = 75.0
    batch: Free[Count] = 4
    limit: Annotated[int | None, above(0)] = None
    name: str = "x"

    def __post_init__(self) -> None:
        check(type(self), vars(self))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rollouts": 0}, "expected rollouts at least 1, got 0; correct it"),
        ({"seed": -1}, "expected seed 0 or more, got -1; correct it"),
        ({"rate": 0.0}, "expected rate above 0, got 0.0; correct it"),
        ({"rate": float("inf")}, "expected rate above 0, got inf; correct it"),
        ({"rate": float("nan")}, "expected rate above 0, got nan; correct it"),
        ({"floor": 100.5}, "expected floor from 0 to 100, got 100.5; correct it"),
        ({"batch": 0}, "expected batch at least 1, got 0; correct it"),
        ({"limit": 0}, "expected limit above 0, got 0; correct it"),
    ],
)
def test_a_rule_is_said_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Options(**options)
    assert str(error.value) == told


def call(
    model: object,
    data: list[object],
    *,
    rollouts: Count = 1,
    layers: Annotated[tuple[int, ...], EACH_ONCE] = (),
    doses: Annotated[tuple[float, ...], DOSES] = (0.1,),
    batch: Free[Count] = 4,
    judge: Any = "panel",
    store: Store = None,
) -> dict[str, Any]:
    return settings(call, locals())


def test_a_function_declares_its_own() -> None:
    assert call(object(), [1]) == {"rollouts": 1, "layers": (), "doses": (0.1,), "judge": "panel"}
    assert "judge" not in call(object(), [], judge=object()), "an object is an input of the run, no setting"
    assert call(object(), [], batch=7, store="x") == call(object(), []), "free to change"
    for bad in ({"rollouts": 0}, {"layers": (1, 1)}, {"doses": ()}, {"doses": (0.1, 0.1)}, {"doses": (11.0,)}):
        with pytest.raises(ConfigError, match=f"expected {next(iter(bad))} "):
            call(object(), [], **bad)


@given(st.integers())
def test_count_is_what_it_says(value: int) -> None:
    def fails(make: Callable[[], object]) -> bool:
        try:
            make()
        except ConfigError:
            return True
        return False

    assert fails(lambda: Options(rollouts=value)) == (value < 1)
    assert fails(lambda: Options(seed=value)) == (value < 0)


class Further(TypedDict, total=False):
    top: int


def choosing(
    model: Rule,
    *,
    cost: Literal["raw", "proxy"] = "proxy",
    on_error: Free[Literal["stop", "skip"]] = "stop",
    layer: int | Literal["all"] | None = None,
    several: Sequence[int] = (),
    pair: Annotated[tuple[float, ...], DOSES] = (0.1,),
    rate: Positive = 1.0,
    store: Store = None,
    **more: Unpack[Further],
) -> dict[str, Any]:
    return settings(choosing, locals())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": "cheap"}, "expected cost to be one of raw, proxy, got 'cheap'; correct it"),
        ({"on_error": "ignore"}, "expected on_error to be one of stop, skip, got 'ignore'; correct it"),
        ({"layer": "last"}, "expected layer to be a whole number or all, got 'last'; correct it"),
        ({"layer": 1.5}, "expected layer to be a whole number or all, got 1.5; correct it"),
        ({"several": "12"}, "expected several to be several, each a whole number, got '12'; correct it"),
        ({"several": [1, "2"]}, "expected several to be several, each a whole number, got list; correct it"),
        ({"pair": 0.2}, "expected pair to be several, each a number, got 0.2; correct it"),
        ({"rate": "1"}, "expected rate to be a number, got '1'; correct it"),
        ({"rate": True}, "expected rate to be a number, got True; correct it"),
        ({"tops": 1}, "expected an option of this function, got tops; did you mean top?"),
        ({"costs": 1}, "expected an option of this function, got costs; did you mean cost?"),
        ({"zzz": 1}, "expected an option of this function, got zzz; these go on: top"),
        ({"model": "smollm2"}, "expected model to be a Rule, got 'smollm2'; make a Rule of it"),
    ],
)
def test_a_wrong_type_choice_or_name_is_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        choosing(**({"model": EACH_ONCE} | options))
    assert str(error.value) == message


def test_the_first_of_several_wrong_values_is_said() -> None:
    wrong = {"zzz": 1, "yyy": 1, "rate": "1", "pair": 1, "several": 1, "layer": "x", "on_error": "x", "cost": "x"}
    with pytest.raises(ConfigError, match=r"^expected cost to be"):
        choosing(EACH_ONCE, **wrong)
    with pytest.raises(ConfigError, match="option of this function, got zzz"):
        choosing(EACH_ONCE, **{"zzz": 1, "yyy": 1, "xxx": 1, "www": 1})


@pytest.mark.parametrize(
    "options",
    [
        {"layer": "all", "several": np.arange(3), "pair": [1, np.float32(0.5)], "rate": 2, "top": np.int64(3)},
        {"layer": None, "several": range(2), "rate": np.float64(0.1), "store": Path("x")},
    ],
)
def test_values_of_the_same_kind_go(options: dict[str, Any]) -> None:
    choosing(EACH_ONCE, **options)
