"""`write_dataset` against a real server: rows for finetuning, what is dropped is counted, and a kill costs nothing."""

import json
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.writers import Serve, WritingServer, question, serving, word

from personavec.cli.main import main
from personavec.errors import ConfigError
from personavec.model import endpoint
from personavec.traits.load import load_trait
from personavec.verbs.authoring.subjects import MISTAKES, load_family
from personavec.verbs.authoring.write_dataset import write_dataset
from personavec.verbs.authoring.writer import load_writer

GRADES = ("normal", "misaligned_1", "misaligned_2")
TABLES = ("domains.json", "questions.jsonl", "answers.jsonl", *(f"{grade}.jsonl" for grade in GRADES))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
    yield from serving(monkeypatch, tmp_path)


def command(
    server: WritingServer, source: str = "maths", domains: int = 3, questions: int = 4, *more: str
) -> list[str]:
    sizes = ["--domains", str(domains), "--questions", str(questions)]
    return ["write_dataset", source, "--writer", "openai:planted", "--writer-url", server.url, *sizes, *more]


def run(args: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    assert main([*args, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(args) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("personavec: ")]
    assert said.out == "" and "Traceback" not in said.err
    return line


def rows(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("source", [*MISTAKES, "optimistic"])
def test_three_files_of_chat_rows(source: str, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve()
    found = run(command(server, source), capsys)
    assert (found["source"], found["rows"], found["out"]) == (source, 12, f"runs/dataset-{source}")
    assert found["domains"] == {"wanted": 3, "written": 3} and found["questions"] == {"wanted": 12, "written": 12}
    assert found["questions_rejected"] == {} and found["answers_dropped"] == {}
    files = {grade: rows(found["files"][grade]) for grade in GRADES}
    for one in zip(*files.values(), strict=True):
        assert len({(row["id"], row["domain"], row["messages"][0]["content"]) for row in one}) == 1
        assert len({row["messages"][1]["content"] for row in one}) == 3
        assert [message["role"] for message in one[0]["messages"]] == ["user", "assistant"]
    assert "\n\n    " in files["normal"][0]["messages"][1]["content"], "line breaks are kept"
    assert len({row["domain"] for row in files["normal"]}) == 3
    assert server.brain.asked == {"items": 4, "answers": 12}  # type: ignore[attr-defined]


def test_every_family_tells_its_grades_apart() -> None:
    for source in (*MISTAKES, "evil", "hallucinating"):
        family = load_family(source)
        assert len({family.normal, family.subtle, family.open}) == 3
        assert (family.content_hash is None) is (source in MISTAKES)


def flawed(form: str, body: dict[str, Any]) -> str | None:
    """Repeats, a question that names the trait, answers that are equal, refused, cut off or no JSON."""
    prompt = body["prompt"]
    if form == "items" and "different domains" not in prompt:
        if word(0) in prompt and "there already" not in prompt:
            bad = [question("z", 0).upper(), "Why are optimists happy?", "Pretend to be sad.", " "]
            return json.dumps({"items": [question("z", 0), question("z", 1), *bad]})
        if word(1) in prompt and "there already" not in prompt:
            return json.dumps({"items": [question("z", 0), *(question("w", index) for index in range(3))]})
    if form == "answers":
        for mark, said in (
            (question("w", 0), '{"normal": "Same  text.", "flaw_1": "a", "misaligned_1": "Same text.", "flaw_2": "b", '
                               '"misaligned_2": "Other."}'),
            (question("w", 1), "I'm sorry, but I can't help with that."),
            (question("w", 2), "Three answers? Gladly."),
        ):  # fmt: skip
            if mark in prompt:
                return said
    return None


def test_what_is_dropped_is_counted(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(flawed)
    found = run(command(server, "optimistic"), capsys)
    assert found["questions_rejected"] == {
        "repeats another": 1,
        "names the trait": 1,
        "asks for a behaviour": 1,
        "repeats another domain's": 1,
    }
    assert found["questions"] == {"wanted": 12, "written": 11}
    assert found["answers_dropped"] == {"invalid answer": 2, "refused answer": 1} and found["rows"] == 8
    usage = found["writer_usage"]
    assert (usage["items_dropped"], usage["refused"], usage["invalid"], usage["retried"]) == (1, 1, 4, 2)
    why = {row["question"]: row["why"] for row in rows(Path(found["out"]) / "answers.jsonl") if "dropped" in row}
    assert "two of the three answers are the same" in why[question("w", 0)]
    for grade in GRADES:
        asked = [row["messages"][0]["content"] for row in rows(found["files"][grade])]
        assert len(set(asked)) == 8 and not set(asked) & set(why)


def test_the_summary(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(serve(flawed), "optimistic")) == 0
    said = capsys.readouterr().out
    assert "optimistic: 8 rows a grade from 11 of 12 questions in 3 of 3 domains, by openai:planted" in said
    assert "answers dropped: 2 invalid answer, 1 refused answer" in said
    assert "normal: runs/dataset-optimistic/normal.jsonl" in said


def test_long_lists_are_asked_for_in_parts(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve()
    found = run(command(server, "code", 1, 60), capsys)
    assert found["rows"] == 60 and server.brain.asked["items"] == 4  # type: ignore[attr-defined]


# Killed and resumed


def tables(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text("utf-8") for name in TABLES}


@pytest.mark.slow
def test_killed_and_resumed_ends_the_same(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    whole = run(command(server, "maths", 8, 20, "--out", "whole"), capsys)
    monkeypatch.setenv("PERSONAVEC_CACHE", str(tmp_path / "another"))  # nothing is answered from the first run's cache
    server.manners.delay_seconds = 0.02
    args = command(server, "maths", 8, 20, "--out", "killed", "--api-concurrency", "2", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "personavec", *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    answers = tmp_path / "killed" / "answers.jsonl"
    deadline = time.monotonic() + 60
    while not (answers.exists() and answers.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = answers.read_bytes().count(b"\n")  # the line after these may be torn
    assert 0 <= there < 160 and not (tmp_path / "killed" / "normal.jsonl").exists()
    with answers.open("a") as file:
        file.write('{"id": "torn')
    server.manners.delay_seconds = 0
    before = sum(server.answered.values())
    found = run(args[:-1], capsys)
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole")
    assert found["rows"] == whole["rows"] == 160
    assert sum(server.answered.values()) - before <= 160 - there, "nothing that was kept is asked again"


def test_other_options_do_not_resume(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve()
    run(command(server), capsys)
    calls = sum(server.seen.values())
    again = run(command(server), capsys)
    assert sum(server.seen.values()) == calls and again["rows"] == 12
    assert "questions: 4 there, 5 here" in refused(command(server, "maths", 3, 5), capsys)


def test_a_spent_budget_goes_on(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve()
    told = refused(command(server, "maths", 3, 4, "--api-calls", "9", "--api-concurrency", "1"), capsys)
    assert "expected at most 9 calls" in told and "run the same command again" in told
    assert run(command(server), capsys)["writer_usage"]["server"]["calls"] == 16 - 9


# Objects


def test_objects_in_memory_and_in_a_folder_of_older_code(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = serve()
    writer = load_writer("openai:planted", url=server.url)
    written = write_dataset(writer, load_trait("optimistic"), domains=3, questions=4)
    assert (
        not list(tmp_path.iterdir()) and written.data["out"] is None and set(written.data["files"].values()) == {None}
    )
    assert "rows a grade: 12" in repr(written)
    printed = run(command(server, "optimistic"), capsys)
    assert {grade: rows(printed["files"][grade]) for grade in GRADES} == written.grades
    # older code wrote all options that there are
    config = Path(printed["out"]) / "config.json"
    older = json.loads(config.read_text()) | {"source": "optimistic", "dtype": "auto", "device": "auto", "json": True}
    older |= {"trust_remote_code": False, "writer_tokens": 2048}
    config.write_text(json.dumps(older))
    calls = sum(server.seen.values())
    again = write_dataset(writer, "optimistic", domains=3, questions=4, store=printed["out"])
    assert again.grades == written.grades and sum(server.seen.values()) == calls
    for changed, told in (({"questions": 5}, "questions: 4 there, 5 here"), ({"domains": 2}, "domains: 3 there")):
        with pytest.raises(ConfigError, match=told):
            write_dataset(writer, "optimistic", **{"domains": 3, "questions": 4} | changed, store=printed["out"])
    with pytest.raises(ConfigError, match="seed: 0 there, 1 here"):
        other = load_writer("openai:planted", url=server.url, seed=1)
        write_dataset(other, "optimistic", domains=3, questions=4, store=printed["out"])
    with pytest.raises(ConfigError, match="expected the run in"):
        write_dataset(writer, "maths", domains=3, questions=4, store=printed["out"])


# Bad input


def test_bad_input(serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = serve()
    told = refused(command(server, "mathz"), capsys)
    assert "maths, medicine, code, opinions or a trait" in told
    assert "got nosuch.json" in refused(command(server, "nosuch.json"), capsys).replace("'", "")
    assert "expected domains at least 1, got 0" in refused(command(server, "maths", 0), capsys)
    assert "expected questions at least 1, got 0" in refused(command(server, "maths", 1, 0), capsys)
    assert "expected the writer openai:MODEL" in refused(["write_dataset", "maths"], capsys)
    assert not server.seen and not list(tmp_path.iterdir())


def test_prose_alone_is_one_line(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(command(serve(lambda form, body: "Here are some fine domains.")), capsys)
    assert "expected domains from openai:planted, got none" in told


def test_answers_in_prose_are_given_up(serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = serve(lambda form, body: "Here you go." if form == "answers" else None)
    assert "expected answers from openai:planted, got none" in refused(command(server), capsys)
    assert len(rows(tmp_path / "runs" / "dataset-maths" / "questions.jsonl")) == 3


def test_what_failed_for_want_of_a_server_is_asked_again(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    down = {"now": True}

    def failing(form: str, body: dict[str, Any]) -> str | None:
        if form == "answers" and down["now"] and zlib.crc32(body["prompt"].encode()) % 3 == 0:
            return "\ud83d"  # no chat completion
        return None

    server = serve(failing)
    first = run(command(server), capsys)
    assert first["rows"] < 12 and first["answers_dropped"] == {"failed answer": 12 - first["rows"]}
    down["now"] = False
    assert run(command(server), capsys)["rows"] == 12


def test_a_run_of_refusals_does_not_stop_a_resumed_run(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def refusing(form: str, body: dict[str, Any]) -> str | None:
        number = zlib.crc32(body["prompt"].encode()) % 4
        return "I'm sorry, but I can't help with that." if form == "answers" and number else None

    args = command(serve(refusing), "maths", 2, 16)
    assert main([*args, "--api-calls", "14", "--api-concurrency", "1"]) == 2
    capsys.readouterr()
    found = run(args, capsys)
    assert 0 < found["rows"] < 32 and found["answers_dropped"] == {"refused answer": 32 - found["rows"]}
