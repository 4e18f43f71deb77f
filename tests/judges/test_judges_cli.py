"""Verbs with a judge behind a server, from the command line, on the tiny chatting model."""

import json
from pathlib import Path

import pytest
from support.served import Server

from personavec.cli.main import main


def test_evaluate_with_a_server_pays_once(
    warm: Path, judging: Server, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, vector = map(str, saved)
    args = [
        "evaluate",
        str(warm),
        "--model",
        model,
        "--judge",
        "openai:judge",
        "--judge-url",
        judging.url,
        "--rollouts",
        "2",
    ]
    args += ["--steer", f"{vector}:1", "--max-new-tokens", "6", "--json"]
    assert main([*args, "--out", str(tmp_path / "one")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"] == "openai:judge" and found["judge_auc"] is None and not found["weak_judge"]
    for arm in ("base", "changed", "random"):
        for kind in ("trait", "coherence"):
            dropped = sum(found["unscored"][arm][kind].values())
            scored = [json.loads(line) for line in (tmp_path / "one" / f"{arm}.scores.jsonl").open()]
            assert dropped == sum(row[kind] is None for row in scored) and len(scored) == 6
            assert all((row[kind] is None) == (f"{kind}_why" in row) for row in scored)
    assert found["trait_score"]["dropped"] == sum(found["unscored"]["changed"]["trait"].values())
    assert found["judge_usage"]["calls"] == sum(judging.answered.values()) > 20
    assert not (tmp_path / "one" / "rollouts.jsonl").exists(), "this judge has no scale to learn"

    before = sum(judging.answered.values())
    assert main([*args, "--out", str(tmp_path / "two")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert sum(judging.answered.values()) == before and again["judge_usage"]["calls"] == 0
    assert again["trait_score"] == found["trait_score"]

    assert main([*args, "--questions", "1", "--out", str(tmp_path / "few")]) == 0
    few = [json.loads(line) for line in (tmp_path / "few" / "changed.jsonl").open()]
    whole = {row["id"]: row for row in map(json.loads, (tmp_path / "one" / "changed.jsonl").open())}
    assert [row["question_id"] for row in few] == [0, 0] and all(whole[row["id"]] == row for row in few)


def test_a_run_stopped_by_its_budget_goes_on(
    warm: Path, judging: Server, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["evaluate", str(warm), "--model", str(saved[0]), "--judge", "openai:judge", "--judge-url", judging.url]
    args += ["--max-new-tokens", "6", "--out", str(tmp_path / "run")]
    assert main([*args, "--api-calls", "5", "--api-concurrency", "1"]) == 2
    said = capsys.readouterr().err
    assert "expected at most 5 calls to judge, spent 5 calls and 500 tokens; raise --api-calls" in " ".join(
        said.split()
    )
    assert main([*args, "--api-calls", "500"]) == 0
    assert set(judging.answered.values()) == {1}
    assert "judge server: " in capsys.readouterr().out


@pytest.mark.slow
def test_extract_with_a_server(
    warm: Path, judging: Server, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["extract", str(warm), "--model", str(saved[0]), "--judge", "openai:judge", "--judge-url", judging.url]
    args += ["--max-new-tokens", "6", "--layers", "1", "--doses", "0.1", "--sweep-questions", "2"]
    args += ["--out", str(tmp_path / "run"), "--coherence-floor", "0", "--json"]
    assert main(args) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"] == "openai:judge" and not found["proven"]
    counts = json.loads((tmp_path / "run/warm/result.json").read_text())["counts"]
    for side in ("pos", "neg"):
        told = counts[side]
        assert told["written"] == 8 == sum(told[key] for key in told if key not in ("written", "truncated"))
    page = Path(found["report"]).read_text()
    assert "openai:judge (judge at http://127.0.0.1" in page and "unjudged" in page
    judge = json.loads((tmp_path / "run/warm/judge.json").read_text())
    assert judge["trait"]["aucs"]["opposite"]["n"] > 0 and "weights" not in judge["trait"]
    assert judge["coherence"]["aucs"] == {}


def test_evaluate_with_a_local_rubric_judge(
    warm: Path, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(saved[0])
    args = ["evaluate", str(warm), "--model", model, "--judge", f"hf:{model}", "--max-new-tokens", "6", "--json"]
    assert main([*args, "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"] == f"hf:{model}" and found["judge_usage"] is None
    scored = [json.loads(line) for line in (tmp_path / "run/base.scores.jsonl").open()]
    assert len(scored) == 9 and all((row["trait"] is None) == ("trait_why" in row) for row in scored)
    assert all("mass" in row["evidence"] for row in scored if row.get("trait_why") != "empty")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--judge openai:judge", "a key in the environment variable OPENAI_API_KEY"),
        ("--judge openai:judge --judge-url http://127.0.0.1:9/v1", "got Connection error"),
        ("--judge openai:judge --judge-url nonsense", "expected the address of a server, such as"),
        ("--judge gpt-5", "expected the judge panel, panel:MODEL, hf:MODEL or openai:MODEL, got gpt-5"),
        ("--api-calls 0", "expected api_calls at least 1, got 0"),
    ],
)
def test_bad_judges_are_told_in_one_line(
    options: str, told: str, warm: Path, saved: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = tmp_path / "run"
    assert main(["evaluate", str(warm), "--model", str(saved[0]), "--out", str(out), *options.split()]) == 2
    said = capsys.readouterr().err.strip()
    assert told in said and "\n" not in said and not out.exists()
