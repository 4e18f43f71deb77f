"""What must not happen between the client and a server: a key that is told, mixed caches, budgets that leak."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.served import Manners, Planted, Server

from personavec.errors import ModelError
from personavec.judges.openai import probe
from personavec.model import endpoint as module
from personavec.model.endpoint import Answer, Endpoint, Failure

ASKED = {"messages": [{"role": "user", "content": "How warm?"}], "max_tokens": 4}


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started = [Server(Planted(words=lambda *_, n=n: str(n)), Manners()).start() for n in (10, 90)]
    yield started
    for server in started:
        server.stop()


def test_the_key_is_never_told(monkeypatch: pytest.MonkeyPatch, servers: list[Server], tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET123\r\n")
    at = Endpoint("judge", servers[0].url, tmp_path / "a.sqlite")
    assert isinstance(at.ask(ASKED), Answer) and servers[0].keys == {"Bearer sk-SECRET123"}
    assert "SECRET" not in str(at.unusable(at._short("the key sk-SECRET123 is wrong")))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET…")
    with pytest.raises(ModelError, match="plain characters in OPENAI_API_KEY") as caught:
        Endpoint("judge", servers[0].url, tmp_path / "a.sqlite")
    assert "SECRET" not in str(caught.value)


def test_servers_named_by_the_environment_have_answers_of_their_own(
    monkeypatch: pytest.MonkeyPatch, servers: list[Server], tmp_path: Path
) -> None:
    said = []
    for server in servers:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        answer = Endpoint("same", None, tmp_path / "a.sqlite").ask(ASKED)
        said.append(answer.text if isinstance(answer, Answer) else None)
    assert said == ["10", "90"]


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:99999/v1", "http://[::1/v1", "ftp://here/v1", "http://"])
def test_what_is_no_address_is_told(url: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected the address of a server"):
        Endpoint("judge", url, tmp_path / "a.sqlite")


def test_a_cache_that_cannot_be_used_is_told(servers: list[Server], tmp_path: Path) -> None:
    (tmp_path / "damaged.sqlite").write_bytes(b"this is no database, " * 100)
    with pytest.raises(ModelError, match="expected a cache of answers that can be written"):
        Endpoint("judge", servers[0].url, tmp_path / "damaged.sqlite").ask(ASKED)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="expected a cache of answers that can be written"):
        Endpoint("judge", servers[0].url, tmp_path / "file" / "a.sqlite")


def test_half_a_character_is_no_answer(servers: list[Server], tmp_path: Path) -> None:
    servers[0].brain = Planted(words=lambda *_: "\ud83d")
    found = Endpoint("judge", servers[0].url, tmp_path / "a.sqlite").ask(ASKED)
    assert isinstance(found, Failure) and "no chat completion" in found.reason


def test_a_token_budget_does_not_stop_the_first_calls(servers: list[Server], tmp_path: Path) -> None:
    at = Endpoint("judge", servers[0].url, tmp_path / "a.sqlite", max_tokens=10_000)
    asked = [ASKED | {"seed": seed} for seed in range(20)]
    assert all(isinstance(answer, Answer) for answer in at.ask_all(asked)) and at.usage.tokens == 2000


@pytest.mark.slow
def test_retries_are_within_the_budget_of_calls(servers: list[Server], tmp_path: Path) -> None:
    servers[0].manners.status = 500
    at = Endpoint("judge", servers[0].url, tmp_path / "a.sqlite", concurrency=1, max_calls=5, retries=8)
    with pytest.raises(ModelError, match="expected at most 5 calls"):
        at.ask_all([ASKED | {"seed": seed} for seed in range(4)])
    assert at.usage.calls == sum(servers[0].seen.values()) == 5


def test_a_busy_server_is_waited_for_from_the_first_call_on(servers: list[Server], tmp_path: Path) -> None:
    servers[0].manners.storm = module.HASTY_RETRIES + 2
    assert probe(Endpoint("judge", servers[0].url, tmp_path / "a.sqlite")).kind == "expected"


def test_draws_differ_where_a_server_takes_no_seed(servers: list[Server], tmp_path: Path) -> None:
    at = Endpoint("writer", servers[0].url, tmp_path / "a.sqlite")
    for draw in range(3):
        at.ask(ASKED | {"_draw": draw})
    assert at.usage.calls == 3 and len(servers[0].seen) == 1, "told apart in the cache, sent alike"


def test_a_running_loop_is_no_obstacle(servers: list[Server], tmp_path: Path) -> None:
    async def inside() -> object:
        return Endpoint("judge", servers[0].url, tmp_path / "a.sqlite").ask(ASKED)

    assert isinstance(asyncio.run(inside()), Answer)


@pytest.mark.parametrize(
    "url", ["http://ann:hunter2@localhost:8000/v1", "https://hunter2@host/v1", "htp://a:hunter2@host"]
)
def test_a_password_in_an_address_is_refused_and_never_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected .* got .*//…@") as error:
        Endpoint("judge", url, tmp_path / "answers.sqlite")
    assert "hunter2" not in str(error.value)
