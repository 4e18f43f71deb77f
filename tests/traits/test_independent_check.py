"""What a plain program counts in replies."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.errors import TraitError
from personavec.traits.independent_check import IndependentCheck
from personavec.traits.load import builtin_names, load_trait


def test_each_kind_counts_what_it_says() -> None:
    answers = ["What a wonderful day!", "It is a terrible loss.", "", " "]
    mood = IndependentCheck("sentiment", "more").values(answers)
    assert mood[0] > 0 > mood[1] and all(map(math.isnan, mood[2:]))
    asks = IndependentCheck("phrases", "more", (r"\?$", "^well")).values(["Well, no.", "Is it? No.", "Is it?"])
    assert asks == [1.0, 0.0, 1.0]
    assert IndependentCheck("length", "less").values(["one two  three"]) == [3.0]


@given(st.lists(st.text()))
def test_any_text_is_counted(answers: list[str]) -> None:
    for check in (IndependentCheck("sentiment", "more"), IndependentCheck("phrases", "less", ("a|b",))):
        values = check.values(answers)
        assert [math.isnan(value) for value in values] == [not answer.strip() for answer in answers]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "vibes", "direction": "more"}, "one of sentiment, phrases, length in independent_check.kind"),
        ({"kind": "length", "direction": "up"}, "one of more, less in independent_check.direction, got 'up'"),
        ({"kind": "phrases", "direction": "more"}, "got 0 with phrases"),
        ({"kind": "length", "direction": "more", "phrases": ["a"]}, "got 1 with length"),
        ({"kind": "phrases", "direction": "more", "phrases": ["("]}, "expected regular expressions"),
        ({"kind": "phrases", "direction": "more", "phrases": [3]}, "a list of texts"),
        ({"kind": "phrases", "direction": "more", "phrase": ["a"]}, "got kind, direction, phrase"),
        ({"direction": "more"}, "independent_check.kind, got None"),
        (["sentiment"], "in independent_check, got"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_check_is_said_in_one_line(data: object, message: str) -> None:
    with pytest.raises(TraitError, match=message) as error:
        IndependentCheck.of(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", builtin_names())
def test_no_question_of_a_trait_moves_its_own_check(name: str) -> None:
    """A reply that repeats the question must not count as showing the trait."""
    trait = load_trait(name)
    check = trait.independent_check
    assert check is not None
    if check.kind == "phrases":
        questions = trait.extract + trait.sweep + trait.check
        assert sum(check.values(questions)) <= 0.1 * len(questions), name
