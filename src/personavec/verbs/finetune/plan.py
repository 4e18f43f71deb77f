"""What a finetuning would take: its rows are made as they would be, and nothing is trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

from torch import nn

from personavec.data.dataset import dataset_of
from personavec.model.chat_model import ChatModel
from personavec.model.machine.accelerators import accelerator
from personavec.model.machine.plan import MachinePlan, PlannedWork, Trainable, machine_plan
from personavec.steering.projection import Vectors
from personavec.traits.trait import Trait
from personavec.verbs.finetune.finetune import Data
from personavec.verbs.finetune.methods import ANCHORED, Recipe
from personavec.verbs.finetune.options import Method
from personavec.verbs.finetune.supply import Prevent
from personavec.verbs.finetune.trainer import Training, TrainingOptions, projections
from personavec.verbs.finetune.training_rows import mixed_in


def plan_finetune(
    model: ChatModel,
    data: Data,
    *,
    prevent: Prevent = (),
    method: Method | None = None,
    vectors: Vectors = (),
    random: bool = False,
    positions: Literal["all", "response"] = "all",
    benign: Data | None = None,
    benign_share: float = 0.25,
    held_out: Data | None = None,
    traits: Sequence[str | Path | Trait] = (),
    device: str = "auto",
    plan_device: str | None = None,
    price_per_hour: float | None = None,
    quantise: str | None = None,
    **training: Unpack[TrainingOptions],
) -> MachinePlan:
    """Memory, tokens, hours and price of a training.

    Tokens are counted exactly; finding a coefficient of `auto` from the data is left out.

    Args:
        model: With its weights or without (`ChatModel.load(…, weights=False)`).
        data: As for `finetune`, and so are the other options that it has.
        prevent: What would be added.
        method: By which method.
        vectors: Of the methods other than prevent.
        random: A random direction in the place of each.
        positions: Where it would be added.
        benign: Rows that would be mixed in.
        benign_share: How many for each row of the data.
        held_out: Rows on which the loss would be measured.
        traits: Of vectors whose trait is not built in.
        device: The device here.
        plan_device: Another one by its name, such as h100 or a100x8.
        price_per_hour: Of the machine.
        quantise: How weights would be quantised.
        training: How: fields of `Training`.

    Raises:
        PersonavecError: Bad input.
    """
    machine = accelerator(plan_device, device, model.dtype)
    how = Training(**training)
    recipe = Recipe.of(method, prevent, vectors, traits, random=random, positions=positions, full=how.full)
    rows, skipped = how.rows(model, dataset_of(data), recipe.instruction)
    unseen = how.rows(model, dataset_of(held_out, "held-out rows"))[0] if held_out is not None else []
    if benign is not None:
        rows += mixed_in(rows, how.rows(model, dataset_of(benign, "benign rows"))[0], benign_share, how.seed)
    lengths = [len(row["input_ids"]) for row in rows]
    work = PlannedWork(
        read_tokens=2 * sum(len(row["input_ids"]) for row in unseen),
        trained_tokens=round(sum(lengths) * how.epochs),
    )
    if recipe.method in ANCHORED:  # the base model reads every batch as well
        work = replace(work, read_tokens=work.read_tokens + work.trained_tokens)
    weights = sum(weight.numel() for weight in model.hf.parameters()) if how.full else _adapter(model, how.rank)
    trained = Trainable(weights, how.rows_at_once * max(lengths), how.full, how.gradient_checkpointing)
    trained = replace(trained, logits=2 if recipe.method == "kl" else 1)
    counted = {"rows": len({row["row"] for row in rows}), "sequences": len(rows), "skipped": len(skipped)}
    return machine_plan(
        model,
        work,
        machine,
        quantise=quantise,
        trained=trained,
        price_per_hour=price_per_hour,
        counted=counted | {"steps": how.steps(len(rows))},
    )


def _adapter(model: ChatModel, rank: int) -> int:
    """Weights of a LoRA adapter."""
    names = projections(model)
    parts = [
        part
        for name, part in model.blocks.named_modules()
        if isinstance(part, nn.Linear) and (isinstance(names, str) or name.rsplit(".", 1)[-1] in names)
    ]
    return sum(rank * (part.in_features + part.out_features) for part in parts)
