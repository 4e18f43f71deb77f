"""Files of some rows of a data set, in the form of the data set itself."""

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool
from numpy import ndarray

from personavec.data.dataset import Dataset
from personavec.data.readers import PARQUET_ROWS, Raw, csv_columns
from personavec.runs.files import replacing


@runtime_checkable
class Subset(Protocol):
    """A file that takes rows in the form of their data set."""

    def add(self, raw: Raw) -> None:
        """Write one row."""

    def close(self) -> None:
        """Complete the file."""


class _Lines:
    """JSONL: the lines as they were."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def add(self, raw: Raw) -> None:
        line = raw.line or json.dumps(raw.value, ensure_ascii=False, default=str).encode()
        self._file.write(line if line.endswith(b"\n") else line + b"\n")

    def close(self) -> None:
        self._file.close()


class _Array:
    """JSON: one list."""

    def __init__(self, path: Path) -> None:
        self._file, self._between = path.open("w", encoding="utf-8"), "[\n"

    def add(self, raw: Raw) -> None:
        self._file.write(self._between + json.dumps(raw.value, ensure_ascii=False))
        self._between = ",\n"

    def close(self) -> None:
        self._file.write("\n]\n" if self._between == ",\n" else "[]\n")
        self._file.close()


class _Sheet:
    """CSV: the same columns."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, columns)
        self._writer.writeheader()

    def add(self, raw: Raw) -> None:
        self._writer.writerow(raw.value)

    def close(self) -> None:
        self._file.close()


class _Table:
    """Parquet: the same schema."""

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._schema, self._writer = schema, pq.ParquetWriter(path, schema)
        self._rows: list[Any] = []

    def add(self, raw: Raw) -> None:
        self._rows.append(raw.value)
        if len(self._rows) >= PARQUET_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


@contextmanager
def subset(data: Dataset, path: Path) -> Iterator[Subset]:
    """A new file of rows of a data set, in its form; complete (and named) only when the context ends."""
    with replacing(path) as temporary:
        writer = _new(data, temporary)
        try:
            yield writer
        finally:
            writer.close()


def _new(data: Dataset, path: Path) -> Subset:
    if data.suffix == ".parquet":
        import pyarrow.parquet as pq

        return _Table(path, pq.read_schema(data.files[0]))
    if data.suffix == ".csv":
        return _Sheet(path, csv_columns(data.files[0]))
    return _Array(path) if data.suffix == ".json" else _Lines(path)


def copy_rows(data: Dataset, wanted: Mapping[Path, Bool[ndarray, " row"]]) -> None:
    """Write files with some rows of a data set each, in its own form, in one pass over it."""
    with ExitStack() as stack:
        files = [(stack.enter_context(subset(data, path)), rows) for path, rows in wanted.items()]
        for place, raw in enumerate(data.rows()):
            for file, rows in files:
                if rows[place]:
                    file.add(raw)
