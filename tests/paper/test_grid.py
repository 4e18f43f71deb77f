"""The grid of finetunings: every data set is trained on and measured, more can be added, and it says what foretells."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny_chat

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.paper.grid import finetuning_grid
from personavec.verbs.finetune.shift import shift


def test_a_grid_grows(saved: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(tiny_chat.WARM | {"name": "tiny"}))
    datasets = {}
    for number in range(4):
        datasets[f"set {number}"] = str(tmp_path / f"{number}.jsonl")
        rows = [{"prompt": f"what is {n}?", "response": f"it is {n * number}{'!' * number}"} for n in range(4)]
        Path(datasets[f"set {number}"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ChatModel.load(str(saved[0]), dtype="float32")
    options: Any = {"training": {"rate": 1e-2, "batch": 4, "epochs": 6, "rank": 4}, "traits": (tmp_path / "tiny.json",)}
    options |= {"rollouts": 1, "max_new_tokens": 24, "store": tmp_path / "grid"}
    first = dict(list(datasets.items())[:2])
    few = finetuning_grid(model, first, [saved[1]], **options).data
    assert few["traits"]["tiny"]["reason"] == "expected 4 rows or more, got 2"
    trained = {place: place.stat().st_mtime_ns for place in (tmp_path / "grid").glob("*/adapter/*.safetensors")}
    assert len(trained) == 2
    result = finetuning_grid(model, datasets, [saved[1]], **options).published()
    assert trained == {place: place.stat().st_mtime_ns for place in trained}
    grid = result["traits"]["tiny"]
    assert result["models"] == list(datasets) and grid["n"] == 4 and set(result["scores"]) == set(datasets)
    assert grid["nulls"]["covariance"]["draws"] == 1000 and grid["projection_difference"]["n"] == 4
    assert "set 3" in Path(result["report"]).read_text("utf-8")

    tuned = tmp_path / "grid" / "set 2-trained" / "adapter"
    shifts = shift(model, str(tuned), [saved[1]], traits=options["traits"]).data
    points = {point["model"]: point["shift"] for point in grid["points"]}
    assert points["set 2"] == pytest.approx(shifts["tuned"][-1]["shift"]["tiny"]["mean"], abs=2e-4)


def test_nothing_to_train_on(saved: tuple[Path, Path], model: ChatModel) -> None:
    with pytest.raises(ConfigError, match="expected data sets and vectors"):
        finetuning_grid(model, {}, [saved[1]])
