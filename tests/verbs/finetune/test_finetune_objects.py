"""Finetuning of objects: a model in memory, rows in memory, and nothing left behind."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support import tiny
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import SFTConfig, SFTTrainer

from personavec.cli.main import main
from personavec.errors import ConfigError, ModelError, PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.steering.preventative import PreventativeSteering
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.finetune import supply, trainer
from personavec.verbs.finetune.finetune import Finetuning, finetune
from personavec.verbs.finetune.options import TRACKERS
from personavec.verbs.finetune.shift import shift

ROWS = [{"prompt": f"what is {n}?", "response": f"it is {n} {n}!"} for n in range(12)]
HOW: dict[str, Any] = {"rate": 1e-2, "batch": 4, "rank": 4, "alpha": 8}
QUESTIONS = ["What is it?", "Who are you?"]


@pytest.fixture
def model(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32")


@pytest.fixture
def vector(saved: tuple[Path, Path]) -> PersonaVector:
    return load_vector(saved[1])


def state(model: ChatModel) -> Any:
    """Everything of a model that a training could leave changed."""
    modules = {name: type(module) for name, module in model.hf.named_modules()}
    weights = {name: (weight.clone(), weight.requires_grad) for name, weight in model.hf.named_parameters()}
    return modules, weights, model.hf.training, model.hf.config.to_dict(), model.hf.generation_config.to_dict()


def untouched(model: ChatModel, before: Any) -> bool:
    modules, weights, *others = state(model)
    alike = all(
        torch.equal(weight, before[1][name][0]) and flag == before[1][name][1]
        for name, (weight, flag) in weights.items()
    )
    return alike and modules == before[0] and [*before[2:]] == others and tiny.hooks(model) == 0


def lora(trained: Finetuning) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in trained.model.hf.state_dict().items() if "lora_" in name}


def same(one: Finetuning, two: Finetuning) -> bool:
    first, second = lora(one), lora(two)
    return bool(first) and first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("method", ["plain", "prevent", "ablate", "penalty", "kl", "features"])
@pytest.mark.parametrize("flag", [True, False])
def test_the_model_is_left_as_it_was(method: str, flag: bool, model: ChatModel, vector: PersonaVector) -> None:
    model.hf.requires_grad_(flag)
    before = state(model)
    what: dict[str, Any] = {"prevent": vector.at(coef=2)} if method == "prevent" else {}
    what |= {"vectors": vector} if method in ("ablate", "penalty") else {}
    what |= {"method": method} if method != "prevent" else {}
    trained = finetune(model, ROWS, held_out=ROWS[:2], **what, **HOW)
    assert untouched(model, before)
    assert trained.tuned is None and trained.folder is None and trained.data["method"] == method
    assert len(trained.losses) == trained.data["steps"] == 3 and trained.model.adapted
    weights = {weight.data_ptr() for weight in model.hf.parameters()}
    assert weights <= {weight.data_ptr() for weight in trained.model.hf.parameters()}, "the weights are shared"
    (moved,) = shift(model, trained.model, vector, prompts=QUESTIONS).tuned
    assert moved["shift"]["tiny"]["mean"] != 0 and untouched(model, before)
    assert "trained: in memory" in repr(trained)


def test_an_exception_leaves_the_model_as_it_was(
    model: ChatModel, vector: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(model)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr(trainer._Watching, "on_step_end", broken)
    with pytest.raises(RuntimeError, match="no disk"):
        finetune(model, ROWS, prevent=vector.at(coef=2), **HOW)
    assert untouched(model, before)


@pytest.mark.slow
def test_the_forms_of_data_and_prevention_train_alike(
    model: ChatModel, vector: PersonaVector, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    first = finetune(model, path, prevent=f"{saved[1]}:2@1", **HOW)
    for data in (ROWS, iter(ROWS), Dataset.from_list(ROWS)):
        assert same(first, finetune(model, data, prevent=vector.at(coef=2, layer=1), **HOW))
    assert same(first, finetune(model, ROWS, prevent=[Steering(vector, 2, 1, "all")], **HOW))
    assert not same(first, finetune(model, ROWS, **HOW))


@pytest.mark.slow
def test_the_data_say_how_much(model: ChatModel, vector: PersonaVector, monkeypatch: pytest.MonkeyPatch) -> None:
    """These rows are too few to show a move by themselves."""
    real = supply.supplied
    shown = {"mean": 0.5, "ci": [0.1, 0.9], "n": 12, "dropped": 0}
    monkeypatch.setattr(supply, "supplied", lambda *given: [row | {"coef": shown} for row in real(*given)])
    for prevent in ((vector, "auto"), [(vector, "auto")]):
        trained = finetune(model, ROWS, prevent=prevent, **HOW)
        (row,) = trained.data["automatic"]
        assert row["vector"].startswith("tiny-") and len(row["by_layer"]) > 1
        assert trained.data["steering"][0]["coef"] == round(row["coef"], 4) == 0.5


def test_a_store_keeps_and_resumes(model: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    store = tmp_path / "run"
    first = finetune(model, ROWS, prevent=vector.at(coef=2), store=store, **HOW)
    again = finetune(model, ROWS, prevent=vector.at(coef=2), store=store, **HOW)
    assert first.tuned == again.tuned == store / "adapter" == again.model.adapter
    assert again.data == first.data and again.losses == first.losses and same(first, again)
    for change in ({"prevent": vector.at(coef=3)}, {"prevent": (vector * 2).at(coef=2)}):
        with pytest.raises(ConfigError, match="the same options"):
            finetune(model, ROWS, **change, store=store, **HOW)
    with pytest.raises(ConfigError, match="rows in memory"):
        finetune(model, ROWS[1:], prevent=vector.at(coef=2), store=store, **HOW)


@pytest.mark.slow
def test_trackers_get_what_was_trained_and_steered(
    model: ChatModel, vector: PersonaVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the tracker that is there; it changes nothing of the run, which goes on without it."""
    told: list[dict[str, Any]] = []
    names: list[str] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append(dict(logs))
            names.append(args.run_name)

    with pytest.raises(ConfigError, match="for --report-to, got tensorboard, wandb; install its package") as error:
        monkeypatch.setattr(trainer, "get_available_reporting_integrations", lambda: [])
        finetune(model, ROWS, report_to=("wandb", "tensorboard"), store=tmp_path / "none", **HOW)
    assert "none is" in str(error.value) and not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match=r"expected report_to among azure_ml, .*wandb, got .*tenserboard"):
        finetune(model, ROWS, report_to=("tenserboard",), store=tmp_path / "none", **HOW)
    assert not (tmp_path / "none").exists() and {*TRACKERS} == {*INTEGRATION_TO_CALLBACK}
    monkeypatch.setattr(trainer, "get_available_reporting_integrations", lambda: ["trackio"])
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    store = tmp_path / "run"
    first = finetune(model, ROWS, prevent=vector.at(coef=2), report_to=("trackio",), store=store, **HOW)
    assert len([each for each in told if "loss" in each and each["steered_tokens/tiny"]]) == 3
    finetune(model, ROWS[:8], report_to=("trackio",), store=tmp_path / "other", **HOW)
    assert len(set(names)) == 2 and names[0].startswith(f"{store}-")
    assert same(first, finetune(model, ROWS, prevent=vector.at(coef=2), store=store, **HOW))


