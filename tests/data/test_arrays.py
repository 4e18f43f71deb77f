"""A list of rows in one JSON document is read as its rows would be one by one."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.data import arrays
from personavec.data.dataset import Bad, open_dataset
from personavec.data.sample import Sample

ROWS = [{"prompt": f"Say tea {number}.", "response": f"tea and {number}!"} for number in range(40)]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def read(path: Path, text: str | bytes) -> list[Any]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(open_dataset(str(path)).samples("first"))


@given(st.lists(VALUES), st.sampled_from([None, 1]), st.integers(1, 9))
def test_items_are_those_of_the_whole_document_wherever_it_is_cut(values: list[Any], indent: Any, block: int) -> None:
    text = json.dumps(values, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(arrays, "BLOCK", block)
        got = list(arrays.items(io.BufferedReader(io.BytesIO(text)), 10**6))
    assert got == json.loads(text)


@given(st.lists(VALUES, min_size=1), st.data())
def test_a_document_that_is_cut_or_goes_on_is_no_array(values: list[Any], data: Any) -> None:
    text = json.dumps(values).encode()
    for torn in (text[: data.draw(st.integers(0, len(text) - 1))], text + b"]", text + b" 5"):
        with pytest.raises(ValueError):
            list(arrays.items(io.BufferedReader(io.BytesIO(torn)), 10**6))


@pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775809", "1e400", "9" * 5000, "-0", "NaN"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_number_that_nobody_asks_for_ends_no_file(number: str, suffix: str, tmp_path: Path) -> None:
    lines = [json.dumps(row | {"hash": "?"}) for row in ROWS]
    lines[3] = lines[3].replace('"?"', number)
    text = "\n".join(lines) if suffix == ".jsonl" else "[" + ",".join(lines) + "]"
    got = read(tmp_path / f"rows{suffix}", text)
    assert [each.response for each in got if isinstance(each, Sample)] == [row["response"] for row in ROWS]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_half_a_character_is_refused_and_never_replaced(suffix: str, tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS[:3]]
    lines[1] = lines[1].replace("Say", "\\ud800")
    text = "\n".join(lines) if suffix == ".jsonl" else "[" + ",".join(lines) + "]"
    first, second, third = read(tmp_path / f"rows{suffix}", text)
    assert isinstance(first, Sample) and isinstance(third, Sample)
    assert isinstance(second, Bad) and "half a character" in second.reason


def test_rows_before_what_is_no_json_are_read(tmp_path: Path) -> None:
    text = json.dumps(ROWS).encode().replace(b"tea 3.", b"tea \xff")
    got = read(tmp_path / "rows.json", text)
    assert [type(each) for each in got] == [Sample, Sample, Sample, Bad]
    assert "the rest cannot be read" in got[-1].reason


@pytest.mark.parametrize("history", [5, 0.5, "text", {"a": 1}, [5], [["a"]], [["a", 5]]])
def test_a_history_that_is_none_costs_its_row_alone(history: Any, tmp_path: Path) -> None:
    rows = [{"instruction": "Hi", "output": "Hello.", "history": []}, {"instruction": "Hi", "output": "Yes."}]
    rows[0]["history"] = history
    bad, good = read(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert isinstance(bad, Bad) and "history" in bad.reason
    assert isinstance(good, Sample)


def test_a_column_of_json_spells_numbers_of_any_length(tmp_path: Path) -> None:
    rows = [json.dumps({"role": role, "content": "Hi", "n": 1}) for role in ("user", "assistant")]
    turns = pa.array([[row.replace("1", "9" * 5000) for row in rows]], pa.list_(pa.string())).flatten()
    column = pa.ListArray.from_arrays([0, 2], pa.ExtensionArray.from_storage(pa.json_(), turns))
    pq.write_table(pa.table({"messages": column}), tmp_path / "rows.parquet")
    (sample,) = open_dataset(str(tmp_path / "rows.parquet")).samples("first")
    assert isinstance(sample, Sample) and sample.response == "Hi"
