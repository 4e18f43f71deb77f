"""Laws of run folders: atomic, resumable, never another run's."""

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from personavec.errors import ConfigError, DataError
from personavec.runs.files import sha256
from personavec.runs.run import LOCK, Run, commit, versions

CONFIG: dict[str, Any] = {"seed": 0, "model": "tiny", "layers": (1, 2)}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")} - {LOCK}


def assert_one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value) and str(error.value).startswith("expected ") and ", got" in str(error.value)


# opening


def test_a_new_run_notes_its_options(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "deep" / "run", CONFIG, {"data": "abc"})
    config = run.read_json("config.json")
    assert config == {"seed": 0, "model": "tiny", "layers": [1, 2], "inputs": {"data": "abc"}}
    manifest = run.read_json("manifest.json")
    (session,) = manifest["sessions"]
    assert {"started", "versions", "command", "commit"} == session.keys()
    assert session["versions"]["python"] and "torch" in versions()
    assert names(run.folder) == {"config.json", "manifest.json"}


def test_the_same_options_resume(tmp_path: Path) -> None:
    first = Run.open(tmp_path / "run", CONFIG)
    first.append("rows.jsonl", [{"id": 1}])
    started = first.read_json("manifest.json")["sessions"][0]
    again = Run.open(tmp_path / "run", CONFIG)
    assert list(again.rows("rows.jsonl")) == [{"id": 1}]
    sessions = again.read_json("manifest.json")["sessions"]
    assert len(sessions) == 2 and sessions[0] == started


@pytest.mark.parametrize(
    ("change", "inputs", "told"),
    [
        ({"seed": 1}, {}, "seed: 0 there, 1 here"),
        ({"model": "other"}, {}, "model: tiny there, other here"),
        ({"extra": 5}, {}, "extra: None there, 5 here"),
        ({}, {"data": "a" * 64}, "input data: None there, aaaaaaaaaaaa here"),
    ],
)
def test_other_options_are_refused_and_named(
    tmp_path: Path, change: dict[str, Any], inputs: dict[str, str], told: str
) -> None:
    Run.open(tmp_path / "run", CONFIG).append("rows.jsonl", [{"id": 1}])
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names(tmp_path / "run")}
    with pytest.raises(ConfigError, match=told) as error:
        Run.open(tmp_path / "run", CONFIG | change, inputs)
    assert_one_line(error)
    assert "layers" not in str(error.value)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in names(tmp_path / "run")} == before


def test_a_run_that_wrote_nothing_stands_in_nobodys_way(tmp_path: Path) -> None:
    """Its data were at fault, say, and are mended now."""
    Run.open(tmp_path / "run", CONFIG, {"data": "abc"})
    run = Run.open(tmp_path / "run", CONFIG, {"data": "def"})
    assert run.read_json("config.json")["inputs"] == {"data": "def"}
    assert len(run.read_json("manifest.json")["sessions"]) == 1


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="other files") as error:
        Run.open(tmp_path, CONFIG)
    assert_one_line(error)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"] and (
        tmp_path / "thesis.tex"
    ).read_text() == "mine"
    (tmp_path / "empty").mkdir()
    Run.open(tmp_path / "empty", CONFIG)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("long" * 200)):
        with pytest.raises(ConfigError, match="can be written") as error:
            Run.open(where, CONFIG)
        assert_one_line(error)


def test_a_folder_in_which_another_process_works_is_refused(tmp_path: Path) -> None:
    Run.open(tmp_path / "run", {"seed": 1})
    with FileLock(tmp_path / "run" / LOCK), pytest.raises(ConfigError, match="another process"):
        Run.open(tmp_path / "run", {"seed": 1})
    Run.open(tmp_path / "run", {"seed": 1})


def test_a_damaged_configuration_is_told(tmp_path: Path) -> None:
    Run.open(tmp_path / "run", CONFIG).append("rows.jsonl", [{"id": 1}])
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(DataError, match="expected JSON in") as error:
        Run.open(tmp_path / "run", CONFIG)
    assert_one_line(error)