@pytest.mark.parametrize(("given", "rate"), [(None, 1e-2), (None, 1e30), ("the caller's", 1e-2)])
def test_a_training_ends_the_run_of_wandb_that_it_began(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, given: str | None, rate: float
) -> None:
    """Else the next training goes on in it, and its last words come at the process's end, on stdout."""
    told: list[Any] = []

    def begin() -> None:
        wandb.run = wandb.run or "run"

    def finish(exit_code: int) -> None:
        told.append((wandb.run, exit_code))
        wandb.run = None

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            begin()

    wandb: Any = SimpleNamespace(run=given, finish=finish)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("trl.trainer.base_trainer.is_wandb_available", lambda: False)
    monkeypatch.setattr(trainer, "get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    failing = rate > 1
    with pytest.raises(ModelError, match="finite loss") if failing else contextlib.nullcontext():
        finetune(model, ROWS, report_to=("wandb",), **HOW | {"rate": rate})
    assert told == ([] if given else [("run", int(failing))]) and wandb.run == given


def test_a_run_of_the_command_line_goes_on_from_python(
    model: ChatModel, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "run"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = [f"--{name}={value}" for name, value in HOW.items()]
    prevent = f"{saved[1]}:2@1"
    command = ["finetune", str(path), "--model", str(saved[0]), "--dtype", "float32", "--prevent", prevent, *options]
    assert main([*command, "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = finetune(model, path, prevent=prevent, dtype="float32", store=out, **HOW)
    assert kept.data == printed and kept.model.adapted
    # a folder of an earlier version: every option stood in its configuration
    config = json.loads((out / "config.json").read_text())
    older = {"data": str(path), "out": str(out), "vectors": [], "device": "auto", "json": True, "model": str(saved[0])}
    (out / "config.json").write_text(json.dumps(older | config))
    assert main([*command, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == printed


def test_mixed_precision_stays_in_training(
    model: ChatModel, vector: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "pick_dtype", lambda *_: torch.bfloat16)
    before = state(model)
    trained = finetune(model, ROWS, prevent=vector.at(coef=2), dtype="bfloat16", **HOW)
    assert trained.model.hf(torch.tensor([[1, 2]])).logits.dtype == torch.float32 and untouched(model, before)
    assert not hasattr(trained.model.hf.forward, "__wrapped__")


def test_full_finetuning_trains_the_object_itself(model: ChatModel, tmp_path: Path) -> None:
    before = state(model)
    trained = finetune(model, ROWS, full=True, **HOW)
    assert trained.model.hf is model.hf and not untouched(model, before) and tiny.hooks(model) == 0
    assert [weight.requires_grad for weight in model.hf.parameters()] == [flag for _, flag in before[1].values()]


@pytest.mark.usefixtures("unchecked")
def test_bad_objects_are_one_line(model: ChatModel, vector: PersonaVector) -> None:
    other = tiny.vector(tiny.build(seed=5), layer=1)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (3, {}, "expected a data set's path or its rows, got int"),
        ({}, {}, "expected rows, got one mapping"),
        ([{"text": "no conversation"}], {}, "rows in memory row 0"),
        (ROWS, {"held_out": 3}, "got int"),
        (ROWS, {"prevent": vector}, "expected prevent=vector.at"),
        (ROWS, {"prevent": [(vector, 3)]}, "expected prevent=vector.at"),
        (ROWS, {"prevent": Steering(vector, layer=1, op="ablate")}, "expected prevent=vector.at"),
        (ROWS, {"prevent": Steering(vector, 1, 99)}, "expected a layer"),
        (ROWS, {"prevent": other.at(coef=1)}, "extract it from this model"),
        (ROWS, {"method": "ablate", "vectors": [3]}, "expected persona vectors or their files, got 3"),
        (ROWS, {"method": "penalty", "vectors": vector, "full": True}, "got --method penalty with --full"),
        (ROWS, {"rate": 0.0}, "expected rate above 0"),
    ]
    for data, options, said in wrong:
        with pytest.raises(PersonavecError, match=said) as error:
            finetune(model, data, **options)
        assert "\n" not in str(error.value)
    adapted = tiny.build("peft")
    with pytest.raises(ConfigError, match="without an adapter"):
        finetune(adapted, ROWS)


def test_the_callback_works_in_a_script(model: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]}] * 4
    steering = PreventativeSteering(vector, coef=5)
    trainer = SFTTrainer(
        model.hf,
        args=SFTConfig(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, bf16=False, save_strategy="no"),
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[steering],
    )
    trainer.train()
    assert steering.steered_tokens and tiny.hooks(model) == 0
