"""What a value must be is said where it is declared, and so is whether a resumed run may change it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.errors import ConfigError
from personavec.runs.rules import DOSES, EACH_ONCE, Count, Free, Percent, Positive, Seed, Store, above, check, settings


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
    judge: Any = "likelihood",
    store: Store = None,
) -> dict[str, Any]:
    return settings(call, locals())


def test_a_function_declares_its_own() -> None:
    assert call(object(), [1]) == {"rollouts": 1, "layers": (), "doses": (0.1,), "judge": "likelihood"}
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