@pytest.mark.parametrize("left", [(), ("config.json.tmp",), ("config.json",), ("config.json", "manifest.json.tmp")])
def test_a_run_killed_while_opening_resumes(tmp_path: Path, left: tuple[str, ...]) -> None:
    done = Run.open(tmp_path / "done", CONFIG)
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in left:
        content = done.path(name.removesuffix(".tmp")).read_text()
        (killed / name).write_text(content[: len(content) // 2] if name.endswith(".tmp") else content)
    run = Run.open(killed, CONFIG)
    assert run.read_json("config.json") == done.read_json("config.json") and run.done("manifest.json")


# files


def test_writes_are_whole_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.write_json("result.json", {"text": "naïve – ok", "n": 1})
    run.write_rows("table.jsonl", [{"a": 1}, {"a": "line\nbreak\u2028"}])
    assert run.read_json("result.json") == {"text": "naïve – ok", "n": 1}
    assert list(run.rows("table.jsonl")) == [{"a": 1}, {"a": "line\nbreak\u2028"}]
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_json("result.json", {"n": 2})
    with pytest.raises(KeyboardInterrupt):
        run.write_json("new.json", {"n": 2})
    assert run.read_json("result.json")["n"] == 1 and not run.done("new.json")


def test_a_torn_last_line_is_cut_and_appending_goes_on(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    rows = [{"id": i, "text": "é – \u2028" * i} for i in range(4)]
    run.append("rows.jsonl", rows)
    whole = run.path("rows.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in range(len(whole) + 1):
        run.path("rows.jsonl").write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        assert list(run.rows("rows.jsonl")) == rows[:complete]
        run.append("rows.jsonl", rows[complete:])
        assert run.path("rows.jsonl").read_bytes() == whole


def test_a_bad_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.path("rows.jsonl").write_text('{"id": 1}\n{"id": \n{"id": 3}\n')
    with pytest.raises(DataError, match="line 2") as error:
        list(run.rows("rows.jsonl"))
    assert_one_line(error)
    assert list(run.rows("missing.jsonl")) == []


def test_a_finished_run_has_the_hashes_of_its_outputs(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.write_json("result.json", {"n": 1})
    run.part("trait").write_json("result.json", {"n": 2})
    run.path("report.html").write_text("made from the results")
    run.finish()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["outputs"] == {
        name: sha256(tmp_path / name) for name in ("config.json", "result.json", "trait/result.json")
    }
    assert manifest["finished"]


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_what_a_finished_run_lacks_is_made_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(tmp_path, CONFIG)
    for name in ("evil", "kind"):
        for file in ("vector.json", "result.json"):
            run.part(name).write_json(file, {"of": name})
    run.write_json("result.json", {"n": 2})
    run.path("sheet.csv").write_text("choice\n")
    run.finish()
    run.path("sheet.csv").write_text("choice\n1\n")
    path = tmp_path / "evil" / "vector.json"
    {
        "gone": path.unlink,
        "cut": lambda: path.write_bytes(path.read_bytes()[:-4]),
        "changed": lambda: path.write_text("{}"),
    }[damage]()
    again = Run.open(tmp_path, CONFIG)
    assert "evil/vector.json: gone or changed since the run ended" in capsys.readouterr().err
    left = {"kind/vector.json", "kind/result.json", "sheet.csv", "config.json", "manifest.json"}
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} - {LOCK} == left
    again.finish()
    Run.open(tmp_path, CONFIG)
    assert again.part("kind").done("result.json") and not capsys.readouterr().err


def test_a_run_that_goes_on_is_not_measured_by_what_it_was(tmp_path: Path) -> None:
    run = Run.open(tmp_path, CONFIG)
    run.append("rows.jsonl", [{"id": 0}])
    run.finish()
    manifest = run.read_json("manifest.json")
    manifest["sessions"].append(manifest["sessions"][-1] | {"started": "2999-01-01T00:00:00+00:00"})  # and was killed
    run.write_json("manifest.json", manifest)
    run.append("rows.jsonl", [{"id": 1}])
    assert len(list(Run.open(tmp_path, CONFIG).rows("rows.jsonl"))) == 2


def test_the_options_of_a_run_inside_another_stay(tmp_path: Path) -> None:
    """Without them the folder of the inner run would be refused as somebody else's."""
    run = Run.open(tmp_path, CONFIG)
    Run.open(tmp_path / "inner", CONFIG).finish()
    run.finish()
    options = tmp_path / "inner" / "config.json"
    options.write_text(json.dumps(json.loads(options.read_text())))  # another layout, the same options
    Run.open(tmp_path, CONFIG)
    assert options.exists() and Run.open(tmp_path / "inner", CONFIG).done("config.json")


@pytest.mark.parametrize("name", ["../kept.txt", "{outside}"])
def test_a_manifest_names_nothing_outside_of_its_run(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "kept.txt"
    outside.write_text("mine")
    run = Run.open(tmp_path / "run", CONFIG)
    run.finish()
    manifest = run.read_json("manifest.json")
    run.write_json("manifest.json", manifest | {"outputs": {name.format(outside=outside): "0" * 64}})
    Run.open(tmp_path / "run", CONFIG)
    assert outside.read_text() == "mine"


def test_a_run_that_an_older_version_wrote_resumes(tmp_path: Path) -> None:
    """It noted every option, those of the machine and of the output too; the new one notes what changes results."""
    run = Run.open(tmp_path, CONFIG, {"model": "abc"})
    run.append("rows.jsonl", [{"id": 1}])
    run.write_json(
        "config.json", run.read_json("config.json") | {"dtype": "auto", "device": "auto", "traits": ["evil"]}
    )
    Run.open(tmp_path, CONFIG, {"model": "abc"})
    with pytest.raises(ConfigError, match="batch: None there, 2 here"):
        Run.open(tmp_path, CONFIG | {"batch": 2}, {"model": "abc"})
    with pytest.raises(ConfigError, match="input trait evil: None there, x here"):
        Run.open(tmp_path, CONFIG, {"model": "abc", "trait evil": "x"})


def test_a_run_that_is_not_kept_goes_with_its_handle() -> None:
    run = Run.open(None, CONFIG)
    part, folder = run.part("trait"), run.folder
    part.write_json("result.json", {})
    assert not run.kept and run.shown("result.json") is None and part.shown() is None
    del run
    assert part.done("result.json"), "a part keeps the whole"
    del part
    assert not folder.exists()


def test_the_commit_is_found_from_a_checkout() -> None:
    if not (Path(__file__).parents[2] / ".git").exists():
        pytest.skip("not a checkout")
    assert commit()
