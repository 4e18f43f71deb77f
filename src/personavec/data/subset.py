"""Files of some rows of a data set, in the form of the data set itself."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from numpy import ndarray

from personavec.data.dataset import Dataset
from personavec.data.readers import Raw, csv_columns
from personavec.data.tables import HELD_ROWS, schema_of
from personavec.runs.files import replacing

Add = Callable[[Raw], Any]
"""Writes one row."""


@contextmanager
def _lines(path: Path, _: Dataset) -> Iterator[Add]:
    """JSONL: the lines as they were."""
    with path.open("wb") as file:

        def add(raw: Raw) -> None:
            line = raw.line or json.dumps(raw.value, ensure_ascii=False, default=str).encode()
            file.write(line if line.endswith(b"\n") else line + b"\n")

        yield add


@contextmanager
def _array(path: Path, _: Dataset) -> Iterator[Add]:
    """JSON: one list."""
    between = "[\n"
    with path.open("w", encoding="utf-8") as file:

        def add(raw: Raw) -> None:
            nonlocal between
            file.write(between + json.dumps(raw.value, ensure_ascii=False))
            between = ",\n"

        yield add
        file.write("\n]\n" if between == ",\n" else "[]\n")


@contextmanager
def _sheet(path: Path, data: Dataset) -> Iterator[Add]:
    """CSV: the same columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, csv_columns(data.files[0]))
        writer.writeheader()
        yield lambda raw: writer.writerow(raw.value)


@contextmanager
def _table(path: Path, data: Dataset) -> Iterator[Add]:
    """Parquet or Arrow: the same schema, the values as they were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(data.files[0])
    batch: Any = None
    places: list[int] = []
    taken: list[Any] = []
    with (pa.ipc.new_stream if data.suffix == ".arrow" else pq.ParquetWriter)(path, schema) as writer:

        def add(raw: Raw) -> None:
            nonlocal batch
            assert raw.held
            if raw.held[0] is not batch:
                take(HELD_ROWS)
                batch = raw.held[0]
            places.append(raw.held[1])

        def take(fewest: int) -> None:
            """Take the rows wanted of the batch that is left behind, and write them once they are that many."""
            if places:
                taken.append(batch.take(pa.array(places)))  # of the batch itself nothing is kept
                places.clear()
            if taken and sum(map(len, taken)) >= fewest:
                writer.write_table(pa.Table.from_batches(taken).cast(schema))
                taken.clear()

        yield add
        take(0)


FORMS = {".parquet": _table, ".arrow": _table, ".csv": _sheet, ".json": _array}
"""How rows are written, by the ending of the data set's files; JSONL where there is none of these."""


def copy_rows(
    data: Dataset, wanted: Mapping[Path, Bool[ndarray, " row"]], orders: Mapping[Path, Sequence[int]] | None = None
) -> None:
    """Write files with some rows of a data set each, in its form, in one pass; each is complete, or not there.

    Args:
        data: The rows.
        wanted: Which of them, by file.
        orders: Places of a file's rows in the order that they are to have; those rows are held until all are read.
    """
    with ExitStack() as stack:
        files = []
        for path, rows in wanted.items():
            temporary = stack.enter_context(replacing(path))
            add = stack.enter_context(FORMS.get(data.suffix, _lines)(temporary, data))
            files.append((add, rows, (orders or {}).get(path), dict[int, Raw]()))
        for place, raw in enumerate(data.original.rows()):
            for add, rows, order, held in files:
                if rows[place] and order is None:
                    add(raw)
                elif rows[place]:
                    held[place] = raw
        for add, _, order, held in files:
            for place in order or ():
                add(held[place])
