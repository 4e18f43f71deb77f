"""The table of a screening wherever fsspec reaches: the same rows, resumed there, and every failure one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from fsspec.registry import known_implementations  # type: ignore[import-untyped]
from support import tiny_chat

from personavec.cli.main import main
from personavec.errors import ConfigError, DataError
from personavec.model.chat_model import ChatModel
from personavec.runs.run import Run
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.screen import shards
from personavec.verbs.screen.screen import screen, screen_sides
from personavec.verbs.screen.table import Table, place_of

ROWS = [{"prompt": f"{n}?", "response": f"{n} it is."} for n in range(35)]
"""Two parts."""


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 20)


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny_chat.build()


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory) -> PersonaVector:
    return load_vector(tiny_chat.save(tmp_path_factory.mktemp("tiny"))[1])


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def scores(found: Any) -> Any:
    return found.table.column("tiny")


@pytest.mark.parametrize("url", ["memory://bucket/table", "memory://bucket/table/", "file://{}/table", "{}/table"])
def test_a_table_elsewhere_is_that_of_the_run(
    chat: ChatModel, vector: PersonaVector, tmp_path: Path, memory: Any, url: str
) -> None:
    here = screen(chat, ROWS, vector, clean=ROWS[:15], store=tmp_path / "here")
    there = screen(chat, ROWS, vector, clean=ROWS[:15], store=tmp_path / "there", table=url.format(tmp_path))
    np.testing.assert_array_equal(scores(here), scores(there))
    assert there.rows.equals(here.rows) and here.rows.num_rows == len(ROWS)
    assert there.data["flags"] == here.data["flags"]
    assert there.data["projection_difference"] == here.data["projection_difference"]
    assert not (tmp_path / "there" / "table").exists()
    files, root = fsspec.core.url_to_fs(there.data["table"])
    assert pq.read_table(root, filesystem=files).num_rows == len(ROWS)  # by whoever reads a folder of Parquet
    assert len(files.glob(f"{root}/part-*.parquet")) == 2


def test_it_is_resumed_there_part_by_part(
    chat: ChatModel, vector: PersonaVector, tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go() -> Any:
        return screen(chat, tmp_path / "rows.jsonl", vector, store=tmp_path / "run", table="memory://bucket/t")

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    put = Table.put

    def killed(folder: Any, part: str, packed: bytes) -> None:
        if part == "part-000001":
            raise KeyboardInterrupt
        put(folder, part, packed)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Table, "put", killed)
        go()
    written: list[str] = []
    monkeypatch.setattr(Table, "put", lambda folder, part, packed: (written.append(part), put(folder, part, packed)))
    first = go()
    assert written == ["part-000001"] and first.rows.num_rows == len(ROWS)
    go()
    assert written == ["part-000001"]


def test_parts_of_another_run_are_never_taken(
    chat: ChatModel, vector: PersonaVector, memory: Any, tmp_path: Path
) -> None:
    screen(chat, ROWS, vector, table="memory://bucket/t")
    for other in ({"cost": "raw"}, {"system": "Be brief."}):
        with pytest.raises(ConfigError, match="got parts of another in memory://bucket/t; choose one"):
            screen(chat, ROWS, vector, table="memory://bucket/t", **other)  # type: ignore[arg-type]
    memory.pipe_file("/stray/part-000000.parquet", b"")
    with pytest.raises(ConfigError, match="got parts of another"):
        screen(chat, ROWS, vector, table="memory://stray")


def test_both_sides_of_preferences_have_a_folder_each(chat: ChatModel, vector: PersonaVector, memory: Any) -> None:
    pairs = [{"prompt": f"{n}?", "chosen": f"{n}.", "rejected": "No!"} for n in range(20)]
    screen_sides(chat, pairs, vector, table="memory://bucket/t")
    assert [len(memory.glob(f"/bucket/t/{side}/*.parquet")) for side in ("chosen", "rejected")] == [1, 1]


@pytest.mark.parametrize(
    ("url", "ray", "match"),
    [
        ("nope://bucket/t", False, r"that fsspec can reach, got nope://bucket/t \(Protocol not known: nope\)"),
        ("zip://x::file:///no/such.zip", False, "that fsspec can reach, got zip://x"),
        ("memory://t", True, "that all of Ray's actors see, got memory://t"),
    ],
)
def test_what_cannot_be_a_table_is_refused_before_anything(url: str, ray: bool, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        place_of(url, together=ray)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"class": "no_such_package.Files", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "s3like", told)
    with pytest.raises(ConfigError, match=r"got s3like://bucket/t \(Install s3fs to access S3\)"):
        place_of("s3like://bucket/t", together=False)


class NoCredentialsError(Exception):
    """As botocore has it."""


class Locked(MemoryFileSystem):  # type: ignore[misc]
    """A bucket without credentials."""

    protocol = "locked"
    cachable = False

    def makedirs(self, *_: Any, **__: Any) -> None:
        raise NoCredentialsError("Unable to locate\ncredentials")


class Broken(MemoryFileSystem):  # type: ignore[misc]
    """A bucket whose connection breaks when a part is written."""

    protocol = "broken"
    cachable = False

    def _open(self, *given: Any, **more: Any) -> Any:
        if more.get("mode") == "wb":
            raise ConnectionResetError("reset by peer")
        return super()._open(*given, **more)


@pytest.mark.parametrize(("kind", "got"), [(Locked, "Unable to locate credentials"), (Broken, "reset by peer")])
def test_a_failure_there_is_one_line(
    saved: tuple[Path, Path], tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str], kind: Any, got: str
) -> None:
    fsspec.register_implementation(kind.protocol, kind, clobber=True)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:20]))
    args = ["screen", str(tmp_path / "rows.jsonl"), "--model", str(saved[0]), "--vectors", str(saved[1])]
    url = f"{kind.protocol}://bucket/t"
    assert main([*args, "--out", str(tmp_path / "run"), "--table", url]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("personavec: ")]
    assert len(lines) == 1 and f"at {url}, got {got}; set what" in lines[0]


def test_unknown_protocols_cost_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    vectors = str(tmp_path / "none.safetensors")
    assert main(["screen", str(tmp_path / "rows.jsonl"), "--vectors", vectors, "--table", "nope://x"]) == 2
    assert "got nope://x (Protocol not known: nope)" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["s3://bucket/run", "memory://run", "gs:/bucket"])
def test_a_run_folder_is_of_this_machine(out: str) -> None:
    with pytest.raises(ConfigError, match="expected a folder of this machine, got"):
        Run.open(out, {})


def test_reading_there_fails_in_one_line_as_well(memory: Any) -> None:
    with pytest.raises(DataError, match="expected a table that can be read and written at memory://t, got"):
        Table.read("memory://t", "part-000000")
