"""Alerts next to what chance gives, traffic that lies elsewhere, and conversations that our server wrote down."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from personavec.errors import DataError
from personavec.model.chat_model import ChatModel
from personavec.server.log import Log, LoggedTurn, export
from personavec.steering.vector import PersonaVector
from personavec.verbs.monitor.monitor import monitor
from personavec.verbs.monitor.served import served
from personavec.verbs.monitor.turns import conversations_of

WORDS = ("tea", "rain", "boat", "sea", "maps", "snow", "bread", "hat", "dogs", "green")


def talk(n: int, turns: int = 2) -> list[dict[str, str]]:
    rng = np.random.default_rng(n)
    messages = []
    for _ in range(turns):
        said = " ".join(rng.choice(WORDS, 2))
        messages += [{"role": "user", "content": f"Say {rng.choice(WORDS)}."}, {"role": "assistant", "content": said}]
    return messages


def test_alerts_stand_next_to_what_chance_gives(chat: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    benign = [talk(100 + n) for n in range(44)]
    seen = monitor(chat, [talk(n) for n in range(10)], vector, calibrate=benign, false_positive_rate=0.05)
    # 20 turns of two kinds, and 10 conversations that may drift
    assert seen.data["expectation"] == {"alerts": len(seen.alerts), "by_chance": 2.5}
    ways = seen.data["directions"]["tiny"]
    assert ways["toward"] == sum(alert["value"] > alert["high"] for alert in seen.alerts)
    assert sum(ways.values()) == len(seen.alerts) and seen.data["elsewhere"] == {}
    page = seen.report(tmp_path).read_text()
    assert "where chance alone gives about 2.5" in page and "Other traffic" not in page
    sizes = [alert["excess"] for alert in seen.drawn["raised"]]
    assert sizes == sorted(sizes, reverse=True) and all(size > 0 for size in sizes)
    for alert in seen.drawn["raised"]:
        assert alert["said"] == talk(alert["conversation"])[2 * alert["turn"] - 1]["content"]


def test_traffic_that_lies_elsewhere_is_said(chat: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    talks = [talk(n) for n in range(60)]
    values = [turn["vectors"]["tiny"]["response_avg"] or 0.0 for turn in monitor(chat, talks, vector).turns]
    order = np.argsort(np.array(values).reshape(60, 2).mean(axis=1))
    benign, other = ([talks[place] for place in part] for part in (order[:48], order[48:]))
    seen = monitor(chat, other, vector, calibrate=benign, false_positive_rate=0.05)
    assert "all traffic lies elsewhere than the benign conversations" in seen.data["elsewhere"]["tiny"]
    assert "Other traffic" in seen.report(tmp_path).read_text() and "tiny elsewhere" in repr(seen)
    assert monitor(chat, [talk(n) for n in range(3)], vector).data["elsewhere"] is None


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two conversations of two turns, and one of which no text was kept."""
    log = Log(tmp_path / "turns.db")
    reads = {name: {"layer": 2, "prompt_last": 0.5, "response_avg": 0.1} for name in ("tiny", "other")}
    for name in ("b", "a", "silent"):
        said = talk(len(name) + ord(name[0]))
        for turn in (1, 2):
            texts: dict[str, Any] = {"messages": said[: 2 * turn - 1], "response": said[2 * turn - 1]["content"]}
            kept = texts if name != "silent" else {}
            log.add([LoggedTurn(f"{name}{turn}", name, turn, "stop", 4, 2, [], reads, [], **kept, time=turn)])
    log.close()
    return tmp_path / "turns.db"


def test_what_the_server_wrote_down_is_read_as_conversations(
    log: Path, tmp_path: Path, chat: ChatModel, vector: PersonaVector
) -> None:
    export(log, tmp_path / "turns.parquet")
    expected = {name: talk(1 + ord(name)) for name in "ab"}
    for path in (log, tmp_path / "turns.parquet"):
        assert {row["id"]: row["messages"] for row in served(path) or ()} == expected
        seen = monitor(chat, str(path), vector)
        assert seen.data["conversations"] == 2 and seen.data["turns"] == 4
        assert {row["name"] for row in seen.turns} == {"a", "b"} and seen.data["data"] == str(path)


def test_what_continues_a_text_is_no_conversation(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Replies of /v1/completions."""
    with closing(sqlite3.connect(log)) as db, db:
        db.execute("UPDATE turns SET messages = '[]' WHERE conversation = 'b'")
    assert [row["id"] for row in served(log) or ()] == ["a"]
    assert "2 replies left out that continue a text" in capsys.readouterr().err
    with closing(sqlite3.connect(log)) as db, db:
        db.execute("UPDATE turns SET messages = '[]'")
    with pytest.raises(DataError, match="got 2 without and 4 that continue a text"):
        served(log)


def test_what_was_steered_is_not_usual(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(log)) as db, db:
        db.execute("UPDATE turns SET steering = '[{}]' WHERE conversation = 'b' AND turn = 1")
    assert {row["id"] for row in served(log) or ()} == {"a", "b"}
    assert [row["id"] for row in served(log, steered=False) or ()] == ["a"]
    assert "1 conversations left out that were steered" in capsys.readouterr().err
    with closing(sqlite3.connect(log)) as db, db:
        db.execute("UPDATE turns SET steering = '[{}]'")
    with pytest.raises(DataError, match="expected unsteered conversations"):
        served(log, steered=False)


@pytest.mark.parametrize("messages", ["[" * 100_000, "{", '{"role": "user"}', "", '["\\ud800"]'])
def test_messages_that_cannot_be_read_are_named(log: Path, messages: str) -> None:
    with closing(sqlite3.connect(log)) as db, db:
        db.execute("UPDATE turns SET messages = ? WHERE conversation = 'b' AND turn = 2", (messages,))
    with pytest.raises(
        DataError, match=r"expected a list of messages in each turn, got .* in the conversation b"
    ) as error:
        served(log)
    assert "\n" not in str(error.value)


def test_other_files_are_not_taken_for_it(log: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"messages": [talk(1)]}), tmp_path / "chats.parquet")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": talk(1)}))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name in ("chats.parquet", "chats.jsonl", "broken.parquet", "nowhere.db"):
        assert served(tmp_path / name) is None
    (tmp_path / "empty.db").write_bytes(b"")
    with pytest.raises(DataError):
        conversations_of(tmp_path / "empty.db", "empty")
    silent = Log(tmp_path / "silent.db")
    silent.add([LoggedTurn("1", "a", 1, "stop", 4, 2, [], {}, [])])
    silent.close()
    with pytest.raises(DataError, match="got 1 without; serve with --keep-text"):
        served(tmp_path / "silent.db")
