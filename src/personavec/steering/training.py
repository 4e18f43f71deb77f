"""Steering in training: any change to the residual stream while a model trains, and none of it afterwards."""

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from numbers import Real
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from personavec.errors import ConfigError, ModelError
from personavec.model.activations import activations
from personavec.model.chat_model import BlockModel, ChatModel
from personavec.model.hooks import BlockFn, Forward, attach
from personavec.steering.projection import projection
from personavec.steering.steer import Steered, Steering
from personavec.steering.vector import PersonaVector

POSITIONS = ("all", "response")


class TrainingSteering(TrainerCallback):
    """Steers a model while it trains; evaluation and the saved weights are unsteered.

    For any `transformers.Trainer`, TRL's `SFTTrainer` among them; several of them compose.
    """

    def __init__(
        self,
        steerings: Sequence[Steering],
        *,
        schedule: Callable[[float], float] | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        """Choose what is changed, and where.

        Args:
            steerings: What to do to every row; positions are "all", or "response": those whose output predicts a token
                with a loss.
            schedule: A factor of what is added by the share of training that is done, 0 to 1; default 1 throughout.
            prompts: Held-out questions; with every log, the mean projection at their last prompt token is reported.

        Raises:
            ConfigError: Something that means nothing.
            VectorError: No such layer.
        """
        if not steerings:
            raise ConfigError("expected something to steer along, got no vector; pass one or more")
        for steering in steerings:
            if steering.positions not in POSITIONS:
                raise ConfigError(
                    f"expected positions all or response in training, got {steering.positions!r}; choose one"
                )
            if not _finite(steering.coef):
                raise ConfigError(f"expected a finite coef, got {steering.coef!r}; correct it")
            if steering.single_layer is not None:
                steering.vector.check_layer(steering.single_layer)
        if schedule is not None and all(steering.op != "add" for steering in steerings):
            raise ConfigError("expected something to add for a schedule to scale, got none; leave out the schedule")
        if isinstance(prompts, str):
            raise ConfigError("expected a list of prompts, got one text; put it in a list")
        self.steerings, self.schedule, self.prompts = tuple(steerings), schedule, tuple(prompts)
        self.steered_tokens = 0
        self._hooks = ExitStack()
        self._steered: _InTraining | None = None
        self._model: BlockModel | None = None
        self._rows: list[dict[str, Any]] = []
        self._saved = 0
        self._before: int | None = 0
        """Tokens that were steered before the training was resumed; None until the log says how many."""

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """See to it that an exception in training leaves no hook, and that loggers are called after this.

        The trainer is looked for on the stack, because transformers (5.24) has no event for an exception and hands its
        callbacks no trainer.
        """
        frame = sys._getframe()
        while frame is not None and not isinstance(trainer := frame.f_locals.get("self"), Trainer):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return
        train = trainer.train

        @functools.wraps(train)
        def closing(*given: Any, **named: Any) -> Any:
            try:
                return train(*given, **named)
            finally:
                self.close()

        trainer.train = closing  # type: ignore[method-assign]
        order = trainer.callback_handler
        ours = [other for other in order.callbacks if isinstance(other, TrainingSteering)]
        order.callbacks = [*ours, *(other for other in order.callbacks if other not in ours)]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Attach.

        Raises:
            VectorError: A vector is of another model.
            ConfigError: Several GPUs in one process, or prompts without a tokenizer that can render them.
        """
        self.close()
        if args.n_gpu > 1:
            raise ConfigError(
                f"expected one GPU a process, got {args.n_gpu} in one (nn.DataParallel); start the script with "
                "`accelerate launch`, or set CUDA_VISIBLE_DEVICES=0"
            )
        model = more["model"]
        blocks = self._prepare(model, more.get("processing_class"))
        if state.global_step and not hasattr(model, "get_base_model"):
            # resumed full finetuning: the weights are no longer those of the vector's model
            revision = self.steerings[0].vector.card.model.revision
            blocks.identity = dataclasses.replace(blocks.identity, revision=revision)
        self._model, self._steered = blocks, _InTraining(blocks, self.steerings)
        self._parameters = set(model.state_dict())
        self._saved, self.steered_tokens, self._seen = state.global_step, 0, 0
        self._before = None if state.global_step else 0
        steered = self._steered

        def at(layer: int) -> BlockFn:
            return lambda stream: steered.change(layer, stream) if steered.trains() else None

        fns = {layer: at(layer) for layer in steered.layers}
        if fns:
            self._hooks.enter_context(attach(blocks, steered.start, fns, first=True, inputs=steered.see))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Set the coefficient of this step.

        Raises:
            ConfigError: The schedule gave no number.
        """
        if self.schedule is None or self._steered is None:
            return
        done = state.global_step / max(1, state.max_steps)
        factor = self.schedule(done)
        if not _finite(factor):
            raise ConfigError(f"expected a finite factor from the schedule, got {factor!r} at {done:.2f}; correct it")
        self._steered.rescale(factor)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Fail at once if the model that is steered is not run.

        Raises:
            ModelError: It was not in this step.
        """
        if self._steered is None or not self._steered.layers:
            return
        seen, self._seen = self._seen, self._steered.seen
        self.steered_tokens = self._steered.tokens
        if self._seen == seen:
            raise ModelError(
                f"expected the model with steering at layer {self._steered.layers} to run in training mode, got no "
                f"token in step {state.global_step}; give the trainer the model that it trains"
            )

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Report the steered tokens, and the projection on held-out prompts.

        Raises:
            ModelError: The loss or its gradient is not finite, or no token was steered so far.
        """
        logs: dict[str, Any] = more["logs"]
        if self._model is None or self._steered is None or "loss" not in logs:
            return
        names = ("loss",) if _skipped(more.get("optimizer")) else ("loss", "grad_norm")
        if not all(math.isfinite(logs.get(name, 0.0)) for name in names):
            saved = f"checkpoint-{self._saved} is the last one saved" if self._saved else "no checkpoint was saved"
            raise ModelError(
                f"expected a finite loss, got loss {logs['loss']} and gradient {logs.get('grad_norm')} at step "
                f"{state.global_step} with {self.described()}; lower the coef or the learning rate ({saved})"
            )
        self._require_steered(state)
        vectors = list(dict.fromkeys(steering.vector for steering in self.steerings))
        steered = "steered_tokens/" + "+".join(vector.card.trait for vector in vectors)
        steered = _distinct(steered, logs)
        if self._before is None:
            self._before = counted(state, steered)
        figures: dict[str, float] = {steered: self._before + self.steered_tokens}
        for vector, mean in self._projections(vectors):
            figures[_distinct(f"projection/{vector.card.trait}", logs | figures)] = mean
        logs |= figures
        state.log_history[-1] |= figures

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Remember that there is a checkpoint."""
        self._saved = state.global_step

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Detach, and prove it.

        Raises:
            ModelError: Something of the steering is left in the model, or no token was steered.
        """
        model = self._model
        self._require_steered(state)
        self.close()
        if model is not None and set(model.hf.state_dict()) != self._parameters:
            raise ModelError("expected the weights that training began with, got others by name; report it")

    def close(self) -> None:
        """Remove every hook."""
        self._hooks.close()
        self._steered = self._model = None

    def described(self) -> str:
        """What is done now, where, and the dose if the card knows it."""
        factor = 1.0 if self._steered is None else self._steered.factor
        return ", ".join(_described(steering, factor) for steering in self.steerings)

    def _require_steered(self, state: TrainerState) -> None:
        """Raise ModelError if the model was run, but no token of it had a loss."""
        if self._steered is not None and self._steered.layers and self._seen and not self.steered_tokens:
            raise ModelError(
                f"expected a token with a loss by step {state.global_step}, got none, so nothing was steered; check "
                'the labels (a short max_length cuts replies off), or pass positions="all"'
            )

    def _prepare(self, model: Any, tokenizer: Any) -> BlockModel:
        """The model as a stack of blocks, and the prompts as token ids."""
        name = model.config._name_or_path or type(model).__name__
        if not self.prompts:
            return BlockModel(model, name)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        if getattr(tokenizer, "chat_template", None) is None:
            got = "none" if tokenizer is None else f"a {type(tokenizer).__name__} without one"
            raise ConfigError(
                f"expected a tokenizer with a chat template for the prompts, got {got}; pass the trainer a "
                "processing_class that has one, or leave out prompts"
            )
        chat = ChatModel(model, tokenizer, name)
        turns = [[{"role": "user", "content": prompt}] for prompt in self.prompts]
        self._rows = [{"prompt_ids": chat.render(messages), "response_ids": ()} for messages in turns]
        return chat

    @torch.no_grad()
    def _projections(self, vectors: Sequence[PersonaVector]) -> list[tuple[PersonaVector, float]]:
        """Mean projection on each vector at the last token of the held-out prompts, unsteered; none without prompts."""
        model = self._model
        if not isinstance(model, ChatModel):
            return []
        first = [
            next(steering.single_layer for steering in self.steerings if steering.vector == vector)
            for vector in vectors
        ]
        layers = [model.n_layers - 1 if layer is None else layer for layer in first]
        training = model.hf.training
        model.hf.eval()
        try:
            read = torch.cat([means[:, 0] for _, means in activations(model, self._rows, ("prompt last",), layers)])
        finally:
            model.hf.train(training)
        return [
            (vector, round(float(projection(read[:, place], vector.direction[layer]).mean()), 6))
            for place, (vector, layer) in enumerate(zip(vectors, layers, strict=True))
        ]


class _InTraining(Steered):
    """Steering of batches of any size, whose response tokens are those with a loss."""

    def __init__(self, model: BlockModel, steerings: Sequence[Steering]) -> None:
        super().__init__(model, [steerings], [0])
        self.factor = 1.0
        self._model = model
        parts = model.hf.modules()  # of PEFT's layers one stands for all; whole models have methods of these names
        self._layer = next((part for part in parts if isinstance(getattr(part, "disable_adapters", 0), bool)), None)
        self._trained = _active(self._layer)
        self._full = {
            layer: {kind: delta.clone() for kind, delta in kinds.items()} for layer, kinds in self._adds.items()
        }
        self._predicts: Bool[Tensor, "rows seq"] | None = None
        self._ran = torch.zeros_like(self._count)

    def trains(self) -> bool:
        """Whether this is a pass of what is trained, and not of a reference: the same weights without their adapter."""
        off = getattr(self._model.hf, "_adapters_disabled", False) or getattr(self._layer, "disable_adapters", False)
        return self._model.decoder.training and not off and _active(self._layer) == self._trained

    @property
    def seen(self) -> int:
        """Tokens that the model was run on in training, steered or not."""
        return int(self._ran)

    def see(self, inputs: Mapping[str, Any]) -> None:
        """Take what the model is called with."""
        labels = inputs.get("labels")
        self._predicts = None
        if labels is not None:  # the output at a place predicts the label of the next one
            self._predicts = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1), value=False)

    def start(self, forward: Forward) -> None:
        """Nothing outside of training, and nothing of a reference."""
        if self.trains():
            self._ran += forward.real.sum().to(self._ran.device)
            super().start(forward)

    def covers(self, forward: Forward) -> dict[str, Bool[Tensor, "rows seq"]]:
        """All tokens, or those with a loss."""
        if "response" not in self._touched:
            return {"all": forward.real}
        if self._predicts is None:
            raise ModelError('expected labels beside the inputs, got none; pass positions="all"')
        more = forward.real.shape[1] - self._predicts.shape[1]  # virtual tokens of an adapter, before the others
        predicts = torch.nn.functional.pad(self._predicts, (max(more, 0), 0), value=False)
        if more < 0 or predicts.shape != forward.real.shape:
            raise ModelError(
                f"expected labels for {list(forward.real.shape)} tokens, got {list(self._predicts.shape)}; pass "
                'positions="all"'
            )
        return {"all": forward.real, "response": forward.real & predicts.to(forward.real.device)}

    def change(self, layer: int, stream: Float[Tensor, "rows seq d_model"]) -> Float[Tensor, "rows seq d_model"]:
        """The steered stream, in the stream's own precision: mixed precision would leave a rest of what is ablated."""
        with torch.autocast(stream.device.type, enabled=False):
            return super().change(layer, stream)

    def rescale(self, factor: float) -> None:
        """Change what is added to so many times its full size, in place, so that a compiled model sees it."""
        if factor == self.factor:
            return
        self.factor = factor
        self._checked.clear()
        for layer, kinds in self._adds.items():
            for kind, delta in kinds.items():
                delta.copy_(factor * self._full[layer][kind])


