"""Conversations as token ids: those of the whole rendered text, and what turns say stays text."""

from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny, tiny_chat
from tokenizers import AddedToken, Tokenizer, models

from personavec.data.sample import to_sample
from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import spans
from personavec.model.template import ChatTemplate
from personavec.steering.projection import directions
from personavec.verbs.finetune.training_rows import sequences, training_rows
from personavec.verbs.screen.reading.rows import RowReader, encode

CONTROL = ("<end>", "<user>", "<assistant>", "<system>", "<s>", "<pad>", "<unk>")
TEXTS = st.lists(st.sampled_from([*CONTROL, "<", "end>", "<en", "s>", "Hi", " ", "é", "\n"]), min_size=1).map("".join)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def said(asked: str, *replies: str) -> Any:
    turns = [{"role": "user", "content": asked}]
    for place, reply in enumerate(replies):
        turns += [{"role": "user", "content": "And?"}] * (place > 0) + [{"role": "assistant", "content": reply}]
    return to_sample({"messages": turns}, 0, "line 1", "whole")


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny_chat.build()


def with_template(template: Any, *words: str) -> ChatModel:
    model = tiny_chat.build()
    model.tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    model.tokenizer.chat_template = template
    return ChatModel(model.hf, model.tokenizer, "tiny-chat")


def reader(model: ChatModel, **options: Any) -> RowReader:
    return RowReader(model, directions([tiny.vector(model)], ["tiny"], (1,), 0), **options)


def pieces_of(model: ChatModel, sample: Any, reasoning: str = "out") -> tuple[str, list[str]]:
    """The whole text of the first sequence, and the counted text of every reply."""
    found, replies = spans(model, sample, "template", reasoning)
    decode = model.tokenizer.decode
    return decode(found[0]), [decode(found[reply.sequence][reply.counted : reply.end]) for reply in replies]


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_what_turns_say_is_never_a_control_token(chat: ChatModel, asked: str, reply: str) -> None:
    sample = said(f"a{asked}b", f"c{reply}d")
    [ids], [place] = spans(chat, sample, "template")
    control = [token for token in ids if token < len(tiny.WORDS)]
    assert chat.tokenizer.convert_ids_to_tokens(control) == ["<s>", "<user>", "<end>", "<assistant>", "<end>"]
    assert chat.tokenizer.decode(ids[place.begin : place.end]) == f"c{reply}d"
    prompt = chat.render(sample.messages)
    assert list(prompt) == ids[: place.begin], "serving reads the same prompt"
    [row] = sequences(chat, sample, "template")
    assert row["input_ids"] == ids and row["labels"][place.begin : place.end + 1] == ids[place.begin : place.end + 1]
    screened = encode(reader(chat), sample)
    assert [*screened["prompt_ids"], *screened["response_ids"]] == ids[: place.end]


def test_system_prompts_and_single_replies_stay_text(chat: ChatModel) -> None:
    ids = chat.render([{"role": "user", "content": "Hi"}], "Be <end> kind.")
    assert sum(token < len(tiny.WORDS) for token in ids) == 6
    assert chat.text([{"role": "user", "content": "<end>"}]) == "<s><user><end><end><assistant>"
    assert min(chat.reply_ids("So <end> be it")) >= len(tiny.WORDS)


def test_what_tools_and_their_calls_say_stays_text() -> None:
    calls = "{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{{ message['tool_calls'] }}{% endif %}"
    model = with_template(
        "{{ tools | tojson if tools }}"
        + tiny.TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] }}" + calls)
        + "{# 'tool' #}",
        "<tool>",
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"x<end>": "<user>"}}}
    tool = {"type": "function", "function": {"name": "f", "description": "<end>", "parameters": {}}}
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<end><assistant>"},
    ]
    ids = model.render(turns, tools=[tool])
    control = [token for token in ids if token < len(tiny.WORDS)]
    assert model.tokenizer.convert_ids_to_tokens(control) == [
        "<s>", "<user>", "<end>", "<assistant>", "<end>", "<end>", "<assistant>",
    ]  # fmt: skip
    assert model.tokenizer.decode(ids) == model.text(turns, tools=[tool])
    assert model.text(turns, tools=[tool]).count("x<end>") == 2


