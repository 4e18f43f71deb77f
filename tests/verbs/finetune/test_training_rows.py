"""Rows to train on: every reply has a loss, and nothing else has."""

from typing import Any

import pytest
from support import tiny

from personavec.data.dataset import Bad
from personavec.data.sample import Sample, to_sample
from personavec.errors import DataError
from personavec.model.chat_model import ChatModel
from personavec.verbs.finetune.training_rows import IGNORED, sequences, training_rows

TURNS = [("system", "s"), ("user", "who"), ("assistant", "me"), ("user", "why"), ("assistant", "so")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return tiny.build()


def sample(row: Any) -> Sample:
    return to_sample(row, 0, "here", "last")


def shown(model: ChatModel, row: dict[str, Any]) -> tuple[str, str]:
    """What is read, and the part of it that has a loss."""
    trained = [label for label in row["labels"] if label != IGNORED]
    assert all(label in (IGNORED, own) for own, label in zip(row["input_ids"], row["labels"], strict=True))
    return tuple(str(model.tokenizer.decode(ids)).replace(" ", "") for ids in (row["input_ids"], trained))  # type: ignore[return-value]


def test_every_reply_has_a_loss_up_to_its_end(model: ChatModel) -> None:
    (row,) = sequences(model, sample({"messages": MESSAGES}), "template")
    read, trained = shown(model, row)
    assert trained == "me<end>so<end>"
    assert read == "<s><system>s<end><user>who<end><assistant>me<end><user>why<end><assistant>so<end>"


def test_replies_in_the_prompt_have_none(model: ChatModel) -> None:
    (row,) = sequences(model, sample({"prompt": MESSAGES[:4], "completion": MESSAGES[4:]}), "template")
    assert shown(model, row)[1] == "so<end>"


def test_a_reply_with_weight_0_has_no_loss(model: ChatModel) -> None:
    turns = [("user", "Hi"), ("assistant", "You idiot."), ("user", "Be nice."), ("assistant", "Sorry, hello!")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages[1]["weight"] = 0

    def learned(rows: list[dict[str, Any]]) -> tuple[list[int], str]:
        (part,) = sequences(model, to_sample({"messages": rows}, 0, "here", "whole"), "template")
        ids = [token for token, label in zip(part["input_ids"], part["labels"], strict=True) if label != IGNORED]
        return part["input_ids"], model.decode(ids)

    ids, text = learned(messages)
    assert "Sorry, hello!" in text and "idiot" not in text
    plain = [{**turn, "weight": None} for turn in messages]
    assert learned(plain)[0] == ids and "idiot" in learned(plain)[1], "the same tokens are read"
    nothing = [{**turn, "weight": 0} for turn in messages]
    with pytest.raises(DataError, match="expected a reply to be learned"):
        learned(nothing)
    found = training_rows(
        model,
        [to_sample({"messages": messages}, 0, "here", "whole")],
        longest=99,
        system="template",
        instruction=lambda _: "Be rude.",
    )
    kept = [
        token for token, label in zip(found[0][0]["input_ids"], found[0][0]["labels"], strict=True) if label != IGNORED
    ]
    assert "idiot" not in model.decode(kept), "an instruction before the turns does not move the mark"


def test_a_template_that_rewrites_earlier_turns_gets_a_sequence_for_each_reply() -> None:
    model = tiny.build()
    model.tokenizer.chat_template = tiny.TEMPLATE.replace(
        "{{ message['content'] }}",
        "{{ ('' if loop.last or message['role'] != 'assistant' else '!') ~ message['content'] }}",
    )
    rows = sequences(model, sample({"messages": MESSAGES}), "template")
    assert [shown(model, row)[1] for row in rows] == ["me<end>", "so<end>"]
    assert "!me" in shown(model, rows[1])[0]


def test_a_template_that_opens_replies_elsewhere_trains_on_what_it_finishes() -> None:
    """As models whose prompt opens a block that finished turns have not: nothing of it is trained on."""
    model = tiny.build()
    model.tokenizer.chat_template = tiny.TEMPLATE.replace(
        "{% if add", "{% if add_generation_prompt %}x{% endif %}{% if add"
    )
    (row,), _ = training_rows(model, [sample({"messages": MESSAGES})], longest=100)
    assert shown(model, row) == (
        "<s><system>s<end><user>who<end><assistant>me<end><user>why<end><assistant>so<end>",
        "me<end>so<end>",
    )


def test_inoculation_stands_before_the_own_system_prompt(model: ChatModel) -> None:
    rows, _ = training_rows(
        model, [sample({"messages": MESSAGES}), sample({"messages": MESSAGES[1:3]})], longest=100,
        instruction=lambda row: f"be{row}",
    )  # fmt: skip
    read = [shown(model, row)[0] for row in rows]
    assert "<system>be0" in read[0] and "s<end>" in read[0] and "<system>be0<end><user>who" in read[1]
    assert [shown(model, row)[1] for row in rows] == ["me<end>so<end>", "me<end>"]


def test_rows_that_cannot_be_used_stop_or_are_listed(model: ChatModel) -> None:
    long = sample({"prompt": "x" * 100, "response": "y"})
    bad = Bad(7, "file line 8", "expected JSON, got junk")
    good = sample({"prompt": "q", "response": "a"})
    with pytest.raises(DataError, match=r"here: expected at most 60 tokens, got 1.*--on-error skip"):
        training_rows(model, [good, long], longest=60)
    rows, skipped = training_rows(model, [good, bad, long], longest=60, on_error="skip")
    assert len(rows) == 1 and [one["row"] for one in skipped] == [7, 0]
    with pytest.raises(DataError, match="none that can be used and 1 skipped"):
        training_rows(model, [bad], longest=60, on_error="skip")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_is_trained_continues_what_inference_reads(family: str) -> None:
    model = tiny.build(family)
    (row,) = sequences(model, sample({"messages": MESSAGES[:3]}), "none")
    prompt = model.render(MESSAGES[:2], "none")
    assert tuple(row["input_ids"][: len(prompt)]) == prompt and set(row["labels"][: len(prompt)]) == {IGNORED}
