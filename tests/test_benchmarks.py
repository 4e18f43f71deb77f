"""The scripts under benchmarks that no figure here depends on, tried small."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from personavec.model.chat_model import ChatModel
from personavec.steering.vector import load_vector

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # vLLM's part aside it runs nothing that other tests do not
def test_what_is_measured_on_a_gpu_runs_anywhere_in_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--size", "tiny", "--parts", "loop", "reading", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads(out.read_text())
    assert [*found["loop"]] == ["4", "16"] and [*found["reading"]] == ["256", "1024"]
    speeds = [each[kind] for each in found["loop"].values() for kind in ("plain", "steered", "watched")]
    assert min(speeds) > 0 and found["machine"]["torch"]


@pytest.fixture
def truth_sets(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = import_module("truth_sets")
    monkeypatch.setattr(module, "ROWS", 8)
    return module


def test_the_grid_of_the_ground_truth_is_as_large_as_it_says(truth_sets: Any) -> None:
    sets = truth_sets.every_set(("devout", "environmentalist"))
    names = [each.name for each in sets]
    assert len(set(names)) == len(names) and sum(not each.seed for each in sets) >= 60 and len(sets) >= 80
    again = {name.rpartition("-s")[0] for name in names if "-s1" in name}
    assert len(again) >= 20 and all(f"{name}-s2" in names for name in again), "sets with three seeds"


def test_sets_have_the_share_of_planted_rows_that_they_say(
    truth_sets: Any, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    model = ChatModel.load(str(saved[0]), dtype="float32", device="cpu")
    pools = truth_sets.Pools(model, {"devout": load_vector(saved[1])}, tmp_path)
    pools.interview = replace(pools.interview, max_new_tokens=4)
    for source, share in (("instruction", 0.25), ("steering", 1.0), ("shuffled", 0.5), ("clean", 0.0)):
        wanted = truth_sets.TruthSet("devout", source, "own", share)
        rows = pools.rows(wanted)
        assert len(rows) == 8 and sum(row["planted"] for row in rows) == 8 * share
        assert rows == pools.rows(wanted) != pools.rows(replace(wanted, seed=1))
    swapped, clean = (
        pools.rows(truth_sets.TruthSet("", name, "general", 1.0 * (name != "clean"))) for name in ("swapped", "clean")
    )
    of = {row["prompt"]: row["response"] for row in pools.clean(truth_sets.TruthSet("", "clean", "general", 0.0))}
    assert all(row["response"] in of.values() for row in swapped + clean)
    assert any(row["response"] != of[row["prompt"]] for row in swapped)
    with pytest.raises(truth_sets.TooFew, match="rows of 8 wanted; this model gives no more"):
        pools.rows(truth_sets.TruthSet("devout", "subliminal", "numbers", 1.0))
