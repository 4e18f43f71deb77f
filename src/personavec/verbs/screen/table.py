"""The table of a screening: Parquet files in a folder, here or wherever fsspec reaches, read a column at a time."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from personavec.data.dataset import alike
from personavec.errors import ConfigError, DataError
from personavec.runs.files import replacing
from personavec.runs.run import Run
from personavec.stats.intervals import Interval, clustered_mean
from personavec.stats.populations import streamed_mean
from personavec.verbs.screen.flagging import confounds

MOST_SOURCES = 50
OWNER = "_run.json"
"""Beside the parts of a table that lies elsewhere: whose they are. Readers of Parquet leave names with _ out."""

Place = Path | str
"""A folder of this machine, or the URL of one that fsspec reaches."""


def place_of(table: str | Path, *, together: bool) -> Place:
    """Where a table is to lie, by what `--table` names; nothing is looked up there yet.

    Args:
        table: A folder or a URL.
        together: Whether several processes write it.

    Raises:
        ConfigError: fsspec knows no such protocol, or lacks a package for it; or each process has one of its own.
    """
    name = str(table)
    if isinstance(table, Path) or "://" not in name:
        return Path(table)
    try:
        files, path = fsspec.core.url_to_fs(name)
    except Exception as error:  # of its many parts: an unknown protocol, a package that is not there, a bad address
        raise ConfigError(f"expected a --table that fsspec can reach, got {name} ({_line(error)})") from error
    if "file" in files.protocol:
        return Path(path)
    if together and "memory" in files.protocol:
        raise ConfigError(f"expected a --table that all of Ray's actors see, got {name}, which is each process's own")
    return name


def within(place: Place, name: str) -> Place:
    """A folder inside of it."""
    return place / name if isinstance(place, Path) else f"{place.rstrip('/')}/{name}"


def claim(place: Place, owner: str) -> None:
    """Take a place for the table of one run.

    Args:
        place: Where; a folder of this machine is made.
        owner: Names the run.

    Raises:
        ConfigError: Parts of another run are there.
        DataError: Nothing can be read or written there.
    """
    with reaching(place):
        files, root = fsspec.core.url_to_fs(str(place))
        files.makedirs(root, exist_ok=True)
        path = f"{root}/{OWNER}"
        there = files.cat_file(path).decode(errors="replace") if files.exists(path) else ""
        stray = not there and bool(files.glob(f"{root}/*.parquet"))
        if not there and not stray:
            files.pipe_file(path, owner.encode())
    if stray or there not in ("", owner):
        raise ConfigError(
            f"expected an empty --table or the one of this run, got parts of another in {place}; choose one"
        )


@contextmanager
def reaching(place: Place) -> Iterator[None]:
    """Say in one line what went wrong with a place elsewhere; this machine's own errors stay as they are.

    Raises:
        DataError: Anything did.
    """
    try:
        yield
    except Exception as error:  # of many libraries: no credentials, no such bucket, no connection, read only
        if isinstance(place, Path):
            raise
        raise DataError(
            f"expected a table that can be read and written at {place}, got {_line(error)}; set what its file system "
            "needs (credentials come from the environment), and run the same command again"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class Table:
    """Reads the parts in order; of a data set of any size it holds a few columns at the most."""

    def __init__(self, folder: Place | Run, names: tuple[str, ...]) -> None:
        self._run = folder  # one that is kept nowhere lives as long as its table
        self.folder: Place = folder.folder if isinstance(folder, Run) else folder
        self.names = names

    @staticmethod
    def has(folder: Place, part: str) -> bool:
        """Whether a part was written; atomic writes make that mean complete."""
        if isinstance(folder, Path):
            return (folder / f"{part}.parquet").is_file()
        with reaching(folder):
            files, root = fsspec.core.url_to_fs(folder)
            return bool(files.exists(f"{root}/{part}.parquet"))

    @staticmethod
    def pack(table: Any) -> bytes:
        """A part as the bytes of its file."""
        packed = pa.BufferOutputStream()
        pq.write_table(table, packed, compression="zstd")
        return bytes(packed.getvalue())

    @staticmethod
    def write(folder: Place, part: str, table: Any) -> None:
        """Write a part, atomically."""
        Table.put(folder, part, Table.pack(table))

    @staticmethod
    def put(folder: Place, part: str, packed: bytes) -> None:
        """Write the bytes of a part, atomically."""
        if isinstance(folder, str):
            with reaching(folder):
                files, root = fsspec.core.url_to_fs(folder)
                with files.transaction, files.open(f"{root}/{part}.parquet", "wb") as file:
                    file.write(packed)
            return
        with replacing(folder / f"{part}.parquet") as temporary:
            temporary.write_bytes(packed)

    @cached_property
    def parts(self) -> list[str]:
        """Names in order."""
        with reaching(self.folder):
            files, root = fsspec.core.url_to_fs(str(self.folder))
            files.invalidate_cache()  # others may have written
            return sorted(Path(path).stem for path in files.glob(f"{root}/*.parquet"))

    @staticmethod
    def read(folder: Place, part: str, columns: Sequence[str] | None = None) -> Any:
        """A part as a pyarrow table, or some of its columns."""
        with reaching(folder):
            files, root = fsspec.core.url_to_fs(str(folder))
            return pq.read_table(f"{root}/{part}.parquet", columns=columns and [*columns], filesystem=files)

    @property
    def whole(self) -> Any:
        """All parts as one pyarrow table."""
        return pa.concat_tables([self.read(self.folder, part) for part in self.parts]).replace_schema_metadata(None)

    def column(self, name: str) -> Float[ndarray, " row"]:
        """A column of numbers; nan where there is none."""
        return np.asarray(self._read(name).to_numpy(), dtype=np.float32)

    @property
    def rows(self) -> Int[ndarray, " row"]:
        """Places of the rows in their data set."""
        return np.asarray(self._read("row").to_numpy())

    @cached_property
    def conversations(self) -> Int[ndarray, " row"]:
        """Places in the data set of the rows that replies are of."""
        return np.asarray(self._read("conversation").to_numpy())

    @cached_property
    def several(self) -> bool:
        """Whether some conversation has several rows."""
        return bool((np.diff(self.conversations) == 0).any())

    def mean(self, values: Float[ndarray, " row"], where: Bool[ndarray, " row"] | None = None) -> Interval:
        """Mean of a column, with an interval over conversations where those have several rows."""
        conversations = self.conversations
        if where is not None:
            values, conversations = values[where], conversations[where]
        return clustered_mean(values.astype(float), conversations) if self.several else streamed_mean(values)

    def _read(self, name: str) -> Any:
        return pa.chunked_array(
            [chunk for part in self.parts for chunk in self.read(self.folder, part, [name])[name].chunks]
        )

    def _labels(self, name: str) -> tuple[Int[ndarray, " row"], list[str]]:
        """A column of texts that recur: every row's place among them, and the texts."""
        labels = self._read(name).fill_null("").dictionary_encode().combine_chunks()
        return labels.indices.to_numpy(), labels.dictionary.to_pylist()

    @cached_property
    def good(self) -> Bool[ndarray, " row"]:
        """Rows without error."""
        good: Bool[ndarray, " row"] = pc.equal(self._read("error"), "").to_numpy()
        return good

    def blocks(self, names: Sequence[str]) -> Iterator[Float[ndarray, "row name"]]:
        """Columns of numbers side by side, a part at a time."""
        for part in self.parts:
            read = self.read(self.folder, part, names)
            yield np.column_stack([read[name].to_numpy().astype(np.float64) for name in names])

    def errors(self) -> Iterator[dict[str, Any]]:
        """Rows with an error, in the order of the parts: `row`, `where` and `reason`."""
        for part in self.parts:
            yield from self.errors_of(self.folder, part)

    @staticmethod
    def errors_of(folder: Place, part: str) -> list[dict[str, Any]]:
        """The same, of one part."""
        rows = Table.read(folder, part, ["row", "where", "error"])
        bad = rows.filter(pc.not_equal(rows["error"], ""))
        return list(bad.rename_columns(["row", "where", "reason"]).to_pylist())

    def reasons(self) -> Counter[str]:
        """Why rows were skipped, numbers and quotations left out, so that alike reasons are counted together."""
        rows, texts = self._labels("error")
        reasons: Counter[str] = Counter()
        for reason, count in zip(texts, np.bincount(rows, minlength=len(texts)), strict=True):
            if reason:
                reasons[alike(reason)] += int(count)
        return reasons

    @property
    def rows_with_more_turns(self) -> int:
        """Rows of which some turns were not read."""
        return int(np.nansum(self.column("more_turns") > 0))

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Tokens of the rows that were read: of prompts and replies, and of base replies."""
        totals = {}
        for name in ("prompt_tokens", "response_tokens", "base_tokens"):
            values = self.column(name).astype(float)[self.good]
            totals[name.removesuffix("_tokens")] = int(np.nansum(values))
        return totals

    def confounds(self, name: str) -> dict[str, Any]:
        """What else the score of a vector correlates with, see `flagging.confounds`."""
        tokens = {kind: self.column(kind) for kind in ("prompt_tokens", "response_tokens")}
        return confounds(self.column(name), tokens, *self._labels("kind"))

    def by_source(self) -> dict[str, Any]:
        """Mean score of every source, the largest ones first; empty where rows name none."""
        rows, sources = self._labels("source")
        counts = np.bincount(rows[self.good], minlength=len(sources))
        if set(sources) <= {""}:
            return {}
        columns = {name: self.column(name) for name in self.names}
        return {
            sources[place] or "(none)": {"rows": int(counts[place])}
            | {name: self.mean(columns[name], rows == place).to_json() for name in self.names}
            for place in np.argsort(-counts, kind="stable")[:MOST_SOURCES]
            if counts[place]
        }

    def mean_move(self) -> Float[ndarray, "layer d_model"]:
        """Mean over the rows without error of what is projected for the score: with base replies, row less base."""
        read = (self.read(self.folder, part, ["row"]).schema.metadata for part in self.parts)
        packed = [io.BytesIO(base64.b64decode(metadata[b"total"])) for metadata in read]
        return np.asarray(sum(np.load(file).astype(float) for file in packed)) / max(1, int(self.good.sum()))
