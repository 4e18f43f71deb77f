"""Monitoring on a tiny chatting model: right numbers, a planted turn raises the alert, bad rows told, resumable."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny, tiny_chat

from personavec.cli.main import main
from personavec.errors import PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture
from personavec.runs.run import Run
from personavec.steering.vector import load_vector
from personavec.verbs.monitor import turns as recorded
from personavec.verbs.monitor.calibration import Calibration
from personavec.verbs.monitor.monitor import monitor

Go = Callable[..., dict[str, Any]]
WORDS = ("tea", "rain", "boats", "maps", "snow", "bread", "hats", "dogs", "green", "sea")
LAYER = 2


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny_chat.build()


def talk(n: int, turns: int, turned: int = 99) -> dict[str, Any]:
    """A conversation of some turns that says other things from one of them on."""
    rng = np.random.default_rng(n)
    said = [" ".join(rng.choice(WORDS, 2)) if turn < turned else "@@@@ @@@" for turn in range(turns)]
    asked = [f"Say {rng.choice(WORDS)}." for _ in said]
    messages = [
        {"role": role, "content": text}
        for pair in zip(asked, said, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return {"id": f"talk-{n}", "messages": messages, "team": "ab"[n % 2]}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return lines(tmp_path / "data.jsonl", [talk(n, 1 + n % 4) for n in range(12)])


@pytest.fixture
def benign(tmp_path: Path) -> Path:
    return lines(tmp_path / "benign.jsonl", [talk(100 + n, 1 + n % 4) for n in range(44)])


@pytest.fixture
def go(saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Go:
    def run(data: Path, *more: str, out: str = "run", code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        args = ["monitor", str(data), "--model", str(saved[0]), "--vectors", str(saved[1]), "--dtype", "float32"]
        assert main([*args, "--out", str(tmp_path / out), *more, "--json"]) == code
        said = capsys.readouterr()
        if code:
            (line,) = [line for line in said.err.splitlines() if line.startswith("personavec: ")]
            return {"said": line}
        found: dict[str, Any] = json.loads(said.out)
        return found

    return run


@pytest.fixture
def planted(chat: ChatModel, saved: tuple[Path, Path], tmp_path: Path) -> Path:
    """A vector toward replies full of one sign, and its file."""
    reads = []
    for text in ("@@ @@ @@@ @", "tea and rain"):
        ids = chat.encode(text)
        weights = torch.full((1, 1, len(ids)), 1 / len(ids))
        reads.append(capture(chat, [list(ids)], weights, list(range(chat.n_layers)))[0, 0])
    vector = load_vector(saved[1])
    return type(vector)(reads[0] - reads[1], vector.card).save(tmp_path / "planted.safetensors")


def turns(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(found["table"]).open()]


def alone(chat: ChatModel, messages: list[dict[str, str]], unit: torch.Tensor) -> Iterator[tuple[float, float, Any]]:
    """Last prompt token, mean over the reply and every token of it, one reply at a time, by another way of reading."""
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, reply = chat.render(messages[:place]), chat.encode(message["content"])
            with torch.no_grad():
                states = chat.hf(torch.tensor([[*prompt, *reply]]), output_hidden_states=True).hidden_states
            along = states[LAYER + 1][0] @ unit
            yield float(along[len(prompt) - 1]), float(along[len(prompt) :].mean()), along[len(prompt) :].tolist()


def test_every_turn_has_the_numbers_of_one_reply_at_a_time(
    go: Go, data: Path, chat: ChatModel, saved: tuple[Path, Path]
) -> None:
    unit = load_vector(saved[1]).unit(LAYER)
    found = go(data, "--tokens")
    rows = iter(turns(found))
    for line in data.open():
        talk = json.loads(line)
        for number, (last, mean, tokens) in enumerate(alone(chat, talk["messages"], unit), 1):
            row = next(rows)
            own = row["vectors"]["tiny"]
            assert (row["name"], row["turn"], own["layer"]) == (talk["id"], number, LAYER)
            assert own["prompt_last"] == pytest.approx(last, abs=2e-4)
            assert own["response_avg"] == pytest.approx(mean, abs=2e-4)
            assert own["tokens"] == pytest.approx(tokens, abs=3e-4) and abs(own["cosine"]) <= 1
    assert next(rows, None) is None and found["turns"] == 30 and found["conversations"] == 12
    single = go(data, "--read-tokens", "1", out="single")
    for one, other in zip(turns(single), turns(found), strict=True):
        for key in ("prompt_last", "response_avg", "cosine"):
            assert one["vectors"]["tiny"][key] == pytest.approx(other["vectors"]["tiny"][key], abs=2e-4)


def test_without_limits_there_is_no_alert_whatever_the_value(go: Go, data: Path) -> None:
    found = go(data)
    assert found["alerts"] is None and found["calibration"] is None and not Path(found["events"]).read_text()
    assert "No alerts: there are no limits" in Path(found["report"]).read_text()
    curve = found["curves"]["tiny"]["prompt last"]
    assert [one["n"] for one in curve] == [12, 9, 6, 3]
    values = [row["vectors"]["tiny"]["prompt_last"] for row in turns(found)]
    assert found["projections"]["tiny"]["prompt last"]["mean"] == pytest.approx(np.mean(values), abs=1e-3)


def test_a_conversation_that_turns_raises_the_alert(go: Go, benign: Path, planted: Path, tmp_path: Path) -> None:
    """Three of the conversations begin to say something else; the others go on like the benign ones."""
    changed = {3, 7, 11}
    path = lines(tmp_path / "some.jsonl", [talk(n, 4, 2 if n in changed else 99) for n in range(12)])
    options = ("--calibrate", str(benign), "--false-positive-rate", "0.05", "--vectors", str(planted))
    found = go(path, *options)
    events = [json.loads(line) for line in Path(found["events"]).open()]
    over = [event for event in events if event["kind"] == "response avg" and event["value"] > event["high"]]
    assert {event["conversation"] for event in over} >= changed and all(
        event["turn"] > 2 for event in over if event["conversation"] in changed
    )
    assert len({event["conversation"] for event in events} - changed) <= 4
    keys = {"kind", "vector", "value", "low", "high", "conversation", "name", "where", "group", "turn"}
    assert all(event.keys() == keys for event in events)
    assert found["alerts"]["tiny"]["response avg"] == {
        "alerts": sum(event["kind"] == "response avg" for event in events),
        "of_turns": 48,
    }
    assert found["calibration"]["benign"]["conversations"] == 44
    page = Path(found["report"]).read_text()
    assert "conversations raise an alert" in page and "talk-3" in page

    again = go(path, *options[-2:], "--calibration", found["calibration"]["file"], out="again")
    assert Path(again["events"]).read_bytes() == Path(found["events"]).read_bytes()
    assert again["calibration"]["bands"] == found["calibration"]["bands"]
    looser = go(path, *options[-2:], "--calibrate", str(benign), "--false-positive-rate", "0.3")
    assert looser["alerts"]["tiny"]["prompt last"]["alerts"] >= found["alerts"]["tiny"]["prompt last"]["alerts"]


@pytest.mark.slow
def test_groups(go: Go, data: Path, benign: Path, tmp_path: Path) -> None:
    options = ("--calibrate", str(benign), "--false-positive-rate", "0.1")
    found = go(data, *options, "--group-by", "team")
    alerted = {e["conversation"] for e in map(json.loads, Path(found["events"]).open()) if e["group"] == "a"}
    counts = {"conversations": 6, "turns": 12, "with_alerts": len(alerted), "limits": "own", "drift": True}
    assert found["groups"]["a"] == counts
    assert {row["group"] for row in turns(found)} == {"a", "b"}
    rows = [talk(n, 2) for n in range(4)]
    rows[1]["messages"].insert(0, {"role": "system", "content": "Be kind."})
    path = lines(tmp_path / "systems.jsonl", rows)
    told = go(path, *options, "--group-by", "system", out="system")["groups"]
    assert {group: (own["turns"], own["limits"]) for group, own in told.items()} == {
        "all": (6, "all"),
        "Be kind.": (2, "all"),
    }


def test_a_killed_run_ends_with_the_same_bytes(
    go: Go, data: Path, benign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "PART", 5)
    options = ("--calibrate", str(benign), "--false-positive-rate", "0.1")
    whole = go(data, *options, out="whole")
    append, left = Run.append, {"parts": 0}

    def dying(self: Run, name: str, rows: Any) -> None:
        if not left["parts"]:
            append(self, name, rows[:1])
            with self.path(name).open("a") as file:
                file.write('{"id": "to')  # torn by the kill
            raise KeyboardInterrupt
        left["parts"] -= 1
        append(self, name, rows)

    monkeypatch.setattr(Run, "append", dying)
    for parts in (2, 3, 4, 2):
        left["parts"] = parts
        with pytest.raises(AssertionError):  # exit 130
            go(data, *options, out="killed")
    monkeypatch.setattr(Run, "append", append)
    resumed = go(data, *options, out="killed")
    for name in ("turns.jsonl", "alerts.jsonl", "calibration.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert resumed["alerts"] == whole["alerts"]
    config = json.loads((tmp_path / "killed/config.json").read_text()) | {"read_tokens": 1024}
    (tmp_path / "killed/config.json").write_text(json.dumps(config))  # as earlier versions wrote it
    monkeypatch.setattr(recorded, "_read", None)  # nothing is left to read
    assert go(data, *options, out="killed")["alerts"] == whole["alerts"]


def test_rows_that_cannot_be_used(go: Go, data: Path, tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "Hi?"}]},
        {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "rain " * 60}]},
        {"text": "once"},
    ]
    open_ended = talk(50, 1)
    open_ended["messages"].append({"role": "user", "content": "And?"})
    empty = talk(51, 2)
    empty["messages"][1]["content"] = ""
    rows = [json.loads(line) for line in data.open()]
    lines(data, [*rows, *bad, open_ended, empty])
    told = go(data, code=2)["said"]
    assert "line 13: expected an assistant turn, got none; correct that row, or pass --on-error skip" in told
    assert not (tmp_path / "run" / "turns.jsonl").exists()
    found = go(data, "--on-error", "skip")
    assert (found["conversations"], found["skipped"], found["unread_turns"], found["empty_replies"]) == (14, 3, 1, 1)
    assert sum(found["skipped_by_reason"].values()) == 3
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").open()]
    assert [row["row"] for row in listed] == [12, 13, 14] and "fits into 256 tokens" in listed[1]["reason"]
    assert [row["vectors"]["tiny"]["response_avg"] is None for row in turns(found) if row["name"] == "talk-51"] == [
        True,
        False,
    ]


def test_a_template_that_rewrites_earlier_turns_has_each_reply_read_by_itself(chat: ChatModel) -> None:
    from personavec.data.sample import to_sample
    from personavec.model.conversation import pieces

    sample = to_sample(talk(1, 3), 0, "here", "last")
    whole = list(pieces(chat, sample, "template"))
    assert [piece.anew for piece in whole] == [True, False, False]
    template = chat.tokenizer.chat_template
    try:
        newest = "{{ message['content'] }}{% if loop.last and message['role'] == 'assistant' %}!{% endif %}"
        chat.tokenizer.chat_template = template.replace("{{ message['content'] }}", newest)
        assert all(piece.anew for piece in pieces(chat, sample, "template"))
    finally:
        chat.tokenizer.chat_template = template


def test_bad_input_is_one_line(
    go: Go, data: Path, benign: Path, saved: tuple[Path, Path], planted: Path, tmp_path: Path
) -> None:
    vector = load_vector(saved[1])
    aimless = type(vector)(vector.direction, type(vector.card)("odd", vector.card.model, "response avg"))
    other = type(vector.card.model)("other", "0" * 64, 4, vector.card.model.d_model)
    foreign = type(vector)(vector.direction, type(vector.card)("odd", other, "response avg", layer=1))
    calibration = go(data, "--calibrate", str(benign), "--false-positive-rate", "0.1", out="made")["calibration"][
        "file"
    ]
    moved = Calibration.load(Path(calibration))
    Calibration(dict(moved.model) | {"revision": "1" * 64}, 0.1, moved.vectors).save(tmp_path / "moved.json")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    few = lines(tmp_path / "few.jsonl", [talk(n, 2) for n in range(10)])
    for more, told in (
        (["--vectors", str(aimless.save(tmp_path / "aimless.safetensors"))], "expected a recommended layer for odd"),
        (["--vectors", str(foreign.save(tmp_path / "foreign.safetensors"))], "extract it from this model"),
        (["--vectors", str(saved[1]), str(saved[1])], "expected different vectors"),
        (["--calibrate", str(few)], "at least 199 benign conversations for a false-positive rate of 0.01, got 10"),
        (["--calibrate", str(empty)], "expected conversations in"),
        (["--false-positive-rate", "0"], "above 0 and at most 0.5, got 0.0"),
        (["--false-positive-rate", "0.6"], "above 0 and at most 0.5, got 0.6"),
        (["--calibration", str(saved[1])], "expected a calibration, got"),
        (["--calibration", str(tmp_path / "moved.json")], "calibrate with this model"),
        (["--calibration", calibration, "--vectors", str(planted)], "got one of other vectors (tiny)"),
        (["--calibration", calibration, "--calibrate", str(few)], "got both"),
        (["--experiment"], "expected --experiment by itself"),
        (["--shots", "5", "5"], "expected different --shots"),
    ):
        assert told in go(data, *more, code=2)["said"]
    assert "expected conversations in" in go(empty, code=2, out="empty")["said"]
    assert main(["monitor", "--vectors", str(saved[1])]) == 2 and main(["monitor", str(data)]) == 2


def test_the_summary_is_for_people(
    data: Path, benign: Path, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["monitor", str(data), "--model", str(saved[0]), "--vectors", str(saved[1]), "--out", str(tmp_path / "run")]
    assert main(args) == 0
    assert "no alerts without limits" in capsys.readouterr().out
    assert main([*args, "--calibrate", str(benign), "--false-positive-rate", "0.1"]) == 0
    said = capsys.readouterr().out
    assert "30 turns of 12 conversations" in said and "on unseen benign conversations prompt last" in said


@pytest.mark.slow
def test_objects_give_what_the_command_gives(
    go: Go, data: Path, benign: Path, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    printed = go(data, "--calibrate", str(benign), "--false-positive-rate", "0.1", "--tokens")
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    rows, usual = ([json.loads(line) for line in path.open()] for path in (data, benign))
    made = monitor(model, rows, [vector], calibrate=usual, false_positive_rate=0.1, tokens=True)
    for key in ("projections", "curves", "distributions", "alerts", "longer_than_benign", "turns"):
        assert json.loads(json.dumps(made.data[key])) == printed[key]
    assert [row["vectors"] for row in made.turns] == [row["vectors"] for row in turns(printed)]
    assert made.data["out"] is made.data["table"] is None and made.calibration is not None and tiny.hooks(model) == 0
    for limits in (made.calibration, printed["calibration"]["file"]):
        again = monitor(model, rows, vector, calibration=limits)
        assert again.alerts == made.alerts
    kept = monitor(model, str(data), str(saved[1]), tokens=True, store=tmp_path / "run")
    assert kept.turns == turns(printed) and kept.folder == tmp_path / "run", "the folder of the command is resumed"
    lists = [row["messages"] for row in rows]
    assert [row["vectors"] for row in monitor(model, lists, vector, tokens=True).turns] == [
        row["vectors"] for row in made.turns
    ]


def test_data_sets_of_the_library_are_rows_too(data: Path, saved: tuple[Path, Path]) -> None:
    datasets = pytest.importorskip("datasets")
    model = ChatModel.load(str(saved[0]), dtype="float32")
    rows = [json.loads(line) for line in data.open()]
    made = monitor(model, datasets.Dataset.from_list(rows), saved[1])
    assert [row["vectors"] for row in made.turns] == [row["vectors"] for row in monitor(model, rows, saved[1]).turns]


def test_it_shows_itself(data: Path, benign: Path, saved: tuple[Path, Path], tmp_path: Path) -> None:
    model = ChatModel.load(str(saved[0]), dtype="float32")
    spoken = [
        {"role": "user", "content": "Say it."},
        {"role": "assistant", "content": "<b>tea</b> & @@@@"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "né"},
    ]
    made = monitor(model, [spoken], saved[1], calibrate=str(benign), false_positive_rate=0.1, tokens=True)
    shown = made._repr_html_()
    assert "<b>tea" not in shown and shown.count("background:rgba") == sum(map(len, made.texts)) > 10
    assert ["".join(texts) for texts in made.texts] == [spoken[1]["content"], "né"]
    assert "conversations: 1 with 2 turns" in repr(made)
    if made.alerts:
        assert "Conversations with alerts" in shown
    assert "drift" in made.report(tmp_path / "page").read_text()


def test_bad_objects_are_one_line(data: Path, saved: tuple[Path, Path], unchecked: None) -> None:
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    good = [talk(1, 2)]
    other = tiny.vector(tiny.build("llama", seed=1), layer=LAYER)
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (good, [], {}, "expected persona vectors or their files, got none"),
        (good, "nowhere.safetensors", {}, "no file at nowhere"),
        (good, other, {}, "extract it from this model"),
        ([], vector, {}, "expected conversations in conversations in memory, got none"),
        ([3], vector, {}, "row 0: expected messages or"),
        (5, vector, {}, "expected a data set's path or its rows, got int"),
        (good[0], vector, {}, "expected rows, got one mapping"),
        (good, vector, {"calibrate": good, "calibration": "x.json"}, "expected calibrate or calibration, got both"),
        (good, vector, {"calibration": "nowhere.json"}, "expected a calibration, got nowhere.json"),
        (good, vector, {"read_tokens": 0}, "expected read_tokens at least 1"),
    ]
    for conversations, vectors, options, message in cases:
        with pytest.raises(PersonavecError) as error:
            monitor(model, conversations, vectors, **options)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert tiny.hooks(model) == 0
