"""Supervised finetuning with TRL: a LoRA adapter or all weights, resumed from its checkpoints."""

import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from accelerate.utils import extract_model_from_parallel  # type: ignore[import-untyped]
from datasets import Dataset as Rows
from jaxtyping import Float, Int
from numpy import ndarray
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

from personavec.data.dataset import Dataset
from personavec.errors import ConfigError, ModelError
from personavec.model.chat_model import ChatModel, flags_kept
from personavec.model.logits import reply_logprobs
from personavec.model.machine.place import SPLIT, pick_device, pick_dtype
from personavec.runs.json_files import read_json
from personavec.runs.progress import stage, tell
from personavec.runs.rules import Seed, check, settings
from personavec.runs.run import Row
from personavec.steering.training import counted
from personavec.verbs.finetune.options import Pace
from personavec.verbs.finetune.training_rows import IGNORED, training_rows

try:
    from trl import SFTConfig  # type: ignore[attr-defined]
    from trl import SFTTrainer as SFTTrainer  # type: ignore[attr-defined] # others import it from here
except ImportError as error:
    advice = "install it: pip install -e '.[train]' in a clone, or pip install 'personavec[train]'"
    raise ConfigError(f"expected the extra train (TRL), got none; {advice}") from error

warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)  # PEFT's and TRL's

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What the paper's adapters are put on. Source: Persona Vectors (arXiv 2507.21509) appendix D.3."""
KINDS = ("activation", "gradient")
"""What transformers calls checkpointing: the former since 5.24."""
COUNT = "num_tokens"
RESUMING = ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""Files of a checkpoint that only going on needs; they go when the training is done."""


class TrainingOptions(TypedDict, total=False):
    """How a model is trained: fields of a `Training`."""

    epochs: float
    rate: float
    warmup_steps: int
    batch: int
    rows_at_once: int
    rank: int
    alpha: int
    full: bool
    max_tokens: int
    checkpoints: int
    gradient_checkpointing: bool
    report_to: tuple[str, ...]
    on_error: Literal["stop", "skip"]
    system: str
    dtype: str


@dataclass(frozen=True)
class Training(Pace):
    """How a model is trained, and with what seed, system prompt and number format."""

    _: KW_ONLY
    seed: Seed = 0
    """Of everything random."""
    system: str = "template"
    """System prompt of rows that have none: template (the chat template's default), none, or a text."""
    dtype: str = "auto"
    """Number format of the computation; auto is the model's, with `full` bfloat16 if the hardware multiplies it."""

    def __post_init__(self) -> None:
        check(type(self), vars(self))
        check_installed(self.report_to)

    @property
    def options(self) -> Row:
        """What a resumed run must have the same; with `auto` its inputs say what the model's number format is."""
        values = {name: value for name, value in vars(self).items() if (name, value) != ("dtype", "auto")}
        return settings(type(self), values)

    def steps(self, n_rows: int) -> int:
        """Optimizer steps on so many sequences."""
        return math.ceil(math.ceil(n_rows / self.batch) * self.epochs)

    def rows(
        self, model: ChatModel, data: Dataset, instruction: Callable[[int], str] | None = None
    ) -> tuple[list[Row], list[Row]]:
        """The sequences to train on, and the rows that cannot be used, as `training_rows` has them.

        Raises:
            DataError: A row cannot be used and is not to be skipped, or none can.
        """
        return training_rows(
            model,
            data.samples("whole", announce=True),
            longest=min(self.max_tokens, model.context),
            system=self.system,
            instruction=instruction,
            on_error=self.on_error,
            name=data.name,
        )


def check_installed(trackers: Sequence[str]) -> None:
    """Raise ConfigError if the package of a tracker is not there."""
    known: list[str] = get_available_reporting_integrations() if trackers else []  # type: ignore[no-untyped-call]
    if missing := sorted({*trackers} - {*known}):
        there = f"installed trackers ({', '.join(known) or 'none is'})"
        raise ConfigError(f"expected {there} for --report-to, got {', '.join(missing)}; install its package")


def process_device(name: str) -> str:
    """Where this process's model goes, once the processes of `accelerate launch` have joined."""
    if name == SPLIT:
        return name
    return str(SFTConfig("unused", use_cpu=pick_device(name).type == "cpu", bf16=False, report_to=[]).device)


def arguments(training: Training, model: ChatModel, out: Path) -> SFTConfig:
    """TRL's options; making them also joins the other processes of `accelerate launch`."""
    fields = SFTConfig.__dataclass_fields__
    name = next(f"{kind}_checkpointing" for kind in KINDS if f"{kind}_checkpointing" in fields)
    checkpointing: Row = {name: training.gradient_checkpointing, f"{name}_kwargs": {"use_reentrant": False}}
    best = str(pick_dtype("auto", model.device)).removeprefix("torch.")
    dtype = training.dtype
    if dtype == "auto":
        dtype = best if training.full else str(model.dtype).removeprefix("torch.")
    return SFTConfig(
        str(out),
        use_cpu=model.device.type == "cpu",
        bf16=dtype == best == "bfloat16",
        fp16=dtype == "float16",
        num_train_epochs=training.epochs,
        learning_rate=training.rate,
        lr_scheduler_type="linear",
        warmup_steps=training.warmup_steps,
        weight_decay=0.01,
        per_device_train_batch_size=training.rows_at_once,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        seed=training.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        disable_tqdm=True,
        report_to=[*training.report_to],
        **checkpointing,
    )


def share_out(args: SFTConfig, training: Training, n_rows: int) -> None:
    """Spread a step's rows over processes and passes, and the checkpoints over the steps.

    Raises:
        ConfigError: The rows of a step cannot be shared out evenly, or nothing would be trained.
    """
    at_once = training.rows_at_once * args.world_size
    if training.batch % at_once:
        raise ConfigError(
            f"expected --batch to be a multiple of --rows-at-once times the processes, got {training.batch} and "
            f"{training.rows_at_once} × {args.world_size}; correct one of them"
        )
    steps, warmup = training.steps(n_rows), training.warmup_steps
    if steps == 1 and warmup:
        raise ConfigError(
            f"expected two steps or more with a warm-up, got {n_rows:,} rows in one step, whose rate is 0; pass "
            "--warmup-steps 0, lower --batch or raise --epochs"
        )
    if steps <= warmup:
        tell(
            f"{steps} steps, all within the warm-up of {warmup}: the rate rises from 0 to "
            f"{training.rate * (steps - 1) / warmup:.1e} and never reaches {training.rate:.1e}; "
            "--warmup-steps 0 trains at it from the first step"
        )
    args.gradient_accumulation_steps = training.batch // at_once
    args.save_steps = math.ceil(steps / training.checkpoints)


@contextmanager
def trainable(model: ChatModel, training: Training) -> Iterator[ChatModel]:
    """The model with what is to be trained: a fresh adapter on a twin of it, or all of its weights.

    Whether its weights can be trained, and its mode, are as before when the context ends; an adapter never reaches the
    model itself.
    """
    set_seed(training.seed)
    mode = model.hf.training
    with flags_kept(model.hf):
        subject = model
        if training.full:
            model.hf.requires_grad_(True)
        else:
            lora = LoraConfig(
                r=training.rank,
                lora_alpha=training.alpha,
                use_rslora=True,
                lora_dropout=0.0,
                target_modules=projections(model),
                task_type="CAUSAL_LM",
            )
            subject = ChatModel(get_peft_model(model.twin().hf, lora), model.tokenizer, model.identity.id)
        try:
            yield subject
        finally:
            # mixed precision wraps the forward pass
            extract_model_from_parallel(subject.hf, keep_fp32_wrapper=False)
            subject.hf.eval().requires_grad_(False)
            model.hf.train(mode)


def train(
    model: ChatModel,
    rows: Sequence[Row],
    args: SFTConfig,
    callbacks: Sequence[TrainerCallback],
    kind: type[SFTTrainer] = SFTTrainer,
    **more: Any,
) -> list[Row]:
    """Train, or go on from the last whole checkpoint in the folder; the result is saved next to the checkpoints.

    Args:
        model: As `trainable` made it.
        rows: Sequences with `input_ids` and `labels`.
        args: As `arguments` made them.
        callbacks: What else happens, such as steering.
        kind: The trainer, if the loss has another term.
        more: Further options of that trainer.

    Returns:
        What was logged at every step.

    Raises:
        ModelError: The loss is not finite; the checkpoints so far stay.
    """
    data = Rows.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
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
    with _run_of_its_own(args.report_to or ()):
        trainer.train(resume_from_checkpoint=last_checkpoint(out, tidy=args.should_save))
    trainer.save_model()
    history: list[Row] = [row for row in trainer.state.log_history if "loss" in row]
    if args.should_save:
        for place in (file for pattern in RESUMING for file in out.glob(f"checkpoint-*/{pattern}")):
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    model.hf.eval()
    return history


def last_checkpoint(out: Path, *, tidy: bool = False) -> str | None:
    """The last checkpoint that was written to its end; one that a kill tore is removed if asked."""
    for place in sorted(out.glob("checkpoint-*"), key=lambda place: -int(place.name.split("-")[1])):
        try:
            read_json(place / "trainer_state.json", strict=False)  # written last
            return str(place)
        except ValueError:
            if tidy:
                shutil.rmtree(place)
    return None


def reply_losses(model: ChatModel, rows: Sequence[Row]) -> tuple[Float[ndarray, " token"], Int[ndarray, " token"]]:
    """Loss of every reply token in nats, unsteered, and the place of the sequence that it stands in."""
    prompts = [tuple(row["input_ids"][:1]) for row in rows]
    with stage("loss on held-out rows", len(rows)) as advance:
        logprobs = reply_logprobs(model, prompts, [tuple(row["input_ids"][1:]) for row in rows], advance)
    trained = [np.array(row["labels"][1:]) != IGNORED for row in rows]
    losses = [-logprob.numpy()[mask] for logprob, mask in zip(logprobs, trained, strict=True)]
    return np.concatenate(losses), np.repeat(np.arange(len(rows)), [len(loss) for loss in losses])


def projections(model: ChatModel) -> list[str] | str:
    """The paper's seven projections where the blocks have them, else every linear layer."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.blocks.named_modules()}
    return [*PROJECTIONS] if names.issuperset(PROJECTIONS) else "all-linear"


@contextmanager
def _run_of_its_own(trackers: Sequence[str]) -> Iterator[None]:
    """End the run of W&B that a training begins: transformers leaves it open, and the next training would go on in it.

    A run that was open before is the caller's.
    """
    if "wandb" not in trackers:
        yield
        return
    import wandb  # type: ignore[import-not-found]

    before, code = wandb.run, 1
    try:
        yield
        code = 0
    finally:
        if before is None and wandb.run is not None:
            wandb.finish(exit_code=code)


class _Watching(TrainerCallback):
    """A progress bar, an end where the loss is no number, and TRL's count of tokens, which begins anew if resumed."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._before: int | None = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._before = None if state.global_step else 0
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
        if COUNT in more["logs"]:
            if self._before is None:
                self._before = counted(state, COUNT)
            state.log_history[-1][COUNT] += self._before

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self._bars.close()