def _active(layer: Any) -> list[str]:
    """Names of the adapters that a layer of PEFT applies."""
    active = getattr(layer, "active_adapters", [])
    return [active] if isinstance(active, str) else list(active)


def _finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _skipped(optimizer: Any) -> bool:
    """Whether a GradScaler skipped the step and may yet find a scale that fits float16; under 1 it will not."""
    scaler = getattr(optimizer, "scaler", None)
    return getattr(optimizer, "step_was_skipped", False) and (scaler is None or scaler.get_scale() >= 1)


def counted(state: TrainerState, name: str) -> int:
    """What a resumed training's log says of a running count: the last one before the line that is being written."""
    return int(next((row[name] for row in reversed(state.log_history[:-1]) if name in row), 0))


def _distinct(name: str, taken: Mapping[str, Any]) -> str:
    """The name; where it is taken, with the first free number from 2."""
    others = (f"{name}-{number}" for number in itertools.count(2))
    return next(label for label in itertools.chain([name], others) if label not in taken)


def _described(steering: Steering, factor: float) -> str:
    vector, layer = steering.vector, steering.single_layer
    where = "all layers" if layer is None else f"layer {layer}"
    if steering.op != "add":
        return f"{vector.card.trait} {'ablated' if steering.op == 'ablate' else 'capped'} at {where}"
    coef = factor * steering.coef
    dose = f" (dose {vector.dose(layer, coef):.2f})" if layer is not None and vector.card.activation_norms else ""
    return f"{vector.card.trait} coef {coef:g} at {where}{dose}"
