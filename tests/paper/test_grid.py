"""The grid of finetunings: every data set is trained on and measured, more can be added, and it says what predicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_chat

from personavec.errors import ConfigError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.paper.grid import finetuning_grid
from personavec.steering.vector import load_vector
from personavec.traits.load import load_trait
from personavec.verbs.finetune.shift import shift


@pytest.mark.slow  # several finetunings, one after the other
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


@pytest.mark.slow
def test_a_grid_of_objects_keeps_nothing_and_leaves_the_model_as_it_was(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(tiny_chat.WARM | {"name": "tiny"}))
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    before = {name: weight.clone() for name, weight in model.hf.named_parameters()}
    trait = load_trait(tmp_path / "tiny.json")
    rows = [{"prompt": f"what is {n}?", "response": f"it is {n}"} for n in range(4)]
    options: Any = {
        "training": {"rate": 1e-2, "batch": 4, "rank": 4, "warmup_steps": 0},
        "traits": [trait],
        "rollouts": 1,
    }
    grid = finetuning_grid(model, {"rows": rows}, vector, **options, max_new_tokens=24)
    assert grid.data["out"] is None and grid.data["models"] == ["rows"]
    assert {name: len(replies["tiny"]) for name, replies in grid.replies.items()} == {"base": 3, "rows": 3}
    assert "tiny" in grid._repr_html_() and "expected 4 rows" in repr(grid)
    assert not model.adapted and not any(module._forward_hooks for module in model.hf.modules())
    assert all(torch.equal(before[name], weight) for name, weight in model.hf.named_parameters())


def test_bad_objects_give_one_line(saved: tuple[Path, Path], model: ChatModel) -> None:
    vector = load_vector(saved[1])
    fitting = ChatModel.load(str(saved[0]), dtype="float32")
    with pytest.raises(VectorError, match="expected"):
        finetuning_grid(model, {"rows": []}, vector)  # of another model
    with pytest.raises(ConfigError, match="expected names of letters"):
        finetuning_grid(fitting, {"base": []}, vector)
    with pytest.raises(ConfigError, match="expected plain training of adapters"):
        finetuning_grid(fitting, {"rows": []}, vector, training={"full": True})


def test_nothing_to_train_on(saved: tuple[Path, Path], model: ChatModel) -> None:
    with pytest.raises(ConfigError, match="expected data sets and vectors"):
        finetuning_grid(model, {}, [saved[1]])
