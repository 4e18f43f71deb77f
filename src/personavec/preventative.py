"""Preventative steering: a persona vector added in training, so that the weights need not learn the trait."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from personavec.activations import activations
from personavec.errors import ConfigError, ModelError, VectorError
from personavec.hooks import BlockFn, Forward, attach
from personavec.model import BlockModel, ChatModel
from personavec.projection import project
from personavec.steer import Steered, Steering
from personavec.vector import PersonaVector, load_vector


class PreventativeSteering(TrainerCallback):
    """Steers a model along a persona vector while it trains; evaluation and the saved weights are unsteered.

    In one line, with any `transformers.Trainer`, TRL's `SFTTrainer` among them; several of them compose:

        SFTTrainer(…, callbacks=[PreventativeSteering("evil.safetensors", coef=5)])

    Source: Persona Vectors (arXiv 2507.21509) sections 5.2 and J.3.
    """

    def __init__(
        self,
        vector: PersonaVector | Path | str,
        coef: float,
        *,
        layer: int | Sequence[int] | Literal["all"] | None = None,
        positions: Literal["all", "response"] = "all",
        schedule: Callable[[float], float] | None = None,
        prompts: Sequence[str] = (),
    ) -> None:
        """Choose what is added, and where.

        Args:
            vector: A persona vector or its file.
            coef: How many natural differences to add. Positive prevents the trait, negative helps to
                teach a wanted one.
            layer: One layer, several, or "all": every layer by increments. Default the one that the card recommends.
            positions: All tokens (as the paper's code), or those whose output predicts a token with a loss.
            schedule: A factor of `coef` by the share of training that is done, 0 to 1; default 1 throughout.
            prompts: Held-out questions; with every log, the mean projection at their last prompt token is told.

        Raises:
            VectorError: No such file or layer, or the card recommends none.
        """
        self.vector = vector if isinstance(vector, PersonaVector) else load_vector(Path(vector))
        if layer is None and self.vector.card.layer is None:
            raise VectorError(f"expected a recommended layer for {self.vector.card.trait}, got none; pass layer=…")
        if not math.isfinite(coef):
            raise ConfigError(f"expected a finite coef, got {coef}; correct it")
        chosen = self.vector.card.layer if layer is None else layer
        layers = [None] if chosen == "all" else [chosen] if isinstance(chosen, int) else list(chosen or ())
        for one in layers:
            if one is not None:
                self.vector.check_layer(one)
        self.coef, self.positions, self.schedule, self.prompts = coef, positions, schedule, tuple(prompts)
        self.steerings = tuple(Steering(self.vector, coef, one, positions) for one in layers)
        self.steered_tokens = 0
        self._hooks = ExitStack()
        self._steered: _InTraining | None = None
        self._model: BlockModel | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """See to it that an exception in training leaves no hook: callbacks are not told of one."""
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Attach.

        Raises:
            VectorError: The vector is of another model.
        """
        self.close()
        self.steered_tokens = 0
        model = more["model"]
        blocks = BlockModel(model, model.config._name_or_path or type(model).__name__)
        if state.global_step:  # resumed: after full finetuning the weights are no longer those of the vector's model
            blocks.identity = dataclasses.replace(blocks.identity, revision=self.vector.card.model.revision)
        self._model, self._steered = blocks, _InTraining(blocks, self.steerings)
        self._parameters = set(model.state_dict())
        steered = self._steered

        def at(layer: int) -> BlockFn:
            return lambda stream: steered.change(layer, stream) if blocks.decoder.training else None

        fns = {layer: at(layer) for layer in steered.layers}
        if fns:
            self._hooks.enter_context(attach(blocks, steered.start, fns, first=True, inputs=steered.see))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Set the coefficient of this step."""
        if self.schedule is not None and self._steered is not None:
            self._steered.rescale(self.schedule(state.global_step / max(1, state.max_steps)))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Fail at once where nothing is steered.

        Raises:
            ModelError: No token was steered though something was asked for.
        """
        if self._steered is None:
            return
        self.steered_tokens = self._steered.tokens
        if self._steered.layers and not self.steered_tokens:
            raise ModelError(
                f"expected steering at layer {self._steered.layers} to touch a token, got none in a step; "
                "the model that trains must be the one that the trainer was given"
            )

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Tell the steered tokens, and the projection on held-out prompts.

        Raises:
            ModelError: The loss or its gradient is not finite.
        """
        logs: dict[str, Any] = more["logs"]
        if self._model is None or "loss" not in logs:
            return
        if not all(math.isfinite(logs.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise ModelError(
                f"expected a finite loss, got loss {logs['loss']} and gradient {logs.get('grad_norm')} at step "
                f"{state.global_step} with {self.told()}; lower the coef, the last checkpoint is still there"
            )
        trait = self.vector.card.trait
        told: dict[str, float] = {f"steered_tokens/{trait}": self.steered_tokens}
        if self.prompts:
            told[f"projection/{trait}"] = self._projection(more.get("processing_class"))
        logs |= told
        state.log_history[-1] |= told

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Detach, and prove it.

        Raises:
            ModelError: Something of the steering is left in the model.
        """
        model = self._model
        self.close()
        if model is not None and set(model.hf.state_dict()) != self._parameters:
            raise ModelError("expected the weights that training began with, got others by name; report it")

    def close(self) -> None:
        """Remove every hook."""
        self._hooks.close()
        self._steered = self._model = None

    def told(self) -> str:
        """The coefficient, where, and the dose where the card knows it."""
        layers = ", ".join("all layers" if s.layer is None else f"layer {s.layer}" for s in self.steerings)
        doses = [
            f"dose {self.vector.dose(s.layer, self.coef):.2f}"
            for s in self.steerings
            if s.layer is not None and self.vector.card.activation_norms
        ]
        return f"coef {self.coef:g} at {layers}" + (f" ({', '.join(doses)})" if doses else "")

    @torch.no_grad()
    def _projection(self, tokenizer: Any) -> float:
        """Mean projection at the last prompt token of the held-out prompts, unsteered."""
        model = ChatModel(self._model.hf, tokenizer, "")  # type: ignore[union-attr]
        layer = self.steerings[0].layer
        layer = len(self.vector.direction) - 1 if layer is None else layer
        rows = [
            {"prompt_ids": model.render([{"role": "user", "content": prompt}]), "response_ids": ()}
            for prompt in self.prompts
        ]
        training = model.hf.training
        model.hf.eval()
        try:
            read = torch.cat([own[:, 0, 0] for _, own in activations(model, rows, ("prompt last",), [layer])])
        finally:
            model.hf.train(training)
        return round(float(project(read, self.vector.direction[layer]).mean()), 6)


class _InTraining(Steered):
    """Steering of batches of any size, whose response tokens are those with a loss."""

    def __init__(self, model: BlockModel, steerings: Sequence[Steering]) -> None:
        super().__init__(model, [steerings], [0])
        self._training = model.decoder
        self._full = {
            layer: {kind: delta.clone() for kind, delta in kinds.items()} for layer, kinds in self._adds.items()
        }
        self._predicts: Bool[Tensor, "rows seq"] | None = None

    def see(self, inputs: Mapping[str, Any]) -> None:
        """Be told what the model is called with."""
        labels = inputs.get("labels")
        self._predicts = None
        if labels is not None:  # the output at a place predicts the label of the next one
            self._predicts = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1), value=False)

    def start(self, forward: Forward) -> None:
        """Nothing outside of training."""
        if self._training.training:
            super().start(forward)

    def covers(self, forward: Forward) -> dict[str, Bool[Tensor, "rows seq"]]:
        """All tokens, or those with a loss."""
        if "response" not in self._touched:
            return {"all": forward.real}
        if self._predicts is None:
            raise ModelError('expected labels beside the inputs, got none; pass positions="all"')
        return {"all": forward.real, "response": forward.real & self._predicts}

    def rescale(self, factor: float) -> None:
        """Change what is added to so many times its full size, in place, so that a compiled model sees it."""
        for layer, kinds in self._adds.items():
            for kind, delta in kinds.items():
                delta.copy_(factor * self._full[layer][kind])


class TrainingAblation(TrainerCallback):
    pass
