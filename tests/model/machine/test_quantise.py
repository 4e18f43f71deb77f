"""Weights of fewer bits: what is refused in one line, and, where torchao is installed, the laws of steering."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from personavec.errors import ModelError
from personavec.model import loading
from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.machine import quantise as quantising
from personavec.model.machine.quantise import ON_A_CPU, QUANTISED, check_checkpoint, method_of, quantisation
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
        ("bitsandbytes:4bit", "expected a GPU for weights quantised by bitsandbytes:4bit, got a CPU"),
        (
            "torchao:int4",
            "expected a GPU for weights quantised by torchao:int4, got a CPU; pass --quantise torchao:int8",
        ),
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


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("told", [lambda m: {"quant_method": m}, lambda m: SimpleNamespace(quant_method=m)])
def test_a_checkpoint_that_needs_a_gpu(method: str, told: Any) -> None:
    config = tiny.build().hf.config
    config.quantization_config = told(method)
    assert method_of(config) == method
    with pytest.raises(ModelError, match=rf"expected a GPU for weights quantised by {method} \(org/m\), got a CPU"):
        check_checkpoint("org/m", config, CPU)


FIELDS: dict[str, dict[str, Any]] = {
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128, "version": "gemm"},
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fbgemm_fp8": {},
    "nvfp4": {},
    "quanto": {"weights": "int8"},
    "compressed-tensors": {"format": "pack-quantized", "config_groups": {"group_0": {"targets": ["Linear"]}}},
    "nonesuch": {"bits": 3},
    "": {"bits": 4},
}
"""What configurations say of weights that nothing here multiplies."""


def quantised(folder: Path, to: Path, told: Any) -> Path:
    """A model folder whose configuration says that its weights are quantised; they are not there."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"quantization_config": told}))
    return to


@pytest.mark.parametrize("method", FIELDS)
def test_what_cannot_be_multiplied_is_refused_before_weights_are_fetched(
    method: str, saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method and method not in ("gptq", "awq", "bitsandbytes") and find_spec(method.replace("-", "_")):
        pytest.skip(f"{method} is installed")
    monkeypatch.setattr(loading, "_weights", lambda *_, **__: pytest.fail("weights are fetched"))
    told = FIELDS[method] | ({"quant_method": method} if method else {})
    with pytest.raises(ModelError, match=r"^expected .* quantised .*, got") as error:
        ChatModel.load(str(quantised(saved[0], tmp_path / "m", told)), device="cpu", dtype="float32")
    said = str(error.value)
    assert "\n" not in said and f"{tmp_path / 'm'}" in said and (method or "none by name") in said


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_what_is_unpacked_on_a_cpu_is_counted_as_it_will_be(method: str, saved: tuple[Path, Path]) -> None:
    config = tiny.build().hf.config
    config.quantization_config = {"quant_method": method}
    assert method_of(config) == method and not check_checkpoint("org/m", config, CPU)
    assert config.quantization_config == {"quant_method": method}


def test_weights_of_eight_bits_beside_scales_are_read(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """As DeepSeek and Qwen publish them: float8 with a scale for each block, unpacked here."""
    folder, told = tmp_path / "m", {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
    quantised(saved[0], folder, told)
    plain = ChatModel.load(str(saved[0]), device="cpu", dtype="float32")
    weights = load_file(saved[0] / "model.safetensors")
    for name in [name for name in weights if name.endswith("_proj.weight")]:
        rows, columns = weights[name].shape
        blocks = weights[name].float().reshape(rows // 8, 8, columns // 8, 8)
        scale = blocks.abs().amax((1, 3)) / 448
        packed = (blocks / scale[:, None, :, None]).reshape(rows, columns)
        weights[name], weights[f"{name}_scale_inv"] = packed.to(torch.float8_e4m3fn), scale
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    read = ChatModel.load(str(folder), device="cpu", dtype="float32")
    ours, theirs = (model.hf.model.layers[1].mlp.up_proj.weight for model in (read, plain))
    torch.testing.assert_close(ours.float(), theirs, rtol=0.1, atol=0.01)


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


@pytest.mark.parametrize("spec", [spec for spec in QUANTISED if spec in ON_A_CPU])
def test_packed_weights_obey_the_laws(spec: str, saved: tuple[Path, Path]) -> None:
    package = spec.split(":")[0]
    pytest.importorskip(package, reason=f"needs {package}")
    model = ChatModel.load(str(saved[0]), device="cpu", dtype="float32", quantise=spec)
    assert model.identity.revision.endswith("(partial)")
    assert model.numbers == f"float32 with weights by {package} on cpu"
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
