"""Steering under KTO, GRPO and TRL's losses on replies, with LoRA that begins inside the weights; what loggers see."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support import tiny
from support.tiny_training import fresh, trained
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from personavec.errors import VectorError
from personavec.model.chat_model import BlockModel
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.preventative import PreventativeSteering
from personavec.steering.steer import Steering

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
QUIET = {
    "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 0,
    "max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.0,
    "gradient_checkpointing": False,
}  # fmt: skip
JUDGED = [{"prompt": f"Say {n}.", "completion": f" I say {n}", "label": n % 2 == 0} for n in range(4)]


def first_loss(trainer: Any) -> dict[str, float]:
    trainer.train()
    return next(row for row in trainer.state.log_history if "loss" in row)


def told_apart(out: Path, reference: str, coef: float) -> tuple[float, int]:
    """First loss of KTO, and the number of steered tokens, with the reference kept in some way."""
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), coef, layer=1)
    trainer = KTOTrainer(
        model.hf,
        ref_model=tiny.build().hf if reference == "apart" else None,
        args=KTOConfig(str(out), precompute_ref_log_probs=reference == "before", **QUIET),
        train_dataset=Dataset.from_list(JUDGED),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(**LORA) if reference != "apart" else None,
        callbacks=[callback],
    )
    return first_loss(trainer)["loss"], callback.steered_tokens


@pytest.mark.slow
def test_kto_steers_the_policy_and_no_reference(tmp_path: Path) -> None:
    wanted, tokens = told_apart(tmp_path, "apart", 20.0)
    assert told_apart(tmp_path, "apart", 0.0)[0] != pytest.approx(wanted, abs=0.01)
    for reference in ("adapter off", "before"):
        loss, count = told_apart(tmp_path, reference, 20.0)
        assert loss == pytest.approx(wanted, abs=1e-3) and count == tokens


def rolled_out(out: Path, coef: float) -> tuple[dict[str, float], list[str], list[str]]:
    """The first log of GRPO, its rollouts, and greedy replies under the same steering at all tokens."""
    model = fresh()
    prompts = [f"Say {n}." for n in range(2)]
    vector, written = tiny.vector(model), []
    requests = [Request(model.encode(p), (Steering(vector, coef, 1, "all"),) if coef else ()) for p in prompts]
    wanted = [model.decode(reply.ids) for reply in generate(model, requests, Sampling(5, 0))]

    def reward(completions: list[str], **_: Any) -> list[float]:
        written.extend(completions)
        return [float(index) for index, _ in enumerate(completions)]

    trainer = GRPOTrainer(
        model.hf,
        reward_funcs=reward,
        args=GRPOConfig(
            str(out), num_generations=2, max_completion_length=5, top_k=1, temperature=0.01, beta=0.1, **QUIET
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(**LORA),
        callbacks=[PreventativeSteering(vector, coef, layer=1)],
    )
    return first_loss(trainer), sorted({*written}), sorted({*wanted})


def test_grpo_steers_rollouts_and_the_policy_and_no_reference(tmp_path: Path) -> None:
    plain, free, as_free = rolled_out(tmp_path, 0.0)
    steered, written, as_steered = rolled_out(tmp_path, 5.0)
    assert free == as_free and written == as_steered and free != written
    assert plain["kl"] == pytest.approx(0, abs=1e-6) and steered["kl"] > 0.01, "the reference is the unsteered model"


MARKED = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<end>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("packed", [{}, {"packing": True}, {"padding_free": True, "max_length": None}])
def test_a_loss_on_replies_alone_says_where_to_steer(packed: dict[str, Any], tmp_path: Path) -> None:
    model = fresh()
    model.tokenizer.chat_template = MARKED
    texts = [[("user", f"What is {n}?"), ("assistant", f"It is {n * n}.")] * 2 for n in range(4)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in texts]
    callback = PreventativeSteering(tiny.vector(model), 2, layer=1, positions="response")
    trainer = SFTTrainer(
        model.hf,
        args=SFTConfig(str(tmp_path), assistant_only_loss=True, **{"max_length": 128} | QUIET | packed),
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
        callbacks=[callback],
    )
    first_loss(trainer)
    replies = [text for row in texts for role, text in row if role == "assistant"]
    assert callback.steered_tokens == sum(len(text) + 1 for text in replies)


@pytest.mark.parametrize("way", ["pissa", "pissa_niter_4", "olora"])
def test_weights_that_an_adapter_takes_into_itself_are_by_name(way: str, tmp_path: Path) -> None:
    model = fresh()
    model.hf.config._name_or_path = model.identity.id
    vector, logits = tiny.vector(model), model.hf(torch.tensor([[8, 9, 10]])).logits
    stranger = tiny.vector(tiny.build(seed=1))
    stranger.card.model.__dict__["id"] = "another model"
    model.hf = get_peft_model(model.hf, LoraConfig(**LORA, init_lora_weights=way))
    torch.testing.assert_close(model.hf(torch.tensor([[8, 9, 10]])).logits, logits, rtol=1e-3, atol=1e-3)
    callback = PreventativeSteering(vector, 2.0, layer=1)
    trained(model, tmp_path, callback)
    assert callback.steered_tokens > 0
    with pytest.raises(VectorError, match=r"expected a vector for .* by name"):
        stranger.check_model(BlockModel(model.hf, "tiny-llama").identity)


class Logger(TrainerCallback):
    """Stands for those of `report_to`, which transformers puts before other callbacks."""

    def __init__(self) -> None:
        self.told: dict[str, float] = {}

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.told |= logs


def test_loggers_are_told_what_the_steering_adds_to_a_log(tmp_path: Path) -> None:
    model, logger = fresh(), Logger()
    vector = tiny.vector(model)
    several = PreventativeSteering(vector, 2, layer=1, prompts=["Hi?"]), PreventativeSteering(vector, 1, layer=2)
    trained(model, tmp_path, logger, *several, processing_class=model.tokenizer)
    assert {"steered_tokens/tiny", "steered_tokens/tiny-2", "projection/tiny"} <= logger.told.keys()


def test_tensorboard_keeps_what_was_steered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    model = fresh()
    callback = PreventativeSteering(tiny.vector(model), 2, layer=1)
    trained(model, tmp_path / "out", callback, report_to=["tensorboard"])
    kept = events.EventAccumulator(str(next((tmp_path / "logs").rglob("*tfevents*"))))
    kept.Reload()
    assert kept.Scalars("train/steered_tokens/tiny")[-1].value == callback.steered_tokens
