"""Screening on the small real model: killed at random moments, and rungs that agree with each other."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from personavec.model.chat_model import ChatModel
from personavec.steering.vector import Card, PersonaVector
from personavec.traits.load import builtin_names, load_trait

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of length 1 in the middle of the real model."""
    model = ChatModel.load("smollm2")
    direction = torch.randn((model.n_layers, model.identity.d_model), generator=torch.Generator().manual_seed(0))
    card = Card("some", model.identity, "response avg", layer=14)
    path = tmp_path_factory.mktemp("vector") / "some.safetensors"
    return PersonaVector(direction / direction.norm(dim=-1, keepdim=True), card).save(path)


def command(data: Path, vector: Path, out: Path, *more: str) -> list[str]:
    args = ["screen", str(data), "--vectors", str(vector), "--out", str(out), "--max-new-tokens", "12", *more]
    return [sys.executable, "-m", "personavec", *args, "--json"]


def questions(path: Path, rows: int) -> Path:
    asked = [question for name in builtin_names() for question in load_trait(name).check]
    said = ("Yes, and gladly.", "I would rather not.", "It depends on the weather, and on the day of the week.")
    lines = [{"prompt": f"{asked[n % len(asked)]} ({n})", "response": said[n % 3] * (1 + n % 4)} for n in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(args: list[str]) -> dict[str, Any]:
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_rungs_on_the_real_model(vector: Path, tmp_path: Path) -> None:
    data = questions(tmp_path / "data.jsonl", 60)
    full = run(command(data, vector, tmp_path / "full", "--cost", "full"))
    proxy = run(command(data, vector, tmp_path / "proxy", "--cost", "proxy"))
    one, two = (pq.read_table(found["table"]) for found in (full, proxy))
    for column in ("some.response", "some.prompt_last"):  # prompts read once for two replies, and read alone
        mine, theirs = one[column].to_numpy(), two[column].to_numpy()
        assert np.abs(mine - theirs).max() < 0.05 * np.std(mine) + 0.05, column
    sampled = run(command(data, vector, tmp_path / "sampled", "--cost", "sampled", "--precision", "0.05"))
    assert sampled["sampled"]["base_replies"] == 60, "so narrow an interval takes every row of a small set"
    mean = full["projection_difference"]["some"]["mean"]
    assert sampled["projection_difference"]["some"]["mean"] == pytest.approx(mean, abs=0.05)


@pytest.mark.slow
def test_killed_ten_times_it_ends_with_the_same_bytes(vector: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments; base replies of each run in a cache of its own."""
    data = questions(tmp_path / "data.jsonl", 1200)
    models = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "personavec" / "models"
    tables = {}
    for name, kills in (("whole", 0), ("killed", 10)):
        cache = tmp_path / f"cache-{name}"
        cache.mkdir()
        (cache / "models").symlink_to(models)
        args, moments = command(data, vector, tmp_path / name, "--cost", "full"), random.Random(5)
        environment = os.environ | {"PERSONAVEC_CACHE": str(cache)}
        for _ in range(kills):
            process = subprocess.Popen(args, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(4, 20))
            assert process.poll() is None, "it ended before it was killed"
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = subprocess.run(args, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        folder = Path(json.loads(done.stdout)["table"])
        tables[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(tables["whole"]) == 3 and tables["whole"] == tables["killed"]
