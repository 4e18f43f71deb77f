"""Interop: a file means what its tool means by it, a baked model equals steering, bad input is one line."""

import contextlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from support import tiny, tiny_chat
from torch import Tensor

from personavec.cli.main import main
from personavec.errors import ModelError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import attach
from personavec.steering.steer import Steering, steer
from personavec.steering.vector import PersonaVector, increments, load_vector
from personavec.verbs.interop import bake as bake_module
from personavec.verbs.interop.bake import bake
from personavec.verbs.interop.formats import from_gguf, from_reference, to_gguf, to_lm_eval

N, D = tiny.N_LAYERS, tiny.D_MODEL
ROWS = [tiny.prompt(9), tiny.prompt(5)]


def logits(model: ChatModel, steering: Steering | None = None) -> Tensor:
    with steer(model, [(steering,) if steering else ()]):
        return tiny.forward(model, ROWS)[1]


def adding(model: ChatModel, adds: dict[int, Tensor]) -> Tensor:
    """Logits of a model to whose blocks' outputs something is added at every position, padding included."""
    with attach(model, tiny.nothing, {k: lambda s, d=delta: s + d for k, delta in adds.items()}):  # type: ignore[misc]
        return tiny.forward(model, ROWS)[1]


def own(rows: Tensor) -> Tensor:
    """Without padding."""
    return torch.cat([rows[index, : len(row)] for index, row in enumerate(ROWS)])


def command(saved: tuple[Path, Path], *args: object) -> list[str]:
    return ["interop", *map(str, args), "--model", str(saved[0]), "--dtype", "float32", "--json"]


