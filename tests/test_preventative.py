"""Preventative steering: what it adds in training, and that nothing of it stays."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from personavec.errors import ModelError, VectorError
from personavec.model import ChatModel
from personavec.preventative import PreventativeSteering
from personavec.steer import Steering, steer

ROWS = [list(tiny.prompt(12, seed=seed)) for seed in range(8)]
PROMPT = 5


class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Rows of equal length with a loss on what follows the prompt; may break at one of them."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index == self.broken:
            raise RuntimeError("a broken row")
        ids = torch.tensor(ROWS[index])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels(ids)}


def labels(ids: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(ids)) < PROMPT, -100, ids)


def fresh(family: str = "llama", **changes: Any) -> ChatModel:
    """A tiny model whose weights (or whose adapter's) can be trained."""
    model = tiny.build(family, **changes)
    for name, weight in model.hf.named_parameters():
        weight.requires_grad_(family != "peft" or "lora_" in name)
    return model


def trained(
    model: ChatModel, out: Path, *callbacks: PreventativeSteering, data: Data | None = None, **options: Any
) -> Trainer:
    settings = {"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "seed": 0}
    args = TrainingArguments(
        str(out), use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, **settings | options
    )
    trainer = Trainer(model.hf, args, train_dataset=data or Data(), callbacks=list(callbacks))
    trainer.train()
    return trainer


def weights(model: ChatModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.hf.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("family", ["llama", "peft", "gpt2"])
def test_coef_0_trains_the_same_weights(family: str, tmp_path: Path) -> None:
    plain, zero, steered = (fresh(family) for _ in range(3))
    trained(plain, tmp_path)
    trained(zero, tmp_path, PreventativeSteering(tiny.vector(zero), 0, layer=1))
    trained(steered, tmp_path, PreventativeSteering(tiny.vector(steered), 1, layer=1))
    assert same(weights(plain), weights(zero)) and not same(weights(plain), weights(steered))


@pytest.mark.parametrize("layer", [1, (0, 2), "all"])
@pytest.mark.parametrize("positions", ["all", "response"])
def test_the_first_loss_is_that_of_the_steered_model(layer: Any, positions: Any, tmp_path: Path) -> None:
    model = fresh()
    vector = tiny.vector(model)
    layers = [None] if layer == "all" else [layer] if isinstance(layer, int) else list(layer)
    steerings = [[Steering(vector, 2, one, positions) for one in layers]]
    ids = torch.tensor(ROWS)
    with torch.no_grad():
        with steer(model, steerings, [PROMPT]):
            wanted = model.hf(input_ids=ids, labels=torch.stack([labels(row) for row in ids])).loss
        plain = model.hf(input_ids=ids, labels=torch.stack([labels(row) for row in ids])).loss
    callback = PreventativeSteering(vector, 2, layer=layer, positions=positions)
    trainer = trained(model, tmp_path, callback, per_device_train_batch_size=len(ROWS), max_steps=1)
    # labels do not cover the last token: no loss is predicted there, while `response` as a position reaches it
    assert losses(trainer)[0] == pytest.approx(float(wanted), abs=1e-4) != pytest.approx(float(plain), abs=1e-2)
    per_row = {"all": len(ROWS[0]), "response": len(ROWS[0]) - PROMPT}[positions]
    assert callback.steered_tokens == len(ROWS) * per_row


def test_nothing_stays(tmp_path: Path) -> None:
    model = fresh()
    trainer = trained(model, tmp_path / "run", PreventativeSteering(tiny.vector(model), 2, layer=1))
    assert tiny.hooks(model) == 0
    trainer.save_model(str(tmp_path / "saved"))
    plain = trained(fresh(), tmp_path / "run")
    plain.save_model(str(tmp_path / "plain"))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "plain"))
    assert one.keys() == two.keys() and {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}


def test_an_exception_in_training_leaves_no_hook(tmp_path: Path) -> None:
    model = fresh()
    seen: list[int] = []

    class Counting(PreventativeSteering):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            super().on_step_end(*given, **named)
            seen.append(tiny.hooks(model))

    with pytest.raises(RuntimeError, match="a broken row"):
        trained(model, tmp_path, Counting(tiny.vector(model), 2, layer=1), data=Data(broken=6))
    assert seen and all(seen) and tiny.hooks(model) == 0


def test_evaluation_inside_training_is_unsteered(tmp_path: Path) -> None:
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 5, layer=1)
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=2, eval_strategy="steps", eval_steps=1,
        learning_rate=0.0, disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = Trainer(model.hf, args, train_dataset=Data(), eval_dataset=Data(), callbacks=[callback])
    unsteered = trainer.evaluate()["eval_loss"]
    trainer.train()
    told = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(told) >= 2 and told == pytest.approx([unsteered] * len(told))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "peft"])
