"""Rows of widely used data sets are read as their cards say, or refused by name with what to do."""

import json
from typing import Any

import pytest

from personavec.data.dataset import Bad, dataset_of
from personavec.data.sample import Sample, to_sample, to_samples
from personavec.errors import DataError

HI, HELLO = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
WHY, SO = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
LIMA = ["Hi?", "Hello.", "Why?", "So."]
SHAREGPT = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
LABELS = {
    "id": "7",
    "source": "web",
    "category": "chat",
    "score": 0.5,
    "toxic": False,
    "turn": 1,
    "language": "English",
}

TWO = ["Hi?", "Hello."]
ROWS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "OpenAI": ({"messages": [HI, HELLO]}, TWO),
    "Tulu": ({"id": "t", "source": "flan", "messages": [HI, HELLO, WHY, SO]}, LIMA),
    "UltraChat 200k": ({"prompt": "Hi?", "prompt_id": "p", "messages": [HI, HELLO, WHY, SO]}, LIMA),
    "UltraChat": ({"id": "1", "data": LIMA}, LIMA),
    "LIMA": ({"conversations": LIMA, "source": "wikihow"}, LIMA),
    "ShareGPT": ({"id": "s", "conversations": SHAREGPT}, TWO),
    "struct of lists": (
        {"conversations": {"from": ["human", "gpt"], "value": ["Hi?", "Hello."], "weight": None}}, ["Hi?", "Hello."]
    ),
    "LMSYS-Chat-1M": ({"conversation_id": "c", "model": "m", "conversation": [HI, HELLO]}, TWO),
    "WildChat": (
        {"conversation_hash": "h", "conversation": [HI | {"toxic": False, "country": None}, HELLO]}, ["Hi?", "Hello."]
    ),
    "Capybara": (
        {"source": "x", "conversation": [{"input": "Hi?", "output": "Hello."}, {"input": "Why?", "output": "So."}]},
        LIMA,
    ),
    "Alpaca": ({"instruction": "Add.", "input": "1, 2", "output": "3", "text": "Below …"}, ["Add.\n\n1, 2", "3"]),
    "Alpaca, history": (
        {"instruction": "Why?", "input": "", "output": "So.", "history": [["Hi?", "Hello."]], "system": None}, LIMA
    ),
    "Dolly": ({"instruction": "Who?", "context": "Ann came.", "response": "Ann."}, ["Who?\n\nAnn came.", "Ann."]),
    "OpenOrca": ({"system_prompt": "Be brief.", "question": "Hi?", "response": "Hello."}, ["Be brief.", *TWO]),
    "question/answer": ({"question": "Hi?", "answer": "Hello."}, TWO),
    "prompt/completion": ({"prompt": [HI], "completion": [HELLO]}, TWO),
    "KTO": ({"prompt": [HI], "completion": [HELLO], "label": True}, TWO),
    "a class beside it": ({"prompt": "Hi?", "completion": "Hello.", "label": 3}, TWO),
    "turns as text": ({"messages": json.dumps([HI, HELLO])}, TWO),
    "each turn as text": ({"messages": [json.dumps(HI), json.dumps(HELLO)]}, TWO),
    "columns of null": ({"messages": None, "conversations": None, "prompt": "Hi?", "response": "Hello."}, TWO),
    "chosen beside messages": ({"messages": [HI, HELLO], "chosen": [HI, HELLO], "rejected": [HI, SO]}, TWO),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_widely_used_shapes_are_read(name: str) -> None:
    row, texts = ROWS[name]
    for fields in (row, LABELS | row):
        found = to_sample(fields, 0, "here", "whole")
        assert [turn["content"] for turn in found.turns] == texts
        assert found.turns[-1]["role"] == "assistant"
        plain = [turn for turn in found.turns if turn["role"] != "system"]
        assert [turn["role"] for turn in plain] == ["user", "assistant"] * (len(plain) // 2)
        first = to_sample(fields, 0, "here", "first")
        history = "history" in row
        assert first.response == (texts[-1] if history else texts[-1] if len(texts) < 4 else "Hello.")


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
        "got a chosen and a rejected reply.*as prompt and compl",
    ),
    ({"chosen": [HI, HELLO], "rejected": [HI, SO]}, "screen takes those with --side both"),
    (
        {"text": "### Human: Hi?### Assistant: Hello."},
        "got text alone, which does not say who speaks; write it as mess",
    ),
    ({"message_id": "m", "parent_id": None, "text": "Hi?", "role": "prompter"}, r"single message of a tree \(OASST\)"),
    ({"message_tree_id": "t", "prompt": {"text": "Hi?", "replies": []}}, r"got a tree of replies \(OASST\)"),
    (
        {"prompt": "Hi?", "completion": "You idiot.", "label": False},
        "expected a reply to be learned, got .*label false",
    ),
    (
        {"prompt": "Who?", "response": "Ann.", "context": "Ann came."},
        "expected the whole prompt in prompt, got context",
    ),
    ({"conversations": {"from": ["human"], "value": ["Hi?", "Hello."]}}, "or equally long lists by field"),
    ({"conversation": [{"input": "Hi?", "output": "Hello."}, HI]}, "an input and an output in every turn"),
    ({"a": 1}, "expected messages or conversations or .*, got the keys 'a'"),
    ([1], "expected messages or .*, got list instead of an object"),
    ({"data": [{"prompt": "a", "response": "b"}]}, "expected role and content, .* got 'prompt', 'response' in turn 0"),
]


