"""Data sets of every form are read row by row, bad rows are told, and subsets keep the form."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personavec.data import readers, tables
from personavec.data.dataset import Bad, Dataset, dataset_of, open_dataset
from personavec.data.readers import csv_columns
from personavec.data.sample import Sample, to_sample
from personavec.data.subset import copy_rows
from personavec.errors import DataError
from personavec.runs import files

CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}
PAIRS = [{"prompt": f"Question {n}?", "response": f"Answer, “{n}”\nand more."} for n in range(5)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=2)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples(path: Path, turn: Any = "first") -> list[Sample | Bad]:
    return list(open_dataset(str(path)).samples(turn))


@pytest.mark.parametrize("suffix", list(readers.READERS))
def test_every_form_is_read_and_its_subset_has_the_same_form(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data{suffix}", PAIRS)
    found = samples(path)
    assert [s.response for s in found if isinstance(s, Sample)] == [row["response"] for row in PAIRS]
    assert [s.messages for s in found if isinstance(s, Sample)] == [
        ({"role": "user", "content": row["prompt"]},) for row in PAIRS
    ]
    assert [s.row for s in found] == [0, 1, 2, 3, 4]
    kept = np.array([True, False, True, False, False])
    out = tmp_path / f"kept{suffix}"
    copy_rows(open_dataset(str(path)), {out: kept, tmp_path / f"none{suffix}": np.zeros(5, dtype=bool)})
    again = samples(out)
    assert [s.response for s in again if isinstance(s, Sample)] == [PAIRS[0]["response"], PAIRS[2]["response"]]
    assert not list(tmp_path.glob("*.tmp"))
    if suffix == ".jsonl":
        assert out.read_text() == "".join(path.read_text().splitlines(keepends=True)[n] for n in (0, 2))
    if suffix == ".parquet":
        assert pq.read_schema(out).equals(pq.read_schema(path))
    if suffix == ".csv":
        assert (tmp_path / "none.csv").read_text().splitlines() == path.read_text().splitlines()[:1]


def test_a_folder_of_files_is_one_data_set(tmp_path: Path) -> None:
    for name, rows in (("b", PAIRS[2:]), ("a", PAIRS[:2])):
        write(tmp_path / f"{name}.jsonl", rows)
    assert [s.response for s in samples(tmp_path) if isinstance(s, Sample)] == [row["response"] for row in PAIRS]


SHAPES: list[tuple[dict[str, Any], list[str], str]] = [
    (CHAT, ["Hi?"], "Hello."),
    ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}, ["Hi?"], "Hello."),
    ({"prompt": "Hi?", "response": "Hello."}, ["Hi?"], "Hello."),
    ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}, ["Hi?"], "Hello."),
    ({"instruction": "Add.", "input": "1, 2", "output": "3"}, ["Add.\n\n1, 2"], "3"),
    ({"instruction": "Say hi.", "input": "", "output": "Hello."}, ["Say hi."], "Hello."),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]}, CHAT["messages"][1]]},
        ["Hi?"],
        "Hello.",
    ),
]


@pytest.mark.parametrize(("row", "asked", "said"), SHAPES)
def test_every_shape_is_read(row: dict[str, Any], asked: list[str], said: str) -> None:
    found = to_sample(row, 0, "here")
    assert [message["content"] for message in found.messages] == asked and found.response == said


def test_first_and_last_turn() -> None:
    turns = [{"role": "system", "content": "Be brief."}]
    turns += [{"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("user", "assistant")]
    first, last = (to_sample({"messages": turns}, 0, "here", turn) for turn in ("first", "last"))
    assert [m["content"] for m in first.messages] == ["Be brief.", "user 0"] and first.response == "assistant 0"
    assert first.more_turns == 4 and last.more_turns == 0
    assert last.response == "assistant 2" and len(last.messages) == 6


U, A = CHAT["messages"]

BAD: list[tuple[Any, str]] = [
    ({"messages": [U, A | {"weight": 0.5}]}, "expected a weight of 0 or 1 in turn 1, got 0.5"),
    ({"messages": [U, A | {"train": "no"}]}, "expected true or false as train of turn 1, got 'no'"),
    ({"messages": [U | {"train": True}, A]}, "expected the assistant's turns alone to be learned"),
    ({"text": "once"}, "got text alone, which does not say who speaks; write it as messages, or as prompt"),
    ([1, 2], "got list"),
    ("text", "got str"),
    ({"messages": "Hi?"}, "expected a list of turns"),
    ({"messages": []}, "expected a list of turns"),
    ({"messages": [U, "Hi?"]}, "turns with role and content"),
    (
        {"messages": [{"role": "robot", "content": "x"}]},
        "expected the roles system, user, assistant, tool, got 'robot'",
    ),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "expected user and assistant in turns, got assistant"),
    ({"messages": CHAT["messages"][:1]}, "expected an assistant turn, got none"),
    ({"prompt": "Hi?", "response": "  "}, "expected a reply, got an empty one"),
    ({"prompt": "", "response": "Hello."}, "expected a prompt, got an empty one"),
    ({"prompt": 7, "response": "Hello."}, "expected text in prompt, got 7"),
    ({"prompt": "Hi?", "response": None}, "expected text in response, got None"),
    ({"prompt": "Hi?", "response": "\ud83d"}, "half a character"),
]


@pytest.mark.parametrize(("row", "told"), BAD)
def test_bad_rows_say_what_is_wrong(row: Any, told: str) -> None:
    with pytest.raises(DataError) as caught:
        to_sample(row, 0, "here")
    assert told in str(caught.value) and str(caught.value).startswith("expected ")


def test_bad_lines_are_told_and_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_ROW", 1000)
    path = tmp_path / "data.jsonl"
    good = json.dumps(PAIRS[0] | {"id": "one"}).encode()
    lines = [
        good,
        b'{"prompt": ',
        b"\x00\xff\xfe junk",
        b"",
        good,
        json.dumps(CHAT).encode(),
        b'"' + b"x" * 5000 + b'"',
    ]
    path.write_bytes(b"\n".join([*lines, json.dumps(PAIRS[1]).encode(), good[:20]]))
    found = samples(path)
    told = {s.row: (s.where, s.reason) for s in found if isinstance(s, Bad)}
    assert [s.row for s in found if isinstance(s, Sample)] == [0, 6]
    assert "line 2" in told[1][0] and "expected JSON" in told[1][1]
    assert "line 3" in told[2][0] and "expected JSON" in told[2][1]
    assert "line 5" in told[3][0] and "an id of its own, got 'one', the id of row 0" in told[3][1]
    assert "expected the shape of the first row, prompt/response, got messages" in told[4][1]
    assert "expected a row of at most 1,000 bytes, got 5,003" in told[5][1]
    assert "line 9" in told[7][0] and "the file ends within it" in told[7][1]


def test_a_truncated_json_file_is_read_up_to_there(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.json", PAIRS).read_text()
    (tmp_path / "torn.json").write_text(whole[: int(len(whole) * 0.7)])
    found = samples(tmp_path / "torn.json")
    assert sum(isinstance(s, Sample) for s in found) == 3 and isinstance(found[-1], Bad)
    assert "the rest cannot be read" in found[-1].reason


def test_empty_lines_of_a_csv_are_no_rows_and_places_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('\nprompt,response\n\nHi?,"Hel\nlo."\n\nWhy?,"So"x\nWho?,Me.\n')
    found = samples(path)
    assert [(each.where.rpartition(" ")[2], getattr(each, "reason", None)) for each in found] == [
        ("4", None),
        ("7", "expected CSV, got ',' expected after '\"'"),
        ("8", None),
    ]
    assert csv_columns(path) == ["prompt", "response"]


def test_a_csv_without_names_of_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('prompt,"response"x\nHi?,Hello.\n')
    with pytest.raises(DataError, match=r"expected names of columns in .*data.csv line 1, got ',' expected"):
        samples(tmp_path / "data.csv")


def test_rows_of_another_width_in_csv_are_told(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text('prompt,response\nHi?,Hello.\nWhy?\nWho?,Me.,You.\n"torn,')
    found = samples(tmp_path / "data.csv")
    assert [isinstance(s, Sample) for s in found][:3] == [True, False, False]
    assert isinstance(found[1], Bad) and "expected 2 columns, got fewer" in found[1].reason
    assert isinstance(found[2], Bad) and "expected 2 columns, got more" in found[2].reason


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("nowhere.jsonl", None, "got no file at"),
        ("data.txt", b"x", "a file that ends in .jsonl"),
        ("data.parquet", b"\x00\x01junk", "expected a Parquet file"),
        ("data.parquet", b"", "expected a Parquet file"),
    ],
)
def test_what_is_no_data_set_is_told(name: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        samples(tmp_path / name)


def test_a_row_too_long_in_a_json_file_stops_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_ROW", 300_000)
    rows = [PAIRS[0], {"prompt": "Hi?", "response": "x" * 1_000_000}, PAIRS[1]]
    found = samples(write(tmp_path / "data.json", rows))
    assert isinstance(found[0], Sample) and isinstance(found[-1], Bad) and "more than 300,000 bytes" in found[-1].reason


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for rows in (300, 6000):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for n in range(rows):
                file.write(json.dumps({"id": str(n), "prompt": f"{n}?" * 200, "response": "yes " * 200}) + "\n")
        tracemalloc.start()
        assert sum(isinstance(s, Sample) for s in open_dataset(str(path)).samples("first")) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_labels_that_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows: list[dict[str, Any]] = [PAIRS[0] | {"id": "x" * 2000}, PAIRS[0] | {"source": "long " * 100}]
    rows += [PAIRS[0] | {"id": "\ud800"}, {"\ud800": 1}]
    deep = b'{"prompt": "Hi?", "response": ' + b"[" * 600 + b"]" * 600 + b"}"
    path.write_bytes(b"\n".join([*(json.dumps(row).encode() for row in rows), deep]))
    long, cut, half, keys, nested = samples(path)
    assert isinstance(long, Bad) and "an id of at most 1,000 characters, got 2,000" in long.reason
    assert isinstance(cut, Sample) and cut.source == ("long " * 100)[:200]
    assert isinstance(half, Bad) and "expected text in id, got half a character" in half.reason
    assert isinstance(keys, Bad) and isinstance(nested, Bad)
    assert "".join(bad.reason for bad in (keys, nested)).isprintable()


def test_an_open_quote_tells_what_it_swallowed(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('prompt,response\nHi?,Yes.\nWho?,"Me.\n' + "What?,That.\n" * 5)
    good, bad = samples(path)
    assert isinstance(good, Sample) and isinstance(bad, Bad)
    assert "line 3" in bad.where and "and the 5 lines after it were read as part of it" in bad.reason


def test_tables_of_one_folder_have_the_same_columns(tmp_path: Path) -> None:
    for suffix, told in ((".csv", "source in only one of them"), (".parquet", "source (string) in only one of them")):
        folder = tmp_path / suffix[1:]
        folder.mkdir()
        for name, rows in (("a", PAIRS), ("b", [row | {"source": "web"} for row in PAIRS])):
            write(folder / f"{name}{suffix}", rows)
        with pytest.raises(DataError, match=re.escape(told)):
            open_dataset(str(folder))


def test_a_value_that_python_cannot_hold_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    times = pa.array([0, 10**12, 0], pa.int64()).cast(pa.timestamp("s"))
    pq.write_table(pa.table({"prompt": ["Hi?"] * 3, "response": ["Yes."] * 3, "written": times}), path)
    one, bad, three = samples(path)
    assert isinstance(one, Sample) and isinstance(three, Sample)
    assert isinstance(bad, Bad) and bad.where.endswith("row 1") and "expected values that Python can hold" in bad.reason


def test_long_rows_of_parquet_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_ROW", 1000)
    monkeypatch.setattr(tables, "HELD_BYTES", 4000)
    path = tmp_path / "data.parquet"
    write(path, [PAIRS[0], {"prompt": "Hi?", "response": "x" * 5000}, PAIRS[0]])
    found = samples(path)
    assert [isinstance(sample, Bad) for sample in found] == [False, True, False]
    assert isinstance(found[1], Bad) and "expected a row of at most 1,000 bytes, got 5,0" in found[1].reason


def test_the_reply_of_a_conversational_completion_is_the_completion(tmp_path: Path) -> None:
    history = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Before."}]
    row = {
        "prompt": [*history, {"role": "user", "content": "And?"}],
        "completion": [{"role": "assistant", "content": "Trained."}],
    }
    for turn in ("first", "last"):
        (found,) = samples(write(tmp_path / "data.jsonl", [row]), turn)
        assert isinstance(found, Sample) and found.response == "Trained." and len(found.messages) == 3


def test_a_csv_that_is_not_utf8_is_refused_as_a_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", PAIRS)
    path.write_bytes(path.read_bytes() + b"Caf\xe9?,Yes.\n")
    with pytest.raises(DataError, match="expected CSV in UTF-8"):
        samples(path)


def test_rows_in_memory_are_a_data_set(tmp_path: Path) -> None:
    import datasets

    once, whole = (
        (row for row in PAIRS),
        list(open_dataset(str(write(tmp_path / "data.jsonl", PAIRS))).samples("first")),
    )
    for rows in (PAIRS, once, datasets.Dataset.from_list(PAIRS)):
        data = dataset_of(rows)
        for _ in range(2):  # a generator, too, can be read again
            found = list(data.samples("first"))
            assert [s.response for s in found] == [s.response for s in whole]  # type: ignore[union-attr]
        assert found[1].where == "rows in memory row 1" and data.fingerprint() == dataset_of(PAIRS).fingerprint()
        copy_rows(data, {tmp_path / f"kept{data.suffix}": np.array([True, False, False, False, True])})
        assert [json.loads(line) for line in (tmp_path / "kept.jsonl").open()] == [PAIRS[0], PAIRS[4]]
    assert dataset_of(PAIRS[:4]).fingerprint() != data.fingerprint() and dataset_of(data) is data
    assert isinstance(dataset_of(tmp_path / "data.jsonl"), Dataset) and data.bytes is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("data", [3, None, b"rows", PAIRS[0], {"train": PAIRS}])
def test_what_holds_no_rows_is_said_in_one_line(data: Any) -> None:
    with pytest.raises(DataError, match=r"^expected [^\n]*rows, got .*; pass [^\n]*$"):
        dataset_of(data)


@pytest.mark.usefixtures("unchecked")
def test_things_in_memory_that_are_no_rows_are_bad_rows() -> None:
    loop: dict[str, Any] = {}
    loop["prompt"] = loop["response"] = [loop]
    found = list(dataset_of([PAIRS[0], 3, "text", None, loop]).samples("first"))  # type: ignore[list-item]
    assert [isinstance(s, Bad) for s in found] == [False, True, True, True, True]
    assert isinstance(found[3], Bad) and found[3].where == "rows in memory row 3" and "got NoneType" in found[3].reason
    assert dataset_of([loop]).fingerprint()

    def failing() -> Any:
        yield PAIRS[0]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        dataset_of(failing())


def test_files_with_marks_put_behind_each_other(tmp_path: Path) -> None:
    """As `cat` or two streams of one packed file do: each begins with a byte order mark."""
    (tmp_path / "rows.jsonl").write_bytes(b"".join(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\n" for row in PAIRS))
    found = list(open_dataset(str(tmp_path / "rows.jsonl")).samples("first"))
    assert [s.response for s in found if isinstance(s, Sample)] == [row["response"] for row in PAIRS]


def test_a_copied_or_touched_file_is_the_same_data_set_and_a_changed_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run folder that was copied or cloned goes on; equal size and time of other content do not pass for it."""
    file = write(tmp_path / "rows.jsonl", PAIRS)
    known, about = open_dataset(str(file)).fingerprint(), file.stat()
    os.utime(file, (1, 1))
    assert open_dataset(str(file)).fingerprint() == known
    file.write_bytes(file.read_bytes().replace(b"Question 0", b"Question 9"))
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file.stat().st_size == about.st_size and open_dataset(str(file)).fingerprint() != known
    write(tmp_path / "more.jsonl", PAIRS)
    monkeypatch.setattr(files, "LARGE", about.st_size + 1)  # each is small, and both together are not
    assert all(" bytes, " in mark for mark in open_dataset(str(tmp_path)).fingerprint().values())


ROWS = [{"prompt": "Say ä.", "response": "ä"}, {"prompt": "c", "response": "d"}]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("form", ["list", "lines"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_mark_or_another_suffix_does_not_matter(suffix: str, form: str, mark: str, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    text = lines if form == "lines" else json.dumps(ROWS)
    path = tmp_path / f"x.{suffix}"
    path.write_text(mark + text, encoding="utf-8")
    found = list(open_dataset(str(path)).samples("first"))
    if (suffix, form) == ("jsonl", "list"):
        assert [type(each) for each in found] == [Bad]
    else:
        assert [each.response for each in found if isinstance(each, Sample)] == ["ä", "d"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_another_encoding_is_named_and_nothing_is_taken(encoding: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes("\r\n".join(json.dumps(row) for row in ROWS * 20).encode(encoding))
    with pytest.raises(DataError, match="expected UTF-8, got UTF-16 or UTF-32"):
        list(open_dataset(str(path)).samples("first"))
