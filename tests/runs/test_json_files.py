"""JSON as the package reads it: a value that can be written again, or a few words on one line."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.errors import PersonavecError
from personavec.judges.scoring import _wrong as wrong_score
from personavec.runs.json_files import DEEPEST, parse_json, read_json
from personavec.runs.run import Run
from personavec.steering.rollouts import _wrong as wrong_reply
from personavec.traits.graded import graded_prompts
from personavec.traits.load import load_trait
from personavec.verbs.analyse.dictionary import _config
from personavec.verbs.evaluate.evaluate import _read as read_scales
from personavec.verbs.monitor.calibration import Calibration

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**290), 10**290)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
HOSTILE: dict[str, bytes] = {
    "5,000 lists": b"[" * 5000 + b"]" * 5000,
    "200,000 lists": b"[" * 200_000,
    "objects": b'{"a":' * 200_000,
    "a little too deep": b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
    "5,000 digits": b'{"name": ' + b"9" * 5000 + b"}",
    "half a pair": b'{"name": "\\ud800"}',
    "other bytes": b"\xff\xfe\x00{",
    "nothing": b"",
    "cut short": b'{"name": "warm", "pa',
    "trailing": b"{} {}",
}
LAX: dict[str, bytes] = {
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": -Infinity}',
    "1e400": b'{"name": 1e400}',
    "a key twice": b'{"name": "a", "name": "b"}',
}
"""What Python reads all the same; runs keep missing figures as NaN."""


@given(VALUES, st.booleans())
def test_what_is_written_comes_back(value: object, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    assert parse_json(text) == parse_json(text.encode()) == parse_json(b"\xef\xbb\xbf" + text.encode()) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\ud8nNa1e.-+ ', max_size=40).map(str.encode), st.booleans())
def test_any_bytes_are_a_value_or_one_line(content: bytes, strict: bool) -> None:
    try:
        value = parse_json(content, strict=strict)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        json.dumps(value, ensure_ascii=False, allow_nan=not strict).encode()


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_in_few_words(content: bytes) -> None:
    for strict in (True, False):
        with pytest.raises(ValueError) as caught:
            parse_json(content, strict=strict)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_what_only_python_writes_is_read_where_that_is_allowed() -> None:
    for content in LAX.values():
        with pytest.raises(ValueError, match=r"finite number|the key 'name' twice"):
            parse_json(content)
        name = parse_json(content, strict=False)["name"]
        assert name == "b" or not math.isfinite(name)
    assert parse_json(b'["' + b"9" * 5000 + b'"]') == ["9" * 5000]
    assert parse_json(b"[" * DEEPEST + b"]" * DEEPEST)


def _manifest(path: Path) -> object:
    return Run.open(_as(path, "manifest.json"), {})


def _as(path: Path, name: str) -> Path:
    """The folder of a run in which a file stands for one of its own."""
    Run.open(path.parent / "run", {}).lock.release()  # type: ignore[union-attr]
    (path.parent / "run" / name).unlink()
    path.rename(path.parent / "run" / name)
    return path.parent / "run"


def _rows(wrong: Callable[..., str]) -> Callable[[Path], object]:
    def rows(path: Path) -> object:
        path.write_bytes(path.read_bytes() + b"\n")
        return list(Run(path.parent).rows(path.name, wrong))

    return rows


DOORS: dict[str, Callable[[Path], object]] = {
    "trait": load_trait,
    "graded": lambda path: graded_prompts("warm", path),
    "calibration": Calibration.load,
    "judge": read_scales,
    "config": lambda path: Run.open(_as(path, "config.json"), {}),
    "manifest": _manifest,
    "dictionary": lambda path: _config(path.rename(path.with_name("cfg.json")).parent),
    "rollouts": _rows(wrong_reply),
    "scores": _rows(wrong_score),
}
WRONG: dict[str, bytes] = {"a list": b"[1, 2]", "a number": b"7", "text": b'"warm"', "null": b"null"}


OWN = ("judge", "config")
"""Doors of files that a run wrote: what only Python reads is read there, and holds nothing that is looked for."""
CASES = [
    pytest.param(door, content, id=f"{door}, {name}")
    for door in DOORS
    for kinds in (HOSTILE, {} if door in OWN or door == "dictionary" else LAX, {} if door == "dictionary" else WRONG)
    for name, content in kinds.items()
]


@pytest.mark.parametrize(("door", "content"), CASES)
def test_every_door_refuses_it_in_one_line(door: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    path.write_bytes(content)
    with pytest.raises(PersonavecError) as caught:
        DOORS[door](path)
    said = str(caught.value)
    assert "\n" not in said and "expected" in said and ", got" in said and len(said) < 700
    own = {"config": "config.json", "manifest": "manifest.json", "dictionary": "cfg.json"}
    assert own.get(door, "given.json") in said


@pytest.mark.parametrize("door", ["trait", "graded", "calibration", "judge"])
def test_a_folder_in_the_place_of_a_file(door: str, tmp_path: Path) -> None:
    (tmp_path / "given.json").mkdir()
    with pytest.raises(PersonavecError, match=r"given\.json"):
        DOORS[door](tmp_path / "given.json")
    with pytest.raises(ValueError, match="no such file"):
        read_json(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"sessions": 5},
        {"sessions": [7]},
        {"sessions": [{}]},
        {"sessions": [{"started": 1}]},
        {"sessions": [], "outputs": []},
        {"sessions": [], "outputs": {"a": 1}},
        {"sessions": [{"started": "2"}], "finished": 3},
    ],
)
def test_a_manifest_of_another_form(manifest: object, tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(PersonavecError, match=r"manifest\.json, got .*; delete that file and run again"):
        _manifest(path)


def test_a_finished_manifest_without_outputs_resumes(tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    path.write_text(json.dumps({"sessions": [{"started": "1"}], "finished": "2"}))
    _manifest(path)
