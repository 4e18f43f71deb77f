"""Conditions on a result: what they hold of, what is unknown, and the JUnit file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.cli import main as cli
from personavec.errors import ConfigError
from personavec.runs.gate import GateCondition
from personavec.runs.result import Result
from personavec.verbs.evaluate.options import EvaluateConfig
from personavec.verbs.finetune.options import ShiftConfig
from personavec.verbs.monitor.options import MonitorConfig
from personavec.verbs.screen.options import ScreenConfig

RESULT: dict[str, Any] = {
    "rows": 300,
    "seconds": 1.5,
    "mean": {"evil": {"mean": 0.5, "ci": [0.1, 0.9]}, "v1.2@12": {"mean": -5.03, "ci": [-5.92, -4.14]}},
    "verdict": {"evil": "neither", "v1.2@12": "against"},
    "beyond": {"evil": False, "v1.2@12": True},
    "unknown": {"evil": None},
    "tuned": [{"shift": 1.0}, {"shift": 3.0}],
    "none": {},
}


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("rows > 299", True), ("rows >= 300", True), ("rows<300", False), ("rows != 300", False), ("rows==300", True),
        ("mean.evil.ci.0 > 0", True), ("mean.v1.2@12.mean < -5", True), ("mean.*.ci.1 < 0", True),
        ("mean.*.mean > 0.6", False), ("verdict.* == against", True), ("verdict.*=='toward'", False),
        ("verdict.evil != neither", False), ("beyond.v1.2@12", True), ("beyond.evil", False),
        ("beyond.* == false", True), ("tuned.*.shift > 2", True), ("tuned.0.shift > 2", False), ("rows > 2.5e2", True),
        ("missing > 1", None), ("mean.good.mean > 1", None), ("tuned.7.shift > 1", None), ("none.* > 1", None),
        ("unknown.evil > 0", None), ("unknown.evil", None), ("verdict.evil > 1", None), ("rows == against", None),
        ("rows.more > 1", None), ("mean.evil > 1", None), ("beyond.evil > 0", None),
    ],
)  # fmt: skip
def test_a_condition_holds_does_not_or_is_unknown(text: str, failed: bool | None) -> None:
    (row,) = Result(RESULT).gate(text)
    assert row["failed"] is failed and row["fail_if"] == text and (row["why"] is None) == (failed is not None)
    json.dumps(row, allow_nan=False)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from(["<", "<=", "==", "!=", ">", ">="]))
def test_conditions_are_arithmetic(value: float, other: float, how: str) -> None:
    row = GateCondition.parse(f"a.b {how} {other!r}").of({"a": {"b": value}})
    expected = {"<": value < other, "<=": value <= other, "==": value == other}
    expected |= {"!=": value != other, ">": value > other, ">=": value >= other}
    assert row["failed"] is expected[how]


@pytest.mark.parametrize("text", ["", "  ", "> 3", "a = 3", "a >", "a > b > c", "a > toward", "a <> 3", "a >= true"])
@pytest.mark.parametrize("config", [ScreenConfig, MonitorConfig, EvaluateConfig, ShiftConfig])
def test_what_is_no_condition_is_said_before_any_work(config: Any, text: str) -> None:
    more = {"vectors": (Path("v"),), "data": "d"} if config is MonitorConfig else {}
    with pytest.raises(ConfigError) as caught:
        config(fail_if=(text,), **more)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected --fail-if with --junit"):
        config(junit=Path("j.xml"), **more)


@pytest.fixture
def screened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(ScreenConfig, "run", lambda self: Result(dict(RESULT)))
    yield ["screen", "rows.jsonl", "--vectors", "v", "--json"]


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        (["rows > 300"], 0),
        (["rows > 300", "verdict.* == against"], 3),
        (["missing > 1"], 2),
        (["verdict.* == against", "missing > 1"], 2),
    ],
)
def test_the_exit_code_the_json_and_the_junit_file_agree(
    screened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], conditions: list[str], code: int
) -> None:
    junit = tmp_path / "deep" / "gate.xml"
    junit.parent.mkdir()
    args = [each for text in conditions for each in ("--fail-if", text)]
    assert cli.main([*screened, *args, "--junit", str(junit)]) == code
    said = capsys.readouterr()
    rows = json.loads(said.out)["fail_if"]
    assert [row["fail_if"] for row in rows] == conditions
    suite = ElementTree.parse(junit).getroot()[0]
    states = [(case.find("failure") is not None, case.find("error") is not None) for case in suite]
    assert states == [(row["failed"] is True, row["failed"] is None) for row in rows]
    assert suite.get("tests") == str(len(conditions)) and suite.get("failures") == str(sum(f for f, _ in states))
    lines = [line for line in said.err.splitlines() if line.startswith("personavec: ")]
    assert len(lines) == sum(map(any, states))


def test_without_conditions_nothing_changes(screened: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(screened) == 0 and "fail_if" not in json.loads(capsys.readouterr().out)
