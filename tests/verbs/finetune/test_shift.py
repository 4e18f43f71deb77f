"""Finetuning shift: equal to the formula, zero where nothing was trained, a curve along checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from personavec.cli.main import main
from personavec.errors import ConfigError, PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.steering.vector import load_vector
from personavec.verbs.finetune import shift as module
from personavec.verbs.finetune.shift import checkpoints, shift

QUESTIONS = ["What is it?", "Who are you?", "Why?", "Where do we go from here?"]


@pytest.fixture(scope="module")
def adapter(saved: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    tiny.lora(ChatModel.load(str(saved[0]), dtype="float32").hf).save_pretrained(folder)
    return folder


@pytest.fixture
def command(saved: tuple[Path, Path], tmp_path: Path) -> list[str]:
    prompts = tmp_path / "questions.txt"
    prompts.write_text("\n".join(QUESTIONS) + "\n\n")
    return [
        "shift", "--base", str(saved[0]), "--vectors", str(saved[1]), "--prompts", str(prompts), "--dtype", "float32",
        "--out", str(tmp_path / "run"), "--json",
    ]  # fmt: skip


def found(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(args) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_it_is_the_formula(
    command: list[str], adapter: Path, saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = found([*command, "--tuned", str(adapter), "--layers", "1"], capsys)
    (one,) = result["tuned"]
    vector, model = load_vector(saved[1]), ChatModel.load(str(saved[0]), dtype="float32", adapter=adapter)
    moves = []
    for question in QUESTIONS:
        ids = torch.tensor([model.render([{"role": "user", "content": question}])])
        with torch.no_grad():
            tuned = model.hf(input_ids=ids, output_hidden_states=True).hidden_states[2][0, -1]
            with model.without_adapter():
                base = model.hf(input_ids=ids, output_hidden_states=True).hidden_states[2][0, -1]
        moves.append(float((tuned - base) @ vector.unit(1)))
    (told,) = one["shift"].values()
    assert told["mean"] == pytest.approx(sum(moves) / len(moves), abs=1e-3) and abs(told["mean"]) > 1e-2
    assert told["n"] == len(QUESTIONS) and told["ci"][0] < told["mean"] < told["ci"][1]
    (random,) = one["random_control"].values()
    assert random["low"] < random["high"] and random["draws"] == 20
    (over_replies,) = one["response_shift"].values()
    assert over_replies["n"] + over_replies["dropped"] == len(QUESTIONS)


def test_a_model_that_is_the_base_has_not_moved(
    command: list[str], saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--tuned", str(saved[0])]) == 0
    said = capsys.readouterr()
    assert "reads as the base model does" in said.err
    (one,) = json.loads(said.out)["tuned"]
    assert all(moved["mean"] == 0 for key in ("shift", "response_shift") for moved in one[key].values())
    assert not any(random["beyond"] for random in one["random_control"].values())


def test_a_model_of_its_own_has_moved(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ChatModel.load(str(saved[0]), dtype="float32")
    with torch.no_grad():
        for weight in model.hf.parameters():
            weight.mul_(1.05)
    model.hf.save_pretrained(tmp_path / "own")
    model.tokenizer.save_pretrained(tmp_path / "own")
    one, two = found([*command, "--tuned", str(tmp_path / "own"), str(saved[0])], capsys)["tuned"]
    assert abs(one["shift"]["tiny"]["mean"]) > 1e-2 and two["shift"]["tiny"]["mean"] == 0


def test_checkpoints_come_in_order_and_the_end_last(
    command: list[str], adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in ("checkpoint-10", "checkpoint-9", "."):
        (out / name).mkdir(parents=True, exist_ok=True)
        for file in adapter.iterdir():
            (out / name / file.name).write_bytes(file.read_bytes())
    assert [Path(path).name for path in checkpoints(str(out))] == ["checkpoint-9", "out"], "the last one is the model"
    weights = next((out / "checkpoint-10").glob("*.safetensors"))
    save_file(load_file(weights), weights, {"format": "pt", "step": "10"})
    assert [Path(path).name for path in checkpoints(str(out))] == ["checkpoint-9", "checkpoint-10", "out"]
    shifts = [one["shift"] for one in found([*command, "--tuned", str(out), "--layers", "1", "2"], capsys)["tuned"]]
    assert len(shifts) == 3 and shifts[0] == shifts[1] == shifts[2] and len(shifts[0]) == 2
    assert main([part for part in command if part != "--json"] + ["--tuned", str(out), "--layers", "1", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("beyond") + said.count("within") == 6 and "checkpoint-9" in said


def test_the_folder_of_a_finetuning_stands_for_what_it_trained(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    assert checkpoints(str(tmp_path / "run")) == [str(tmp_path / "run" / "adapter")]
    (tmp_path / "run" / "config.json").write_text("{}")
    assert checkpoints(str(tmp_path / "run")) == [str(tmp_path / "run")], "a whole model, whatever lies beside it"


def test_an_interrupted_run_goes_on(
    command: list[str],
    adapter: Path,
    saved: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = [*command, "--tuned", str(adapter), str(saved[0])]
    whole = found([*args, "--out", str(tmp_path / "whole")], capsys)
    loaded: list[str] = []
    load = module._load

    def breaking(model: ChatModel, name: str, trust: bool) -> ChatModel:
        loaded.append(name)
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return load(model, name, trust)

    monkeypatch.setattr(module, "_load", breaking)
    assert main(args) != 0
    assert loaded == [str(adapter), str(saved[0])]
    capsys.readouterr()
    with (tmp_path / "run" / "tuned.jsonl").open("a") as table:
        table.write('{"tuned": "to')  # torn by the kill
    resumed = found(args, capsys)
    assert loaded[2:] == [str(saved[0])] and resumed["tuned"] == whole["tuned"]
    monkeypatch.setattr(module, "_rows", None)  # nothing is left to read
    assert found(args, capsys)["tuned"] == whole["tuned"] and len(loaded) == 3


def test_a_run_does_not_take_other_inputs_for_its_own(
    command: list[str], adapter: Path, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "adapter"
    shutil.copytree(adapter, own)
    args = [*command, "--tuned", str(own)]
    found(args, capsys)
    inputs = json.loads((tmp_path / "run" / "config.json").read_text())["inputs"]
    named = {"model", "numbers", "prompts", f"vector {saved[1]}", f"tuned {own / 'adapter_model.safetensors'}"}
    assert named <= inputs.keys()
    prompts = tmp_path / "questions.txt"
    for file, changed in ((prompts, b"Why?\nWho?\n"), (own / "adapter_config.json", None)):
        before = file.read_bytes()
        file.write_bytes(before + b"\n" if changed is None else changed)
        assert main(args) == 2 and "the same options" in capsys.readouterr().err
        file.write_bytes(before)
    assert found(args, capsys)


def test_the_default_folder_is_of_models_and_vectors(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    place = command.index("--out")
    args = [*command[:place], *command[place + 2 :], "--tuned", str(saved[0])]
    twin = tmp_path / "twin"
    shutil.copytree(saved[0], twin)
    folders = [found(more, capsys)["out"] for more in (args, args, [*args, str(twin)])]
    assert folders[0] == folders[1] != folders[2] and folders[0].startswith(f"runs/shift-{saved[0].name}-")


def test_activations_that_are_not_finite_are_told(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ChatModel.load(str(saved[0]), dtype="float32")
    with torch.no_grad():
        next(iter(model.blocks[0].parameters())).fill_(float("nan"))
    model.hf.save_pretrained(tmp_path / "broken")
    model.tokenizer.save_pretrained(tmp_path / "broken")
    assert main([*command, "--tuned", str(tmp_path / "broken")]) == 2
    assert "expected finite activations, got inf or nan while reading broken" in capsys.readouterr().err


def test_bad_input_is_one_line(
    command: list[str], adapter: Path, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    stranger = tiny.build(seed=3)
    stranger.hf.save_pretrained(other)
    stranger.tokenizer.save_pretrained(other)
    empty = tmp_path / "empty.txt"
    empty.write_text("Why?\n")
    vector = load_vector(saved[1])
    computed = (vector + vector).save(tmp_path / "computed.safetensors")
    place = command.index("--prompts")
    asking = [*command[:place], *command[place + 2 :], "--layers", "1"]
    for args, told in (
        (command, "expected --tuned"),
        ([*command, "--tuned", "/nosuch/adapter"], "for --tuned, got /nosuch/adapter"),
        ([*command, "--tuned", str(tmp_path)], f"for --tuned, got {tmp_path}"),
        ([*command, "--tuned", str(adapter), "--layers", "99"], "expected a layer from 0 to"),
        ([*command, "--tuned", str(adapter), "--prompts", str(empty)], "two questions or more"),
        ([*command, "--tuned", str(adapter), "--prompts", str(tmp_path)], "expected a text file of questions"),
        ([*command, "--tuned", str(adapter), "--base", str(other)], "extract it from this model"),
        ([*asking, "--tuned", str(adapter), "--vectors", str(computed)], "questions of your own with --prompts"),
    ):
        assert main(args) == 2
        err = capsys.readouterr().err
        assert told in err and len([line for line in err.splitlines() if line.startswith("personavec")]) == 1


def moved(shifted: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "tuned"} for row in shifted.tuned]


def test_objects_are_what_their_files_are(adapter: Path, saved: tuple[Path, Path], tmp_path: Path) -> None:
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    adapted = ChatModel.load(str(saved[0]), dtype="float32", adapter=adapter)
    loose = ChatModel(adapted.hf, adapted.tokenizer)
    whole = shift(model, adapter, vector, prompts=QUESTIONS)
    assert whole.data["out"] is None and abs(whole.tuned[0]["shift"]["tiny"]["mean"]) > 1e-2
    assert tiny.hooks(model) == 0 and not model.adapted
    several = shift(model, [adapted, loose, loose.hf, saved[0]], [saved[1]], prompts=QUESTIONS)
    assert moved(several)[:3] == moved(whole) * 3 and several.tuned[3]["shift"]["tiny"]["mean"] == 0
    assert [row["tuned"] for row in several.tuned] == [str(adapter), "PEFT adapter", "PEFT adapter-2", str(saved[0])]
    assert moved(shift(adapted, loose, vector, prompts=QUESTIONS)) == moved(whole)  # the adapter before is left aside
    assert "within random" in repr(several) and "<table" in several._repr_html_()


def test_a_store_knows_weights_in_memory(adapter: Path, saved: tuple[Path, Path], tmp_path: Path) -> None:
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    after = ChatModel(model.with_adapter(adapter).hf, model.tokenizer)
    first = shift(model, after, vector, prompts=QUESTIONS, store=tmp_path / "kept")
    assert shift(model, after, vector, prompts=QUESTIONS, store=tmp_path / "kept").tuned == first.tuned
    with torch.no_grad():
        next(weight for name, weight in after.hf.named_parameters() if "lora_B" in name).add_(1e-3)
    with pytest.raises(ConfigError, match="the same options"):
        shift(model, after, vector, prompts=QUESTIONS, store=tmp_path / "kept")


@pytest.mark.usefixtures("unchecked")
def test_bad_objects_are_one_line(adapter: Path, saved: tuple[Path, Path]) -> None:
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    for given, said in (
        (([], vector), "expected a finetuned model, got none"),
        ((3, vector), "expected finetuned models or their folders, got 3"),
        (([3], vector), "expected finetuned models or their folders, got 3"),
        ((adapter, []), "expected persona vectors or their files, got none"),
        ((adapter, [3]), "expected persona vectors or their files, got 3"),
        ((adapter, tiny.vector(tiny.build(seed=5), layer=1)), "extract it from this model"),
    ):
        with pytest.raises(PersonavecError, match=said):
            shift(model, *given, prompts=QUESTIONS)  # type: ignore[misc]
