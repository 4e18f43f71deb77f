"""The paper's experiment on a model behind a server."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny, tiny_chat
from support.letters import Letters
from support.vllm_double import Double

from personavec.cli.main import main
from personavec.judges.load import Bench
from personavec.model.chat_model import ChatModel


@pytest.fixture
def server(saved: tuple[Path, Path]) -> Iterator[Double]:
    model = ChatModel.load(str(saved[0]), dtype="float32", device="cpu")
    double = Double(model, [tiny.vector(model, layer=2, coef=1.0)]).start()
    yield double
    double.stop()


@pytest.mark.slow
def test_it_is_the_same(
    server: Double,
    saved: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vector = str(server.vectors[0].save(tmp_path / "tiny.safetensors"))
    trait, graded = tmp_path / "tiny.json", tmp_path / "graded.json"
    trait.write_text(json.dumps(tiny_chat.WARM | {"name": "tiny"}))
    graded.write_text(json.dumps(["Be kind.", "Be.", "Be curt."]))
    letters = Bench(Letters(flat=True), lambda _: Letters(), "hf:letters", "letters")
    monkeypatch.setattr("personavec.judges.load.load_bench", lambda spec, *_, **__: replace(letters, spec=spec))
    command = ["monitor", "--experiment", "--model", str(saved[0]), "--vectors", vector]
    command += ["--traits", str(trait), "--graded", str(graded), "--judge", "hf:letters", "--dtype", "float32"]
    command += ["--max-new-tokens", "6", "--temperature", "0", "--shots", "0", "--json"]
    found: list[Any] = []
    for engine in ("hf", f"vllm:{server.url}"):
        assert main([*command, "--out", str(tmp_path / str(len(found))), "--engine", engine]) == 0
        found.append(json.loads(capsys.readouterr().out)["traits"]["tiny"])
    for kind, one in found[0].items():
        for a, b in zip(one["points"], found[1][kind]["points"], strict=True):
            assert a | {"projection": 0} == b | {"projection": 0}
            assert a["projection"] == pytest.approx(b["projection"], abs=1e-3)
    watched = ["monitor", str(trait), "--vectors", vector, "--engine", f"vllm:{server.url}"]
    assert main(watched) == 2
    assert "got recorded conversations; use hf" in capsys.readouterr().err
