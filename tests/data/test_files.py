"""The same rows mean the same in every file: packed, of Arrow, of `datasets`; of a folder all is read or named."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personavec.data.dataset import Bad, open_dataset
from personavec.data.sample import Sample
from personavec.data.subset import copy_rows
from personavec.errors import DataError

U, A = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
ROWS = [
    {"messages": [U, A]},
    {"messages": [{"role": "user", "content": "w?", "name": "bob"}, {"role": "assistant", "content": "Sunny."}]},
    {"messages": [U, A | {"weight": 0}, U, {"role": "assistant", "content": "Ä “quoted”\nline.", "weight": 1}]},
]
SAID = ["Hello.", "Sunny.", "Ä “quoted”\nline."]


def zstd(text: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(text)
    return bytes(sink.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd
}  # fmt: skip


def said(path: Path) -> list[str | None]:
    """The replies; None for a row that cannot be used."""
    found = list(open_dataset(str(path)).samples("first"))
    assert [sample.row for sample in found] == list(range(len(found)))
    return [sample.response if isinstance(sample, Sample) else None for sample in found]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, datasets.Dataset]:
    """Chats whose turns have differing keys, which `datasets` holds as JSON."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "rows.jsonl").write_bytes(lines(ROWS))
    held = datasets.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder))
    held.to_parquet(folder / "het.parquet")
    held.save_to_disk(folder / "saved", num_shards=2)
    datasets.DatasetDict({"train": held, "test": held}).save_to_disk(folder / "splits")
    return folder, held


def test_json_values_of_arrow_columns_are_read(differing: tuple[Path, datasets.Dataset]) -> None:
    folder, held = differing
    assert "arrow.json" in str(pq.read_schema(folder / "het.parquet"))
    assert said(folder / "het.parquet") == said(folder / "saved") == SAID
    assert list(open_dataset(str(folder / "het.parquet")).rows())[1].value == held[1]
    assert said(next((folder / "saved").glob("*.arrow"))) == SAID[:2]


@pytest.mark.parametrize("name", ["het.parquet", "saved"])
def test_their_subsets_keep_the_schema(name: str, differing: tuple[Path, datasets.Dataset], tmp_path: Path) -> None:
    data = open_dataset(str(differing[0] / name))
    kept = tmp_path / f"kept{data.suffix}"
    copy_rows(data, {kept: np.array([False, True, True])})
    assert said(kept) == SAID[1:]
    rows = datasets.load_dataset(data.suffix[1:], data_files=str(kept), split="train", cache_dir=str(tmp_path))
    assert [rows[place] for place in range(2)] == [differing[1][1], differing[1][2]]


def test_a_folder_of_splits_says_which_there_are(differing: tuple[Path, datasets.Dataset]) -> None:
    with pytest.raises(DataError, match=r"got the splits test, train in .*splits; pass the folder of one"):
        open_dataset(str(differing[0] / "splits"))
    assert said(differing[0] / "splits" / "test") == SAID


def test_a_save_to_disk_folder_without_a_file_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d", num_shards=3)
    (tmp_path / "d" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"got no data-00001-of-00003\.arrow"):
        open_dataset(str(tmp_path / "d"))


def test_a_line_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a",}\n')
    _, bad = open_dataset(str(tmp_path / "x.jsonl")).samples("first")
    assert isinstance(bad, Bad) and bad.where.endswith("x.jsonl line 2")
    assert bad.reason.startswith("expected JSON, got ") and bad.reason.endswith(" at column 16"), bad.reason


def test_json_that_is_none_costs_its_row_alone(tmp_path: Path) -> None:
    texts = ['[{"role":"user","content":"Hi"},{"role":"assistant","content":"Yes."}]', "[{", None, "[" * 100_000]
    held = pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))
    pq.write_table(pa.table({"messages": held}), tmp_path / "x.parquet")
    found = list(open_dataset(str(tmp_path / "x.parquet")).samples("first"))
    assert [isinstance(each, Bad) for each in found] == [False, True, True, True]
    assert isinstance(found[1], Bad) and "expected JSON in a column of JSON" in found[1].reason


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, max_size=4))
def test_json_is_read_wherever_it_is(tmp_path_factory: pytest.TempPathFactory, held: list[Any]) -> None:
    texts = [json.dumps(value) for value in held] + [None]
    inner = pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))
    struct = pa.StructArray.from_arrays([inner, pa.array(range(len(texts)))], ["json", "plain"])
    path = tmp_path_factory.mktemp("json") / "x.parquet"
    listed = pa.LargeListArray.from_arrays([0, len(texts)], struct)
    pq.write_table(pa.table({"a": pa.ListArray.from_arrays([0, 1], listed), "b": inner[:1], "c": ["{}"]}), path)
    (row,) = open_dataset(str(path)).rows()
    values = [*held, None]
    assert row.value["a"] == [[{"json": value, "plain": place} for place, value in enumerate(values)]]
    assert (row.value["b"], row.value["c"]) == (values[0], "{}")


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv"])
def test_packed_files_are_read(suffix: str, packing: str, tmp_path: Path) -> None:
    pairs = [{"prompt": f"{n}?", "response": f"Ä {n}."} for n in range(5)]
    csv = "\ufeffprompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in pairs)
    text = {".json": json.dumps(pairs).encode(), ".csv": csv.encode()}.get(suffix, lines(pairs))
    path = tmp_path / f"x{suffix}{packing}"
    path.write_bytes(PACK[packing](text))
    assert said(path) == [row["response"] for row in pairs]
    data = open_dataset(str(path))
    assert data.suffix == suffix
    copy_rows(data, {tmp_path / f"kept{suffix}": np.arange(5) > 2})
    assert said(tmp_path / f"kept{suffix}") == ["Ä 3.", "Ä 4."]


