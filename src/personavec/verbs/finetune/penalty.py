"""The projection penalty: a term of the loss that holds the model where it was along a persona vector."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from personavec.model.chat_model import ChatModel
from personavec.model.hooks import attach, read
from personavec.steering.steer import Steering
from personavec.verbs.finetune.trainer import SFTTrainer
from personavec.verbs.finetune.training_rows import IGNORED


class PenalisedTrainer(SFTTrainer):
    """Adds weight · mean over loss tokens of ((h_tuned − h_base)·v̂ / ‖v‖)², summed over vectors.

    The unit is natural differences, so that a weight means the same for every vector. The base model is the same
    weights without the adapter, read without gradient.

    Source: Persona Vectors (arXiv 2507.21509) appendix J.5, which names such a term but not its form or weight.
    """

    def __init__(self, *given: Any, subject: ChatModel, steerings: tuple[Steering, ...], weight: float, **named: Any):
        super().__init__(*given, **named)
        self._subject, self._weight = subject, weight
        self._units: dict[int, Tensor] = {}
        for steering in steerings:
            vector, layer = steering.vector, steering.layer
            assert layer is not None
            scaled = (vector.unit(layer) / vector.norms[layer]).to(subject.device)[None]
            self._units[layer] = torch.cat([*([self._units[layer]] if layer in self._units else []), scaled])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss with its penalty in training, without in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        base: dict[int, Tensor] = {}
        tuned: dict[int, Tensor] = {}
        given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
        with self._subject.without_adapter():
            read(self._subject, self._units, self._into(base), use_cache=False, **given)
        fns = {layer: partial(self._into(tuned), layer) for layer in self._units}
        with attach(self._subject, lambda _: None, fns):
            computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        trained = torch.nn.functional.pad(inputs["labels"][:, 1:] != IGNORED, (0, 1), value=False)
        moved = sum(((tuned[layer] - base[layer].clone())[trained] ** 2).sum() for layer in self._units)
        tokens = trained.sum() if num_items_in_batch is None else num_items_in_batch
        penalty = self._weight * moved / tokens
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            penalty = penalty * self.accelerator.num_processes
        loss, outputs = computed if return_outputs else (computed, None)
        loss = loss + penalty.to(loss.dtype)
        return (loss, outputs) if return_outputs else loss

    def _into(self, projections: dict[int, Tensor]) -> Callable[[int, Tensor], None]:
        def keep(layer: int, stream: Tensor) -> None:
            projections[layer] = stream.float() @ self._units[layer].T

        return keep
