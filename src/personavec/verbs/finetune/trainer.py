"""Supervised finetuning with TRL: a LoRA adapter or all weights, resumed from its checkpoints."""

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int
from numpy import ndarray
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from personavec.errors import ConfigError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.loading import pick_device, pick_dtype
from personavec.model.logits import reply_logprobs
from personavec.runs.progress import stage
from personavec.verbs.finetune.options import FinetuneConfig
from personavec.verbs.finetune.training_rows import IGNORED

try:
    from trl import SFTConfig  # type: ignore[attr-defined]
    from trl import SFTTrainer as SFTTrainer  # type: ignore[attr-defined] # others import it from here
except ImportError as error:
    advice = "install it: pip install -e '.[train]' in a clone, or pip install 'personavec[train]'"
    raise ConfigError(f"expected the extra train (TRL), got none; {advice}") from error

warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)  # PEFT's and TRL's

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What the paper's adapters are put on. Source: Persona Vectors (arXiv 2507.21509) appendix D.3."""
KINDS = ("activation", "gradient")
"""What transformers calls checkpointing: the former since 5.24."""
RESUMING = ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""Files of a checkpoint that only going on needs; they go when the training is done."""

Row = dict[str, Any]


def arguments(config: FinetuneConfig, out: Path) -> SFTConfig:
    """What TRL is told; making them also joins the other processes of `accelerate launch`."""
    device = pick_device(config.device)
    fields = SFTConfig.__dataclass_fields__
    name = next(f"{kind}_checkpointing" for kind in KINDS if f"{kind}_checkpointing" in fields)
    checkpointing: Row = {name: config.gradient_checkpointing, f"{name}_kwargs": {"use_reentrant": False}}
    return SFTConfig(
        str(out),
        use_cpu=device.type == "cpu",
        bf16=config.dtype in ("auto", "bfloat16") and pick_dtype("auto", device) == torch.bfloat16,
        fp16=config.dtype == "float16",
        num_train_epochs=config.epochs,
        learning_rate=config.rate,
        lr_scheduler_type="linear",
        warmup_steps=config.warmup_steps,
        weight_decay=0.01,
        per_device_train_batch_size=config.rows_at_once,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        disable_tqdm=True,
        report_to=[],
        **checkpointing,
    )


def share_out(args: SFTConfig, config: FinetuneConfig, n_rows: int) -> None:
    """Spread a step's rows over processes and passes, and the checkpoints over the steps.

    Raises:
        ConfigError: The rows of a step cannot be shared out evenly.
    """
    at_once = config.rows_at_once * args.world_size
    if config.batch % at_once:
        raise ConfigError(
            f"expected --batch to be a multiple of --rows-at-once times the processes, got {config.batch} and "
            f"{config.rows_at_once} × {args.world_size}; correct one of them"
        )
    args.gradient_accumulation_steps = config.batch // at_once
    steps = math.ceil(math.ceil(n_rows / config.batch) * config.epochs)
    args.save_steps = math.ceil(steps / config.checkpoints)


def trainable(model: ChatModel, config: FinetuneConfig) -> ChatModel:
    """The model with what is to be trained: a fresh adapter, or all of its weights."""
    set_seed(config.seed)
    if config.full:
        model.hf.requires_grad_(True)
        return model
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=True,
        lora_dropout=0.0,
        target_modules=_projections(model),
        task_type="CAUSAL_LM",
    )
    return ChatModel(get_peft_model(model.hf, lora), model.tokenizer, model.identity.id)


def train(
    model: ChatModel,
    rows: Sequence[Row],
    args: SFTConfig,
    callbacks: Sequence[TrainerCallback],
    kind: type[SFTTrainer] = SFTTrainer,
    **more: Any,
) -> list[Row]:
    """Train, or go on from the last whole checkpoint in the folder; the result is saved beside the checkpoints.

    Args:
        model: As `trainable` made it.
        rows: Sequences with `input_ids` and `labels`.
        args: As `arguments` made them.
        callbacks: What else happens, steering for one.
        kind: The trainer, where the loss has a term of its own.
        more: What that trainer is also told.

    Returns:
        What was logged at every step.

    Raises:
        ModelError: The loss is not finite; the checkpoints so far stay.
    """
    data = Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    trainer = kind(
        model.hf,
        args,
        train_dataset=data,
        processing_class=model.tokenizer,
        callbacks=[*callbacks, _Watching()],
        **more,
    )
    trainer.remove_callback(PrinterCallback)  # it prints on stdout
    out = Path(str(args.output_dir))
    trainer.train(resume_from_checkpoint=last_checkpoint(out, tidy=args.should_save))
    trainer.save_model()
    history: list[Row] = [row for row in trainer.state.log_history if "loss" in row]
    if args.should_save:
        for place in (file for pattern in RESUMING for file in out.glob(f"checkpoint-*/{pattern}")):
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    model.hf.eval().requires_grad_(False)
    return history


def last_checkpoint(out: Path, *, tidy: bool = False) -> str | None:
    """The last checkpoint that was written to its end; one that a kill tore is removed if asked."""
    for place in sorted(out.glob("checkpoint-*"), key=lambda place: -int(place.name.split("-")[1])):
        try:
            json.loads((place / "trainer_state.json").read_text("utf-8"))  # written last
            return str(place)
        except (OSError, ValueError):
            if tidy:
                shutil.rmtree(place)
    return None


def reply_losses(model: ChatModel, rows: Sequence[Row]) -> tuple[Float[ndarray, " token"], Int[ndarray, " token"]]:
    """Loss of every reply token in nats, unsteered, and the place of the sequence that it stands in."""
    prompts = [tuple(row["input_ids"][:1]) for row in rows]
    with stage("loss on held-out rows", len(rows)) as advance:
        logprobs = reply_logprobs(model, prompts, [tuple(row["input_ids"][1:]) for row in rows], advance)
    trained = [np.array(row["labels"][1:]) != IGNORED for row in rows]
    losses = [-own.numpy()[mask] for own, mask in zip(logprobs, trained, strict=True)]
    return np.concatenate(losses), np.repeat(np.arange(len(rows)), [len(own) for own in losses])


def _projections(model: ChatModel) -> list[str] | str:
    """The paper's seven projections where the blocks have them, else every linear layer."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.blocks.named_modules()}
    return [*PROJECTIONS] if names.issuperset(PROJECTIONS) else "all-linear"


class _Watching(TrainerCallback):
    """A progress bar, and an end where the loss is not a number."""

    def __init__(self) -> None:
        self._bars = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        if state.is_world_process_zero:
            self._advance = self._bars.enter_context(stage("training", state.max_steps))
            self._advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if state.is_world_process_zero:
            self._advance(1)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if not math.isfinite(more["logs"].get("loss", 0.0)):
            self._bars.close()
            raise ModelError(
                f"expected a finite loss, got {more['logs']['loss']} at step {state.global_step}; lower --rate, "
                f"now {args.learning_rate:g}, and choose another --out; earlier checkpoints are in {args.output_dir}"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self._bars.close()
