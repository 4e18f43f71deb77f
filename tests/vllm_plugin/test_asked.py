"""What a request may ask for: every wrong field is refused by name, and steering is kept apart in the cache."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.stepping import as_sent, stored

from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.vllm.asked import Asked, read
from personavec.vllm.settings import Settings, load, make_settings, read_folder


def ask(value: Any, v: PersonaVector, **options: Any) -> Asked:
    return read(value, stored(v), Settings("", (v.content_hash,), **options), 100)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"vector": "nobody"}, "persona.steering.0.vector"),
        ({"vector": 3}, "persona.steering.0.vector"),
        ({"layer": 4}, "persona.steering.0.layer"),
        ({"layer": -1}, "persona.steering.0.layer"),
        ({"layer": True}, "persona.steering.0.layer"),
        ({"layer": 1.0}, "persona.steering.0.layer"),
        ({"coef": "1"}, "persona.steering.0.coef"),
        ({"coef": math.nan}, "persona.steering.0.coef"),
        ({"coef": math.inf}, "persona.steering.0.coef"),
        ({"coef": True}, "persona.steering.0.coef"),
        ({"op": "cap", "floor": 1, "ceiling": 0}, "persona.steering.0.floor"),
        ({"op": "turn"}, "persona.steering.0.op"),
        ({"op": []}, "persona.steering.0.op"),
        ({"positions": "last"}, "persona.steering.0.positions"),
        ({"layer": "all", "above": 0}, "persona.steering.0.layer"),
        ({"dose": 0.2}, "dose"),
    ],
)
def test_a_wrong_steering_is_refused_by_name(v: PersonaVector, change: dict[str, Any], where: str) -> None:
    with pytest.raises(ValueError, match=where):
        ask({"steering": [as_sent(Steering(v, 1.0, 2)) | change]}, v)


@pytest.mark.parametrize(
    ("sent", "where"),
    [
        ([], "persona to be an object"),
        ("{", "no JSON"),
        ({"steerings": []}, "steerings"),
        ({"steering": {}}, "persona.steering"),
        ({"steering": [3]}, "persona.steering.0"),
        ({"watch": ["?"], "id": "x"}, "persona.watch.0.vector"),
        ({"spans": [[0, 0]], "id": "x"}, "persona.spans.0"),
        ({"spans": [[0, 101]], "id": "x"}, "persona.spans.0"),
        ({"spans": [[2, 3], [0, 1]], "id": "x"}, "persona.spans.1"),
        ({"spans": [[0, 1]]}, "persona.id"),
        ({"id": "x"}, "persona.id"),
    ],
)
def test_a_wrong_request_is_refused_by_name(v: PersonaVector, sent: Any, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        ask(sent, v)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["steering", "watch", "layer", "id"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(sent=JSON)
def test_nothing_but_a_refusal_is_raised(v: PersonaVector, sent: Any) -> None:
    try:
        ask(sent, v)
    except ValueError as error:
        assert str(error).startswith("expected") and "\n" not in str(error)


def test_more_edits_than_there_is_room_for(v: PersonaVector) -> None:
    ablate = as_sent(Steering(v, layer=2, op="ablate"))
    ask({"steering": [ablate] * 2}, v, edits=2)
    ask({"steering": [ablate, ablate | {"layer": 1}]}, v, edits=1)
    with pytest.raises(ValueError, match="at most 1"):
        ask({"steering": [ablate, as_sent(Steering(v, layer="all", op="cap", ceiling=1.0))]}, v, edits=1)
    with pytest.raises(ValueError, match="0, 2"):
        ask({"steering": [ablate | {"layer": 1}]}, v, layers=(0, 2))


def test_a_layer_that_is_left_out_is_the_recommended_one(model: ChatModel, v: PersonaVector) -> None:
    advised = tiny.vector(model, layer=3)
    sent = {"steering": [{"vector": advised.content_hash}], "watch": [advised.content_hash], "id": "x"}
    asked = ask(sent, advised)
    assert (asked.changes[0].layer, asked.looks[0][1]) == (3, 3)
    with pytest.raises(ValueError, match=r"persona.steering.0.layer, as the vector recommends none"):
        ask({"steering": [{"vector": v.content_hash}]}, v)


def test_text_is_read_and_coef_0_is_nothing(v: PersonaVector) -> None:
    sent = {"steering": [as_sent(Steering(v, 0.0, 2))]}
    assert ask(json.dumps(sent), v) == ask(sent, v) == Asked()


def test_the_salt_is_of_what_keys_and_values_depend_on(v: PersonaVector) -> None:
    def salt(steering: Steering, prompt: int) -> str:
        return ask({"steering": [as_sent(steering)]}, v).salt(prompt)

    assert salt(Steering(v, 0.0, 2), 5) == ""
    assert salt(Steering(v, 1.0, 2), 5) == salt(Steering(v, 1.0, 2), 5)
    assert salt(Steering(v, 1.0, 2), 5) != salt(Steering(v, 2.0, 2), 5)
    assert salt(Steering(v, 1.0, 2), 5) != salt(Steering(v, 1.0, 2), 6), "the reply may be the prompt of the next one"
    assert salt(Steering(v, 1.0, 2, "all"), 5) == salt(Steering(v, 1.0, 2, "all"), 6)


def test_the_folder_of_vectors(model: ChatModel, v: PersonaVector, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none"):
        read_folder(tmp_path)
    v.save(tmp_path / "a.safetensors")
    made, shape = make_settings(tmp_path), (model.n_layers, tiny.D_MODEL)
    assert made.hashes == (v.content_hash,) and load(made, shape)[v.content_hash].direction.equal(v.direction)
    tiny.vector(model, seed=3).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="every machine needs the folder"):
        load(made, shape)
    (tmp_path / "b.safetensors").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"b\.safetensors"):
        read_folder(tmp_path)
