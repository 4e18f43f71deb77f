"""Data sets as conversations, row by row: files, folders, data sets of the Hub, rows in memory."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from personavec.data.folder import data_files
from personavec.data.readers import ENDINGS, Raw, form, hub, read_file
from personavec.data.sample import Sample, Turn, to_samples, unread
from personavec.data.shapes import shape_of
from personavec.errors import DataError
from personavec.runs.files import contents
from personavec.runs.progress import tell

MOST_NAMED = 8
"""Fields that are told of as not read."""


class Bad(NamedTuple):
    """A row that cannot be used."""

    row: int
    where: str
    reason: str
    conversation: int | None = None
    """As of a sample."""


def alike(reason: str) -> str:
    """A reason without its numbers and quotations, so that alike ones are counted together."""
    return re.sub(r"'[^']*'|\d[\d,]*", "…", reason)[:120]


@dataclass(frozen=True)
class Dataset:
    """Where rows come from. It is read from the front each time, and never held in memory."""

    name: str
    files: tuple[Path, ...]
    """Empty for a data set of the Hub, and for rows in memory."""

    @property
    def original(self) -> "Dataset":
        """The same rows as they stand in its files."""
        return self

    def called(self, shape: str) -> str:
        """What rows of a shape are called."""
        return shape

    @property
    def suffix(self) -> str:
        """What is written from it has the form of its files; JSONL where they have several, or there are none."""
        forms = {form(file) for file in self.files}
        return forms.pop() if len(forms) == 1 else ".jsonl"

    @property
    def bytes(self) -> int | None:
        """Size on the disk."""
        return sum(file.stat().st_size for file in self.files) if self.files else None

    def fingerprint(self) -> dict[str, str]:
        """What identifies it: every file, by its content where they are not large together."""
        together = self.bytes or 0
        return {str(file): contents(file, together) for file in self.files} or {self.name: "hub"}

    def rows(self) -> Iterator[Raw]:
        """All rows, in order, unreadable ones included.

        Raises:
            DataError: A file cannot be read at all.
        """
        if not self.files:
            yield from hub(self.name)
        for file in self.files:
            yield from read_file(file)

    def samples(self, turn: Turn, label: str = "source", *, announce: bool = False) -> Iterator[Sample | Bad]:
        """All rows as conversations, in order; all must have the shape of the first usable one, and their own ids.

        Ids of two files may be the same: files are often numbered each by itself.

        Args:
            turn: Which assistant turn is the response; with "every" a row gives as many samples, numbered through.
            label: Field of the rows that is taken along as their source.
            announce: Whether to say on stderr which shape the rows are taken for.
        """
        shape = None
        number = 0
        with _ids() as first_with:
            for place, raw in enumerate(self.rows()):
                try:
                    if raw.error:
                        raise DataError(raw.error)
                    read: Sequence[Sample | Bad]
                    read = usable = to_samples(raw.value, place, raw.where, turn, shape, label)
                    if shape is None:
                        shape = shape_of(raw.value)
                        if announce:
                            left = unread(raw.value, shape, label)[:MOST_NAMED]
                            more = f"; not read: {', '.join(left)}" if left else ""
                            tell(f"{self.name}: rows of {self.called(shape)}{more}")
                    name = usable[0].id
                    file = raw.where.rpartition(" ")[0]
                    if name is not None and (other := first_with(f"{file} {name}", place)) != place:
                        raise DataError(f"expected an id of its own, got {name[:60]!r}, the id of row {other}")
                except DataError as error:
                    read = [Bad(place, raw.where, str(error))]
                except RecursionError:
                    read = [Bad(place, raw.where, "expected a conversation, got JSON that is nested too deep")]
                if turn != "every":
                    yield from read
                    continue
                for each in read:
                    yield _numbered(each, number, place)
                    number += 1


def _numbered(sample: Sample | Bad, number: int, place: int) -> Sample | Bad:
    """One of a row's replies, in its place among all replies."""
    if isinstance(sample, Bad):
        return sample._replace(row=number, conversation=place)
    reply = 1 + sum(turn["role"] == "assistant" for turn in sample.messages)
    return replace(sample, row=number, where=f"{sample.where}, reply {reply}")


@dataclass(frozen=True)
class RowsInMemory(Dataset):
    """A data set whose rows somebody holds; its fingerprint is a hash of what they say."""

    held: Iterable[Any] = ()
    """Can be read any number of times."""

    def fingerprint(self) -> dict[str, str]:
        """Sha256 of the rows, under the name."""
        digest = hashlib.sha256()
        for raw in self.rows():
            try:
                text = json.dumps(raw.value, default=str)
            except (TypeError, ValueError, RecursionError):  # no JSON, and so a bad row
                text = type(raw.value).__name__
            digest.update(text.encode() + b"\n")
        return {self.name: digest.hexdigest()}

    def rows(self) -> Iterator[Raw]:
        """All rows, in order, those included that are none."""
        for number, row in enumerate(self.held):
            yield Raw(f"{self.name} row {number}", dict(row) if isinstance(row, Mapping) else row)


def dataset_of(data: str | Path | Iterable[Mapping[str, Any]] | Dataset, name: str = "rows in memory") -> Dataset:
    """The data set of whatever a verb is given.

    Args:
        data: A data set, its path or name, or rows: any iterable of mappings, which is read once and held; a
            `datasets.Dataset` is read where it lies.
        name: What rows are called in results and errors.

    Raises:
        DataError: No such file or data set, or nothing that holds rows.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | Path):
        return open_dataset(str(data))
    if isinstance(data, Mapping):  # a row, or splits
        raise DataError(f"expected rows, got one mapping ({', '.join(map(str, [*data][:5]))}); pass [row] or one split")
    if isinstance(data, bytes) or not isinstance(data, Iterable):
        raise DataError(f"expected a data set's path or its rows, got {type(data).__name__}; pass a list of dicts")
    return RowsInMemory(name, (), data if hasattr(data, "column_names") else tuple(data))


def open_dataset(name: str) -> Dataset:
    """Find a data set.

    Args:
        name: A file, a folder, see `data_files`, or a Hugging Face data set, perhaps with its split: NAME:SPLIT.

    Raises:
        DataError: No such file or data set.
    """
    path = Path(name)
    if path.is_dir():
        return Dataset(name, data_files(path))
    if path.is_file():
        if not form(path):
            raise DataError(f"expected a file that ends in {ENDINGS}, got {path}; rename or convert it")
        return Dataset(name, (path,))
    if form(path) or path.is_absolute() or name.startswith(".") or name.count("/") > 1 or not name:
        raise DataError(f"expected a data set, got no file at {name or 'nothing'}; correct the path")
    return Dataset(name, ())


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
