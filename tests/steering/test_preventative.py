"""Preventative steering: what it adds in training, and that nothing of it stays."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.tiny_training import PROMPT, ROWS, Data, fresh, labels, losses, same, trained, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from personavec.model.chat_model import BlockModel
from personavec.model.hooks import attach
from personavec.steering.preventative import PreventativeSteering, TrainingAblation
from personavec.steering.steer import Steering, steer


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
    layers = ["all"] if layer == "all" else [layer] if isinstance(layer, int) else list(layer)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_several_compose(tmp_path: Path) -> None:
    one, two = fresh(), fresh()
    vector = tiny.vector(one)
    trained(one, tmp_path, *(PreventativeSteering(vector, coef, layer=1) for coef in (3, -1)))
    trained(two, tmp_path, PreventativeSteering(vector, 2, layer=1))
    for name, weight in weights(one).items():
        torch.testing.assert_close(weight, two.hf.state_dict()[name], rtol=1e-3, atol=1e-4)


class Reading(TrainerCallback):
    """Keeps the stream after every block, of training and of evaluation, as the next block gets it."""

    def __init__(self) -> None:
        self.streams: dict[tuple[bool, int], list[torch.Tensor]] = {}
        self.hooks = ExitStack()

    def on_train_begin(self, *_: Any, **more: Any) -> None:
        blocks = BlockModel(more["model"], "read")

        def at(layer: int) -> Any:
            def keep(stream: torch.Tensor) -> None:
                self.streams.setdefault((blocks.decoder.training, layer), []).append(stream.detach().float())

            return keep

        self.hooks.enter_context(attach(blocks, tiny.nothing, {layer: at(layer) for layer in range(tiny.N_LAYERS)}))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.hooks.close()


@pytest.mark.parametrize(("family", "bf16"), [("llama", False), ("llama", True), ("peft", False), ("gpt2", False)])
@pytest.mark.parametrize("layers", ["all", 1, (0, 2)])
def test_ablation_leaves_no_projection_in_training(family: str, bf16: bool, layers: Any, tmp_path: Path) -> None:
    model = fresh(family)
    vectors = [tiny.vector(model, seed) for seed in (0, 1)]
    named = range(tiny.N_LAYERS) if layers == "all" else [layers] if isinstance(layers, int) else layers
    callback, reading, before = TrainingAblation(vectors, layers=layers), Reading(), weights(model)
    evaluating = {"eval_dataset": Data(), "eval_strategy": "steps", "eval_steps": 1}
    trained(model, tmp_path, callback, reading, bf16=bf16, max_steps=1, **evaluating)
    for (training, layer), streams in reading.streams.items():
        for vector in vectors:
            along = (torch.cat(streams) @ vector.unit(layer)).abs().max()
            assert along < 1e-4 if training and layer in named else along > 1e-2
    assert len(reading.streams) == 2 * tiny.N_LAYERS
    assert callback.steered_tokens == 2 * len(ROWS[0]) and tiny.hooks(model) == 0
    assert weights(model).keys() == before.keys() and not same(weights(model), before)


def test_ablation_and_steering_log_under_their_own_names(tmp_path: Path) -> None:
    model = fresh()
    vector, other = tiny.vector(model), tiny.vector(model, 1, layer=2)
    other = dataclasses.replace(other, card=dataclasses.replace(other.card, trait="other"))
    asked = {"prompts": ["Hi?", "Who are you?"]}
    callbacks = [
        PreventativeSteering(vector, 2, layer=1, **asked),
        PreventativeSteering(vector, 2, layer=3, positions="response", **asked),
        TrainingAblation([vector, other], layers=2, **asked),
    ]
    trainer = trained(model, tmp_path, *callbacks, processing_class=model.tokenizer, max_steps=1)
    (row,) = (row for row in trainer.state.log_history if "loss" in row)
    tokens = {"steered_tokens/tiny": 24, "steered_tokens/tiny-2": 14, "steered_tokens/tiny+other": 24}
    assert {name: row[name] for name in row if name.startswith("steered")} == tokens
    read = [row[name] for name in ("projection/tiny", "projection/tiny-2", "projection/tiny-3", "projection/other")]
    assert len(set(read)) == 4


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


@pytest.mark.slow  # the compiler takes a minute
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
