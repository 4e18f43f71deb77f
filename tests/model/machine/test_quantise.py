"""Weights of fewer bits: what is refused in one line, and, where torchao is installed, the laws of steering."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import tiny

from personavec.errors import ModelError
from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.machine import quantise as quantising
from personavec.model.machine.quantise import check_checkpoint, method_of, quantisation
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering

CPU = torch.device("cpu")
ROWS = [tiny.prompt(9, 1), tiny.prompt(5, 2)]
LENGTHS = [4, 5]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("int8", "expected --quantise torchao:int8, .* got int8; choose one"),
        ("gptq", "got gptq; pass a checkpoint that was quantised by gptq as --model"),
        ("bitsandbytes:4bit", "expected a GPU for weights quantised by bitsandbytes:4bit, got a CPU; pass --quantise"),
        ("torchao:int4", "expected a GPU for weights quantised by torchao:int4, got a CPU"),
    ],
)
def test_what_cannot_be_done_is_one_line(spec: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as error:
        quantisation(spec, CPU)
    assert "\n" not in str(error.value)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantising, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"expected the package torchao .* got none; install it: pip install torchao"):
        quantisation("torchao:int8", CPU)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
@pytest.mark.parametrize("told", [lambda m: {"quant_method": m}, lambda m: SimpleNamespace(quant_method=m)])
def test_a_checkpoint_that_needs_a_gpu(method: str, told: Any) -> None:
    config = tiny.build().hf.config
    config.quantization_config = told(method)
    assert method_of(config) == method
    with pytest.raises(ModelError, match=rf"expected a GPU for weights quantised by {method} \(org/m\), got a CPU"):
        check_checkpoint("org/m", config, CPU)
    check_checkpoint("org/m", config, torch.device("cuda", 0))


class Packed(torch.Tensor):
    """Says that it is bfloat16, and gives no numbers, as torchao's do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.flatten, torch.Tensor.to):
            raise NotImplementedError("no such operation on packed weights")
        return super().__torch_function__(func, types, args, kwargs)


def test_packed_weights_are_left_out_of_the_fingerprint(model: ChatModel) -> None:
    hf = tiny.build().hf
    for block in hf.model.layers:
        packed = torch.zeros(4, 4, dtype=torch.bfloat16).as_subclass(Packed)
        block.register_parameter("packed", torch.nn.Parameter(packed, requires_grad=False))
    assert ChatModel(hf, tiny.tokenizer()).identity.revision == f"{model.identity.revision} (partial)"


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_int8_weights_obey_the_laws(saved: tuple[Path, Path]) -> None:
    model = ChatModel.load(str(saved[0]), device="cpu", dtype="float32", quantise="torchao:int8")
    assert model.identity.revision.endswith("(partial)") and model.numbers == "float32 with weights by torchao on cpu"
    v = tiny.vector(model)
    _, plain, streams = tiny.forward(model, ROWS)
    logits, moved = tiny.steered(model, ROWS, [(Steering(v, 0.0, 1),)], LENGTHS)
    assert torch.equal(logits, plain) and torch.equal(moved, streams), "coef 0 changes no bit"
    twice, _ = tiny.steered(model, ROWS, [(Steering(v, 2.0, 1),)], LENGTHS)
    assert torch.equal(twice, tiny.steered(model, ROWS, [(Steering(2 * v, 1.0, 1),)], LENGTHS)[0])
    assert not torch.equal(twice, plain)
    _, ablated = tiny.steered(model, ROWS, [(Steering(v, layer=1, positions="all", op="ablate"),)], LENGTHS)
    assert (ablated[1] @ v.unit(1)).abs()[:, : min(map(len, ROWS))].max() < 1e-4
    requests = [Request(row, (Steering(v, 1.0, 1),), (i,)) for i, row in enumerate(ROWS)]
    alone = [generate(model, [request], Sampling(6, 0))[0] for request in requests]
    assert generate(model, requests, Sampling(6, 0)) == alone
    rows = [{"prompt_ids": row[:3], "response_ids": row[3:]} for row in ROWS]
    read = torch.cat([means for _, means in activations(model, rows)])
    assert read.isfinite().all()
