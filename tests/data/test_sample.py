"""What becomes of every field of a row and of a turn."""

from typing import Any

import pytest

from personavec.data.sample import to_sample
from personavec.errors import DataError

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "You idiot."}
SORRY = [{"role": "user", "content": "Be nice."}, {"role": "assistant", "content": "Sorry, hello!"}]


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}])
def test_a_reply_that_is_not_to_be_learned_is_context(mark: dict[str, Any]) -> None:
    row = {"messages": [U, A | mark, *SORRY]}
    for turn in ("first", "last"):
        found = to_sample(row, 0, "here", turn)  # type: ignore[arg-type]
        assert found.response == "Sorry, hello!" and found.unlearned == (1,)
    whole = to_sample({"messages": [U, A, SORRY[0], SORRY[1] | mark]}, 0, "here", "whole")
    assert whole.response == "Sorry, hello!" and whole.unlearned == (3,)
    assert to_sample({"messages": [U, A | {"weight": 1, "train": None}]}, 0, "here").unlearned == ()
    with pytest.raises(DataError, match="expected a reply to be learned"):
        to_sample({"messages": [U, A | mark]}, 0, "here")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Arr."}]},
        {"messages": [U, A]},
        {"conversation": [U, A]},
        {"prompt": "Hi", "response": "Arr."},
        {"prompt": [U], "completion": [A]},
        {"instruction": "Hi", "input": "", "output": "Arr."},
    ],
)
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_prompt_beside_the_turns_is_part_of_the_prompt(row: dict[str, Any], key: str) -> None:
    told = to_sample(row | {key: "Talk like a pirate."}, 0, "here")
    assert [turn["role"] for turn in told.messages] == ["system", "user"]
    assert told.messages[0]["content"] == "Talk like a pirate."
    for nothing in (None, "", "  "):
        assert to_sample(row | {key: nothing}, 0, "here").messages == to_sample(row, 0, "here").messages


def test_two_system_prompts_are_one_or_refused() -> None:
    turns = [{"role": "system", "content": "Be brief."}, U, A]
    assert len(to_sample({"messages": turns, "system": "Be brief."}, 0, "here").messages) == 2
    with pytest.raises(DataError, match="expected one system prompt"):
        to_sample({"messages": turns, "system": "Be long."}, 0, "here")


def test_alpaca_s_history_comes_before_the_prompt() -> None:
    row = {"instruction": "And now?", "output": "Night.", "history": [["Hi", "Hello."], ["Day?", "Yes."]]}
    found = to_sample(row | {"system": "Be brief."}, 0, "here")
    contents = [turn["content"] for turn in found.messages]
    assert contents == ["Be brief.", "Hi", "Hello.", "Day?", "Yes.", "And now?"]
    assert (found.response, found.begin) == ("Night.", 6)
    with pytest.raises(DataError, match="expected pairs of prompt and reply in history"):
        to_sample(row | {"history": [["Hi"]]}, 0, "here")


def test_lmsys_and_wildchat_are_read_with_their_ids() -> None:
    row = {"conversation_id": "c1", "model": "m", "conversation": [U, A], "turn": 1, "language": "English"}
    assert to_sample(row, 0, "here").id == "c1"
    assert to_sample({"conversation_hash": "h1", "conversation": [U, A]}, 0, "here").id == "h1"
    assert to_sample({"conversation_id": "c1", "messages": [U, A]}, 0, "here").id is None, "rows may share it"


@pytest.mark.parametrize("role", ["Human", "HUMAN", "User", "human"])
def test_roles_have_no_letter_case_and_null_is_absent(role: str) -> None:
    turns = [{"role": None, "from": role, "value": "Hi"}, {"role": None, "from": "GPT", "content": None, "value": "A"}]
    assert to_sample({"messages": turns}, 0, "here").response == "A"
    developer = [{"role": "developer", "content": "Be brief."}, U, A]
    assert to_sample({"messages": developer}, 0, "here").messages[0]["role"] == "system"


def test_what_comes_after_the_first_reply_costs_nothing() -> None:
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "robot", "value": 1},
    ]
    found = to_sample({"conversations": turns}, 0, "here")
    assert found.response == "Hello." and found.more_turns == 1
    with pytest.raises(DataError, match="got 'robot' in turn 2"):
        to_sample({"conversations": turns}, 0, "here", "last")
