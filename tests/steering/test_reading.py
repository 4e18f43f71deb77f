"""Reading one conversation along vectors: the same numbers as any other way of reading the same tokens."""

from typing import Any

import pytest
import torch
from support import tiny, tiny_chat

from personavec.errors import ConfigError, DataError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import token_texts
from personavec.model.hooks import capture
from personavec.steering.reading import project
from personavec.steering.vector import PersonaVector

ASKED = [{"role": "user", "content": "Say tea."}]
SAID = [*ASKED, {"role": "assistant", "content": "tea & <b>rain</b>"}]
LAYER = 2


@pytest.fixture
def along(model: ChatModel) -> PersonaVector:
    return tiny.vector(model, layer=LAYER)


def captured(model: ChatModel, ids: list[int], unit: torch.Tensor, layer: int = LAYER) -> list[float]:
    weights = torch.eye(len(ids))[None]
    return [float(value) for value in capture(model, [ids], weights, [layer])[0, :, 0] @ unit]


@pytest.mark.parametrize("system", ["template", "none", "Be kind."])
def test_it_equals_capture_of_the_same_tokens(model: ChatModel, along: PersonaVector, system: str) -> None:
    prompt, reply = model.render(ASKED, system), model.encode(SAID[-1]["content"])
    values = captured(model, [*prompt, *reply], along.unit(LAYER))
    read = project(model, SAID, along, system=system)
    assert read.prompt_last == pytest.approx(values[len(prompt) - 1], abs=1e-4)
    assert read.tokens is not None and "".join(text for text, _ in read.tokens) == SAID[-1]["content"]
    assert [value for _, value in read.tokens] == pytest.approx(values[len(prompt) :], abs=1e-4)
    assert read.response_avg == pytest.approx(sum(value for _, value in read.tokens) / len(reply))
    asked = project(model, ASKED, along, system=system)
    assert asked.prompt_last == pytest.approx(read.prompt_last, abs=1e-4)
    assert (
        asked.response_avg is None
        and asked.tokens is None
        and set(asked.to_dict())
        == {
            "vector",
            "layer",
            "prompt_last",
        }
    )
    assert tiny.hooks(model) == 0


def test_earlier_replies_are_read_as_the_prompt(model: ChatModel, along: PersonaVector) -> None:
    longer = [*SAID, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    read = project(model, longer, along)
    assert read.tokens is not None and [text for text, _ in read.tokens] == ["N", "o", "."]
    assert read.prompt_last == pytest.approx(project(model, longer[:3], along).prompt_last, abs=1e-4)


def test_several_vectors_and_another_layer(model: ChatModel, along: PersonaVector) -> None:
    read = project(model, SAID, [along, along * 2], layer=1)
    assert len(read) == 2 and {one.layer for one in read.values()} == {1}
    (first, second) = read.values()
    assert first.prompt_last == pytest.approx(second.prompt_last, abs=1e-4), "a projection ignores the vector's length"
    assert project(model, "Say tea.", -along).prompt_last == pytest.approx(
        -project(model, ASKED, along).prompt_last, abs=1e-4
    )


def test_characters_of_several_tokens_stay_whole() -> None:
    chat = tiny_chat.build()  # its tokens are bytes
    texts = token_texts(chat, chat.encode("né 茶!"))
    assert "".join(texts) == "né 茶!" and "�" not in texts and texts[0] == "n"


def test_it_shows_itself_and_escapes(model: ChatModel, along: PersonaVector) -> None:
    read = project(model, SAID, along)
    assert repr(read).startswith(f"Projection(tiny at layer {LAYER}: prompt last ")
    shown = read._repr_html_()
    assert "<b>rain" not in shown and "&amp;" in shown and shown.count("background:rgba") == len(read.tokens or ())


def test_bad_objects_are_one_line(model: ChatModel, along: PersonaVector, unchecked: None) -> None:
    other = tiny.vector(tiny.build("llama", seed=1), layer=LAYER)
    cases: list[tuple[Any, Any, dict[str, Any], Any, str]] = [
        (SAID, other, {}, VectorError, "extract it from this model"),
        (SAID, along, {"layer": 99}, VectorError, "expected a layer from 0 to"),
        (SAID, tiny.vector(model), {}, ConfigError, "pass layer="),
        (SAID, [along, along], {}, ConfigError, "expected different vectors"),
        (SAID, [], {}, ConfigError, "expected persona vectors or their files, got none"),
        (SAID, [3], {}, VectorError, "expected persona vectors or their files, got 3"),
        ([], along, {}, DataError, "expected turns with role and content"),
        (["hello"], along, {}, DataError, "expected turns with role and content"),
        ([{"role": "system", "content": "Be."}], along, {}, DataError, "turn last, got system"),
        ([{"role": "user", "content": "a" * 999}], along, {}, DataError, "fits into 256 tokens"),
    ]
    for messages, vector, options, kind, text in cases:
        with pytest.raises(kind) as error:
            project(model, messages, vector, **options)
        assert text in str(error.value) and "\n" not in str(error.value)
    assert tiny.hooks(model) == 0