@pytest.mark.parametrize(("row", "told"), REFUSED)
def test_others_are_refused_by_name(row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        to_sample(row, 0, "here")


def test_a_text_that_looks_like_json_is_a_text() -> None:
    row = {"prompt": '[{"role": "user", "content": "Hi?"}]', "response": '{"a": 1}'}
    assert [turn["content"] for turn in to_sample(row, 0, "here").turns] == [*row.values()]
    lima = ['{"a": 1}', "An object."]
    assert [turn["content"] for turn in to_sample({"conversations": lima}, 0, "here").turns] == lima


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("turn", "read"),
    [
        (HELLO | {"tool_calls": [CALL]}, HELLO | {"tool_calls": [CALLED | {"id": "c1"}]}),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, {"tool_calls": [CALLED | {"id": "c1"}]}),
        ({"role": "assistant", "function_call": CALL["function"]}, {"tool_calls": [CALLED]}),
        ({"from": "function_call", "value": json.dumps(CALL["function"])}, {"tool_calls": [CALLED]}),
        ({"from": "tool_call", "value": json.dumps([CALL["function"]] * 2)}, {"tool_calls": [CALLED] * 2}),
        (HELLO | {"thinking": "Hm."}, HELLO | {"reasoning_content": "Hm."}),
        (HELLO | {"reasoning": "Hm.", "thinking": ""}, HELLO | {"reasoning_content": "Hm."}),
        (
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello."}],
            },
            HELLO | {"reasoning_content": "Hm."},
        ),
        (HELLO | {"tool_calls": [], "reasoning_content": None, "name": ""}, HELLO),
    ],
)
def test_what_agents_turns_have_besides_text_is_kept(turn: dict[str, Any], read: dict[str, Any]) -> None:
    found = to_sample({"messages": [HI, turn]}, 0, "here", "whole")
    assert found.turns[-1] == {"role": "assistant", "content": ""} | read
    assert Sample.of(json.loads(json.dumps(vars(found)))) == found


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython", "Tool"])
def test_a_tool_speaks_between_two_replies(role: str) -> None:
    turns = [HI, {"role": "assistant", "tool_calls": [CALL]}, {"role": role, "content": "2", "tool_call_id": "c1"}, SO]
    tools = [{"name": "add", "parameters": {}}]
    for held in (tools, json.dumps(tools), [{"type": "function", "function": tools[0]}]):
        found = to_sample({"messages": turns, "tools": held}, 0, "here", "last")
        assert found.messages[2] == {"role": "tool", "content": "2", "tool_call_id": "c1"} and found.response == "So."
        assert found.tools == ({"type": "function", "function": tools[0]},)
    assert json.loads(to_sample({"messages": turns}, 0, "here").response)[0]["function"]["name"] == "add"
    with pytest.raises(DataError, match="expected user and assistant in turns, got user, tool"):
        to_sample({"messages": [HI, turns[2], SO]}, 0, "here")
    for wrong in ("add", {"function": "add"}, [3]):
        with pytest.raises(DataError, match="expected calls of functions"):
            to_sample({"messages": [HI, HELLO | {"tool_calls": wrong}]}, 0, "here")
    with pytest.raises(DataError, match="expected a list of tools in tools"):
        to_sample({"messages": turns, "tools": "add"}, 0, "here")


def test_every_reply_is_a_sample_with_its_own_prompt() -> None:
    turns = [HI, HELLO | {"weight": 0}, WHY, SO, HI, {"role": "assistant", "content": " "}, WHY, HELLO]
    first, second = to_samples({"messages": turns, "id": "x"}, 3, "here", "every")
    assert (first.response, len(first.messages), first.unlearned) == ("So.", 3, (1,))
    assert (second.response, len(second.messages), second.unlearned) == ("Hello.", 7, (1, 5))
    rows: list[Any] = [{"messages": turns}, {"messages": 3}, {"messages": [HI, HELLO]}]
    found = list(dataset_of(rows).samples("every"))
    assert [(each.row, each.conversation) for each in found] == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert isinstance(found[2], Bad) and found[1].where == "rows in memory row 0, reply 4"


def test_files_may_number_their_rows_each_by_itself(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": 0, "messages": [HI, HELLO]}) + "\n")
    assert [type(each) for each in dataset_of(tmp_path).samples("first", announce=True)] == [Sample, Sample]
    assert "rows of messages\n" in capsys.readouterr().err


def test_a_run_names_the_fields_that_it_does_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"question": "Which?", "choices": ["a", "b"], "answer": "B", "context": "Ab.", "id": 1, "n": None}
    assert len([*dataset_of([row]).samples("first", announce=True)]) == 1
    assert "rows of question/answer; not read: choices\n" in capsys.readouterr().err
    assert len([*dataset_of([{"messages": [HI, HELLO], "context": "Ab."}]).samples("first", announce=True)]) == 1
    assert "rows of messages; not read: context\n" in capsys.readouterr().err
