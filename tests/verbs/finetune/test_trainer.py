"""Steering in training fails loudly, tells what happened, and goes on where nothing is wrong."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from support import tiny
from support.tiny_training import ROWS, Data, fresh, same, trained, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from personavec.errors import ConfigError, ModelError, VectorError
from personavec.model.chat_model import BlockModel
from personavec.model.hooks import Forward
from personavec.steering.preventative import PreventativeSteering, TrainingAblation
from personavec.steering.steer import Steered, Steering
from personavec.steering.training import TrainingSteering


class Without(Data):
    """No loss in some of the rows."""

    def __init__(self, rows: range) -> None:
        super().__init__()
        self.rows = rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        own = super().__getitem__(index)
        return own | {"labels": torch.full_like(own["labels"], -100)} if index in self.rows else own


def one_line(error: pytest.ExceptionInfo[Exception]) -> bool:
    text = str(error.value)
    return text.startswith("expected") and "\n" not in text and ", got " in text


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    model = fresh()
    with pytest.raises(ModelError, match="lower the coef"):
        trained(model, tmp_path, PreventativeSteering(tiny.vector(model), 3e38, layer=1))
    assert tiny.hooks(model) == 0


@pytest.mark.parametrize("saving", [False, True])
def test_a_gradient_that_is_not_finite_stops_and_checkpoints_are_told(
    saving: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda self, *_, **__: math.inf if self.state.global_step else 1.0)
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 1, layer=1)
    more = {"save_strategy": "steps", "save_steps": 1} if saving else {}
    with pytest.raises(ModelError, match="tiny coef 1 at layer 1") as error:
        trained(model, tmp_path, callback, **more)
    assert ("checkpoint-1 is the last one saved" if saving else "no checkpoint was saved") in str(error.value)
    assert one_line(error)


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (0.5, True)])
def test_a_step_that_a_scaler_skips_stops_nothing(
    scale: float, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AcceleratedOptimizer, "step_was_skipped", property(lambda _: True))
    monkeypatch.setattr(Trainer, "_get_grad_norm", lambda *_, **__: math.inf)

    class Scaling(TrainerCallback):
        def on_step_end(self, *_: Any, **more: Any) -> None:
            more["optimizer"].scaler = SimpleNamespace(get_scale=lambda: scale)

    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 1, layer=1)
    with pytest.raises(ModelError, match="gradient inf") if stops else nullcontext():
        trained(model, tmp_path, Scaling(), callback, max_steps=1)
    assert callback.steered_tokens


@pytest.mark.parametrize("from_step", [0, 2])
def test_a_model_that_is_not_run_is_told_in_any_step(from_step: int, tmp_path: Path) -> None:
    model = fresh()

    class Elsewhere(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            if self.state.global_step < from_step:
                return super().compute_loss(model, inputs, *given, **named)
            return sum((weight**2).sum() for weight in model.parameters())

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=4)
    callback = PreventativeSteering(tiny.vector(model), 1, layer=1)
    with pytest.raises(ModelError, match=f"got no token in step {from_step + 1}"):
        Elsewhere(model.hf, args, train_dataset=Data(), callbacks=[callback]).train()
    assert tiny.hooks(model) == 0


@pytest.mark.slow
def test_batches_without_loss_are_told_apart_from_a_model_that_is_not_run(tmp_path: Path) -> None:
    def run(rows: range, **options: Any) -> PreventativeSteering:
        model = fresh()
        callback = PreventativeSteering(tiny.vector(model), 1, layer=1, positions="response")
        trained(model, tmp_path, callback, data=Without(rows), **options)
        return callback

    for logging in ("steps", "no"):
        with pytest.raises(ModelError, match="expected a token with a loss by step") as error:
            run(range(len(ROWS)), logging_strategy=logging)
        assert one_line(error)
    # a first step without any loss, with others to come
    options = {"per_device_train_batch_size": 1, "train_sampling_strategy": "sequential", "logging_steps": 4}
    assert run(range(1), **options).steered_tokens > 0


def test_a_vector_of_another_model_is_refused(tmp_path: Path) -> None:
    model = fresh()
    with pytest.raises(VectorError, match="extract it from this model"):
        trained(model, tmp_path, PreventativeSteering(tiny.vector(tiny.build(seed=1)), 1, layer=1))
    with pytest.raises(VectorError, match="a layer from 0 to 3, got 9"):
        PreventativeSteering(tiny.vector(model), 1, layer=9)
    with pytest.raises(VectorError, match="pass layer="):
        PreventativeSteering(tiny.vector(model), 1)


@pytest.mark.usefixtures("unchecked")
def test_what_means_nothing_is_refused() -> None:
    vector = tiny.vector(tiny.build())
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"layer": ()}, "several different ones"),
        ({"layer": (1, 1)}, "several different ones"),
        ({"layer": "every"}, "got 'every'"),
        ({"layer": ("1",)}, "several different ones"),
        ({"positions": "prompt"}, "positions all or response in training, got 'prompt'"),
        ({"coef": float("nan")}, "a finite coef, got nan"),
        ({"coef": "5"}, "coef to be a number, got '5'"),
        ({"prompts": "Why?"}, "a list of prompts"),
    ]
    for changes, told in wrong:
        with pytest.raises(ConfigError, match=told) as error:
            PreventativeSteering(vector, **({"coef": 1, "layer": 1} | changes))
        assert one_line(error)
    for vectors, more, told in (([], {}, "got no vector"), (vector, {"layers": ()}, "several different ones")):
        with pytest.raises(ConfigError, match=told):
            TrainingAblation(vectors, **more)
    with pytest.raises(ConfigError, match="leave out the schedule"):
        TrainingSteering([Steering(vector, layer="all", op="ablate", positions="all")], schedule=float)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("factor", [float("inf"), None])
def test_a_schedule_gives_finite_factors(factor: Any, tmp_path: Path) -> None:
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 1, layer=1, schedule=lambda done: 1.0 if done < 0.5 else factor)
    with pytest.raises(ConfigError, match=f"got {factor!r} at 0.50") as error:
        trained(model, tmp_path, callback)
    assert one_line(error) and tiny.hooks(model) == 0


def test_the_effect_is_proven_after_each_change_of_the_coefficient(tmp_path: Path) -> None:
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 1, layer=1, schedule=lambda done: 1.0 if done < 0.5 else 1e30)
    with pytest.raises(ModelError, match="overflowed"):
        trained(model, tmp_path, callback, learning_rate=0.0)


def test_prompts_need_a_tokenizer_from_the_beginning(tmp_path: Path) -> None:
    model = fresh()
    bare = tiny.tokenizer()
    bare.chat_template = None
    for tokenizer, told in ((None, "got none"), (bare, "without one")):
        callback = PreventativeSteering(tiny.vector(model), 1, layer=1, prompts=["Why?"])
        with pytest.raises(ConfigError, match=told) as error:
            trained(model, tmp_path, callback, processing_class=tokenizer, logging_steps=100)
        assert one_line(error) and tiny.hooks(model) == 0


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    model = fresh()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], save_strategy="no", max_steps=1)
    args._n_gpu = 2
    trainer = Trainer(
        model.hf, args, train_dataset=Data(), callbacks=[PreventativeSteering(tiny.vector(model), 1, layer=1)]
    )
    with pytest.raises(ConfigError, match="accelerate launch") as error:
        trainer.train()
    assert one_line(error)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "peft"])
def test_resumed_training_goes_on_and_checks_what_it_can(family: str, tmp_path: Path) -> None:
    whole, model = fresh(family), fresh(family)
    vector = tiny.vector(whole)
    saving = {"save_strategy": "steps", "save_steps": 2}
    trained(whole, tmp_path / "whole", PreventativeSteering(vector, 1, layer=1), **saving)
    trained(model, tmp_path / "half", PreventativeSteering(vector, 1, layer=1), max_steps=2, **saving)

    def resumed(vector: Any, out: Path) -> Any:
        again = fresh(family)
        trained(again, out, PreventativeSteering(vector, 1, layer=1), resume=str(tmp_path / "half" / "checkpoint-2"))
        return again

    assert resumed(vector, tmp_path / "on").hf.training
    other = tiny.vector(tiny.build(seed=1))
    if family == "peft":
        with pytest.raises(VectorError, match="extract it from this model"):
            resumed(other, tmp_path / "other")
    else:  # the weights were trained: nothing is left to compare
        assert not same(weights(resumed(vector, tmp_path / "on")), weights(fresh(family)))


def quantised(model: Any) -> None:
    """One weight of each block as bytes, as bitsandbytes keeps them."""
    for block in model.blocks:
        packed = torch.zeros((8, 1), dtype=torch.uint8)
        block.register_parameter("packed", torch.nn.Parameter(packed, requires_grad=False))


@pytest.mark.parametrize("how", ["quantised", "partitioned", "not loaded"])
def test_weights_that_cannot_be_compared_are_by_name(how: str) -> None:
    model, other = fresh(), fresh(seed=1)
    vector = tiny.vector(model)
    for one in (model, other):
        weight = next(one.blocks[0].parameters())
        if how == "quantised":
            quantised(one)
        elif how == "partitioned":
            weight.data = torch.empty(0)
        else:
            one.blocks[0].register_parameter("far", torch.nn.Parameter(torch.empty(4, device="meta")))
    again, renamed = BlockModel(model.hf, "tiny-llama"), BlockModel(other.hf, "elsewhere")
    assert again.identity.revision.endswith("(partial)") and again.identity.revision != renamed.identity.revision
    vector.check_model(again.identity)
    tiny.vector(again).check_model(model.identity)  # type: ignore[arg-type]
    with pytest.raises(VectorError, match="for elsewhere by name") as error:
        vector.check_model(renamed.identity)
    assert one_line(error)


def test_blocks_on_other_devices_are_steered_there() -> None:
    model = fresh()
    vector = tiny.vector(model)
    steerings = [
        Steering(vector, 1, 1, "all"),
        Steering(vector, layer=1, positions="all", op="ablate"),
        Steering(vector, layer=1, positions="all", op="cap", ceiling=1.0),
    ]
    steered = Steered(model, [steerings], [0])
    steered.start(Forward(torch.arange(3)[None], torch.ones((1, 3), dtype=torch.bool)))
    steered._checked.add(1)  # its proof needs numbers, which this device has none of
    stream = torch.zeros((1, 3, tiny.D_MODEL), device="meta")
    assert steered.change(1, stream).device == stream.device
