"""A log that cannot be written: told in the form of all errors, and over when there is room again."""

import sqlite3
from typing import Any

import pytest
from support.serving import Client, bad, good


class Full:
    """A database on a full disk: it can be read."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __enter__(self) -> sqlite3.Connection:
        return self.db.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self.db.__exit__(*error)

    def executemany(self, *_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    def execute(self, query: str, *values: Any) -> Any:
        if not query.startswith("SELECT"):
            raise sqlite3.OperationalError("database or disk is full")
        return self.db.execute(query, *values)


def test_a_full_disk_is_told_and_got_over(server: Client, caplog: pytest.LogCaptureFixture) -> None:
    log = server.service.log
    kept = good(server.ask(persona={"conversation": "kept"}))
    db = log._db
    log._db = Full(db)  # type: ignore[assignment]
    refused = server.ask(persona={"conversation": "lost"})
    bad(refused, 503, "expected to keep the reply in the log, got a log that cannot be written")
    assert refused.json()["error"]["code"] == "log_unwritable" and "disk is full" in caplog.text
    assert "Traceback" not in caplog.text
    events = server.events()  # ends with [DONE]
    assert events[-1]["error"]["code"] == "log_unwritable" and events[0]["choices"]
    assert server.get("/ready").status_code == 503 and server.get("/health").status_code == 200
    assert [turn["id"] for turn in good(server.get("/v1/conversations/kept"))["turns"]] == [kept["id"]]
    log._db = db
    assert server.get("/ready").status_code == 200
    again = good(server.ask(persona={"conversation": "kept"}))
    turns = good(server.get("/v1/conversations/kept"))["turns"]
    assert {turn["id"] for turn in turns} == {kept["id"], again["id"]}
    bad(server.get("/v1/conversations/lost"), 404, "expected a conversation of the log")
