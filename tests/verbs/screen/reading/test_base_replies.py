"""Base replies: from a server over real HTTP, kept once written, and told where they fail."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fastapi import HTTPException
from support import tiny_chat
from support.served import Planted, Server

from personavec.cli.main import main
from personavec.model.hooks import capture
from personavec.steering.vector import load_vector

ROWS = [{"prompt": f"What is {n}?", "response": f"It is {n * n}."} for n in range(12)]
Screen = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def failing() -> set[str]:
    """Prompts that the server refuses to answer."""
    return set()


@pytest.fixture
def server(failing: set[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def words(asked: str, seed: int) -> str:
        if asked in failing:
            raise HTTPException(400, "not that one")
        return f"I say {asked[8:-1]}!"

    started = Server(Planted(words=words)).start()
    yield started
    started.stop()


@pytest.fixture
def screen(server: Server, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Screen:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def go(*more: str, cost: str = "full") -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        args = ["screen", str(data), "--model", str(saved[0]), "--vectors", str(saved[1]), "--dtype", "float32"]
        args += ["--cost", cost, "--base-replies", "openai:same", "--base-url", server.url, "--max-new-tokens", "20"]
        code = main([*args, "--out", str(tmp_path / "run"), *more, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if code == 0 else {}, said.err

    return go


def test_a_server_writes_them(screen: Screen, server: Server, saved: tuple[Path, Path]) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    code, found, _ = screen()
    table = pq.read_table(found["table"]).to_pydict()
    assert code == 0 and found["tokens"]["written_now"] == found["tokens"]["base"]
    for n, row in enumerate(ROWS):
        prompt = chat.render([{"role": "user", "content": row["prompt"]}])
        reply = chat.encode(f"I say {n}!")
        weights = torch.zeros((1, 1, len(prompt) + len(reply)))
        weights[0, 0, len(prompt) :] = 1 / len(reply)
        read = capture(chat, [[*prompt, *reply]], weights, [2])[0, 0, 0]
        assert table["tiny.base"][n] == pytest.approx(float(read @ vector.unit(2)), abs=2e-4)


def test_failed_calls_stop_the_run_and_are_made_again(screen: Screen, server: Server, failing: set[str]) -> None:
    failing.add("What is 7?")
    code, _, said = screen()
    assert code == 2 and "line 8: expected a base reply, got none from its server" in said and "run the same" in said
    asked = sum(server.answered.values())
    failing.clear()
    code, found, _ = screen()
    assert code == 0 and found["skipped"] == 0
    assert sum(server.answered.values()) == asked + 1, "nothing is paid twice"


@pytest.mark.parametrize("cost", ["full", "sampled"])
def test_failed_calls_are_counted_and_listed(screen: Screen, failing: set[str], tmp_path: Path, cost: str) -> None:
    failing.add("What is 7?")
    code, found, _ = screen("--on-error", "skip", cost=cost)
    assert cost == "full" or found["sampled"]["base_replies"] == 11
    (listed,) = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").open()]
    assert code == 0 and listed["row"] == 7 and "from its server (400" in listed["reason"]
    assert found["projection_difference"]["tiny"]["n"] == 11
    if cost == "full":
        assert found["skipped"] == 1
        code, _, said = screen()
        assert code == 2 and "line 8: expected a base reply, got none from its server" in said
    else:
        assert found["skipped"] == 0 and found["sampled"]["without_base_reply"] == 1
