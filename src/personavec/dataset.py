"""Data sets, row by row: JSONL, JSON, CSV and Parquet files, folders of them, and Hugging Face data sets."""

import csv
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool
from numpy import ndarray

from personavec.errors import DataError
from personavec.run import replacing
from personavec.sample import Sample, Turn, shape_of, to_sample

LONGEST_ROW = 16 * 2**20
"""Bytes of one row. Nobody trains on longer ones, and a file without line ends must not fill the memory."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
PARQUET_ROWS = 256
"""Rows of a Parquet file that are held at once."""


class Raw(NamedTuple):
    """A row as it was read, before anything is made of it."""

    where: str
    value: Any = None
    """The row: a mapping, where it is one."""
    error: str = ""
    """Why it could not be read, or empty."""
    line: bytes = b""
    """Of JSONL files: the line itself."""


class Bad(NamedTuple):
    """A row that cannot be used."""

    row: int
    where: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Where rows come from. It is read from the front each time, and never held in memory."""

    name: str
    files: tuple[Path, ...]
    """Empty for a data set of the Hub."""

    @property
    def suffix(self) -> str:
        """Of its files; what is written from it has the same form. JSONL for those of the Hub."""
        return self.files[0].suffix if self.files else ".jsonl"

    @property
    def bytes(self) -> int | None:
        """Size on the disk."""
        return sum(file.stat().st_size for file in self.files) if self.files else None

    def fingerprint(self) -> dict[str, str]:
        """What identifies it: name, size and time of change of every file; hashing terabytes would take hours."""
        stats = [(file, file.stat()) for file in self.files]
        return {str(file): f"{stat.st_size} bytes, {stat.st_mtime_ns}" for file, stat in stats} or {self.name: "hub"}

    def rows(self) -> Iterator[Raw]:
        """All rows, in order, unreadable ones included.

        Raises:
            DataError: A file cannot be read at all.
        """
        if not self.files:
            yield from _hub(self.name)
        for file in self.files:
            yield from READERS[file.suffix](file)

    def samples(self, turn: Turn) -> Iterator[Sample | Bad]:
        """All rows as conversations, in order; all must have the shape of the first usable one, and their own ids."""
        shape = None
        with _ids() as first_with:
            for place, raw in enumerate(self.rows()):
                try:
                    if raw.error:
                        raise DataError(raw.error)
                    sample = to_sample(raw.value, place, raw.where, turn, shape)
                    shape = shape or shape_of(raw.value)
                    if sample.id is not None and (other := first_with(sample.id, place)) != place:
                        raise DataError(f"expected an id of its own, got {sample.id[:60]!r}, the id of row {other}")
                except DataError as error:
                    yield Bad(place, raw.where, str(error))
                else:
                    yield sample


def open_dataset(name: str) -> Dataset:
    """Find a data set.

    Args:
        name: A file, a folder of files of one kind, or a Hugging Face data set, perhaps with its split: NAME:SPLIT.

    Raises:
        DataError: No such file or data set.
    """
    path = Path(name)
    if path.is_dir():
        kinds: dict[str, list[Path]] = {}
        for file in sorted(path.iterdir()):
            if file.suffix in SUFFIXES:
                kinds.setdefault(file.suffix, []).append(file)
        if len(kinds) != 1:
            raise DataError(
                f"expected a folder with files of one kind ({', '.join(SUFFIXES)}), got {', '.join(kinds) or 'none'} "
                f"in {path}; pass one file, or a folder with the others moved away"
            )
        return Dataset(name, tuple(*kinds.values()))
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(f"expected a file that ends in {', '.join(SUFFIXES)}, got {path}; rename or convert it")
        return Dataset(name, (path,))
    if path.suffix in SUFFIXES or path.is_absolute() or name.startswith(".") or name.count("/") > 1 or not name:
        raise DataError(f"expected a data set, got no file at {name or 'nothing'}; correct the path")
    return Dataset(name, ())


def _lines(path: Path) -> Iterator[Raw]:
    with _opened(path) as file:
        number = 0
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > LONGEST_ROW:
                size = len(line)
                while not line.endswith(b"\n") and (line := file.readline(LONGEST_ROW)):
                    size += len(line)
                yield Raw(where, error=f"expected a row of at most {LONGEST_ROW:,} bytes, got {size:,}")
            elif line.strip():
                try:
                    yield Raw(where, json.loads(line), line=line)
                except (ValueError, RecursionError) as error:
                    torn = "" if line.endswith(b"\n") else " (the file ends within it)"
                    yield Raw(where, error=f"expected JSON, got {_short(error)}{torn}")