def found(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(args) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def table(seed: int = 0) -> Tensor:
    return torch.randn((N + 1, D), generator=torch.Generator().manual_seed(seed))


def control_vector(path: Path, rows: dict[str, np.ndarray], architecture: str = "controlvector") -> Path:
    """A GGUF control vector with the keys that repeng writes."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(rows))
    for name, row in rows.items():
        writer.add_tensor(name, row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# taking over


def test_a_row_of_the_reference_is_the_layer_before_it(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table()
    torch.save(rows, tmp_path / "evil_prompt_avg_diff.pt")
    out = tmp_path / "evil.safetensors"
    result = found(command(saved, tmp_path / "evil_prompt_avg_diff.pt", out, "--layer", 1), capsys)
    assert (result["trait"], result["layers"], result["absent_layers"]) == ("evil", [0, 1, 2], [3])
    vector = load_vector(out)
    assert torch.equal(vector.direction[:3], rows[1:4])
    assert (vector.card.position, vector.card.layer, vector.card.trait) == ("prompt avg", 1, "evil")
    vector.check_model(ChatModel.load(str(saved[0]), dtype="float32").identity)
    told = command(saved, tmp_path / "evil_prompt_avg_diff.pt", tmp_path / "again.safetensors")
    assert main([part for part in told if part != "--json"]) == 0
    assert "not to be used: 1 of its layers (3 … 3)" in capsys.readouterr().out


def test_a_layer_that_the_file_lacks_is_refused_and_adds_nothing(model: ChatModel, tmp_path: Path) -> None:
    rows = table()
    torch.save(rows, tmp_path / "v.pt")
    direction, absent = from_reference(tmp_path / "v.pt", model.identity)
    card = tiny.vector(model, details={"absent_layers": list(absent)}).card
    vector = PersonaVector(direction, card)
    for one in (vector, vector + vector, tiny.vector(model) - vector, 2 * vector, -vector):
        for use in (one.unit, one.check_layer, lambda k, v=one: logits(model, Steering(v, 1.0, k, "all"))):
            with pytest.raises(VectorError, match=f"expected a layer that .* has, got {N - 1}, which the file"):
                use(N - 1)
    adds = increments(direction)
    assert not adds[-1].any()
    torch.testing.assert_close(adds.cumsum(0)[:-1], rows[1:-1])
    every = logits(model, Steering(vector, 0.5, "all", "all"))
    torch.testing.assert_close(own(every), own(adding(model, dict(enumerate(0.5 * adds[:-1])))))


def test_direction_n_of_another_tool_is_layer_n(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = table().numpy()
    path = control_vector(tmp_path / "happy.gguf", {f"direction.{layer}": rows[layer] for layer in (3, 1, 2)})
    result = found(command(saved, path, tmp_path / "happy.safetensors"), capsys)
    assert (result["layers"], result["absent_layers"], result["layer"]) == ([1, 2, 3], [0], None)
    vector = load_vector(tmp_path / "happy.safetensors")
    assert np.array_equal(vector.direction[1:].numpy(), rows[1:4]) and not vector.direction[0].any()
    gap = control_vector(tmp_path / "gap.gguf", {"direction.1": rows[1], "direction.3": rows[3]})
    direction, absent = from_gguf(gap, vector.card.model)
    assert absent == (0, 2) and torch.equal(direction[2], direction[1])
    assert not increments(direction)[2].any()


def test_norms_make_doses_work(saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(table(), tmp_path / "v.pt")
    (tmp_path / "warm.json").write_text(json.dumps(tiny_chat.WARM))
    out = tmp_path / "warm.safetensors"
    args = command(saved, tmp_path / "v.pt", out, "--trait", tmp_path / "warm.json", "--norms")
    assert found(args, capsys)["activation_norms"]
    vector = load_vector(out)
    assert vector.card.trait == "warm" and len(vector.card.activation_norms) == N
    added = vector.coef(1, 0.5) * vector.direction[1]
    assert float(added.norm()) == pytest.approx(0.5 * vector.card.activation_norms[1])
    baked = found(command(saved, f"{out}:0.5d@1", tmp_path / "baked"), capsys)
    assert baked["dose"] == pytest.approx(0.5)


# handing on


@pytest.mark.parametrize("layer", [1, N - 1, "all"])
def test_gguf_round_trip(layer: Any, model: ChatModel, v: PersonaVector, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    layers = to_gguf(Steering(v, -0.5, layer), "llama", path)
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: torch.tensor(np.array(tensor.data)) for tensor in reader.tensors}
    assert set(tensors) == {f"direction.{k}" for k in layers} and "direction.0" not in tensors
    assert all(row.dtype == torch.float32 and row.shape == (D,) for row in tensors.values())
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.layer_count"].contents() == len(layers)
    direction, absent = from_gguf(path, model.identity)
    assert set(layers) == set(range(N)) - set(absent)
    for k in layers:
        torch.testing.assert_close(direction[k], -0.5 * v.direction[k])
    vector = PersonaVector(direction, v.card)
    if layer == "all":
        torch.testing.assert_close(torch.stack(list(tensors.values())).cumsum(0), -0.5 * v.direction[1:])
    else:
        wanted = logits(model, Steering(v, -0.5, layer, "all"))
        # as llama.cpp does it, and by all layers of what was read back
        torch.testing.assert_close(own(adding(model, {k: tensors[f"direction.{k}"] for k in layers})), own(wanted))
        torch.testing.assert_close(own(logits(model, Steering(vector, 1.0, "all", "all"))), own(wanted))


def test_gguf_has_no_layer_0(v: PersonaVector, tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="expected a layer from 1 on for"):
        to_gguf(Steering(v, 1.0, 0), "llama", tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layer", [0, 2, "all"])
def test_lm_eval_finds_the_blocks_of_every_family(layer: Any, any_model: ChatModel, tmp_path: Path) -> None:
    steering = Steering(tiny.vector(any_model), 1.5, layer, "all")
    to_lm_eval(steering, any_model, tmp_path / "steered.pt")
    content = torch.load(tmp_path / "steered.pt", weights_only=True)
    blocks = dict(any_model.hf.base_model.named_modules())
    adds = {}
    for name, info in content.items():
        assert (info["action"], info["bias"], info["head_index"]) == ("add", None, None)
        (k,) = [k for k, block in enumerate(any_model.blocks) if block is blocks[name]]
        adds[k] = info["steering_vector"] * info["steering_coefficient"]
    torch.testing.assert_close(own(adding(any_model, adds)), own(logits(any_model, steering)))


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra eval")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lm_eval_steers_as_we_do(dtype: str, saved: tuple[Path, Path], tmp_path: Path) -> None:
    from lm_eval.models.hf_steered import SteeredModel

    model = ChatModel.load(str(saved[0]), dtype=dtype)
    steering = Steering(load_vector(saved[1]), 1.5, 2, "all")
    to_lm_eval(steering, model, tmp_path / "steered.pt")
    lm = SteeredModel(str(saved[0]), str(tmp_path / "steered.pt"), device="cpu", dtype=dtype)
    ids = torch.tensor([ROWS[0]])
    with torch.inference_mode(), steer(model, [(steering,)]):
        wanted = model.hf(input_ids=ids).logits
    assert torch.equal(lm._model_call(ids), wanted)
    assert not torch.equal(lm.model(input_ids=ids).logits, wanted)


# baking


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("layer", [0, N - 1, "all"])
def test_a_baked_model_equals_steering(layer: Any, biased: bool, tmp_path: Path) -> None:
    model = tiny.build("llama", mlp_bias=biased)
    if biased:
        for block in model.blocks:
            torch.nn.init.normal_(block.mlp.down_proj.bias, std=0.3)
    plain, steering = logits(model), Steering(tiny.vector(model), 0.7, layer)
    wanted = logits(model, Steering(steering.vector, 0.7, layer, "all"))
    told = bake(model, steering, tmp_path / "baked")
    again = ChatModel.load(str(tmp_path / "baked"), dtype="float32")
    torch.testing.assert_close(own(logits(again)), own(wanted), rtol=1e-4, atol=1e-4)
    assert told["distance"] < 1e-4 < 0.1 < told["moved"] and told["max_logit_difference"] < 1e-3
    assert told["layers"] == ([layer] if layer != "all" else list(range(N)))
    assert float((own(plain) - own(wanted)).abs().max()) > 0.1
    card = json.loads((tmp_path / "baked" / "baked.json").read_text())
    assert card["vector"] == steering.vector.content_hash and card["positions"] == "all" and card["coef"] == 0.7
    assert "mlp.down_proj.bias" in (tmp_path / "baked" / "README.md").read_text()
    assert again.identity.revision != steering.vector.card.model.revision  # it is another model
    assert tiny.hooks(model) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_baking_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.build("llama")
    model.hf.to(dtype)
    told = bake(model, Steering(tiny.vector(model), 1.0, 1), tmp_path / "baked")
    assert 0 < told["distance"] < told["tolerance"] <= told["moved"] / 4
    assert ChatModel.load(str(tmp_path / "baked"), dtype="auto").n_layers == N


def test_what_does_not_equal_steering_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Granite scales what its MLPs add, and the bias with it
    granite = transformers.GraniteConfig(
        vocab_size=tiny.VOCAB, hidden_size=D, num_hidden_layers=N, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, residual_multiplier=0.5, initializer_range=0.2, max_position_embeddings=256,
    )  # fmt: skip
    hf = transformers.GraniteForCausalLM(granite).eval().requires_grad_(False)
    scaled = ChatModel(hf, tiny.tokenizer(), "tiny-granite")
    with pytest.raises(ModelError, match="expected the baked tiny-granite to equal steering"):
        bake(scaled, Steering(tiny.vector(scaled), 1.0, 1), tmp_path / "baked")
    monkeypatch.setattr(bake_module, "_biased", lambda *_: contextlib.nullcontext())
    model = tiny.build("llama")
    model.hf.to(torch.bfloat16)
    with pytest.raises(ModelError, match="expected the baked tiny-llama to equal steering"):
        bake(model, Steering(tiny.vector(model), 0.01, 1), tmp_path / "baked")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral", "gpt2", "gemma3", "phi3", "mixtral", "peft"])
def test_families_without_the_bias_are_refused(family: str, tmp_path: Path) -> None:
    model = tiny.build(family)
    with pytest.raises(ModelError, match="expected a model whose MLPs may have a bias"):
        bake(model, Steering(tiny.vector(model), 1.0, 1), tmp_path / "baked")
    assert not list(tmp_path.iterdir())


def test_a_killed_bake_is_done_again(
    saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = command(saved, f"{saved[1]}:1", tmp_path / "baked")
    (tmp_path / ".baked.tmp").mkdir()
    (tmp_path / ".baked.tmp" / "torn.safetensors").write_bytes(b"torn")
    result = found(args, capsys)
    assert result["kind"] == "baked" and {path.name for path in tmp_path.iterdir()} == {"baked"}
    assert not (tmp_path / "baked" / "torn.safetensors").exists()
    assert main([part for part in args if part != "--json"]) == 2
    assert "expected a new file or folder" in capsys.readouterr().err
    args[2] = str(tmp_path / "again")
    assert main([part for part in args if part != "--json"]) == 0
    assert "largest difference of a logit from steering" in capsys.readouterr().out


# bad input


class Harmful:
    """What a pickle may hold."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_bad_input_is_one_line(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, rows = str(saved[1]), table()
    torch.save(Harmful(), "code.pt")
    torch.save(rows[1:], "short.pt")
    torch.save({"v": rows}, "dict.pt")
    torch.save(rows.int(), "int.pt")
    torch.save(rows.index_fill(0, torch.tensor([2]), float("nan")), "nan.pt")
    torch.save(rows, "good.pt")
    Path("text.pt").write_text("no tensor")
    Path("text.gguf").write_text("no tensor")
    Path("empty.gguf").write_text("")
    row = rows[1].numpy()
    control_vector(Path("model.gguf"), {"direction.1": row}, "llama")
    control_vector(Path("none.gguf"), {})
    for name, tensors in (
        ("zero", {"direction.0": row}),
        ("beyond", {f"direction.{N}": row}),
        ("wide", {"direction.1": np.ones(D + 1, np.float32)}),
        ("half", {"direction.1": row.astype(np.float16)}),
        ("flat", {"direction.1": row.reshape(2, -1)}),
        ("name", {"blk.1.weight": row}),
        ("nan", {"direction.1": np.full(D, np.nan, np.float32)}),
    ):
        control_vector(Path(f"{name}.gguf"), tensors)
    stranger = tiny.vector(tiny.build(seed=3)).save(tmp_path / "stranger.safetensors")
    before = {path.name for path in tmp_path.iterdir()}
    control = f"expected tensors direction.1 to direction.{N - 1} of {D} float32 numbers"
    for source, out, more, told in (
        ("", "", "", "expected IN and OUT"),
        ("good.pt", "", "", "expected IN and OUT"),
        ("nosuch.pt", "v.safetensors", "", "no file at nosuch.pt"),
        ("nosuch.gguf", "v.safetensors", "", "no file at nosuch.gguf"),
        ("code.pt", "v.safetensors", "", "expected a vector file of tensors alone, got code.pt"),
        ("text.pt", "v.safetensors", "", "expected a vector file of tensors alone, got text.pt"),
        ("text.gguf", "v.safetensors", "", "expected a vector file of tensors alone, got text.gguf"),
        ("empty.gguf", "v.safetensors", "", "expected a vector file of tensors alone, got empty.gguf"),
        ("short.pt", "v.safetensors", "", f"of shape ({N + 1}, {D}) for"),
        ("dict.pt", "v.safetensors", "", "got a dict"),
        ("int.pt", "v.safetensors", "", "expected a tensor of floating-point numbers"),
        ("nan.pt", "v.safetensors", "", f"with {D} bad values"),
        ("nan.gguf", "v.safetensors", "", "bad values"),
        ("good.pt", "v.safetensors", f"--layer {N - 1}", f"expected a layer that good has, got {N - 1}"),
        ("good.pt", "v.safetensors", "--layer 99", "expected a layer from 0 to"),
        ("good.pt", "v.safetensors", "--trait a/b", "expected a name of letters"),
        ("good.pt", "v.safetensors", "--norms", "expected a trait file"),
        ("good.pt", "v.gguf", "", "expected .pt or .gguf to .safetensors"),
        (f"{good}:1", "v.safetensors", "", "expected .pt or .gguf to .safetensors"),
        ("good.pt", "good.pt", "", "expected a new file or folder, got good.pt, which exists"),
        ("model.gguf", "v.safetensors", "", "got the architecture llama"),
        ("none.gguf", "v.safetensors", "", "expected tensors direction.N, got none"),
        *(
            (f"{name}.gguf", "v.safetensors", "", control)
            for name in ("zero", "beyond", "wide", "half", "flat", "name")
        ),
        (good, "v.gguf", "", "expected VEC:COEF[@LAYER]"),
        (f"{good}:0", "v.gguf", "", "expected a coef other than 0"),
        (f"{good}:1", "v.gguf", "--layer 1", "expected --trait, --layer and --norms with a vector to take over"),
        (f"{good}:1", "text.pt/v.gguf", "", "expected a folder that can be written, got text.pt"),
        (f"{good}:1@99", "v.gguf", "", "expected a layer from 0 to"),
        (f"{good}:1@0", "v.gguf", "", "expected a layer from 1 on for llama.cpp"),
        (f"{stranger}:1@1", "v.gguf", "", "extract it from this model"),
        (f"{stranger}:1@1", "v", "", "extract it from this model"),
    ):
        assert main(command(saved, *filter(None, [source, out]), *more.split())) == 2, source
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("personavec")]
        assert said.out == "" and len(lines) == 1 and told in lines[0], (source, said.err)
        assert {path.name for path in tmp_path.iterdir()} == before
