"""What the server refuses, and how it says so."""

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.serving import ASKED, Client, bad, client, good

from personavec.errors import ConfigError, VectorError
from personavec.server import app, exchange
from personavec.server.options import ServeConfig
from personavec.server.writing.engine import Engine
from personavec.steering.vector import PersonaVector, load_vector


@pytest.mark.parametrize(
    ("steering", "match"),
    [
        ({"vector": "tiny"}, "either coef or dose with op add, got neither"),
        ({"vector": "tiny", "coef": 1, "dose": 0.1}, "either coef or dose with op add, got both"),
        ({"vector": "tiny", "op": "ablate", "coef": 1}, "neither coef nor dose with op ablate, got coef"),
        ({"vector": "tiny", "op": "cap"}, "floor or ceiling"),
        ({"vector": "tiny", "op": "cap", "floor": 2, "ceiling": 1}, "floor below ceiling"),
        ({"vector": "tiny", "coef": 1, "ceiling": 1}, "with no other"),
        ({"vector": "tiny", "coef": 1, "layer": 9}, "a layer from 0 to 3, got 9"),
        ({"vector": "tiny", "dose": 0.1, "layer": "all"}, "one layer for a dose"),
        ({"vector": "tiny", "coef": 1, "layer": "all", "above": 0}, "one layer for a dose or a condition"),
        ({"vector": "tiny", "dose": 0.9}, "a dose of at most 0.7 in all, got 0.9"),
        ({"vector": "tiny", "coef": -1e6, "layer": "all"}, "a dose of at most 0.7 in all"),
        ({"vector": "tiny", "op": "cap", "floor": 1e6}, "a dose of at most 0.7 in all"),
        ({"vector": "tiny", "op": "cap", "ceiling": -1e6}, "a dose of at most 0.7 in all"),
        ({"vector": "tiny", "op": "cap", "floor": 1e6, "layer": "all"}, "a dose of at most 0.7 in all"),
        ({"vector": "tiny", "op": "cap", "ceiling": 1e39}, "ceiling"),
        ({"vector": "tiny", "coef": 1e39}, "coef"),
        ({"vector": "tiny", "coef": 1, "above": -1e300}, "above"),
        ({"vector": "tiny", "coef": 1, "multiplier": 3}, "multiplier"),
        ({"vector": "tiny", "coef": "x"}, "coef"),
        ({"vector": "tiny", "coef": 1, "layer": -1}, "layer"),
        ({"vector": "tiny", "coef": 1, "op": "explode"}, "op"),
        ("tiny:2", "persona.steering.0"),
    ],
)
def test_steering_that_cannot_be_is_refused_by_name(server: Client, steering: Any, match: str) -> None:
    bad(server.persona(steering=[steering]), 400, match)


def test_a_bound_that_pushes_nothing_has_no_dose(server: Client) -> None:
    for bounds in ({"ceiling": 0.5}, {"floor": -1e6}, {"floor": -2, "ceiling": 3}):
        told = good(server.persona(steering=[{"vector": "tiny", "op": "cap", **bounds}]))
        assert told["persona"]["warnings"] == []


def test_a_cap_that_pushes_too_far_is_scaled_down(options: dict[str, Any]) -> None:
    with client(ServeConfig(**options, guard="clamp")) as server:
        told = good(server.persona(steering=[{"vector": "tiny", "op": "cap", "floor": 1e6}]))
        assert 0 < told["persona"]["steering"][0]["floor"] < 1e3
        assert "scaled down" in told["persona"]["warnings"][0]