def _array(path: Path) -> Iterator[Raw]:
    import ijson

    number = 0
    with _opened(path) as file:
        try:
            bounded = _Bounded(file)
            for value in ijson.items(bounded, "item", use_float=True):
                bounded.used = 0
                yield Raw(f"{path} row {number}", value)
                number += 1
        except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
            yield Raw(f"{path} row {number}", error=f"expected JSON, got {_short(error)}; the rest cannot be read")
            return
    if not number:
        yield Raw(f"{path}", error="expected a list of rows, got none")


class _Bounded:
    """A file that refuses to be read on within one row."""

    def __init__(self, file: Any) -> None:
        self._file, self.used = file, 0

    def read(self, size: int) -> bytes:
        self.used += size
        if self.used > LONGEST_ROW:
            raise ValueError(f"a row of more than {LONGEST_ROW:,} bytes")
        return bytes(self._file.read(size))


def _table(path: Path) -> Iterator[Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for value in batch.to_pylist():
                    yield Raw(f"{path} row {number}", value)
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if not number:
            raise DataError(f"expected a Parquet file, got {path} ({_short(error)}); write it again") from error
        yield Raw(f"{path} row {number}", error=f"expected Parquet, got {_short(error)}; the rest cannot be read")


def _sheet(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(LONGEST_ROW)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            while True:
                where = f"{path} line {rows.line_num + 1}"
                try:
                    value = next(rows)
                except StopIteration:
                    return
                except (csv.Error, UnicodeDecodeError) as error:
                    yield Raw(where, error=f"expected CSV in UTF-8, got {_short(error)}")
                    if isinstance(error, UnicodeDecodeError):
                        return
                    continue
                wide = value.pop(None, None)
                if wide is not None or None in value.values():
                    got = "more" if wide is not None else "fewer"
                    yield Raw(where, error=f"expected {len(value)} columns, got {got}")
                else:
                    yield Raw(where, value)
    except OSError as error:
        raise _unreadable(path, error) from error


def _hub(name: str) -> Iterator[Raw]:
    from datasets import load_dataset

    repository, _, split = name.partition(":")
    try:
        rows = iter(load_dataset(repository, split=split or "train", streaming=True))
    except Exception as error:  # of many kinds: no such data set, no network, no such split
        raise DataError(
            f"expected a file, a folder or a Hugging Face data set, got {name} ({_short(error)}); correct the name, or "
            "check the connection"
        ) from error
    for number, value in enumerate(rows):
        yield Raw(f"{name} row {number}", value)


READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _array,
    ".parquet": _table,
    ".csv": _sheet,
}


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

    def __init__(self, path: Path) -> None:
        self._file, self._writer = path.open("w", encoding="utf-8", newline=""), None

    def add(self, raw: Raw) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(raw.value))  # type: ignore[assignment]
            self._writer.writeheader()  # type: ignore[attr-defined]
        self._writer.writerow(raw.value)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._file.close()


class _Table:
    """Parquet: the same schema."""

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._schema, self._writer = schema, pq.ParquetWriter(path, schema)
        self._rows: list[Any] = []

    @classmethod
    def like(cls, data: Dataset) -> Callable[[Path], "_Table"]:
        """Such files with the schema of a data set."""

        def make(path: Path) -> "_Table":
            import pyarrow.parquet as pq

            return cls(path, pq.read_schema(data.files[0]))

        return make

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
    kinds: dict[str, Callable[[Path], Subset]] = {".json": _Array, ".csv": _Sheet, ".parquet": _Table.like(data)}
    with replacing(path) as temporary:
        writer = kinds.get(data.suffix, _Lines)(temporary)
        try:
            yield writer
        finally:
            writer.close()


def copy_rows(data: Dataset, wanted: Mapping[Path, Bool[ndarray, " row"]]) -> None:
    """Write files with some rows of a data set each, in its own form, in one pass over it."""
    with ExitStack() as stack:
        files = [(stack.enter_context(subset(data, path)), rows) for path, rows in wanted.items()]
        for place, raw in enumerate(data.rows()):
            for file, rows in files:
                if rows[place]:
                    file.add(raw)


@contextmanager
def _ids() -> Iterator[Callable[[str, int], int]]:
    """Tells which row was the first with an id; the ids are on disk, because there may be a hundred million."""
    with closing(sqlite3.connect("", isolation_level=None)) as store:
        store.execute("PRAGMA journal_mode=OFF")
        store.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID")
        store.execute("BEGIN")

        def first_with(name: str, place: int) -> int:
            if store.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (name, place)).rowcount:
                return place
            return int(store.execute("SELECT row FROM ids WHERE id = ?", (name,)).fetchone()[0])

        yield first_with


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb", buffering=1 << 20) as file:
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"expected a file that can be read, got {path} ({error.strerror}); check its permissions")


def _short(error: object) -> str:
    return " ".join(str(error).split())[:160]
