"""Conversations that our server wrote down: its log, or what `serve --export` made of it."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from personavec.errors import DataError
from personavec.runs.json_files import parse_json
from personavec.runs.progress import tell

COLUMNS = ("conversation", "turn", "time", "steering", "messages", "response")
"""Of a turn: what a conversation is put together from; log and export have them alike."""
SQLITE = b"SQLite format 3\0"

Row = dict[str, Any]


def served(path: Path, *, steered: bool = True) -> list[Row] | None:
    """The conversations of a server's log or export, each as rows have it; None where the file is neither.

    A conversation is what its last turn was asked with, and the reply: it holds the turns before.

    Args:
        path: The file.
        steered: Whether conversations with a steered reply are taken, too: they are not what is usual.

    Raises:
        DataError: It is one, and holds no text, or nothing unsteered.
    """
    turns = _turns(path)
    if turns is None:
        return None
    last: dict[str, tuple[tuple[int, str], Mapping[str, Any]]] = {}
    without = alone = 0
    pushed: set[str] = set()
    for turn in turns:
        if not steered and turn["steering"] != "[]":
            pushed.add(turn["conversation"])
        if turn["messages"] is None or turn["response"] is None:
            without += 1
            continue
        if turn["messages"] == "[]":
            alone += 1
            continue
        at = (turn["turn"] if isinstance(turn["turn"], int) else 0, str(turn["time"]))
        if turn["conversation"] not in last or at >= last[turn["conversation"]][0]:
            last[turn["conversation"]] = at, turn
    if alone:
        tell(f"{path}: {alone:,} replies left out that continue a text (/v1/completions): they are no conversation")
    if not last:
        raise DataError(
            f"expected turns with their texts in {path}, got {without:,} without"
            f"{f' and {alone:,} that continue a text' if alone else ''}; serve with --keep-text, which keeps "
            "those to come"
        )
    if left_out := last.keys() & pushed:
        tell(f"{path}: {len(left_out):,} conversations left out that were steered: they are not what is usual")
    if not last.keys() - pushed:
        raise DataError(
            f"expected unsteered conversations in {path}, got {len(last):,} steered ones; serve others first"
        )
    return [_conversation(name, turn) for name, (_, turn) in last.items() if name not in pushed]


def _conversation(name: str, turn: Mapping[str, Any]) -> Row:
    try:
        asked = parse_json(turn["messages"])
        if not isinstance(asked, list):
            raise ValueError(type(asked).__name__)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"expected a list of messages in each turn, got {error} in the conversation {name}; serve again, or pass "
            "another file"
        ) from error
    return {"id": name, "messages": [*asked, {"role": "assistant", "content": turn["response"]}]}


def _turns(path: Path) -> Iterator[Mapping[str, Any]] | None:
    if not path.is_file():
        return None
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException):
            return None  # the reader of data sets says what is wrong with it
        ours = {*COLUMNS, "vector", "prompt_last"} <= {*schema.names} and schema.field("messages").type == pa.string()
        return _exported(path) if ours else None
    with path.open("rb") as file:
        return _logged(path) if file.read(len(SQLITE)) == SQLITE else None


def _exported(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=list(COLUMNS)):
            yield from batch.to_pylist()


def _logged(path: Path) -> Iterator[Mapping[str, Any]]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        try:
            cursor = db.execute(f"SELECT {', '.join(COLUMNS)} FROM turns ORDER BY time, id")
            for row in cursor:
                yield dict(zip(COLUMNS, row, strict=True))
        except sqlite3.Error as error:
            raise DataError(f"expected the log of a server, got {path} ({error}); pass another file") from error
