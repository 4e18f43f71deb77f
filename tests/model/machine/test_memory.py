"""What a model takes is known before it is loaded, and what cannot fit is refused with what would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from transformers import LlamaConfig

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.machine import memory
from personavec.model.machine.memory import check_room, need_of

GB = 10**9
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SEVENTY_B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mixtral"])
def test_weights_are_counted_without_them(family: str) -> None:
    hf = tiny.build(family).hf
    need = need_of(hf.config, 4)
    assert need is not None and need.weights == sum(weight.numel() * 4 for weight in hf.parameters())


def test_the_figures_of_a_large_model() -> None:
    need, packed = need_of(SEVENTY_B, 2), need_of(SEVENTY_B, 2, 8)
    assert need is not None and packed is not None
    assert need.weights == pytest.approx(141.1e9, rel=0.01) and packed.weights == pytest.approx(72.7e9, rel=0.01)
    assert need.cache == 2 * 80 * 8 * 128 * 2 and need.logits == 2 * 128256
    assert str(need).startswith("141.1 GB of weights, 0.33 MB of keys and values and 0.26 MB of logits a token")


@pytest.mark.parametrize(
    ("device", "free", "advice"),
    [
        (GPU, 80, r"pass --quantise torchao:int8 \(72.7 GB\)"),
        (GPU, 50, r"pass --quantise torchao:int4 \(38.4 GB\)"),
        (GPU, 24, "pass --device split where there are more devices"),
        (CPU, 50, "pass --device split where there are more devices"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, free: int, advice: str
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: free * GB)
    said = rf"^expected a model that fits into the {free}.0 GB free on {device}, got 141.1 GB of weights \(big in bf"
    with pytest.raises(ModelError, match=f"{said}.*; {advice}"):
        check_room("big", SEVENTY_B, torch.bfloat16, device)


def test_what_fits_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 180 * GB)
    check_room("big", SEVENTY_B, torch.bfloat16, GPU)
    assert capsys.readouterr().err.startswith("Loading big: 141.1 GB of weights, ")
    check_room("small", tiny.build().hf.config, torch.bfloat16, GPU)
    assert capsys.readouterr().err == ""


def test_loading_asks_first(saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 1000.0)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("personavec.model.loading._weights", never)
    with pytest.raises(ModelError, match=r"^expected a model that fits into the 0\.0 GB free on cpu, got"):
        ChatModel.load(str(saved[0]), device="cpu", dtype="float32")
