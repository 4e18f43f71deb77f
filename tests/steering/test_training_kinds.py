"""Steering in trainers of other kinds: the policy is steered, a reference never; adapters that prepend or copy."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from support import tiny
from support.tiny_training import PROMPT, ROWS, fresh, trained
from trl import DPOConfig, DPOTrainer

from personavec.errors import ModelError
from personavec.model.chat_model import BlockModel
from personavec.steering.preventative import PreventativeSteering
from personavec.steering.steer import Steering, steer

PAIRS = [{"prompt": f"Say {n}.", "chosen": f" I say {n}", "rejected": " No no"} for n in range(4)]
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def preferred(how: str, out: Path, steered: bool = True) -> tuple[float, int]:
    """First loss of DPO, and the number of steered tokens, with the reference kept in some way."""
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 20.0, layer=1)
    args = DPOConfig(
        str(out), use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True, seed=0, max_steps=1,
        logging_steps=1, per_device_train_batch_size=2, learning_rate=0.0, gradient_checkpointing="again" in how,
        precompute_ref_log_probs="before" in how, dataset_num_proc=None,
    )  # fmt: skip
    hf = get_peft_model(model.hf, LoraConfig(**LORA)) if "copy" in how else model.hf
    trainer = DPOTrainer(
        hf,
        ref_model=tiny.build().hf if "apart" in how else None,
        args=args,
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(**LORA) if "adapter" in how else None,
        callbacks=[callback] if steered else [],
    )
    trainer.train()
    return next(row["loss"] for row in trainer.state.log_history if "loss" in row), callback.steered_tokens


@pytest.mark.parametrize(
    "how", ["adapter off", "adapter, before", "adapter of its own, a copy", "adapter off, blocks run again"]
)
def test_a_reference_is_never_steered(how: str, tmp_path: Path) -> None:
    wanted, tokens = preferred("apart", tmp_path)
    unsteered, _ = preferred("apart", tmp_path, steered=False)
    assert unsteered == pytest.approx(0.6931, abs=1e-3) != pytest.approx(wanted, abs=0.01)
    how = how.replace("adapter of its own, a copy", "copy")
    loss, count = preferred(how, tmp_path)
    assert loss == pytest.approx(wanted, abs=1e-3) and count == tokens


def test_virtual_tokens_before_the_prompt_are_no_response(tmp_path: Path) -> None:
    model = fresh()
    vector = tiny.vector(model)
    virtual = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    model.hf = get_peft_model(model.hf, virtual)
    callback = PreventativeSteering(vector, 2.0, layer=1, positions="response")
    trainer = trained(model, tmp_path, callback, per_device_train_batch_size=len(ROWS), max_steps=1, learning_rate=0.0)
    ids = torch.tensor(ROWS)
    labels = torch.where(torch.arange(ids.shape[1]) < PROMPT, -100, ids)
    assert callback.steered_tokens == len(ROWS) * (ids.shape[1] - PROMPT)
    with torch.no_grad(), steer(BlockModel(model.hf), [[Steering(vector, 2.0, 1)]], [PROMPT + 3]):
        wanted = model.hf(input_ids=ids, labels=labels).loss
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("copied", [["input_layernorm"], ["mlp"], ["mlp", "input_layernorm"]])
def test_copies_that_are_trained_leave_the_vector_right(copied: list[str], tmp_path: Path) -> None:
    model = fresh()
    vector, revision = tiny.vector(model), model.identity.revision
    model.hf = get_peft_model(model.hf, LoraConfig(**LORA, modules_to_save=copied))
    assert BlockModel(model.hf).identity.revision == revision
    callback = PreventativeSteering(vector, 2.0, layer=1)
    trained(model, tmp_path, callback)
    assert callback.steered_tokens > 0
    assert BlockModel(model.hf).identity.revision == revision, "the copies learned, what they stand for did not"


def test_labels_of_another_form_are_one_line(tmp_path: Path) -> None:
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 2.0, layer=1, positions="response")
    forward: Any = model.hf.forward
    # a model that drops the first token before its decoder
    model.hf.forward = lambda input_ids, attention_mask, labels: forward(
        input_ids=input_ids[:, 1:], attention_mask=attention_mask[:, 1:], labels=labels[:, 1:]
    )
    with pytest.raises(ModelError, match=r"expected labels for \[2, 11\] tokens, got \[2, 12\]"):
        trained(model, tmp_path, callback)
