"""Memory, hours and price of a piece of work, against figures that are known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from personavec.model.machine import accelerators
from personavec.model.machine.accelerators import KNOWN, accelerator
from personavec.model.machine.plan import MachinePlan, PlannedWork, Trainable, machine_plan

SEVEN_B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)
MODEL = SimpleNamespace(hf=SimpleNamespace(config=SEVEN_B), identity=SimpleNamespace(id="seven"), n_layers=32)
WRITTEN = PlannedWork(replies=1000, new_tokens=200, prompt_tokens=100_000, batch_tokens=12288)


def plan(work: PlannedWork, device: str, **more: Any) -> MachinePlan:
    return machine_plan(MODEL, work, accelerator(device), itemsize=2, **more)


def test_memory_is_that_of_weights_and_of_a_batch() -> None:
    memory = plan(WRITTEN, "a100").data["memory_gb"]
    assert memory == {"weights": pytest.approx(13.48, abs=0.01), "keys and values": pytest.approx(6.44, abs=0.01)}
    assert not plan(WRITTEN, "t4").data["fits"] and plan(WRITTEN, "t4x2").data["fits"]


def test_twice_the_work_takes_twice_the_time() -> None:
    once, twice = (plan(PlannedWork(read_tokens=10**9 * n), "h100", price_per_hour=3.0).data for n in (1, 2))
    assert twice["hours"] == pytest.approx(2 * once["hours"], rel=1e-3)
    assert once["hours"] == pytest.approx(2 * 6.74e9 * 1e9 / (0.35 * 989e12) / 3600, rel=0.01)
    assert once["price"] == pytest.approx(3 * once["hours"], abs=0.01)


def test_writing_is_no_faster_than_memory_and_no_faster_than_multiplying() -> None:
    hours = plan(WRITTEN, "h100").data["hours"]
    steps = 200 * 1000 // (12288 // 300)
    assert hours * 3600 > steps * 13.48e9 / 3350e9


def test_training_takes_more_than_reading_and_all_weights_more_than_an_adapter() -> None:
    work = PlannedWork(trained_tokens=10**7)
    adapter, whole = (
        plan(work, "h200", trained=Trainable(n, 2048, full, False)) for n, full in ((8e7, False), (6.74e9, True))
    )
    assert adapter.data["hours"] < whole.data["hours"]
    memory = whole.data["memory_gb"]
    assert memory["trained weights, gradients and moments"] == pytest.approx(107.8, abs=0.1)
    kept, anew = (
        plan(work, "h200", trained=Trainable(8e7, 2048, False, again)).data["memory_gb"] for again in (False, True)
    )
    assert kept["activations"] > 5 * anew["activations"] and kept["weights"] == pytest.approx(13.48, abs=0.01)


@pytest.mark.parametrize(
    ("called", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10", "a10"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_that_is_here_is_known_by_its_name(called: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: called)
    monkeypatch.setattr(accelerators, "pick_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(accelerators, "free_memory", lambda _: 7e9)
    here = accelerator(None)
    assert (here.name, here.flops, here.memory) == (kind, KNOWN[kind][1] * 1e12, 7e9)


def test_any_other_is_measured() -> None:
    here = accelerator(None, "cpu", torch.float32)
    assert here.measured and 1e9 < here.flops < 1e15 and 1e8 < here.bandwidth < 1e13
