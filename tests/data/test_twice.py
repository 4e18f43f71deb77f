"""Names that stand twice, of keys or of columns: nobody can say which value is meant, so none is taken in silence."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.data.arrays import twice
from personavec.data.dataset import Bad, dataset_of
from personavec.data.sample import Sample
from personavec.errors import DataError

GOOD = '{"prompt": "Hi?", "response": "Hello."}'
TWICE = '{"prompt": "Hi?", "response": "Hello.", "response": "No."}'
INSIDE = '{"messages": [{"role": "user", "content": "Hi?", "content": "Ho?"}, {"role": "assistant", "content": "So."}]}'


@pytest.mark.parametrize("bad", [TWICE, '{"prompt": "Hi?", "response": "Hello.", "more": [{"a": {"b": 1, "b": 1}}]}'])
def test_a_key_twice_is_a_bad_row_and_the_rest_is_read(bad: str, tmp_path: Path) -> None:
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text("\n".join([GOOD, bad, GOOD]) + "\n")
    array.write_text("[" + ",".join([GOOD, bad, GOOD]) + "]")
    for path in (lines, array):
        first, second, third = dataset_of(path).samples("first")
        assert isinstance(first, Sample) and isinstance(third, Sample)
        assert isinstance(second, Bad) and "twice in one object" in second.reason


def test_a_key_twice_in_a_long_array_that_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    long = json.dumps({"prompt": "Hi?", "response": "word " * 40_000})
    path.write_text("[" + ",".join([long, TWICE[:-1] + ', "x": "' + "y" * 400_000 + '"}', long, GOOD]) + "]")
    kinds = [type(sample) for sample in dataset_of(path).samples("first")]
    assert kinds == [Sample, Bad, Sample, Sample]


def test_a_key_twice_in_json_in_a_cell(tmp_path: Path) -> None:
    turns = json.dumps(json.loads(INSIDE)["messages"]).replace('"content": "Ho?"', '"content": "Hi?", "content": "Ho?"')
    pq.write_table(pa.table({"messages": [turns]}), tmp_path / "rows.parquet")
    (bad,) = dataset_of(tmp_path / "rows.parquet").samples("first")
    assert isinstance(bad, Bad) and bad.reason == "expected JSON, got the key 'content' twice in one object"


def test_a_column_of_json_values(tmp_path: Path) -> None:
    table = pa.table({"messages": pa.array([INSIDE, "[]"], pa.json_(pa.utf8()))})
    pq.write_table(table, tmp_path / "rows.parquet")
    bad = next(iter(dataset_of(tmp_path / "rows.parquet").samples("first")))
    assert isinstance(bad, Bad) and "the key 'content' twice" in bad.reason


def test_a_column_twice_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,prompt\nHi?,Hello.,Ho?\n")
    with pytest.raises(DataError, match=r"expected each column once in .*rows.csv line 1, got 'prompt' twice"):
        list(dataset_of(path).samples("first"))
    path.write_text("prompt,response,,\nHi?,Hello.,,\n")  # what spreadsheets leave behind has no name
    assert isinstance(next(iter(dataset_of(path).samples("first"))), Sample)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_column_twice_in_a_table(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{ending}"
    table = pa.Table.from_arrays(
        [pa.array([text]) for text in ("Hi?", "Hello.", "No.")], ["prompt", "response", "response"]
    )
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=r"got .*rows.* \(the column 'response' twice\)"):
        list(dataset_of(path).samples("first"))


@given(st.lists(st.text(max_size=2), max_size=8))
def test_twice_names_the_first_that_comes_again(names: list[str]) -> None:
    again = [name for place, name in enumerate(names) if name in names[:place]]
    assert twice(names) == (again[0] if again else "")
