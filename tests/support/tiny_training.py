"""Training a tiny model for a few steps with a transformers Trainer."""

from pathlib import Path
from typing import Any

import torch
from support import tiny
from transformers import Trainer, TrainerCallback, TrainingArguments

from personavec.model.chat_model import ChatModel

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
    model: ChatModel,
    out: Path,
    *callbacks: TrainerCallback,
    data: Data | None = None,
    processing_class: Any = None,
    resume: str | None = None,
    eval_dataset: Data | None = None,
    **options: Any,
) -> Trainer:
    settings = {"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "seed": 0}
    quiet: dict[str, Any] = {"save_strategy": "no", "report_to": [], "disable_tqdm": True}
    args = TrainingArguments(str(out), use_cpu=True, **quiet | settings | options)
    trainer = Trainer(
        model.hf,
        args,
        train_dataset=data or Data(),
        callbacks=list(callbacks),
        processing_class=processing_class,
        eval_dataset=eval_dataset,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(model: ChatModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.hf.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
