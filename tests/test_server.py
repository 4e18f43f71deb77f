"""The server over HTTP: OpenAI's API, persona, what it refuses, and what it keeps."""

import dataclasses
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import uvicorn
from starlette.testclient import TestClient

from personavec.calibration import KINDS, Band, Calibration, Cusum, VectorCalibration
from personavec.config_deploy import ServeConfig
from personavec.errors import ConfigError, DataError, VectorError
from personavec.server.app import build
from personavec.server.log import Log, Turn, export
from personavec.server.serve import serve
from personavec.server.service import Service, assemble
from personavec.vector import PersonaVector, load_vector

ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hi there"}],
    "max_tokens": 8,
    "seed": 3,
}


@pytest.fixture
def options(saved: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
    """Of a server of the tiny model, which is called by its folder."""
    model, vector = saved
    return {
        "model": str(model),
        "vectors": (vector,),
        "log": tmp_path / "turns.db",
        "max_tokens": 64,
        "rows_at_once": 4,
    }


class Client(TestClient):
    """Asks a server; leaves out what every request says alike."""

    service: Service

    def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> Any:
        return self.post(path, json=ASKED | {"model": self.service.config.model} | fields)

    def persona(self, **persona: Any) -> Any:
        return self.ask(persona=persona)

    def events(self, **fields: Any) -> list[Any]:
        body = self.ask(stream=True, **fields).text
        events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]


def client(config: ServeConfig, reports: dict[str, Path] | None = None) -> Client:
    service = assemble(config)
    made = Client(build(service, reports or {}), base_url="http://127.0.0.1")
    made.service = service
    return made


@pytest.fixture
def server(options: dict[str, Any]) -> Iterator[Client]:
    with client(ServeConfig(**options)) as made:
        yield made