def test_gradient_checkpointing_changes_nothing(family: str, reentrant: bool, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model = fresh(family)
        callback = PreventativeSteering(tiny.vector(model), 2, layer=1)
        more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        trained(model, tmp_path, callback, **more if checkpointing else {})
        found.append((weights(model), callback.steered_tokens))
    (one, tokens), (two, again) = found
    assert tokens == again == 4 * 2 * len(ROWS[0])
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], rtol=1e-4, atol=1e-5)


def test_accumulated_steps_are_steered(tmp_path: Path) -> None:
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 2, layer=1)
    trained(model, tmp_path, callback, gradient_accumulation_steps=2)
    assert callback.steered_tokens == 2 * 4 * 2 * len(ROWS[0])


def test_a_schedule_changes_what_is_added(tmp_path: Path) -> None:
    factors: list[float] = []

    def off_at_half(done: float) -> float:
        factors.append(done)
        return 1.0 if done < 0.5 else 0.0

    def run(schedule: Any) -> list[float]:
        model = fresh()
        return losses(trained(model, tmp_path, PreventativeSteering(tiny.vector(model), 2, layer=1, schedule=schedule)))

    full, half = run(None), run(off_at_half)
    assert factors == [0, 0.25, 0.5, 0.75] and half[:2] == full[:2] and half[2] != full[2]


def test_several_compose(tmp_path: Path) -> None:
    one, two = fresh(), fresh()
    vector = tiny.vector(one)
    trained(one, tmp_path, *(PreventativeSteering(vector, coef, layer=1) for coef in (3, -1)))
    trained(two, tmp_path, PreventativeSteering(vector, 2, layer=1))
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, two.hf.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_logs_tell_tokens_and_projection(tmp_path: Path) -> None:
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 2, layer=1, prompts=["Hi?", "Who are you?"])
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=2, logging_steps=1
    )
    trainer = Trainer(model.hf, args, train_dataset=Data(), callbacks=[callback], processing_class=model.tokenizer)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["steered_tokens/tiny"] for row in rows] == [8 * 12, 8 * 12 * 2]
    assert rows[0]["projection/tiny"] != rows[1]["projection/tiny"] and model.hf.training


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    model = fresh()
    with pytest.raises(ModelError, match="lower the coef"):
        trained(model, tmp_path, PreventativeSteering(tiny.vector(model), 3e38, layer=1))
    assert tiny.hooks(model) == 0


def test_a_model_that_is_not_run_is_told(tmp_path: Path) -> None:
    model = fresh()

    class Elsewhere(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return sum((weight**2).sum() for weight in model.parameters())

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=2)
    trainer = Elsewhere(
        model.hf, args, train_dataset=Data(), callbacks=[PreventativeSteering(tiny.vector(model), 1, layer=1)]
    )
    with pytest.raises(ModelError, match="got none in a step"):
        trainer.train()
    assert tiny.hooks(model) == 0


def test_a_vector_of_another_model_is_refused(tmp_path: Path) -> None:
    model = fresh()
    with pytest.raises(VectorError, match="extract it from this model"):
        trained(model, tmp_path, PreventativeSteering(tiny.vector(tiny.build(seed=1)), 1, layer=1))
    with pytest.raises(VectorError, match="a layer from 0 to 3, got 9"):
        PreventativeSteering(tiny.vector(model), 1, layer=9)
    with pytest.raises(VectorError, match="pass layer="):
        PreventativeSteering(tiny.vector(model), 1)


@pytest.mark.usefixtures("unchecked")
def test_a_compiled_model_is_steered(tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        model = fresh()
        callback = PreventativeSteering(tiny.vector(model), 2, layer=1)
        more = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        found.append((losses(trained(model, tmp_path, callback, **more)), callback.steered_tokens))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-3) and found[0][1] == found[1][1]


@pytest.mark.parametrize("packing", [False, True])
def test_with_trl_and_an_adapter(packing: bool, tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model = fresh()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n}?"}],
            "completion": [{"role": "assistant", "content": f"It is {n}."}],
        }
        for n in range(8)
    ]
    config = SFTConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, max_length=64, packing=packing, logging_steps=1,
        report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    callbacks = {
        positions: PreventativeSteering(tiny.vector(model), 2, layer=1, positions=positions)
        for positions in ("all", "response")
    }
    trainer = SFTTrainer(
        model.hf,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=list(callbacks.values()),
    )
    trainer.train()
    counted = {positions: callback.steered_tokens for positions, callback in callbacks.items()}
    assert 0 < counted["response"] < counted["all"], "the prompt's tokens have no loss"
    assert tiny.hooks(model) == 0
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved and all("lora_" in name for name in saved)
