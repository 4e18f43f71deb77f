"""Parquet and Arrow files, a few rows at a time; columns of JSON (`arrow.json`) hold its values, not its text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from personavec.data.arrays import DECODER, TwiceError

HELD_ROWS, HELD_BYTES = 256, 64 * 2**20
"""Rows of a file that are held at once, and about how many bytes at the most."""


def parquet_batches(path: Path) -> Iterator[Any]:
    """Record batches of a Parquet file, whose checksums are compared where it has some."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        _check_columns(file.schema_arrow)
        yield from file.iter_batches(_held(file.metadata))


def arrow_batches(path: Path) -> Iterator[Any]:
    """Record batches of an Arrow file, or of a stream in a file, as `datasets` keeps them; each is checked."""
    with _arrow(path) as reader:
        _check_columns(reader.schema)
        whole = hasattr(reader, "num_record_batches")
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if whole else reader:
            batch.validate(full=True)  # a broken file must not lead past the end of the memory
            held = max(1, min(HELD_ROWS, HELD_BYTES * len(batch) // max(1, batch.nbytes)))
            yield from (batch.slice(start, held) for start in range(0, len(batch), held))


def schema_of(path: Path) -> Any:
    """The schema of a file of either kind."""
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        return pq.read_schema(path)
    with _arrow(path) as reader:
        return reader.schema


def _check_columns(schema: Any) -> None:
    if len({*schema.names}) < len(schema.names):  # Python would hold the last of them
        raise TwiceError("column", schema.names)


@contextmanager
def _arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        whole = file.read(6) == b"ARROW1"
        file.seek(0)
        with (pa.ipc.open_file if whole else pa.ipc.open_stream)(file) as reader:
            yield reader


def _held(metadata: Any) -> int:
    """Rows of a Parquet file to hold at once, by the size of the largest ones of any row group on average."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(HELD_ROWS, int(HELD_BYTES / largest)))


def values(batch: Any) -> list[Any]:
    """Rows of a batch, or in the place of one that Python cannot hold (a date in the year 20,000) the error."""
    try:
        rows = list(batch.to_pylist())
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [error]
        return [value for index in range(len(batch)) for value in values(batch.slice(index, 1))]
    decode = _decoder(batch.schema)
    return [_decoded(row, decode) for row in rows] if decode else rows


def _decoded(row: Any, decode: Callable[[Any], Any]) -> Any:
    try:
        return decode(row)
    except (ValueError, RecursionError) as error:
        return error


def _decoder(kind: Any) -> Callable[[Any], Any] | None:
    """What reads the JSON in values of an Arrow type or rows of a schema, wherever it is; None where there is none."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return lambda text: None if text is None else DECODER.decode(text)
    if isinstance(kind, pa.Schema) or pa.types.is_struct(kind):
        fields = {field.name: inner for field in kind if (inner := _decoder(field.type))}

        def decoded(value: Any) -> Any:
            return value and {**value, **{name: inner(value[name]) for name, inner in fields.items()}}

        return decoded if fields else None
    if hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):  # a list of any kind
        inner = _decoder(kind.value_type)
        return inner and (lambda values: values and [inner(each) for each in values])
    return None