@pytest.mark.parametrize("packing", PACK)
def test_a_torn_packed_file_counts_what_it_lost(packing: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"prompt": "?", "response": "".join(map(chr, rng.integers(97, 123, 2000)))} for _ in range(300)]
    whole = PACK[packing](lines(rows))
    (tmp_path / f"x.jsonl{packing}").write_bytes(whole[: len(whole) // 2])
    *read, last = open_dataset(str(tmp_path / f"x.jsonl{packing}")).samples("first")
    assert isinstance(last, Bad) and f"expected a whole {packing} file" in last.reason
    assert "the rest cannot be read" in last.reason
    assert all(isinstance(each, Sample) for each in read) and len(read) < 300
    (tmp_path / f"y.jsonl{packing}").write_bytes(b"no packed file")
    (bad,) = open_dataset(str(tmp_path / f"y.jsonl{packing}")).samples("first")
    assert isinstance(bad, Bad) and f"expected a whole {packing} file" in bad.reason


def test_of_a_folder_every_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS[:1]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[1:2])))
    (tmp_path / "c.json").write_text(json.dumps(ROWS[2:]))
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "d.parquet")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("...")
    (tmp_path / ".e.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "more.jsonl").mkdir()
    assert said(tmp_path) == [*SAID, SAID[0]]
    shown = " ".join(capsys.readouterr().err.split())
    assert "as one data set: a.jsonl, b.jsonl.gz, c.json, d.parquet" in shown
    assert f"not read in {tmp_path}: .e.jsonl, README.md, dataset_infos.json, more.jsonl/" in shown
    data = open_dataset(str(tmp_path))
    assert data.suffix == ".jsonl"
    copy_rows(data, {tmp_path / "more.jsonl" / "kept.jsonl": np.arange(4) > 1})
    assert said(tmp_path / "more.jsonl") == [SAID[2], SAID[0]]


@pytest.mark.parametrize("name", ["b.zip", "b.parquet.gz", "b.txt.zst", "b.tar"])
def test_a_packed_file_that_cannot_be_read_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / name).write_bytes(b"...")
    with pytest.raises(DataError, match=f"got {name}; unpack it"):
        open_dataset(str(tmp_path))
    with pytest.raises(DataError, match="expected a file that ends in"):
        open_dataset(str(tmp_path / name))


def test_a_folder_without_data_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got an empty one"):
        open_dataset(str(tmp_path))
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="got data/ in"):
        open_dataset(str(tmp_path))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_broken_arrow_file_is_no_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, (table := pa.Table.from_pylist(ROWS)).schema) as file:
        file.write_table(table)
    torn = bytearray(bytes(sink.getvalue()))
    for _ in range(data.draw(st.integers(1, 8))):
        torn[data.draw(st.integers(0, len(torn) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("torn") / "x.arrow"
    path.write_bytes(bytes(torn[: data.draw(st.integers(0, len(torn)))]))
    try:
        said(path)
    except DataError as error:
        assert "expected an Arrow file" in str(error)


@pytest.mark.parametrize("at", [5, 9, 14])
def test_a_changed_byte_of_a_page_with_a_checksum_is_found(at: int, tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {n}", "response": "secret " * 9} for n in range(8)]
    options = {"compression": "none", "write_page_checksum": True, "use_dictionary": False, "write_statistics": False}
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    assert [sample.response for sample in open_dataset(str(path)).samples("first")] == ["secret " * 9] * 8
    data = bytearray(path.read_bytes())
    data[data.index(b"secret") + at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="checksum"):
        list(open_dataset(str(path)).samples("first"))
