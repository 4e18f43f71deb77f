"""Preventative steering: a vector added in training, so that the weights need not learn the trait; and ablation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from personavec.errors import ConfigError, VectorError
from personavec.steering.steer import Steering
from personavec.steering.training import TrainingSteering
from personavec.steering.vector import PersonaVector, load_vector

Layers = int | Sequence[int] | Literal["all"]


class PreventativeSteering(TrainingSteering):
    """Steers a model along a persona vector while it trains; evaluation and the saved weights are unsteered.

    In one line, with any `transformers.Trainer`, TRL's `SFTTrainer` among them; several of them compose:

        SFTTrainer(…, callbacks=[PreventativeSteering("evil.safetensors", coef=1)])

    Source: Persona Vectors (arXiv 2507.21509) sections 5.2 and J.3.
    """

    def __init__(
        self,
        vector: PersonaVector | Path | str,
        coef: float,
        *,
        layer: Layers | None = None,
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
            prompts: Held-out questions; with every log, the mean projection at their last prompt token is reported.

        Raises:
            VectorError: No such file or layer, or the card recommends none.
            ConfigError: Something that means nothing.
        """
        self.vector = _loaded(vector)
        if layer is None and self.vector.card.layer is None:
            raise VectorError(f"expected a recommended layer for {self.vector.card.trait}, got none; pass layer=…")
        self.coef, self.positions = coef, positions
        layers = _layers(self.vector.card.layer if layer is None else layer)
        steerings = [Steering(self.vector, coef, at, positions) for at in layers]
        super().__init__(steerings, schedule=schedule, prompts=prompts)


class TrainingAblation(TrainingSteering):
    """Removes what lies along persona vectors from the stream while a model trains: concept ablation finetuning.

    Of several vectors the whole span is removed. Each layer loses its own row of a vector, at all tokens; there is no
    coefficient. Evaluation and the saved weights are untouched.

        SFTTrainer(…, callbacks=[TrainingAblation("evil.safetensors")])

    Source: Persona Vectors (arXiv 2507.21509) appendix J.4, after CAFT (Casademunt et al. 2025).
    """

    def __init__(
        self,
        vectors: PersonaVector | Path | str | Sequence[PersonaVector | Path | str],
        *,
        layers: Layers = "all",
        prompts: Sequence[str] = (),
    ) -> None:
        """Choose what is removed, and where.

        Args:
            vectors: One persona vector or several, or their files.
            layers: "all", as the paper, one layer or several.
            prompts: Held-out questions; with every log, the mean projections at their last prompt token are reported.

        Raises:
            VectorError: No such file or layer.
            ConfigError: Something that means nothing.
        """
        several = [vectors] if isinstance(vectors, PersonaVector | Path | str) else list(vectors)
        loaded, chosen = [_loaded(vector) for vector in several], _layers(layers)
        steerings = [Steering(v, layer=at, positions="all", op="ablate") for v in loaded for at in chosen]
        super().__init__(steerings, prompts=prompts)


def _loaded(vector: PersonaVector | Path | str) -> PersonaVector:
    return vector if isinstance(vector, PersonaVector) else load_vector(Path(vector))


def _layers(layers: Layers | None) -> tuple[int | Literal["all"], ...]:
    """Each layer that is meant."""
    if layers == "all":
        return ("all",)
    chosen = (layers,) if isinstance(layers, int) else tuple(layers or ())
    if not chosen or len(set(chosen)) < len(chosen) or not all(isinstance(at, int) for at in chosen):
        raise ConfigError(f'expected a layer, several different ones or "all", got {layers!r}; correct it')
    return chosen
