"""Memory, hours and price of a piece of work, against figures that are known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from personavec.model.machine import accelerators
from personavec.model.machine.accelerators import KNOWN, Accelerator, accelerator
from personavec.model.machine.plan import REACHED, MachinePlan, PlannedWork, Trainable, machine_plan

SEVEN_B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)
SMOLLM2 = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    tie_word_embeddings=True,
)
WRITTEN = PlannedWork(replies=1000, new_tokens=200, prompt_tokens=100_000, batch_tokens=12288)


def shaped(config: LlamaConfig, dtype: torch.dtype) -> Any:
    identity = SimpleNamespace(id=f"{config.num_hidden_layers} layers")
    return SimpleNamespace(
        hf=SimpleNamespace(config=config), identity=identity, n_layers=config.num_hidden_layers, dtype=dtype
    )


def plan(work: PlannedWork, device: str, **more: Any) -> MachinePlan:
    return machine_plan(shaped(SEVEN_B, torch.bfloat16), work, accelerator(device), **more)


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


@pytest.mark.parametrize(("quantise", "gigabytes"), [(None, 13.48), ("torchao:int8", 7.0), ("torchao:int4", 3.76)])
def test_numbers_are_those_of_the_model_and_bits_those_of_its_quantisation(
    quantise: str | None, gigabytes: float
) -> None:
    work = PlannedWork(read_tokens=1000)
    assert plan(work, "h100", quantise=quantise).data["memory_gb"]["weights"] == pytest.approx(gigabytes, abs=0.01)
    twice = machine_plan(shaped(SEVEN_B, torch.float32), work, accelerator("h100"))
    assert twice.data["memory_gb"]["weights"] == pytest.approx(26.95, abs=0.02)


def test_hours_on_a_device_that_was_measured() -> None:
    """Reading by its multiplications, writing by its bandwidth; nothing is taken off as from a promise."""
    device = Accelerator("cpu", 16e9, 2e11, 5e9, measured=True)
    model = shaped(SMOLLM2, torch.float32)
    found = machine_plan(model, PlannedWork(read_tokens=10**6), device, price_per_hour=2.0).data
    seconds = 2 * 134_515_008 * 10**6 / (REACHED.reading * 2e11)
    assert found["hours"] == pytest.approx(seconds / 3600, rel=1e-3)
    assert found["price"] == pytest.approx(2 * seconds / 3600, abs=0.01)
    written = machine_plan(model, PlannedWork(1, 100, 0, 12288), device).data["hours"] * 3600
    moved = 4 * 134_515_008 + 100 * 2 * 30 * 3 * 64 * 4
    assert written == pytest.approx(100 * moved / (REACHED.writing * 5e9), rel=0.01)
    assert "measured here (two matrices of 1,024 columns multiplied, 128 MiB copied)" in found["assumed"][0]
    assert "of them reading reaches 80%" in found["assumed"][1]


def test_the_demos_plan_against_the_time_that_it_took() -> None:
    """8 min 23 s on two cores that multiply 0.37 TFLOP/s (benchmarks/README.md, Demo)."""
    demo = PlannedWork(814, 32, 35_152, 12_288, 583_881)
    here = Accelerator("cpu", 16e9, 0.37e12, 12e9, measured=True)
    minutes = 60 * machine_plan(shaped(SMOLLM2, torch.float32), demo, here).data["hours"]
    assert minutes == pytest.approx(8.4, rel=0.3)


def test_any_other_is_measured() -> None:
    here = accelerator(None, "cpu", torch.float32)
    assert here.measured and 1e9 < here.flops < 1e15 and 1e8 < here.bandwidth < 1e13
