"""Laws of persona vectors: arithmetic, the file, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import IA3Config, VeraConfig, get_peft_model
from safetensors.torch import save_file
from support import tiny

from personavec.errors import ConfigError, PersonavecError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.model.identity import ModelIdentity
from personavec.steering.notation import parse_steering
from personavec.steering.projection import projection, unit
from personavec.steering.steer import Steering
from personavec.steering.vector import Card, PersonaVector, load_vector, packaged_vectors

IDENTITY = ModelIdentity("tiny", "0" * 64, 3, 5)
CARD = Card(
    "terse", IDENTITY, "response avg", layer=1, coef=2.5, activation_norms=(4.0, 8.0, 16.0), reliability=(0.9,) * 3
)


def made(seed: int = 0, card: Card = CARD) -> PersonaVector:
    return PersonaVector(torch.randn((3, 5), generator=torch.Generator().manual_seed(seed)), card)


def assert_one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value) and str(error.value).startswith("expected ") and ", got" in str(error.value)


# arithmetic


def test_arithmetic_is_that_of_the_numbers() -> None:
    v, w = made(0), made(1)
    assert torch.equal((v + w).direction, v.direction + w.direction)
    assert torch.equal((v - w).direction, v.direction - w.direction)
    assert v * 2 == 2 * v == v + v and (-v) + v == v - v and (v * 4) / 4 == v
    assert v == made(0) and hash(v) == hash(made(0)) and v != w and v != "v"
    assert torch.equal(v.norms, v.direction.norm(dim=-1))


def test_equal_vectors_have_equal_hashes() -> None:
    zero = made() * 0
    assert zero == -zero and hash(zero) == hash(-zero)


@pytest.mark.usefixtures("unchecked")
def test_a_vector_is_float32_on_the_cpu_and_finite() -> None:
    assert PersonaVector(torch.ones(3, 5, dtype=torch.float64), CARD).direction.dtype == torch.float32
    for bad in (torch.ones(5), torch.ones(1, 3, 5), torch.full((3, 5), float("nan")), torch.full((3, 5), float("inf"))):
        with pytest.raises(VectorError) as error:
            PersonaVector(bad, CARD)
        assert_one_line(error)


@pytest.mark.parametrize(
    "other",
    [
        ModelIdentity("tiny", "1" * 64, 3, 5),
        ModelIdentity("wide", "0" * 64, 3, 6),
        ModelIdentity("deep", "0" * 64, 4, 5),
    ],
)
def test_vectors_of_different_models_do_not_mix(other: ModelIdentity) -> None:
    with pytest.raises(VectorError, match=f"expected a vector for {other.id}.*from tiny") as error:
        made().check_model(other)
    assert_one_line(error)
    mate = PersonaVector(torch.ones(other.n_layers, other.d_model), Card("x", other, "response avg"))
    with pytest.raises(VectorError):
        made() + mate
    with pytest.raises(VectorError):
        mate - made()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_dose_and_coef_undo_each_other(layer: int) -> None:
    v = made()
    assert v.coef(layer, v.dose(layer, -1.5)) == pytest.approx(-1.5)
    added = v.coef(layer, 0.5) * v.direction[layer]
    assert float(added.norm()) == pytest.approx(0.5 * CARD.activation_norms[layer])


def test_dose_needs_activation_norms_and_a_direction() -> None:
    with pytest.raises(VectorError, match="give a coef"):
        made(card=Card("terse", IDENTITY, "response avg")).coef(1, 0.5)
    with pytest.raises(VectorError, match="all zeros at layer 1"):
        (made() * 0).coef(1, 0.5)
    for layer in (-1, 3):
        with pytest.raises(VectorError, match="from 0 to 2"):
            made().unit(layer)


# the file


def test_a_saved_vector_loads_as_it_was(tmp_path: Path) -> None:
    path = made().save(tmp_path / "deep" / "er" / "vector.safetensors")
    loaded = load_vector(path)
    assert loaded == made() and loaded.card == CARD and loaded.content_hash == made().content_hash
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    full = Card("t", IDENTITY, "prompt last", details={"counts": {"pos": 3}, "note": "naïve – ok"})
    assert load_vector(made(card=full).save(path)).card == full


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = made().save(tmp_path / "a"), made().save(tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()


def test_changed_numbers_are_refused(tmp_path: Path) -> None:
    path = made().save(tmp_path / "vector.safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(VectorError, match="expected content hash") as error:
        load_vector(path)
    assert_one_line(error)


def test_a_changed_card_is_refused(tmp_path: Path) -> None:
    path = made().save(tmp_path / "vector.safetensors")
    for old, new in ((b"terse", b"verse"), (b"resid_post", b"resid_pre "), (b"2.5", b"9.5")):
        content = path.read_bytes()
        assert old in content
        other = tmp_path / "other.safetensors"
        other.write_bytes(content.replace(old, new))
        with pytest.raises(VectorError, match="expected content hash") as error:
            load_vector(other)
        assert_one_line(error)


def header(**changes: object) -> dict[str, str]:
    card = {
        "trait": "t",
        "model": {"id": "tiny", "revision": "0", "n_layers": 3, "d_model": 5},
        "position": "response avg",
        "activation_norms": [],
        "reliability": [],
        "content_hash": made().content_hash,
    }
    return {"card": json.dumps({k: v for k, v in (card | changes).items() if v != "left out"})}


CARDS = {
    "no metadata": None,
    "no card": {"other": "text"},
    "no json": {"card": "no json"},
    "a list": {"card": "[]"},
    "empty": {"card": "{}"},
    "no model": header(model="left out"),
    "no activation norms": header(activation_norms="left out"),
    "null reliability": header(reliability=None),
    "no position": header(position="left out"),
    "unknown key": header(surprise=1),
    "no hash": header(content_hash="left out"),
    "half a model": header(model={"id": "tiny"}),
}


@pytest.mark.parametrize("metadata", CARDS.values(), ids=CARDS)
def test_a_file_without_a_proper_card_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "vector.safetensors"
    save_file({"direction": made().direction}, path, metadata)
    with pytest.raises(VectorError) as error:
        load_vector(path)
    assert_one_line(error)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vector.safetensors"
    with pytest.raises(VectorError, match="no file"):
        load_vector(path)
    with pytest.raises(VectorError, match="no file"):
        load_vector(tmp_path)
    for content in (b"", b"hello", b"\x00" * 100, made().save(tmp_path / "v").read_bytes()[:-7]):
        path.write_bytes(content)
        with pytest.raises(VectorError, match="expected a persona vector") as error:
            load_vector(path)
        assert_one_line(error)
    save_file({"weight": torch.ones(2, 2)}, path, header())
    with pytest.raises(VectorError):
        load_vector(path)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_no_damage_goes_unnoticed(tmp_path: Path, at: float, flip: int, cut: bool) -> None:
    """A damaged file is refused in words, or says the same in other bytes."""
    path = made().save(tmp_path / "vector.safetensors")
    content = bytearray(path.read_bytes())
    index = int(at * len(content))
    if cut:
        del content[index:]
    else:
        content[index] ^= flip
    path.write_bytes(content)
    try:
        loaded = load_vector(path)
        assert loaded == made() and loaded.card == CARD
    except VectorError:
        pass


# VEC:COEF[@LAYER]


def test_steering_is_read_from_text(tmp_path: Path) -> None:
    path = made().save(tmp_path / "a:b" / "vector.safetensors")
    v = made()
    assert parse_steering(f"{path}:2") == Steering(v, 2.0, 1)
    assert parse_steering(f"{path}:-0.5@2") == Steering(v, -0.5, 2)
    assert parse_steering(f"{path}:1e-1@0") == Steering(v, 0.1, 0)
    assert parse_steering(f"{path}:+1.5@all") == Steering(v, 1.5, "all")
    assert parse_steering(f"{path}:-0.5d@2").coef == pytest.approx(v.coef(2, -0.5))
    assert parse_steering(f"{path}:0.5d").coef == pytest.approx(v.coef(1, 0.5))


BAD = " : :x :1@ :1@x :1@-1 :1@9 :nan :inf@1 :1.2.3@1 :.@1 :0.5d@all :1@1@1 :1e :1dd @1 :--1@1".split(" ")


@pytest.mark.parametrize("ending", BAD)
def test_other_texts_are_refused(tmp_path: Path, ending: str) -> None:
    path = made().save(tmp_path / "vector.safetensors")
    with pytest.raises(PersonavecError) as error:
        parse_steering(f"{path}{ending}")
    assert_one_line(error)


def test_a_layer_must_come_from_somewhere(tmp_path: Path) -> None:
    bare = made(card=Card("terse", IDENTITY, "response avg")).save(tmp_path / "v")
    with pytest.raises(VectorError, match="@LAYER"):
        parse_steering(f"{bare}:1")
    with pytest.raises(ConfigError, match="VEC:COEF"):
        parse_steering("optimistic")
    with pytest.raises(VectorError, match="no file"):
        parse_steering(f"{tmp_path}/missing:1@1")


# reading a direction


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 100))
def test_projection_is_linear_and_ignores_length(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, d = (torch.randn(6, generator=generator) for _ in range(3))
    torch.testing.assert_close(projection(a + 2 * b, d), projection(a, d) + 2 * projection(b, d), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projection(a, scale * d), projection(a, d), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(projection(d, d), d.norm())
    torch.testing.assert_close(projection(a, d), torch.cosine_similarity(a, d, dim=0) * a.norm(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unit(d).norm(), torch.tensor(1.0))


def test_no_direction_cannot_be_projected_on() -> None:
    with pytest.raises(VectorError, match="all zeros"):
        projection(torch.ones(3), torch.zeros(3))


# the model a vector belongs to


def test_the_card_of_a_computed_vector_claims_nothing_of_its_parts() -> None:
    full = dataclasses.replace(CARD, layer=1, coef=2.0, reliability=(1.0, 1.0, 1.0), details={"seed": 0})
    for found, trait in ((2 * made(card=full), "terse"), (made(card=full) - made(1), "terse - terse")):
        assert found.card == dataclasses.replace(full, trait=trait, coef=None, reliability=(), details={})


def test_identity_is_that_of_the_weights(model: ChatModel) -> None:
    assert tiny.build("llama").identity == model.identity
    assert tiny.build("llama", seed=1).identity.revision != model.identity.revision
    assert tiny.build("peft").identity.revision == model.identity.revision, "an adapter does not change the base"
    for adapter in (IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"]), VeraConfig(r=4)):
        adapted = get_peft_model(tiny.build("llama").hf, adapter)
        assert ChatModel(adapted, tiny.tokenizer(), "tiny-llama").identity == model.identity, "of whatever kind"
    rounded = tiny.build("llama").hf.to(torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        same = ChatModel(rounded.to(dtype), tiny.tokenizer(), "tiny-llama")
        assert same.identity == model.identity, "nor does the number format"


def test_the_vectors_that_come_along_are_proven_and_small() -> None:
    assert packaged_vectors()
    for name, path in packaged_vectors().items():
        vector = load_vector(name)
        assert (vector.card.trait, vector.card.model.id) == (name, "smollm2")
        assert vector.card.details["proof"]["verdict"] == "proven" and vector.card.layer is not None
        assert path.stat().st_size < 100_000
        assert parse_steering(f"{name}:0.1d").vector == vector


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(packaged_vectors()))
    made().save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert load_vector(name) == made()
    with pytest.raises(VectorError, match=f"a persona vector file or one of {name}"):
        load_vector("nowhere")
    with pytest.raises(VectorError, match=r"got no file at devot; did you mean devout\?"):
        load_vector("devot")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trait", "a\u0007b"), ("trait", "a\nb"), ("trait", 3), ("layer", "2"), ("layer", 99), ("layer", True),
        ("coef", float("nan")), ("coef", "1"), ("activation_norms", [1.0]), ("activation_norms", [float("nan")] * 4),
        ("reliability", ["x"] * 4), ("details", []), ("details", {"absent_layers": [7]}), ("position", None),
    ],
)  # fmt: skip
def test_every_field_of_a_card_is_checked_when_it_is_read(field: str, value: Any, tmp_path: Path) -> None:
    v = made()
    card = dataclasses.asdict(v.card) | {"content_hash": "", field: value}
    save_file({"direction": v.direction}, tmp_path / "v", metadata={"card": json.dumps(card)})
    with pytest.raises(VectorError, match=rf"^expected a persona vector .*{field}.*pass the vector.safetensors"):
        load_vector(tmp_path / "v")


def test_a_card_that_is_nested_too_deep_or_numbers_of_another_kind(tmp_path: Path) -> None:
    v = made()
    for depth in (5_000, 200_000):
        save_file({"direction": v.direction}, tmp_path / "v", metadata={"card": "[" * depth + "]" * depth})
        with pytest.raises(VectorError, match="expected a persona vector"):
            load_vector(tmp_path / "v")
    card = json.dumps(dataclasses.asdict(v.card) | {"content_hash": ""})
    for dtype in (torch.complex64, torch.float8_e4m3fn, torch.int32):
        save_file({"direction": v.direction.to(dtype)}, tmp_path / "v", metadata={"card": card})
        with pytest.raises(VectorError, match="a direction of torch"):
            load_vector(tmp_path / "v")