def good(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def bad(answer: Any, status: int, match: str) -> None:
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert match in error["message"], error["message"]


def test_a_reply_with_its_projections(server: Client) -> None:
    told = good(server.ask())
    choice = told["choices"][0]
    assert told["object"] == "chat.completion" and choice["message"]["role"] == "assistant"
    assert told["usage"]["completion_tokens"] == len(choice["persona"]["pieces"]) <= 8
    read = choice["persona"]["projections"]["tiny"]
    assert read["layer"] == 2
    assert read["response_avg"] == pytest.approx(sum(read["tokens"]) / len(read["tokens"]))
    assert "".join(choice["persona"]["pieces"]) == choice["message"]["content"]
    assert told["persona"]["steering"] == [] and told["persona"]["turn"] == 1


def test_a_seed_repeats_and_choices_differ(server: Client) -> None:
    first, again, other = (good(server.ask(n=3, seed=seed)) for seed in (3, 3, 4))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert len(set(texts)) == 3
    assert texts != [choice["message"]["content"] for choice in other["choices"]]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_is_the_whole_in_pieces(server: Client, path: str) -> None:
    asked: dict[str, Any] = (
        {"logprobs": True, "top_logprobs": 2} if "chat" in path else {"messages": None, "prompt": "Hi", "logprobs": 2}
    )
    asked = {"path": path, "n": 2, "max_tokens": 20} | asked
    whole = good(server.ask(**asked))
    events = server.events(**asked, stream_options={"include_usage": True})
    assert events[-1]["usage"] == whole["usage"] and events[-1]["choices"] == []
    for choice in whole["choices"]:
        mine = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
        texts = [one["delta"].get("content", "") if "chat" in path else one["text"] for one in mine]
        assert "".join(texts) == (choice["message"]["content"] if "chat" in path else choice["text"])
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        assert mine[-1]["persona"] == choice["persona"]
        pieces = [piece for one in mine[:-1] for piece in one["persona"]["pieces"]]
        tokens = [value for one in mine[:-1] for value in one["persona"]["tokens"]["tiny"]]
        assert pieces == choice["persona"]["pieces"]
        assert tokens == choice["persona"]["projections"]["tiny"]["tokens"]
        if "chat" in path:
            told = [entry for one in mine[:-1] for entry in one["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"] and len(told) == len(pieces)
            assert all(entry["logprob"] <= entry["top_logprobs"][0]["logprob"] + 1e-5 for entry in told)
        else:
            assert [value for one in mine[:-1] for value in one["logprobs"]["token_logprobs"]] == choice["logprobs"][
                "token_logprobs"
            ]
    assert (
        events[0]["persona"]["prompt_last"]["tiny"]
        == whole["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
    )


def test_stop_texts_end_a_reply(server: Client) -> None:
    text = good(server.ask(max_tokens=30))["choices"][0]["message"]["content"]
    stop = text[4:6]
    told = good(server.ask(max_tokens=30, stop=[stop, "never"]))["choices"][0]
    assert told["message"]["content"] == text[: text.index(stop)] and told["finish_reason"] == "stop"


def test_steering_is_data(server: Client) -> None:
    plain = good(server.ask())["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
    unit = load_vector(server.service.config.vectors[0]).norms[2]
    told = good(server.persona(steering=[{"vector": "tiny", "dose": 0.5}]))
    moved = told["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
    assert moved - plain == pytest.approx(0.5 * 10.0, rel=1e-3)  # the card's activation norm is 10
    (steering,) = told["persona"]["steering"]
    assert steering["coef"] == pytest.approx(5.0 / float(unit))
    assert (steering["layer"], steering["positions"], steering["clamped"]) == (2, "response", False)
    capped = good(server.persona(steering=[{"vector": "tiny", "op": "cap", "ceiling": plain - 1}]))
    assert capped["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"] == pytest.approx(plain - 1, abs=1e-3)
    gone = good(server.persona(steering=[{"vector": "tiny", "op": "ablate", "layer": 2}]))
    assert abs(gone["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]) < 1e-3
    for bound, acts in (("above", False), ("below", True)):
        asked = {"vector": "tiny", "coef": 0.5, bound: plain + 0.01}
        found = good(server.persona(steering=[asked]))["choices"][0]["persona"]["projections"]["tiny"]["prompt_last"]
        assert (found != plain) == acts
    for spread in ({"layer": "all", "coef": 0.1}, {"coef": 0.1, "positions": "all"}):
        good(server.persona(steering=[{"vector": "tiny", **spread}]))


def test_watching_other_layers(server: Client) -> None:
    told = good(server.persona(watch=["tiny", {"vector": "tiny", "layer": 0}]))["choices"][0]["persona"]["projections"]
    assert {name: own["layer"] for name, own in told.items()} == {"tiny": 2, "tiny@0": 0}
    every = good(server.persona(watch=[{"vector": "tiny", "layer": "all"}]))["choices"][0]["persona"]["projections"]
    assert [own["layer"] for own in every.values()] == [0, 1, 2, 3]
    assert good(server.persona(watch=[]))["choices"][0]["persona"]["projections"] == {}


@pytest.mark.parametrize(
    ("steering", "match"),
    [
        ({"vector": "tiny"}, "either coef or dose"),
        ({"vector": "tiny", "coef": 1, "dose": 0.1}, "either coef or dose"),
        ({"vector": "tiny", "op": "ablate", "coef": 1}, "neither with others"),
        ({"vector": "tiny", "op": "cap"}, "floor or ceiling"),
        ({"vector": "tiny", "op": "cap", "floor": 2, "ceiling": 1}, "floor below ceiling"),
        ({"vector": "tiny", "coef": 1, "ceiling": 1}, "with no other"),
        ({"vector": "tiny", "coef": 1, "layer": 9}, "a layer from 0 to 3, got 9"),
        ({"vector": "tiny", "dose": 0.1, "layer": "all"}, "one layer for a dose"),
        ({"vector": "tiny", "coef": 1, "layer": "all", "above": 0}, "one layer for a dose or a condition"),
        ({"vector": "tiny", "dose": 0.9}, "a dose of at most 0.7 in all, got 0.9"),
        ({"vector": "tiny", "coef": -1e6, "layer": "all"}, "a dose of at most 0.7 in all"),
        ({"vector": "tiny", "coef": 1, "multiplier": 3}, "multiplier"),
        ({"vector": "tiny", "coef": "x"}, "coef"),
        ({"vector": "tiny", "coef": 1, "layer": -1}, "layer"),
        ({"vector": "tiny", "coef": 1, "op": "explode"}, "op"),
        ("tiny:2", "persona.steering.0"),
    ],
)
def test_steering_that_cannot_be_is_refused_by_name(server: Client, steering: Any, match: str) -> None:
    bad(server.persona(steering=[steering]), 400, match)


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


def test_defaults_of_the_command_line(options: dict[str, Any], saved: tuple[Path, Path]) -> None:
    steer = (f"{saved[1]}:0.3d",)
    with client(ServeConfig(**options, steer=steer, watch=("none",))) as server:
        told = good(server.ask())
        assert told["persona"]["steering"][0]["dose"] == pytest.approx(0.3)
        assert told["choices"][0]["persona"]["projections"] == {}
        assert good(server.persona(steering=[]))["persona"]["steering"] == []
        vector = good(server.get("/v1/vectors"))["data"][0]
        assert vector["default_dose"] == pytest.approx(0.3) and not vector["watched"]


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
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
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
        ({"tools": [{"type": "function"}]}, "expected no tools"),
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
            content=json.dumps(ASKED | {"model": server.service.config.model} | fields),
            headers={"content-type": "application/json"},
        ),
        400,
        match,
    )
    assert server.service.engine.running == 0


def test_what_clients_send_by_habit_is_taken(server: Client) -> None:
    good(
        server.ask(
            frequency_penalty=0,
            presence_penalty=0.0,
            user="me",
            tools=None,
            response_format={"type": "text"},
            logit_bias={},
        )
    )
    good(
        server.ask(
            messages=[
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ]
        )
    )


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
        bad(server.get("/v1/models", headers={"host": "evil.example"}), 421, "expected one of the hosts")
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


def test_turns_are_kept_without_text_unless_asked(options: dict[str, Any]) -> None:
    for keep in (False, True):
        with client(ServeConfig(**options | {"log": options["log"].with_name(f"{keep}.db")}, keep_text=keep)) as server:
            asked = [{"role": "user", "content": "Hi there"}]
            told = [good(server.ask(messages=asked, persona={"conversation": "one"}))]
            asked += [told[0]["choices"][0]["message"], {"role": "user", "content": "And now?"}]
            steering = [{"vector": "tiny", "dose": 0.1}]
            told += [good(server.ask(messages=asked, persona={"conversation": "one", "steering": steering}))]
            good(server.ask(n=2))
            (other, one) = good(server.get("/v1/conversations"))["data"]
            assert (one["id"], one["turns"], one["steered"], one["alerts"]) == ("one", 2, True, 0)
            assert other["turns"] == 1
            turns = good(server.get("/v1/conversations/one"))["turns"]
            assert [turn["turn"] for turn in turns] == [1, 2]
            for turn, answer in zip(turns, told, strict=True):
                read = answer["choices"][0]["persona"]["projections"]["tiny"]
                assert (
                    turn["id"] == answer["id"] and turn["projections"]["tiny"]["response_avg"] == read["response_avg"]
                )
                assert turn["response"] == (answer["choices"][0]["message"]["content"] if keep else None)
            assert turns[1]["messages"] == (asked if keep else None)
        raw = options["log"].with_name(f"{keep}.db").read_bytes()
        assert (b"Hi there" in raw) == keep


def test_the_log_keeps_what_it_was_told_and_forgets_in_time(tmp_path: Path) -> None:
    path = tmp_path / "turns.db"
    log = Log(path, retention_days=1)
    turn = Turn(
        "a", "c", 1, "stop", 3, 4, [], {"tiny": {"layer": 2, "prompt_last": 1.0, "response_avg": None}}, [], None, None
    )
    old = Turn("b", "c", 2, "stop", 3, 4, [], {}, [{"kind": "drift"}], None, None, time.time() - 2 * 86400)
    log.add([turn, old])
    with pytest.raises(sqlite3.IntegrityError):
        log.add([Turn("z", "c", 3, "stop", 1, 1, [], {}, []), turn])
    assert [row["id"] for row in log.turns("c")] == ["a", "b"]
    assert log.conversations(5, only_alerts=True)[0]["alerts"] == 1
    log.close()
    again = Log(path, retention_days=1)
    assert [row["id"] for row in again.turns("c")] == ["a"]
    again.close()
    assert export(path, tmp_path / "turns.parquet") == 1
    (row,) = pq.read_table(tmp_path / "turns.parquet").to_pylist()
    assert (row["vector"], row["prompt_last"], row["response_avg"], row["layer"]) == ("tiny", 1.0, None, 2)
    assert row["time"].timestamp() == pytest.approx(turn.time, abs=0.01)
    with pytest.raises(ConfigError, match="expected a new file"):
        export(path, tmp_path / "turns.parquet")
    with pytest.raises(DataError, match="expected the log of a server, got no file"):
        export(tmp_path / "none.db", tmp_path / "none.parquet")
    (tmp_path / "text.db").write_text("no database, but long enough to be read as one" * 50)
    with pytest.raises(ConfigError, match="expected a log that can be written"):
        Log(tmp_path / "text.db")


def calibrated(vector: PersonaVector, low: float, high: float, threshold: float = 1e9) -> Calibration:
    """Bands and a sequential test as `monitor --calibrate` would make them."""
    band = Band(200, (low + high) / 2, 1.0, low, high)
    own = VectorCalibration(
        "tiny", 2, {"all": {kind: band for kind in KINDS}}, {"all": Cusum(200, band.mean, 1.0, threshold, 9)}
    )
    return Calibration(dataclasses.asdict(vector.card.model), 0.01, {vector.content_hash: own})


def test_alerts_follow_the_calibration_alone(options: dict[str, Any], tmp_path: Path) -> None:
    vector, path = load_vector(options["vectors"][0]), tmp_path / "calibration.json"
    calibrated(vector, -1e6, 1e6).save(path)
    with client(ServeConfig(**options, calibration=path)) as server:
        assert good(server.ask())["choices"][0]["persona"]["alerts"] == []
        band = good(server.get("/v1/vectors"))["data"][0]["band"]
        assert band == {kind: {"low": -1e6, "high": 1e6} for kind in KINDS}
    calibrated(vector, 1e5, 1e6).save(path)
    with client(ServeConfig(**options, calibration=path)) as server:
        alerts = good(server.persona(conversation="low"))["choices"][0]["persona"]["alerts"]
        assert [(alert["kind"], alert["vector"], alert["turn"], alert["low"]) for alert in alerts] == [
            ("prompt last", "tiny", 1, 1e5),
            ("response avg", "tiny", 1, 1e5),
        ]
        assert server.events()[-1]["choices"][0]["persona"]["alerts"] != []
        (kept,) = good(server.get("/v1/conversations/low"))["turns"]
        assert kept["alerts"] == alerts
        assert {row["alerts"] for row in good(server.get("/v1/conversations?alerts=true"))["data"]} == {2}
        assert 'personavec_alerts_total{kind="prompt last",vector="tiny"} 2.0' in server.get("/metrics").text
        other = good(server.persona(watch=[{"vector": "tiny", "layer": 1}]))  # no limits are known at this layer
        assert other["choices"][0]["persona"]["alerts"] == []
    PersonaVector(vector.direction * 2, vector.card).save(tmp_path / "twice.safetensors")
    with pytest.raises(DataError, match="expected a calibration of the vector tiny"):
        assemble(ServeConfig(**options | {"vectors": (tmp_path / "twice.safetensors",)}, calibration=path))
    with pytest.raises(DataError, match="expected a calibration, got"):
        assemble(ServeConfig(**options, calibration=options["vectors"][0]))


def test_drift_is_told_over_the_turns_of_a_conversation(options: dict[str, Any], tmp_path: Path) -> None:
    """Every turn lies 3 deviations above the mean, within its band; the sums pass 6 at the third turn."""
    vector, path = load_vector(options["vectors"][0]), tmp_path / "calibration.json"
    with client(ServeConfig(**options)) as server:
        prompt = "<user>Hi there<end><assistant>"
        told = good(server.ask("/v1/completions", messages=None, prompt=prompt, persona={"conversation": "first"}))
        usual = told["choices"][0]["persona"]["projections"]["tiny"]["response_avg"]
    calibrated(vector, usual - 3 - 50, usual - 3 + 50, threshold=6.0).save(path)
    found = []
    for _ in range(2):  # the second server goes on where the first one stopped
        with client(ServeConfig(**options, calibration=path)) as server:
            ids = server.service.model.encode("<user>Hi there<end><assistant>")
            for _ in range(2):
                said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * len(found)
                with pytest.MonkeyPatch.context() as patched:  # every turn reads alike
                    patched.setattr(server.service.model, "render", lambda *_, ids=ids: ids)
                    answer = good(server.ask(messages=said + ASKED["messages"], persona={"conversation": "slow"}))
                found.append([alert["kind"] for alert in answer["choices"][0]["persona"]["alerts"]])
    assert found == [[], [], ["drift"], []]


def test_metrics_count(server: Client) -> None:
    good(server.ask())
    bad(server.ask(n=0), 400, "n")
    text = server.get("/metrics").text
    for line in (
        'personavec_requests_total{path="/v1/chat/completions",status="200"} 1.0',
        'personavec_requests_total{path="/v1/chat/completions",status="400"} 1.0',
        "personavec_first_token_seconds_count 1.0",
        'personavec_projection_count{vector="tiny"} 1.0',
        "personavec_running 0.0",
    ):
        assert line in text, line


def test_the_busy_refuse_and_the_late_are_told(options: dict[str, Any]) -> None:
    with client(ServeConfig(**options | {"max_tokens": 200, "rows_at_once": 1, "queue": 1}, deadline=0.4)) as server:
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
            bad(answer, 504, "expected the reply within 0.4 seconds")
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
            assemble(ServeConfig(**options | changes))
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
        serve(ServeConfig(**options, reports=(tmp_path,), port=0))


# a real process


class Process:
    """`personavec serve` as users start it."""

    def __init__(self, options: dict[str, Any], *more: str) -> None:
        vectors = [str(path) for path in options["vectors"]]
        command = [
            "serve",
            "--model",
            options["model"],
            "--vectors",
            *vectors,
            "--log",
            str(options["log"]),
            "--port",
            "0",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "personavec", *command, "--json", *more],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "serving" in line, line + self.process.stderr.read()
        self.url = next(word for word in line.split() if word.startswith("http"))
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_the_official_client_and_a_clean_stop(options: dict[str, Any]) -> None:
    running = Process(options)
    model, asked = running.openai.models.list().data[0].id, [{"role": "user", "content": "Hi there"}]
    persona = {"persona": {"steering": [{"vector": "tiny", "dose": 0.2}]}}
    create: Any = running.openai.chat.completions.create
    whole = create(model=model, messages=asked, max_tokens=6, seed=1, extra_body=persona)
    assert whole.persona["steering"][0]["dose"] == pytest.approx(0.2)
    pieces = create(model=model, messages=asked, max_tokens=6, seed=1, stream=True, extra_body=persona)
    texts = [chunk.choices[0].delta.content or "" for chunk in pieces]
    assert "".join(texts) == whole.choices[0].message.content
    assert running.openai.completions.create(model=model, prompt="Hi", max_tokens=3).usage.completion_tokens <= 3
    with pytest.raises(openai.BadRequestError, match="either coef or dose"):
        create(model=model, messages=asked, extra_body={"persona": {"steering": [{"vector": "tiny"}]}})
    code, out, err = running.stop()
    told = json.loads(out)
    assert (code, told["turns"], told["requests"]) == (0, 3, 4), (err, out)
    assert "Traceback" not in err


def test_a_killed_server_lost_no_turn_that_was_answered(options: dict[str, Any]) -> None:
    running = Process(options)
    model = running.openai.models.list().data[0].id
    answered: list[str] = []

    def ask() -> None:
        while True:
            try:
                told = running.openai.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=3
                )
            except openai.APIConnectionError:
                return
            answered.append(told.id)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(answered) < 20:
        time.sleep(0.01)
    running.stop(signal.SIGKILL)
    for thread in threads:
        thread.join()
    log = Log(options["log"])
    assert set(answered) <= {row["id"] for row in log.rows()}
    log.close()


def test_clients_that_leave_free_their_rows(options: dict[str, Any]) -> None:
    """Streams and waiting requests that are dropped half-way end, are logged as cancelled, and leave no hook."""
    service = assemble(ServeConfig(**options | {"max_tokens": 200}))
    service.model.stop_ids = []
    config = uvicorn.Config(build(service, {}), port=0, log_level="warning")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    body = json.dumps(ASKED | {"model": options["model"], "max_tokens": 150})
    for stream in (True, False):
        own = body[:-1] + f', "stream": {str(stream).lower()}}}'
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(own)}\r\n\r\n"
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall((head + own).encode())
                if stream:
                    connection.recv(1000)
                else:
                    time.sleep(0.05)
    until = time.monotonic() + 20
    while (service.engine.running or service.engine.queued or service.logged < 6) and time.monotonic() < until:
        time.sleep(0.01)
    assert (service.engine.running, service.engine.queued, service.logged) == (0, 0, 6)
    finishes = [row["finish"] for row in service.log.rows()]
    running.should_exit = True
    thread.join(30)
    assert finishes.count("cancelled") >= 4, finishes
    assert tiny.hooks(service.model) == 0