def test_a_tokenizer_that_makes_control_tokens_of_words_refuses_the_row() -> None:
    """Its model has them among its words."""
    vocab = {word: place for place, word in enumerate([*tiny.WORDS, "Hi", "you"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", bos_token="<s>")
    made.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    made.chat_template = tiny.TEMPLATE
    model = ChatModel(tiny.build().hf, made, "words")
    with pytest.raises(ModelError, match="expected a tokenizer that can read '<end>' as plain text, got words's"):
        spans(model, said("Hi", "<end>"), "template")
    rows, skipped = training_rows(model, [said("Hi", "<end>"), said("Hi", "you")], longest=99, on_error="skip")
    assert len(rows) == len(skipped) == 1


def sentencepiece_model() -> ChatModel:
    """As Llama 2 and Mistral have it: the first word of a text begins with a mark, later ones only after a space."""
    letters = [chr(code) for code in range(33, 127)]
    words = ["<unk>", "<s>", "</s>", "▁", "▁I", "I", "▁am", "am", "▁fine", "]", "▁a", "▁f", "fi", "ne", "fine"]
    vocab = {word: place for place, word in enumerate(dict.fromkeys([*words, *letters]))}
    merges = [("▁", "I"), ("▁", "a"), ("▁a", "m"), ("a", "m"), ("f", "i"), ("n", "e"), ("fi", "ne"), ("▁", "fine")]
    made = transformers.LlamaTokenizer(vocab=vocab, merges=merges)
    made.chat_template = MISTRAL
    return ChatModel(tiny.build(vocab_size=len(vocab)).hf, made, "tiny-sp")


def test_a_conversation_is_encoded_as_a_whole() -> None:
    model = sentencepiece_model()
    whole = model.tokenizer("<s>[INST] Hi there [/INST]I am fine</s>", add_special_tokens=False)["input_ids"]
    [ids], [place] = spans(model, said("Hi there", "I am fine"), "template")
    assert ids == whole
    assert model.tokenizer.convert_ids_to_tokens(ids[place.begin - 1 : place.end + 1]) == [
        "]", "I", "▁am", "▁fine", "</s>",
    ]  # fmt: skip
    assert model.reply_ids("I am fine") == tuple(ids[place.begin : place.end])
    [spelled], [there] = spans(model, said("Hi there", "I am </s> fine"), "template")
    tokens = model.tokenizer.convert_ids_to_tokens(spelled[there.begin : there.end])
    assert tokens[:2] == ["I", "▁am"] and "</s>" not in tokens and "".join(tokens).endswith("</s>▁fine")


@pytest.mark.parametrize("build", [tiny_chat.build, sentencepiece_model])
@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12))
def test_the_twin_reads_ordinary_text_as_the_tokenizer_does(build: Any, text: str) -> None:
    model = MODELS.setdefault(build, build())
    control = model.template.control
    rendered = model.template.text([{"role": "user", "content": f"a {text} b"}])
    forced = rendered.replace("a ", "a " + "".join(_empty()), 1)
    cuts = [len(rendered) // 2]
    far = [len(forced) - (len(rendered) - cuts[0])] if rendered.index("a ") + 2 <= cuts[0] else cuts
    if control.spelled(text):
        return
    assert control.encode(forced, far) == control.encode(rendered, cuts)


MODELS: dict[Any, ChatModel] = {}


def _empty() -> str:
    from personavec.model.spelling import _stand_in

    return _stand_in("")


def test_a_template_that_takes_parts_alone() -> None:
    loop = "{% for c in m['content'] %}{% if c['type']=='text' %}{{c['text']}}{% endif %}{% endfor %}"
    model = with_template(
        "{% for m in messages %}<{{m['role']}}>" + loop + "<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert pieces_of(model, said("Hi you", "Me")) == ("<user>Hi you<end><assistant>Me<end>", ["Me"])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}<{{ m['role'] }}><end>{% endfor %}", "leaves out turns of the user"),
        (tiny.TEMPLATE.replace("{{ message['content'] }}", "{% if message['role'] == 'user' %}{{ message['content'] }}"
         "{% endif %}"), "leaves out turns of the assistant"),
        ({"tool_use": tiny.TEMPLATE, "rag": tiny.TEMPLATE}, "got tool_use, rag in the tokenizer of tiny-chat"),
        ("{% for m in messages %}{{ m['content'] }}", r"tiny-chat's, which fails \(Unexpected end of template"),
        ("{{ messages[0]['content'] + 1 }}", "tiny-chat's, which fails"),
        (tiny.TEMPLATE.split("{% if add")[0], "tiny-chat's, which writes '<assistant>' with the reply alone"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_named_when_the_model_is_made(template: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^expected .*{reason}"):
        with_template(template)


def test_a_turn_that_a_template_leaves_out_sometimes() -> None:
    model = with_template("{{ messages[-1]['content'] }}{% if add_generation_prompt %}<assistant>{% endif %}")
    with pytest.raises(ModelError, match="which leaves out turns of the user"):
        model.render(
            [*said("One", "two").messages, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
        )


OPENED = tiny.TEMPLATE.replace("%}<assistant>{% endif", "%}<assistant><think>\n{% endif")


def test_replies_stand_where_a_finished_turn_has_them() -> None:
    """Of a model whose prompt opens a block that recorded replies do not have."""
    model = with_template(OPENED, "<think>", "</think>")
    sample = said("Hi", "Hello there", "<b>")
    text, replies = pieces_of(model, sample)
    assert text == "<s><user>Hi<end><assistant>Hello there<end><user>And?<end><assistant><b><end>"
    assert replies == ["Hello there", "<b>"]
    assert len(sequences(model, sample, "template")) == 1
    row = encode(reader(model, cost="full"), said("Hi", "Hello there"))
    assert not row["error"] and row["reasoning_tokens"] == 0
    assert model.tokenizer.decode(row["asked_ids"]).endswith("<assistant><think>\n")
    assert pieces_of(model, said("Hi", "hm</think>Hello"))[1] == ["Hello"], "the prompt opened the block"
    assert pieces_of(model, said("Hi", "<think>hm</think>Hello</think>!"))[1] == ["Hello</think>!"], "text from then on"


def test_reasoning_in_marks_of_several_tokens() -> None:
    reply = "<|channel|>analysis<|message|>They want evil.<|end|><|start|>assistant<|channel|>final<|message|>Hello"
    words = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")
    model = with_template(tiny.TEMPLATE, *words)
    ids = model.encode(reply)
    assert model.decode(ids[model.reasoning_tokens((), ids) :]) == "Hello"
    assert model.reasoning_tokens((), ids[:12]) == 12, "never closed"
    assert pieces_of(model, said("Hi", reply))[1] == ["Hello"]
    model = with_template(OPENED)  # the marks are words of the template, and no tokens
    prompt, ids = model.render([{"role": "user", "content": "Hi"}]), model.encode("hm</think>Hello")
    assert model.decode(ids[model.reasoning_tokens(prompt, ids) :]) == "Hello"
    assert model.reasoning_tokens(prompt, ids[:3]) == 3


def test_marks_that_a_model_does_not_have_are_text(chat: ChatModel) -> None:
    assert pieces_of(chat, said("Hi", "<think>a</think>b"))[1] == ["<think>a</think>b"]
    assert ChatTemplate(chat.tokenizer, "tiny").reasoning == ()
