"""What a training is said to take: the rows, tokens and steps that it then has, counted without weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from personavec.cli.main import main
from personavec.model import loading

HOW = ["--batch", "4", "--rank", "4", "--epochs", "2"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"what is {n}?", "response": f"it is {n} {n}!" * (1 + n % 3)} for n in range(13)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    assert main([*args, "--plan", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_it_trains_what_was_planned(
    data: str,
    saved: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = ["finetune", data, "--model", str(saved[0]), *HOW, "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_weights", lambda *_, **__: pytest.fail("weights are loaded"))
        plan = planned(capsys, *args)
    assert not (tmp_path / "run").exists()
    assert main([*args, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (plan["rows"], plan["sequences"], plan["steps"]) == (done["rows"], done["sequences"], done["steps"])
    assert plan["tokens"]["trained on"] == 2 * done["tokens"]
    adapter = (tmp_path / "run/adapter/adapter_model.safetensors").stat().st_size
    weights = plan["memory_gb"]["trained weights, gradients and moments"] * 1e9 / 16
    assert weights == pytest.approx(adapter / 4, rel=0.3)  # of float32, and a header


def test_all_weights_and_several_devices(
    data: str, saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["finetune", data, "--model", str(saved[0]), *HOW]
    one, eight = (planned(capsys, *args, "--plan-device", name) for name in ("a100", "a100x8"))
    assert eight["hours"] == pytest.approx(one["hours"] / 8, abs=1e-4)
    assert "they share the rows (accelerate launch)" in eight["assumed"]
    assert planned(capsys, *args, "--full", "--plan-device", "a100")["memory_gb"]["weights"] == 0
    assert main([*args, "--plan", "--plan-device", "a100x8"]) == 0
    assert "8 × a100" in capsys.readouterr().out
