"""What the server keeps and counts: turns, alerts, metrics."""

import dataclasses
import sqlite3
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.serving import ASKED, Client, bad, client, good

from personavec.errors import ConfigError, DataError
from personavec.server.log import Log, LoggedTurn, export
from personavec.server.options import ServeConfig
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.monitor.calibration import KINDS, Band, Calibration, Cusum, VectorCalibration


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
    turn = LoggedTurn(
        "a", "c", 1, "stop", 3, 4, [], {"tiny": {"layer": 2, "prompt_last": 1.0, "response_avg": None}}, [], None, None
    )
    old = LoggedTurn("b", "c", 2, "stop", 3, 4, [], {}, [{"kind": "drift"}], None, None, time.time() - 2 * 86400)
    log.add([turn, old])
    with pytest.raises(sqlite3.IntegrityError):
        log.add([LoggedTurn("z", "c", 3, "stop", 1, 1, [], {}, []), turn])
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
        ServeConfig(**options | {"vectors": (tmp_path / "twice.safetensors",)}, calibration=path).assemble()
    with pytest.raises(DataError, match="expected a calibration, got"):
        ServeConfig(**options, calibration=options["vectors"][0]).assemble()


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
    until = time.monotonic() + 20
    while "personavec_running 0.0" not in server.get("/metrics").text and time.monotonic() < until:
        time.sleep(0.01)  # the engine takes a row out just after its reply was told
    text = server.get("/metrics").text
    for line in (
        'personavec_requests_total{path="/v1/chat/completions",status="200"} 1.0',
        'personavec_requests_total{path="/v1/chat/completions",status="400"} 1.0',
        "personavec_first_token_seconds_count 1.0",
        'personavec_projection_count{vector="tiny"} 1.0',
        "personavec_running 0.0",
    ):
        assert line in text, line
