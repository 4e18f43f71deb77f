"""The part of `fuzz.py` that writes files of data sets and reads them: bytes, and rows in every format."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["personavec.data"]):
    from personavec.data.dataset import Bad, alike, open_dataset
    from personavec.data.sample import Sample, to_samples
    from personavec.data.shapes import shape_of

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz import ANY, TEXTS, torn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personavec.errors import DataError, PersonavecError

TURNS = ("first", "last", "every", "whole")
TEXT = (".jsonl", ".ndjson", ".json", ".csv")
PACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}
UNPACKS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": lambda data: pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(),
}
FORMATS = (*TEXT, ".parquet", ".arrow", *(text + pack for text in TEXT for pack in PACKS))
Parsed = list[Any]
"""Rows; in the place of one that is none the `BROKEN`."""
BROKEN = object()

NAMES = st.sampled_from(
    ["id", "system", "input", "context", "history", "tools", "label", "weight", "source", "conversation_id", "text"]
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "GPT", ""]) | ANY, "content": TEXTS | ANY},
    optional={"weight": ANY, "name": ANY, "tool_calls": ANY, "reasoning_content": ANY, "train": ANY, "value": ANY},
)
PLAIN = st.tuples(
    st.sampled_from(["response", "completion"]), st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)
)
"""Rows of prompt and reply, all of one shape."""


@st.composite
def odd_row(draw: Any) -> Any:
    """A row of some shape with some field that may be anything."""
    row: Any = draw(st.dictionaries(NAMES, ANY, max_size=2))
    shape = draw(st.sampled_from(["messages", "conversations", "conversation", "data", "pair", "any"]))
    if shape == "any":
        return draw(ANY)
    if shape == "pair":
        prompt, reply = draw(
            st.sampled_from([("prompt", "response"), ("question", "answer"), ("instruction", "output")])
        )
        return row | {prompt: draw(TEXTS | ANY | st.lists(TURN, max_size=3)), reply: draw(TEXTS | ANY)}
    return row | {shape: draw(st.lists(TURN, max_size=4) | ANY)}


def written(rows: Parsed, suffix: str, rng: random.Random) -> bytes:
    """A file of rows, by libraries that the readers do not use to read it."""
    kind, _, pack = suffix[1:].partition(".")
    if kind in ("parquet", "arrow"):
        table = pa.Table.from_pylist(rows)
        sink = io.BytesIO()
        if kind == "parquet":
            pq.write_table(table, sink, row_group_size=rng.choice([1, 2, 100]), use_dictionary=rng.random() < 0.5)
        else:
            with rng.choice([pa.ipc.new_file, pa.ipc.new_stream])(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=rng.choice([1, 2, 100]))
        return sink.getvalue()
    if kind == "csv":
        text = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer_ = csv.DictWriter(text, names, lineterminator=rng.choice(["\n", "\r\n"]))
        writer_.writeheader()
        writer_.writerows(rows)
        whole = text.getvalue()
    else:
        lines = [json.dumps(row, ensure_ascii=True) for row in rows]
        whole = "[" + ", ".join(lines) + "]" if kind == "json" else "".join(line + "\n" for line in lines)
    data = rng.choice([b"", b"", b"\xef\xbb\xbf"]) + whole.encode()
    return PACKS["." + pack](data) if pack else data


def parsed(data: bytes, suffix: str) -> tuple[Parsed, bool]:
    """Rows of a file by an independent parse, and whether it could be read to its end."""
    kind, _, pack = suffix[1:].partition(".")
    if kind in ("parquet", "arrow"):
        try:
            table = pq.read_table(io.BytesIO(data)) if kind == "parquet" else _arrow(data)
            return table.to_pylist(), True
        except (pa.ArrowException, OSError, ValueError, OverflowError):
            return [], False
    try:
        data = UNPACKS["." + pack](data) if pack else data
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, pa.ArrowException):
        return [], False
    data = data.removeprefix(b"\xef\xbb\xbf")
    if kind == "json" and not data.lstrip().startswith(b"{"):
        try:
            rows = json.loads(data)
        except (ValueError, RecursionError):
            return [], False
        return (rows, True) if isinstance(rows, list) and rows else ([], False)
    if kind == "csv":
        try:
            rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
        except (ValueError, csv.Error):
            return [], False
        head, *rest = [row for row in rows if row] or [[]]
        return [dict(zip(head, row, strict=True)) if len(row) == len(head) else BROKEN for row in rest], True
    found: Parsed = []
    for line in data.split(b"\n"):
        if line.strip():
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                found.append(BROKEN)
    return found, True


def _arrow(data: bytes) -> Any:
    reader = (pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream)(data)
    table = reader.read_all()
    table.validate(full=True)
    return table


class Readers:
    """What is done to each input."""

    def __init__(self, record: Any) -> None:
        self.record = record
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-"))

    def read(self, data: bytes, suffix: str, turn: Any = "first", folder: bool = False) -> list[Any]:
        """Samples and bad rows of a file, or of a folder with it."""
        place = self.folder / f"x{suffix}"
        place.write_bytes(data)
        try:
            return list(open_dataset(str(self.folder if folder else place)).samples(turn))
        finally:
            place.unlink()

    def law(self, data: bytes, suffix: str, turn: Any = "first", folder: bool = False) -> None:
        """Of any bytes."""
        with self.record.watching(f"x{suffix}", data):
            try:
                got = self.read(data, suffix, turn, folder)
            except PersonavecError as error:
                self.record.counts[f"file refused: {alike(str(error))[:50]}"] += 1
                assert "\n" not in str(error), "an error of several lines"
                return
            for each in got:
                self.record.counts["rows refused" if isinstance(each, Bad) else "rows read"] += 1
                assert not isinstance(each, Bad) or "\n" not in each.reason, "a reason of several lines"
            want, whole = parsed(data, suffix)
            if turn == "every":
                return
            assert whole or any(isinstance(each, Bad) for each in got) or not got, "a torn file is read without a word"
            if whole:
                while len(got) > len(want) and isinstance(got[-1], Bad):  # what is behind the last row, told
                    got.pop()
                assert len(got) == len(want), f"rows are lost or made: {len(got) < len(want)}"
                self._compare(got, want, turn)

    def _compare(self, got: list[Any], want: Parsed, turn: Any) -> None:
        shape = None
        for each, row in zip(got, want, strict=True):
            assert row is not BROKEN or isinstance(each, Bad), "a row is taken that is none"
            if row is BROKEN:
                continue
            try:
                (sample,) = to_samples(row, each.row, each.where, turn, shape)
                shape = shape or shape_of(row)
            except (DataError, RecursionError):
                assert isinstance(each, Bad), "a row is taken that is refused"
                continue
            if isinstance(each, Sample):
                assert (each.messages, each.response) == (sample.messages, sample.response), "a text is another one"
            else:
                assert each.reason.startswith("expected an id of its own"), f"a good row is refused: {each.reason[:60]}"

    def planted(self, key: str, texts: list[tuple[str, str]], more: Any, suffix: str, rng: random.Random) -> None:
        """Of rows of prompt and reply: each comes back as it was written, whatever stands beside."""
        texts = [(_spelt(prompt), _spelt(reply)) for prompt, reply in texts]
        rows = [{"prompt": prompt, key: reply} | more for prompt, reply in texts]
        try:
            data = written(rows, suffix, rng)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
            return  # the format cannot spell it
        with self.record.watching(f"x{suffix}", data):
            got = self.read(data, suffix, folder=rng.random() < 0.2)
            assert len(got) == len(texts), "rows are lost or made"
            for each, (prompt, reply) in zip(got, texts, strict=True):
                good = prompt.strip() and reply.strip() and _whole(prompt + reply)
                self.record.counts["rows read" if isinstance(each, Sample) else "rows refused"] += 1
                if isinstance(each, Sample):
                    asked = [turn["content"] for turn in each.messages]
                    assert good and (asked, each.response) == ([prompt], reply), "a text is another one"
                else:
                    assert not good, f"a good row is refused: {each.reason[:60]}"


def _spelt(text: str) -> str:
    """Two halves of a surrogate pair are a character wherever they are written."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def fuzz(record: Any, seed: int) -> None:
    """Write and read files until the time is over."""
    readers = Readers(record)

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(FORMATS), st.data(), st.integers(0, 2**32))
    def rows(suffix: str, data: Any, chance: int) -> None:
        rng = random.Random(chance)
        if rng.random() < 0.5:
            key, texts = data.draw(PLAIN)
            more = {"extra": data.draw(TEXTS)} if suffix.startswith(".csv") else {"extra": data.draw(ANY)}
            readers.planted(key, texts, more, suffix, rng)
            return
        drawn = data.draw(st.lists(odd_row(), min_size=1, max_size=4))
        try:
            content = written(drawn, suffix, rng)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, AttributeError, ValueError, csv.Error):
            record.counts["not spelt"] += 1
            return
        for _ in range(rng.randrange(3)):
            content = torn(content, rng)
        readers.law(content, suffix, rng.choice(TURNS), rng.random() < 0.2)

    def one(data: bytes) -> None:
        if record.over:
            shutil.rmtree(readers.folder)
            code = record.ending()
            sys.stdout.flush()
            os._exit(code)  # libFuzzer has no other end
        if not data:
            return
        if data[0] % 2:
            rows.hypothesis.fuzz_one_input(data[1:])
        else:
            readers.law(data[1:], FORMATS[data[0] // 2 % len(FORMATS)], TURNS[data[0] % 4 // 2])

    corpus = readers.folder.with_name(readers.folder.name + "-corpus")
    corpus.mkdir()
    for number, content in enumerate(_begins(random.Random(seed))):
        (corpus / f"{number}").write_bytes(content)
    options = [f"-seed={seed + 1}", "-timeout=30", "-rss_limit_mb=3000", "-max_len=4096", "-verbosity=0"]
    record.out.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={record.out}/", str(corpus)], one)
    atheris.Fuzz()


def _begins(rng: random.Random) -> Iterator[bytes]:
    """What mutation begins with: a valid file of each format, and noise for the rows."""
    rows = [
        {"prompt": "Hi", "response": "Hello."},
        {"prompt": "Who?", "response": 'A\nmodel, "one".'},
    ]
    chats = [{"id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}]
    for number, suffix in enumerate(FORMATS):
        for held in (rows, *([chats] if "csv" not in suffix else [])):
            yield bytes([2 * number]) + written(held, suffix, rng)
    for _ in range(100):
        yield b"\1" + rng.randbytes(rng.choice([50, 500, 3000]))
