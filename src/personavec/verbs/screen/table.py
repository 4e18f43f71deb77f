"""The table of a screening: Parquet files in a folder, read a column at a time."""

import base64
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from personavec.data.dataset import alike
from personavec.runs.files import replacing
from personavec.stats.intervals import Interval, clustered_mean
from personavec.stats.populations import streamed_mean
from personavec.verbs.screen.flagging import confounds

MOST_SOURCES = 50


class Table:
    """Reads the parts in order; of a data set of any size it holds a few columns at the most."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names

    @staticmethod
    def has(folder: Path, part: str) -> bool:
        """Whether a part was written; atomic writes make that mean complete."""
        return (folder / f"{part}.parquet").is_file()

    @staticmethod
    def pack(table: Any) -> bytes:
        """A part as the bytes of its file."""
        packed = pa.BufferOutputStream()
        pq.write_table(table, packed, compression="zstd")
        return bytes(packed.getvalue())

    @staticmethod
    def write(folder: Path, part: str, table: Any) -> None:
        """Write a part, atomically."""
        Table.put(folder, part, Table.pack(table))

    @staticmethod
    def put(folder: Path, part: str, packed: bytes) -> None:
        """Write the bytes of a part, atomically."""
        with replacing(folder / f"{part}.parquet") as temporary:
            temporary.write_bytes(packed)

    @cached_property
    def parts(self) -> list[Path]:
        """Files in order."""
        return sorted(self.folder.glob("*.parquet"))

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
            [chunk for part in self.parts for chunk in pq.read_table(part, columns=[name])[name].chunks]
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
            read = pq.read_table(part, columns=[*names])
            yield np.column_stack([read[name].to_numpy().astype(np.float64) for name in names])

    def errors(self) -> Iterator[dict[str, Any]]:
        """Rows with an error, in the order of the parts: `row`, `where` and `reason`."""
        for part in self.parts:
            yield from self.errors_of(self.folder, part.stem)

    @staticmethod
    def errors_of(folder: Path, part: str) -> list[dict[str, Any]]:
        """The same, of one part."""
        rows = pq.read_table(folder / f"{part}.parquet", columns=["row", "where", "error"])
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
        packed = [io.BytesIO(base64.b64decode(pq.read_schema(part).metadata[b"total"])) for part in self.parts]
        return np.asarray(sum(np.load(file).astype(float) for file in packed)) / max(1, int(self.good.sum()))
