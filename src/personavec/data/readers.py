"""Rows of data set files as they stand, one by one: JSONL, JSON, CSV, Parquet, and data sets of the Hub."""

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from personavec.errors import DataError

LONGEST_ROW = 16 * 2**20
"""Bytes of one row. Nobody trains on longer ones, and a file without line ends must not fill the memory."""
PARQUET_ROWS, PARQUET_BYTES = 256, 64 * 2**20
"""Rows of a Parquet file that are held at once, and about how many bytes at the most."""


class Raw(NamedTuple):
    """A row as it was read, before anything is made of it."""

    where: str
    value: Any = None
    """The row: a mapping, where it is one."""
    error: str = ""
    """Why it could not be read, or empty."""
    line: bytes = b""
    """Of JSONL files: the line itself."""


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
                yield Raw(where, error=_too_long(size))
            elif line.strip():
                try:
                    yield Raw(where, json.loads(line), line=line)
                except (ValueError, RecursionError) as error:
                    torn = "" if line.endswith(b"\n") else " (the file ends within it)"
                    yield Raw(where, error=f"expected JSON, got {short(error)}{torn}")


def _array(path: Path) -> Iterator[Raw]:
    import ijson

    number = 0
    with _opened(path) as file:
        begins = file.read(4096).lstrip()[:1]
    if begins == b"{":  # JSON Lines under another name; of a single object the first line tells
        yield from _lines(path)
        return
    with _opened(path) as file:
        try:
            bounded = _Bounded(file)
            for value in ijson.items(bounded, "item", use_float=True):
                bounded.used = 0
                yield Raw(f"{path} row {number}", value)
                number += 1
        except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
            yield Raw(f"{path} row {number}", error=f"expected JSON, got {short(error)}; the rest cannot be read")
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
            for batch in file.iter_batches(_held(file.metadata)):
                for index, value in enumerate(_values(batch)):
                    where = f"{path} row {number}"
                    size = batch.slice(index, 1).nbytes if batch.nbytes > LONGEST_ROW else 0
                    if size > LONGEST_ROW:
                        yield Raw(where, error=_too_long(size))
                    elif isinstance(value, Exception):
                        yield Raw(where, error=f"expected values that Python can hold, got {short(value)}")
                    else:
                        yield Raw(where, value)
                    number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if not number:
            raise DataError(f"expected a Parquet file, got {path} ({short(error)}); write it again") from error
        yield Raw(f"{path} row {number}", error=f"expected Parquet, got {short(error)}; the rest cannot be read")


def _values(batch: Any) -> list[Any]:
    """Rows of a batch, or in the place of one that Python cannot hold (a date in the year 20,000) the error."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [error]
        return [value for index in range(len(batch)) for value in _values(batch.slice(index, 1))]


def _held(metadata: Any) -> int:
    """Rows of a Parquet file to hold at once, by the size of the largest ones of any row group on average."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(PARQUET_ROWS, int(PARQUET_BYTES / largest)))


def _sheet(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(LONGEST_ROW)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            while True:
                begin = max(2, rows.line_num + 1)
                where = f"{path} line {begin}"
                try:
                    value = next(rows)
                except StopIteration:
                    return
                except UnicodeDecodeError as error:  # text is decoded in blocks: no row can be named
                    raise DataError(
                        f"expected CSV in UTF-8, got {short(error)} in {path} after line {rows.line_num}; save it so"
                    ) from error
                except csv.Error as error:
                    lost = rows.reader.line_num - begin
                    through = f", and the {lost:,} lines after it were read as part of it" if lost > 0 else ""
                    yield Raw(where, error=f"expected CSV, got {short(error)}{through}")
                    continue
                wide = value.pop(None, None)
                if wide is not None or None in value.values():
                    got = "more" if wide is not None else "fewer"
                    yield Raw(where, error=f"expected {len(value)} columns, got {got}")
                else:
                    yield Raw(where, value)
    except OSError as error:
        raise _unreadable(path, error) from error


def csv_columns(path: Path) -> list[str]:
    """Names in the first line of a CSV file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"expected a CSV file in UTF-8, got {path} ({short(error)}); write it again") from error


def hub(name: str) -> Iterator[Raw]:
    """Rows of a data set of the Hub, streamed."""
    from datasets import load_dataset

    repository, _, split = name.partition(":")
    try:
        rows = iter(load_dataset(repository, split=split or "train", streaming=True))
    except Exception as error:  # of many kinds: no such data set, no network, no such split
        raise DataError(
            f"expected a file, a folder or a Hugging Face data set, got {name} ({short(error)}); correct the name, or "
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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb", buffering=1 << 20) as file:
            head = file.read(4)
            if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in head[:2]:
                raise DataError(f"expected UTF-8, got UTF-16 or UTF-32 in {path}; save it as UTF-8")
            file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
            yield file
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"expected a file that can be read, got {path} ({error.strerror}); check its permissions")


def short(error: object) -> str:
    """One line of an error."""
    return " ".join(str(error).split())[:160]


def _too_long(size: int) -> str:
    return f"expected a row of at most {LONGEST_ROW:,} bytes, got {size:,}"
