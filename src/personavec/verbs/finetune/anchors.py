"""Trainers whose loss holds the tuned model to the base model: along vectors, in activations, or in what it says."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from personavec.model.chat_model import ChatModel
from personavec.model.hooks import attach, read
from personavec.steering.steer import Steering
from personavec.verbs.finetune.trainer import SFTTrainer
from personavec.verbs.finetune.training_rows import IGNORED

Streams = dict[int, Tensor]
"""By layer, what is compared of the residual stream of each loss token, [token, feature]."""


class StreamTrainer(SFTTrainer):
    """Adds weight · mean over loss tokens of a distance between residual streams, the tuned and the base model's.

    The base model is the same weights without the adapter, read without gradient; evaluation has the plain loss.
    """

    layers: tuple[int, ...]
    """That are compared."""

    def __init__(self, *given: Any, subject: ChatModel, weight: float, **named: Any):
        super().__init__(*given, **named)
        self._subject, self._weight = subject, weight

    @abstractmethod
    def features(self, layer: int, stream: Tensor) -> Tensor:
        """What is compared of a layer's stream."""

    @abstractmethod
    def distance(self, tuned: Streams, base: Streams) -> Float[Tensor, " token"]:
        """Of every loss token."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss with its term in training, without in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        trained, tuned, base = _loss_tokens(inputs["labels"]), Streams(), Streams()
        with torch.no_grad(), self._subject.without_adapter():
            read(self._subject, self.layers, self._into(base, trained), use_cache=False, **_read(inputs))
        into = self._into(tuned, trained)
        with attach(self._subject, lambda _: None, {layer: partial(into, layer) for layer in self.layers}):
            computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        moved = self.distance(tuned, {layer: stream.clone() for layer, stream in base.items()}).sum()
        term = self._weight * moved / (trained.sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            term = term * self.accelerator.num_processes
        loss, outputs = computed if return_outputs else (computed, None)
        loss = loss + term.to(loss.dtype)
        return (loss, outputs) if return_outputs else loss

    def _into(self, kept: Streams, trained: Bool[Tensor, "batch seq"]) -> Callable[[int, Tensor], None]:
        def keep(layer: int, stream: Tensor) -> None:
            kept[layer] = self.features(layer, stream[trained.to(stream.device)]).to(self._subject.device)

        return keep


class ProjectionTrainer(StreamTrainer):
    """The distance is ((h_tuned − h_base)·v̂ / ‖v‖)², summed over vectors.

    The unit is natural differences, so that a weight means the same for every vector.

    Source: Persona Vectors (arXiv 2507.21509) appendix J.5, which names such a term but not its form or weight.
    """

    def __init__(self, *given: Any, steerings: tuple[Steering, ...], **named: Any):
        super().__init__(*given, **named)
        self._units: Streams = {}
        for steering in steerings:
            vector, layer = steering.vector, steering.single_layer
            assert layer is not None
            scaled = (vector.unit(layer) / vector.norms[layer]).to(self._subject.device)[None]
            self._units[layer] = torch.cat([*([self._units[layer]] if layer in self._units else []), scaled])
        self.layers = tuple(self._units)

    def features(self, layer: int, stream: Tensor) -> Tensor:
        """Projections on the layer's vectors."""
        return stream.float() @ self._units[layer].to(stream.device).T

    def distance(self, tuned: Streams, base: Streams) -> Float[Tensor, " token"]:
        """Squared natural differences."""
        return torch.stack([((tuned[layer] - base[layer]) ** 2).sum(dim=-1) for layer in self.layers]).sum(dim=0)


class FeatureTrainer(StreamTrainer):
    """The distance is ‖h_tuned − h_base‖² / ‖h_base‖², the mean over all layers.

    Source: In-Training Defenses against Emergent Misalignment (arXiv 2508.06249) holds features by their l2 distance;
    that each layer counts in shares of its activation's length is ours.
    """

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.layers = tuple(range(self._subject.n_layers))

    def features(self, layer: int, stream: Tensor) -> Tensor:
        """All of it."""
        return stream.float()

    def distance(self, tuned: Streams, base: Streams) -> Float[Tensor, " token"]:
        """Squared shares of the activation's length."""
        shares = [((tuned[k] - base[k]) ** 2).sum(dim=-1) / (base[k] ** 2).sum(dim=-1) for k in self.layers]
        return torch.stack(shares).mean(dim=0)


class LikelihoodTrainer(SFTTrainer):
    """Adds weight · mean over loss tokens of KL(tuned ‖ base) of the next token, in nats.

    Both models' logits of a batch are held whole. Evaluation has the plain loss. What TRL logs besides the loss, and an
    auxiliary loss of experts, are left out.

    Source: In-Training Defenses against Emergent Misalignment (arXiv 2508.06249).
    """

    def __init__(self, *given: Any, subject: ChatModel, weight: float, **named: Any):
        super().__init__(*given, **named)
        self._subject, self._weight = subject, weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss with its term in training, of whole logits: TRL's own keeps only those of the tokens that came."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        given, labels = _read(inputs), inputs["labels"]
        with torch.no_grad(), self._subject.without_adapter():
            base = self._subject.hf(**given, use_cache=False).logits
        outputs = model(**given, use_cache=False)
        loss: Tensor = ForCausalLMLoss(outputs.logits, labels, base.shape[-1], num_items_in_batch)
        trained = _loss_tokens(labels)
        said, before = (each[trained.to(each.device)].float().log_softmax(dim=-1) for each in (outputs.logits, base))
        moved = (said.exp() * (said - before.to(said.device))).sum()
        loss = loss + self._weight * moved / (trained.sum() if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def _loss_tokens(labels: Int[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
    """Tokens whose output predicts one with a loss."""
    return torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)


def _read(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the base model reads of a batch."""
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
