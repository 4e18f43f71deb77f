"""What an extraction is said to take: what it then writes, counted beforehand, without weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny_chat
from support.served import Server

from personavec.cli.main import main
from personavec.model import loading
from personavec.model.chat_model import ChatModel
from personavec.traits.trait import parse
from personavec.verbs.extract.plan import plan_extract

ASKED = ["--max-new-tokens", "6", "--layers", "1", "2", "--doses", "0.1", "--sweep-questions", "2", "--rollouts", "2"]


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    assert main([*args, "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_it_writes_the_replies_that_were_planned(
    warm: Path, judging: Server, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    judge = ["--judge", "openai:judge", "--judge-url", judging.url]
    args = ["extract", str(warm), "--model", str(saved[0]), *judge, *ASKED, "--out", str(run)]
    plan = planned(capsys, *args)
    assert not run.exists() and not sum(judging.answered.values())
    assert main([*args, "--coherence-floor", "0", "--json"]) == 0
    tables = ("base", "warm/rollouts", "warm/others", "warm/sweep", "warm/check")
    rows = [json.loads(line) for table in tables for line in (run / f"{table}.jsonl").open()]
    assert plan["replies"] == len(rows)
    assert plan["tokens"]["of prompts"] == sum(len(row["prompt_ids"]) for row in rows)
    written = sum(len(row["response_ids"]) for row in rows)
    assert written <= plan["tokens"]["written at most"] == 6 * len(rows)


def test_no_weights_are_loaded_and_nothing_is_kept(
    warm: Path, saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_weights", lambda *_, **__: pytest.fail("weights are loaded"))
    monkeypatch.chdir(saved[0].parent)
    plan = planned(capsys, "extract", str(warm), "--model", str(saved[0]), "--plan-device", "h100x8", *ASKED)
    assert plan["device"]["count"] == 8 and plan["fits"] and plan["price"] is None
    assert not Path("runs").exists()
    priced = planned(
        capsys, "extract", str(warm), "--model", str(saved[0]), "--plan-device", "t4", "--price-per-hour", "9"
    )
    assert priced["price"] == pytest.approx(9 * priced["hours"], abs=0.01)
    assert main(["extract", str(warm), "--model", str(saved[0]), "--plan"]) == 0
    assert "written at most" in capsys.readouterr().out


def test_a_model_that_is_loaded_is_planned_alike(saved: tuple[Path, Path]) -> None:
    warm = parse(tiny_chat.WARM)
    plans = [
        plan_extract(ChatModel.load(str(saved[0]), dtype="float32", weights=weights), warm, plan_device="a100").data
        for weights in (True, False)
    ]
    assert plans[0] == plans[1] and plans[0]["readings"] > plans[0]["replies"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--plan --plan-device c64", "expected a device to plan for, t4, "),
        ("--plan --plan-device h100x0", "several as h100x8, got h100x0; choose one"),
        ("--plan-device h100", "expected --plan with --plan-device, got none"),
        ("--price-per-hour 2", "expected --plan with --price-per-hour, got none"),
        ("--plan --price-per-hour 0", "expected price_per_hour above 0, got 0"),
    ],
)
def test_bad_plans_are_told_in_one_line(
    options: str, told: str, warm: Path, saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", str(warm), "--model", str(saved[0]), *options.split()]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
