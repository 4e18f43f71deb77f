"""Rows of data sets as they stand, one by one: JSONL, JSON and CSV, packed or not, Parquet, Arrow, and the Hub's."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from personavec.data.arrays import DECODER, TwiceError, items, twice
from personavec.data.tables import arrow_batches, parquet_batches, values
from personavec.errors import DataError

LONGEST_ROW = 16 * 2**20
"""Bytes of one row. Nobody trains on longer ones, and a file without line ends must not fill the memory."""


class Raw(NamedTuple):
    """A row as it was read, before anything is made of it."""

    where: str
    value: Any = None
    """The row: a mapping, where it is one."""
    error: str = ""
    """Why it could not be read, or empty."""
    line: bytes = b""
    """Of JSONL files: the line itself."""
    held: tuple[Any, int] | None = None
    """Of Parquet and Arrow files: a record batch, and where in it the row is."""


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
                    text = line.removeprefix(codecs.BOM_UTF8)  # of a file that was put behind another
                    yield Raw(where, DECODER.decode(text.decode()), line=line)
                except TwiceError as error:
                    yield Raw(where, error=f"expected JSON, got {error} in one object")
                except (ValueError, RecursionError) as error:
                    torn = "" if line.endswith(b"\n") else " (the file ends within it)"
                    got = short(error)
                    if isinstance(error, json.JSONDecodeError):
                        got = f"{error.msg} at column {error.colno}"
                    yield Raw(where, error=f"expected JSON, got {got}{torn}")


def _array(path: Path) -> Iterator[Raw]:
    number = 0
    with _opened(path) as file:
        begins = file.peek().lstrip()[:1]
    if begins == b"{":  # JSON Lines under another name; of a single object the first line tells
        yield from _lines(path)
        return
    with _opened(path) as file:
        try:
            for value in items(file, LONGEST_ROW):
                where = f"{path} row {number}"
                bad = isinstance(value, TwiceError)
                yield Raw(where, error=f"expected JSON, got {value} in one object") if bad else Raw(where, value)
                number += 1
        except ValueError as error:
            yield Raw(f"{path} row {number}", error=f"expected JSON, got {short(error)}; the rest cannot be read")
            return
    if not number:
        yield Raw(f"{path}", error="expected a list of rows, got none")


def _table(path: Path) -> Iterator[Raw]:
    import pyarrow as pa

    kind, batches = ("an Arrow file", arrow_batches) if path.suffix == ".arrow" else ("a Parquet file", parquet_batches)
    number = 0
    try:
        for batch in batches(path):
            for index, value in enumerate(values(batch)):
                where = f"{path} row {number}"
                size = batch.slice(index, 1).nbytes if batch.nbytes > LONGEST_ROW else 0
                if size > LONGEST_ROW:
                    yield Raw(where, error=_too_long(size))
                elif isinstance(value, json.JSONDecodeError | RecursionError | TwiceError):
                    yield Raw(where, error=f"expected JSON in a column of JSON, got {short(value)}")
                elif isinstance(value, Exception):
                    yield Raw(where, error=f"expected values that Python can hold, got {short(value)}")
                else:
                    yield Raw(where, value, held=(batch, index))
                number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if not number:
            raise DataError(f"expected {kind}, got {path} ({short(error)}); write it again") from error
        yield Raw(f"{path} row {number}", error=f"expected {kind}, got {short(error)}; the rest cannot be read")


def _sheet(path: Path) -> Iterator[Raw]:
    csv.field_size_limit(LONGEST_ROW)
    with _opened(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        lines = csv.reader(text, strict=True)  # a DictReader takes a tenth more time for a whole data set
        names: list[str] = []
        while True:
            begin = lines.line_num + 1
            where = f"{path} line {begin}"
            try:
                fields = next(lines, None)
            except UnicodeDecodeError as error:  # text is decoded in blocks: no row can be named
                raise DataError(
                    f"expected CSV in UTF-8, got {short(error)} in {path} after line {begin - 1}; save it so"
                ) from error
            except csv.Error as error:
                if not names:
                    raise DataError(f"expected names of columns in {where}, got {short(error)}; correct it") from error
                lost = lines.line_num - begin
                through = f", and the {lost:,} lines after it were read as part of it" if lost > 0 else ""
                yield Raw(where, error=f"expected CSV, got {short(error)}{through}")
                continue
            if fields is None:
                return
            if not names:
                names = fields
                if column := twice(list(filter(None, names))):
                    raise DataError(f"expected each column once in {where}, got {column[:60]!r} twice; rename one")
            elif len(fields) == len(names):
                yield Raw(where, dict(zip(names, fields, strict=True)))
            elif fields:  # a line with nothing in it is no row
                got = "more" if len(fields) > len(names) else "fewer"
                yield Raw(where, error=f"expected {len(names)} columns, got {got}")


def csv_columns(path: Path) -> list[str]:
    """Names in the first line of a CSV file that holds something.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with _opened(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
            return next(filter(None, csv.reader(text)), [])
    except (csv.Error, UnicodeDecodeError) as error:
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
    ".arrow": _table,
    ".csv": _sheet,
}
"""By the ending of a file. Those of text may be packed, see `form`."""


def _zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.input_stream(str(path), compression="zstd")


UNPACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
"""What opens a packed file, by the ending after that of the file inside."""
ENDINGS = f"{', '.join(READERS)}, or {', '.join(UNPACKED)} after one of text"
"""Of files that can be read, for people."""
BUFFER = 1 << 18
"""Bytes that are read from a file at once."""
TORN = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What a packed file raises that ends early, or is none."""


class _TornError(DataError):
    """A packed file that cannot be read to its end."""


def form(path: Path) -> str:
    """The ending that says how a file is read, that of a packed one inside; empty where it cannot be read."""
    packed = path.suffix in UNPACKED
    inside = Path(path.stem).suffix if packed else path.suffix
    return inside if inside in READERS and not (packed and READERS[inside] is _table) else ""


def read_file(path: Path) -> Iterator[Raw]:
    """Rows of a file, unreadable ones included.

    Raises:
        DataError: It cannot be read at all.
    """
    try:
        yield from READERS[form(path)](path)
    except _TornError as error:
        yield Raw(str(path), error=str(error))


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file of text, unpacked, behind its byte order mark."""
    unpack = UNPACKED.get(path.suffix)
    try:
        with io.BufferedReader(unpack(path) if unpack else path.open("rb", buffering=0), BUFFER) as file:
            head = file.peek(4)[:4]
            if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in head[:2]:
                raise DataError(f"expected UTF-8, got UTF-16 or UTF-32 in {path}; save it as UTF-8")
            if head.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            yield file
    except TORN as error:
        if isinstance(error, PermissionError | IsADirectoryError | FileNotFoundError) or not unpack:
            raise _unreadable(path, error) from error
        got = short(error) or type(error).__name__
        raise _TornError(f"expected a whole {path.suffix} file, got {got}; the rest cannot be read") from error


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = getattr(error, "strerror", None) or short(error)
    return DataError(f"expected a file that can be read, got {path} ({reason}); check its permissions")


def short(error: object) -> str:
    """One line of an error."""
    return " ".join(str(error).split())[:160]


def _too_long(size: int) -> str:
    return f"expected a row of at most {LONGEST_ROW:,} bytes, got {size:,}"
