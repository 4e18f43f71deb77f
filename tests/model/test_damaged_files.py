"""Files of models that are cut short, of another form, or declare more than they hold: one line that names them."""

import json
import shutil
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support import tiny

from personavec.errors import ModelError, PersonavecError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.model.layout.gguf_files import BoundedReader, read_gguf
from personavec.verbs.interop.formats import from_gguf

FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors")
DEEP = b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ModelError, match="expected a model folder that transformers loads, got") as caught:
        ChatModel.load(str(folder), device="cpu", dtype="float32")
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600 and all(word in said for word in (*words, str(folder)))


@pytest.mark.parametrize("name", FILES)
def test_a_model_folder_cut_short(name: str, saved: tuple[Path, Path], tmp_path: Path) -> None:
    whole = (saved[0] / name).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"[1, 2]", DEEP):
        shutil.copytree(saved[0], tmp_path / "m", dirs_exist_ok=True)
        (tmp_path / "m" / name).write_bytes(content)
        refused(tmp_path / "m", name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_folder_without_one_of_its_files(name: str, saved: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(saved[0], tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    refused(tmp_path / "m")


def test_weights_that_are_not_all_there_or_not_all_read(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """Transformers makes up what is missing, and leaves out what its configuration has no place for, with a warning."""
    folder = tmp_path / "m"
    shutil.copytree(saved[0], folder)
    config = json.loads((folder / "config.json").read_text())
    for layers, word in ((tiny.N_LAYERS + 1, "it has no weights for"), (tiny.N_LAYERS - 1, "fewer layers than its")):
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        refused(folder, word, "layers.")
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "norm" in name)
    save_file({k: v for k, v in weights.items() if k != gone}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, gone)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "x"),
        ("hidden_size", 64),
        ("hidden_size", 10**30),
        ("num_attention_heads", 0),
        ("vocab_size", 0),
        ("model_type", 5),
        ("hidden_act", "nothing"),
        ("rope_parameters", 7),
        ("dtype", "nothing"),
        ("auto_map", 5),
    ],
)
def test_a_configuration_of_wrong_values(key: str, value: object, saved: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(saved[0], tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {key: value}))
    refused(tmp_path / "m")


@pytest.mark.parametrize("count", [10**9, 10**30])
@pytest.mark.parametrize(
    ("path", "key"), [((), "num_hidden_layers"), ((), "num_local_experts"), (("vision_config",), "depth")]
)
def test_more_modules_than_the_weights_can_fill_are_told_before_they_are_built(
    count: int, path: tuple[str, ...], key: str, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(saved[0], tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = inner = json.loads(file.read_text())
    for name in path:
        inner = inner.setdefault(name, {})
    inner[key] = count
    for text in (json.dumps(config), json.dumps(config, indent=2)):
        file.write_text(text)
        began = time.monotonic()
        refused(tmp_path / "m", "config.json", key, "at the most")
        assert time.monotonic() - began < 5


def test_a_gguf_file_that_declares_more_blocks_than_tensors(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(2**31)
    writer.add_tensor("token_embd.weight", np.zeros((32, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(ModelError, match=r"expected a GGUF file, got .*m.gguf \(it declares 2,147,483,648 blocks"):
        ChatModel.load(str(tmp_path / "m.gguf"), device="cpu", dtype="float32")


HUGE = 2**40


def text(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


def field(kind: int, value: bytes) -> bytes:
    return text(b"general.name") + struct.pack("<I", kind) + value


def written(fields: bytes, kv: int = 1, tensors: int = 0, tail: bytes = b"") -> bytes:
    return (b"GGUF" + struct.pack("<IQQ", 3, tensors, kv) + fields + tail).ljust(1024, b"\0")


ARRAY, STRING, UINT8, UINT64 = 9, 8, 0, 10
TENSOR = struct.pack("<IQIQ", 1, HUGE, 0, 0)
DECLARING: dict[str, bytes] = {
    "an array of numbers": written(field(ARRAY, struct.pack("<IQ", UINT64, HUGE))),
    "an array of bytes": written(field(ARRAY, struct.pack("<IQ", UINT8, HUGE))),
    "an array of texts": written(field(ARRAY, struct.pack("<IQ", STRING, HUGE))),
    "arrays in arrays": written(field(ARRAY, struct.pack("<IQ", ARRAY, HUGE) * 80)),
    "an array of arrays": written(field(ARRAY, struct.pack("<IQIQ", ARRAY, HUGE, UINT8, HUGE))),
    "a text": written(field(STRING, text(b"x", HUGE))),
    "the longest text": written(field(STRING, text(b"x", 2**64 - 1))),
    "a name": written(text(b"x", HUGE)),
    "fields": written(b"", kv=HUGE),
    "tensors": written(b"", kv=0, tensors=HUGE),
    "dimensions": written(b"", 0, 1, text(b"x") + struct.pack("<I", 2**32 - 1)),
    "a tensor": written(b"", 0, 1, text(b"x") + TENSOR),
    "another kind": b"GGUF",
    "nothing": b"",
}


@pytest.mark.parametrize("content", DECLARING.values(), ids=DECLARING)
def test_what_a_gguf_file_declares_is_bounded_by_its_size(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(VectorError) as vector:
        from_gguf(path, tiny.build().identity)
    with pytest.raises(ModelError) as model:
        ChatModel.load(str(path), device="cpu")
    assert time.monotonic() - began < 5
    assert all("\n" not in str(each.value) and str(path) in str(each.value) for each in (vector, model))


def test_arrays_nested_deep_in_a_larger_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(written(field(ARRAY, struct.pack("<IQ", ARRAY, 1) * 20_000)))
    with pytest.raises(ModelError, match="expected a GGUF file, got"):
        read_gguf(path)


def vector_file(path: Path) -> bytes:
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_tensor("direction.1", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@settings(max_examples=60, deadline=2000)
@given(data=st.data())
def test_any_damage_ends_at_once(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever eight bytes of a file hold, and wherever it ends: it is read, or refused in one line."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    whole = bytearray(vector_file(path))
    assert len(BoundedReader(path).tensors) == 1
    at = data.draw(st.integers(0, len(whole) - 8))
    whole[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1) | st.sampled_from([HUGE, 2**63])))
    path.write_bytes(whole[: data.draw(st.just(len(whole)) | st.integers(0, len(whole)))])
    try:
        from_gguf(path, tiny.build().identity)
    except PersonavecError as error:
        assert "\n" not in str(error)
