"""A screening on a cluster of two machines that share no folder, one of which is lost half-way."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import tiny_chat

from personavec.model.chat_model import ChatModel
from personavec.steering.vector import load_vector
from personavec.verbs.screen.parallel import _share
from personavec.verbs.screen.screen import screen

ROWS = 9 * 500
"""Nine parts."""


@pytest.mark.parametrize(
    ("cores", "workers", "each"),
    [([8], 2, 4), ([8], 3, 2), ([3, 3], 3, 1), ([3, 3], 2, 3), ([1, 1], 1, 1), ([4, 0], 2, 2), ([2], 5, 1)],
)
def test_all_actors_fit_each_on_one_machine(cores: list[int], workers: int, each: int) -> None:
    nodes: list[dict[str, float]] = [{"CPU": float(count)} for count in cores]
    assert _share(0.5, workers, nodes) == ({"num_cpus": each}, each)
    assert _share(0.5, workers, [node | {"GPU": 1.0} for node in nodes]) == ({"num_gpus": 0.5}, each)


@pytest.mark.slow  # actors import torch, each by itself
def test_a_lost_machine_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    folder, vector_file = tiny_chat.save(tmp_path)
    model, vector = tiny_chat.build(), load_vector(vector_file)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}?", "response": f"{n}."}) + "\n" for n in range(ROWS)))

    def load() -> Any:
        return ChatModel.load(str(folder), dtype="float32")

    alone = screen(model, data, vector, store=tmp_path / "alone")

    seen: set[str] = set()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        other = cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, configure_logging=False)
        table = tmp_path / "together" / "table"

        def lose() -> None:
            while len(list(table.glob("*.parquet"))) < 3:
                time.sleep(0.05)
            seen.update(path.name for path in table.glob("*.parquet"))
            cluster.remove_node(other, allow_graceful=False)

        losing = threading.Thread(target=lose, daemon=True)
        losing.start()
        together = screen(model, data, vector, ray=load, workers=2, store=tmp_path / "together")
        losing.join(60)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert 3 <= len(seen) < 9, "the machine was lost half-way"
    one, two = (pq.read_table(tmp_path / name / "table") for name in ("alone", "together"))
    assert two["row"].to_pylist() == list(range(ROWS)), "nothing lost, nothing twice"
    np.testing.assert_allclose(one["tiny"].to_numpy(), two["tiny"].to_numpy(), atol=1e-5)
    mean = [found.means["tiny"].mean for found in (alone, together)]
    assert mean[0] == pytest.approx(mean[1], abs=1e-4)
