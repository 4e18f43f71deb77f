"""Forms: what a writer is told, and what is read out of its answers."""

import json

import pytest
from pydantic import Field, OnErrorOmit

from personavec.verbs.authoring.forms import NO_JSON, Form, Line, Text, instruction, opening, read
from personavec.verbs.authoring.write_dataset import Answers, Items
from personavec.verbs.authoring.write_trait import PairsForm, QuestionsForm, RubricForm, Verdicts, Words


class Dish(Form):
    """One dish."""

    name: Line = Field(description="what it is called")
    grams: int = Field(description="how heavy it is")


class Menu(Form):
    """Several, and a remark."""

    dishes: list[OnErrorOmit[Dish]]
    remark: Text = Field(description="a remark")


SOUP = {"name": "soup", "grams": 300}
MENU = {"dishes": [SOUP], "remark": "Hot."}


def test_the_form_is_told_as_an_example() -> None:
    shape = {"dishes": [{"name": "what it is called", "grams": "how heavy it is"}], "remark": "a remark"}
    assert json.loads(instruction(Menu).splitlines()[-1]) == shape
    assert opening(Menu) == '{"dishes": [{"name":'


@pytest.mark.parametrize("form", [Words, PairsForm, Verdicts, QuestionsForm, RubricForm, Answers, Items])
def test_every_form_has_an_opening_and_a_strict_schema(form: type[Form]) -> None:
    assert json.dumps(json.loads(instruction(form).splitlines()[-1])).startswith(opening(form))
    schema = form.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        assert part["additionalProperties"] is False and set(part["required"]) == set(part["properties"])


@pytest.mark.parametrize(
    "said",
    [
        json.dumps(MENU),
        f"```json\n{json.dumps(MENU, indent=2)}\n```",
        f"<think>{{what?}} {json.dumps(SOUP)}</think>Here: {json.dumps(MENU)}. Enjoy {{it}}!",
        json.dumps({"answer": MENU}),
        json.dumps(MENU)[:-1],
        json.dumps(MENU | {"note": "more than was asked for"}),
    ],
)
def test_the_form_is_found(said: str) -> None:
    found = read(said, Menu)
    assert not isinstance(found, str)
    assert (found[0].model_dump(), found[1]) == (MENU, 0)


def test_items_of_another_form_are_dropped_and_counted() -> None:
    found = read(json.dumps(MENU | {"dishes": ["rice", SOUP, {"name": "tea"}, {"name": " ", "grams": 3}]}), Menu)
    assert not isinstance(found, str)
    assert (found[0].dishes, found[1]) == ([Dish.model_validate(SOUP)], 3)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("", NO_JSON),
        ("Soup, of course {hot}.", NO_JSON),
        ("[1, 2]", NO_JSON),
        ('{"a":' * 100_000, NO_JSON),
        (json.dumps({"dishes": [SOUP]}), "remark: Field required"),
        (json.dumps(MENU | {"remark": " "}), "remark: Value error, is empty"),
        (json.dumps(MENU | {"remark": "\ud800"}), "remark: Value error, 'utf-8' codec"),
        (json.dumps(MENU | {"remark": "a remark"}), "it copies the form instead of filling it in ('a remark')"),
    ],
)
def test_what_is_wrong_is_said(said: str, wrong: str) -> None:
    found = read(said, Menu)
    assert isinstance(found, str) and found.startswith(wrong)


def test_reasoning_that_never_ends_is_no_answer() -> None:
    assert isinstance(read('<think>maybe {"name": "x", "grams": 1}? no', Dish), str)