def test_a_vector_without_some_layers_steers_those_it_has(options: dict[str, Any], tmp_path: Path) -> None:
    """As every vector from a GGUF file: its first layer is absent."""
    (place,) = options["vectors"]
    vector = load_vector(place)
    card = dataclasses.replace(vector.card, details={**vector.card.details, "absent_layers": [0]})
    partial = PersonaVector(vector.direction, card)
    partial.save(tmp_path / "partial.safetensors")
    with client(ServeConfig(**options | {"vectors": (tmp_path / "partial.safetensors",)})) as server:
        told = good(server.persona(steering=[{"vector": "tiny", "coef": 0.01, "layer": "all"}]))
        assert told["persona"]["steering"][0]["layer"] == "all"
        bad(server.persona(steering=[{"vector": "tiny", "coef": 0.01, "layer": 0}]), 400, "does not hold")


def test_a_stuck_engine_is_answered_for(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline holds even if the engine never speaks again."""
    monkeypatch.setattr(exchange, "GRACE", 0.2)
    with client(ServeConfig(**options, deadline=0.3)) as server:
        monkeypatch.setattr(Engine, "submit", lambda *_: None)
        began = time.monotonic()
        bad(server.ask(), 504, "expected the reply within 0.3 seconds")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["other", "../../etc/passwd", "/etc/passwd", "tiny.safetensors", "tiny\x00"])
def test_a_name_is_never_a_path(server: Client, name: str) -> None:
    bad(server.persona(steering=[{"vector": name, "coef": 1}]), 404, "expected a vector of this server (tiny)")
    bad(server.persona(watch=[name]), 404, "expected a vector of this server (tiny)")


@pytest.mark.parametrize(("guard", "coef"), [("clamp", 0.7), ("warn", 1.4)])
def test_the_guard_holds_a_dose_back_or_warns(options: dict[str, Any], guard: Any, coef: float) -> None:
    with client(ServeConfig(**options, guard=guard)) as server:
        told = good(server.persona(steering=[{"vector": "tiny", "dose": 0.9}, {"vector": "tiny", "dose": -0.5}]))
        assert sum(abs(one["dose"]) for one in told["persona"]["steering"]) == pytest.approx(coef)
        assert "expected a dose of at most 0.7 in all, got 1.4" in told["persona"]["warnings"][0]
        assert told["persona"]["steering"][0]["clamped"] == (guard == "clamp")


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "a body that is none"),
        (b"{", "a body that is none"),
        (b"[" * 100_000, "a body that is none"),
        (b'{"model": ' + b"9" * 10_000 + b"}", "a body that is none"),
        (b"\xff\xfe", "a body that is none"),
        (b"null", "body"),
        (b'"text"', "body"),
        (b"{}", "messages"),
    ],
)
def test_hostile_json_is_refused(server: Client, body: bytes, match: str) -> None:
    bad(server.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"}), 400, match)
    good(server.ask())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0 to be a turn with a tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}, "got the role tool"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 5, "max_tokens": 1}, "at most 4 replies"),
        ({"n": 4, "max_tokens": 17}, "at most 64 tokens in all"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "expected tools.0.function, got none"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "expected no tools"),
        ({"response_format": {"type": "json_object"}}, "expected no response_format"),
        ({"frequency_penalty": 0.5}, "expected no frequency_penalty"),
        ({"persona": {"conversation": "a/b"}}, "persona.conversation"),
        ({"persona": {"steer": []}}, "persona.steer"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "expected prompt and reply to fit into 256 tokens"),
    ],
)
def test_wrong_fields_are_refused_by_name(server: Client, fields: dict[str, Any], match: str) -> None:
    bad(
        server.post(
            "/v1/chat/completions",
            content=json.dumps(ASKED | {"model": server.service.model.identity.id} | fields),
            headers={"content-type": "application/json"},
        ),
        400,
        match,
    )
    assert server.service.engine.running == 0


def test_another_model_path_or_method_is_not_there(server: Client) -> None:
    bad(server.ask(model="gpt-5"), 404, "expected the model")
    for path in ("/v1/nothing", "/static/../app.py", "/static/%2e%2e/app.py", "/reports/0", "/v1/conversations/none"):
        bad(server.get(path), 404, "expected")
    bad(server.get("/v1/chat/completions"), 405, "expected a path and method")
    bad(server.get("/v1/conversations?limit=x"), 400, "limit")


def test_sizes_kinds_and_hosts_are_limited(options: dict[str, Any]) -> None:
    with client(ServeConfig(**options, max_request_bytes=2000)) as server:
        bad(server.ask(messages=[{"role": "user", "content": "x" * 3000}]), 413, "at most 2,000 bytes")

        def parts() -> Iterator[bytes]:
            for _ in range(50):
                yield b" " * 100

        bad(
            server.post("/v1/chat/completions", content=parts(), headers={"content-type": "application/json"}),
            413,
            "at most 2,000",
        )
        bad(
            server.post("/v1/chat/completions", content="{}", headers={"content-type": "text/plain"}),
            415,
            "application/json",
        )
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8000", ""):
            bad(server.get("/v1/models", headers={"host": host}), 421, "expected one of the hosts")
        for host in ("localhost", "localhost:8000", "[::1]", "[::1]:8000"):
            good(server.get("/v1/models", headers={"host": host}))
        good(server.ask())


def test_a_key_opens_everything_but_the_page(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAVEC_API_KEY", "secret")
    with client(ServeConfig(**options)) as server:
        for path in ("/v1/models", "/v1/vectors", "/v1/conversations", "/metrics", "/v1/status", "/v1/reports"):
            bad(server.get(path), 401, "expected the key")
            bad(server.get(path, headers={"authorization": "Bearer secre"}), 401, "expected the key")
            assert server.get(path, headers={"authorization": "Bearer secret"}).status_code == 200
        bad(server.ask(), 401, "expected the key")
        assert {server.get(path).status_code for path in ("/", "/health", "/ready")} == {200}


def test_the_busy_refuse_and_the_late_are_told(options: dict[str, Any]) -> None:
    with client(ServeConfig(**options | {"max_tokens": 200, "rows_at_once": 1, "queue": 1}, deadline=1.5)) as server:
        server.service.model.stop_ids = []
        long = {"max_tokens": 200, "messages": [{"role": "user", "content": "x"}]}
        slow = server.service.engine._forward
        server.service.engine._forward = lambda *args: (time.sleep(0.01), slow(*args))[1]  # type: ignore[method-assign,func-returns-value]
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(server.ask(**long))) for _ in range(2)]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        busy = server.ask(**long)
        bad(busy, 429, "expected room in the queue of 1")
        assert busy.headers["retry-after"] == "1"
        assert server.get("/ready").status_code == 503 and server.get("/health").status_code == 200
        for thread in threads:
            thread.join()
        for answer in answers:
            bad(answer, 504, "expected the reply within 1.5 seconds")
        server.service.engine._forward = slow  # type: ignore[method-assign]
        good(server.ask(max_tokens=2))


def test_bad_starts_are_one_line(options: dict[str, Any], saved: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny.vector(tiny.build("llama", hidden_size=48)).save(tmp_path / "other.safetensors")
    card = load_vector(saved[1])
    PersonaVector(torch.ones_like(card.direction), card.card).save(tmp_path / "second" / "vector.safetensors")
    for changes, kind, match in (
        ({"vectors": (other,)}, VectorError, "expected a vector for"),
        ({"vectors": (tmp_path / "nothing",)}, VectorError, "no file"),
        ({"vectors": (saved[0],)}, ConfigError, "expected vector.safetensors files below"),
        ({"vectors": (saved[1], tmp_path / "second")}, ConfigError, "expected one vector a trait, got another tiny"),
        ({"watch": ("warm",)}, ConfigError, "expected a vector of this server (tiny), got warm; correct --watch"),
        ({"log": saved[1] / "log.db"}, ConfigError, "expected a log that can be written"),
    ):
        with pytest.raises(kind, match=match.replace("(", r"\(").replace(")", r"\)")):
            ServeConfig(**options | changes).assemble()
    for changes, match in (
        ({"host": "0.0.0.0"}, "expected a key with --host"),
        ({"port": 70000}, "expected a port from 0 to 65535"),
        ({"watch": ("all", "tiny")}, "expected all, none, or traits"),
        ({"max_dose": 0.0}, "expected max_dose above 0"),
        ({"queue": 0}, "expected queue at least 1"),
    ):
        with pytest.raises(ConfigError, match=match):
            ServeConfig(**options | changes)
    with pytest.raises(ConfigError, match="expected report"):
        ServeConfig(**options, reports=(tmp_path,), port=0).run()


NULLABLE = ("model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n")
NULLABLE += ("stop", "seed", "persona", "logprobs", "top_logprobs", "tools", "response_format", "logit_bias", "user")


@pytest.mark.parametrize("name", NULLABLE)
def test_null_is_not_given(server: Client, name: str) -> None:
    """As openai-python sends it: create(…, temperature=None)."""
    wanted = good(server.ask(**({"model": server.service.model.identity.id} if name == "model" else {})))
    assert good(server.ask(**{name: None}))["object"] == wanted["object"]


def test_null_inside_is_not_given(server: Client) -> None:
    steering = {"vector": "tiny", "coef": 0.1, "dose": None, "layer": None, "floor": None, "above": None}
    told = good(server.persona(steering=[steering], watch=None, conversation=None))
    assert told["persona"]["steering"][0]["coef"] == pytest.approx(0.1)
    good(server.ask(stream_options={"include_usage": None}))
    bad(server.ask(messages=None), 400, "messages")
    bad(server.ask(messages=[{"role": "user", "content": None}]), 400, "messages.0.content")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.0),
        ("top_k", -1),
        ("modalities", ["text"]),
        ("function_call", "none"),
        ("reasoning_effort", "none"),
        ("min_p", 0.0),
        ("frequency_penalty", 0),
    ],
)
def test_a_value_that_changes_nothing_is_taken(server: Client, name: str, value: Any) -> None:
    good(server.ask(**{name: value}))


@pytest.mark.parametrize(("name", "value"), [("repetition_penalty", 1.1), ("top_k", 5), ("modalities", ["audio"])])
def test_a_value_that_cannot_be_obeyed_is_refused_by_name(server: Client, name: str, value: Any) -> None:
    bad(server.ask(**{name: value}), 400, f"expected no {name}")


def test_one_model_can_be_asked_for(server: Client) -> None:
    name = server.service.model.identity.id
    assert good(server.get(f"/v1/models/{name}")) == good(server.get("/v1/models"))["data"][0]
    bad(server.get("/v1/models/another/one"), 404, f"expected the model {name}, got another/one")


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/metrics"])
def test_head_is_a_get_without_a_body(server: Client, path: str) -> None:
    answer = server.head(path)
    assert answer.status_code == 200 and answer.content == b""
    assert answer.headers["content-type"] == server.get(path).headers["content-type"]


def test_the_scheme_of_a_key_has_no_letter_case(options: dict[str, Any]) -> None:
    with client(ServeConfig(**options, api_key="secret")) as server:
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert server.get("/v1/models", headers={"Authorization": f"{scheme} secret"}).status_code == 200
        for given in ("Basic secret", "bearer secre", "bearer", "secret", "bearer secret secret"):
            bad(server.get("/v1/models", headers={"Authorization": given}), 401, "expected the key of this server")


def test_a_compressed_body_is_named(server: Client) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    bad(server.post("/v1/chat/completions", content=b"\x1f\x8b", headers=headers), 415, "Content-Encoding, got gzip")


def test_no_character_of_a_reply_ends_a_line_of_a_stream() -> None:
    text = "".join(map(chr, (*range(0x20), 0x7F, 0x85, 0x2028, 0x2029, 0xFEFF)))
    event = app._event({"text": text})
    assert len(event.rstrip("\n").splitlines()) == 1
    assert json.loads(event.removeprefix("data: "))["text"] == text
