"""Of every odd row screen, monitor and finetune read the same tokens of the same replies, or all refuse it."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny, tiny_chat

from personavec.data.dataset import dataset_of
from personavec.data.sample import Sample
from personavec.errors import DataError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import spans
from personavec.steering.projection import directions
from personavec.verbs.finetune.training_rows import IGNORED, sequences
from personavec.verbs.screen.reading.rows import RowReader, encode

ROWS = [json.loads(line) for line in (Path(__file__).parents[2] / "data" / "odd_rows.jsonl").open()]
Replies = list[list[int]]

AGENT = (
    "{{ bos_token }}{% if tools %}<system>{{ tools | tojson }}<end>{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'tool' %}<user>tool {{ message.name }}: "
    "{{ message['content'] }}<end>{% else %}<{{ message['role'] }}>"
    "{% if message.reasoning_content %}[think]{{ message.reasoning_content }}[/think]{% endif %}"
    "{{ message['content'] | trim }}"
    "{% for call in message.tool_calls or [] %}[call]{{ call.function | tojson }}{% endfor %}<end>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Trims texts, and shows all that agents' turns have."""
REWRITING = AGENT.replace("{% if message.reasoning_content %}", "{% if message.reasoning_content and loop.last %}")
"""The same, without the reasoning of earlier turns."""
TEMPLATES = {"plain": tiny.TEMPLATE, "agent": AGENT, "rewriting": REWRITING}


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request: pytest.FixtureRequest) -> ChatModel:
    model = tiny_chat.build(1024)
    model.tokenizer.chat_template = TEMPLATES[request.param]
    return model


def screened(model: ChatModel, row: Any) -> tuple[Replies, Replies]:
    """Replies, and the prompts before them."""
    reader = RowReader(model, directions([tiny.vector(model, layer=2)], ["tiny"], (), 0), reasoning="in")
    read = [encode(reader, sample) for sample in dataset_of([row]).samples("every")]
    good = [each for each in read if not each["error"]]
    assert len(good) in (0, len(read)), "a row is read, or it is refused"
    return [list(each["response_ids"]) for each in good], [list(each["prompt_ids"]) for each in good]


def monitored(model: ChatModel, row: Any) -> tuple[Replies, Replies]:
    """The same, of the replies that are to be learned."""
    (sample,) = dataset_of([row]).samples("whole")
    if not isinstance(sample, Sample):
        return [], []
    try:
        ids, found = spans(model, sample, "template", "in")
    except ModelError:
        return [], []
    places = [place for place, turn in enumerate(sample.turns) if turn["role"] == "assistant" and place >= sample.begin]
    learned = [span for place, span in zip(places, found, strict=True) if place not in sample.unlearned]
    replies = [ids[span.sequence][span.counted : span.end] for span in learned]
    return replies, [ids[span.sequence][: span.begin] for span in learned]


def trained(model: ChatModel, row: Any) -> Replies:
    """Runs of tokens with a loss, without the one that ends each."""
    (sample,) = dataset_of([row]).samples("whole")
    if not isinstance(sample, Sample):
        return []
    try:
        parts = sequences(model, sample, "template")
    except (DataError, ModelError):
        return []
    runs: Replies = []
    for part in parts:
        before = IGNORED
        for token, label in zip(part["input_ids"], part["labels"], strict=True):
            if label != IGNORED:
                runs += [[]] if before == IGNORED else []
                runs[-1].append(token)
            before = label
    assert all(run[-1] in model.stop_ids for run in runs)
    return [run[:-1] for run in runs]


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_three_verbs_read_the_same_replies(model: ChatModel, number: int) -> None:
    row = ROWS[number]
    replies, prompts = screened(model, row)
    assert (replies, prompts) == monitored(model, row)
    assert replies == trained(model, row)


def test_what_is_read_is_what_was_meant(model: ChatModel) -> None:
    texts = [[model.decode(reply) for reply in screened(model, row)[0]] for row in ROWS]
    agent = model.tokenizer.chat_template != tiny.TEMPLATE
    refused = sum(not replies for replies in texts)
    assert refused == (10 if agent else 15), [number for number, replies in enumerate(texts) if not replies]
    assert texts[1] == ["Hello." if agent else "  Hello. \n"]
    assert texts[2] == ["Sorry, hello!"] and texts[3] == texts[4] == ["Hello."]
    call = '[call]{"name": "add", "arguments": {"a": 1}}'
    assert texts[27] == (["[think]Add them.[/think]4"] if agent else [])
    assert texts[30] == ([call, "It is 2."] if agent else [])
    assert texts[31] == ([f"Let me.{call}", "It is 2."] if agent else [])
    assert texts[32] == ([call, "It is 2."] if agent else [])


@pytest.mark.parametrize(("number", "named"), [(27, "reasoning_content"), (30, "tool_calls"), (32, "tools")])
def test_what_a_template_does_not_know_is_refused_by_name(number: int, named: str) -> None:
    model = tiny_chat.build(1024)
    (sample,) = dataset_of([ROWS[number]]).samples("whole")
    assert isinstance(sample, Sample)
    with pytest.raises(ModelError, match=f"got .*{named}.*, which it does not know"):
        spans(model, sample, "template")


def test_a_template_that_does_not_name_the_role_tool_is_refused() -> None:
    model = tiny_chat.build(1024)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}]
    with pytest.raises(ModelError, match="got the role tool, which it does not know"):
        model.render(turns)


def test_a_template_s_name_for_reasoning_is_used() -> None:
    model = tiny_chat.build(1024)
    model.tokenizer.chat_template = AGENT.replace("reasoning_content", "thinking")
    assert model.decode(screened(model, ROWS[27])[0][0]) == "[think]Add them.[/think]4"
