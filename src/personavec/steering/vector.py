"""A persona vector: one direction per layer, and the card that says where it came from."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from personavec.errors import ConfigError, VectorError
from personavec.model.identity import PARTIAL, ModelIdentity
from personavec.runs.files import write_file
from personavec.runs.show import table
from personavec.steering.dose import coef_of, dose_of

if TYPE_CHECKING:
    from personavec.steering.steer import Positions, Steered, Steering

SITE = "resid_post"


@dataclass(frozen=True)
class Card:
    """Where a vector comes from and how to use it; stored as JSON in the file's header."""

    trait: str
    model: ModelIdentity
    position: str
    """Which activations were averaged: "response avg", "prompt avg" or "prompt last"; "shuffled" for the control."""
    site: str = SITE
    """Row i is the output of decoder block i, 0-based, before the final norm."""
    layer: int | None = None
    """The layer the sweep chose."""
    coef: float | None = None
    """The coefficient the sweep chose, at that layer."""
    activation_norms: tuple[float, ...] = ()
    """Mean norm of the base model's response-token activations, per layer; the unit of dose."""
    reliability: tuple[float, ...] = ()
    """Split-half cosine per layer: vectors from disjoint halves of the questions; empty where a half had no replies."""
    system_prompt: str = "none"
    """System-prompt policy of the unsteered replies."""
    details: dict[str, Any] = field(default_factory=dict)
    """Counts, judge, seed, sampler settings: everything else worth keeping; `absent_layers` of an imported vector."""

    def lines(self) -> list[tuple[str, str]]:
        """Names and values of what says most, for a terminal and a notebook."""
        chosen = None if self.layer is None or self.coef is None else f"layer {self.layer}, coef {self.coef:.3g}"
        shown: dict[str, object] = {
            "trait": self.trait,
            "model": f"{self.model.id} ({self.model.n_layers} layers, {self.model.d_model} wide)",
            "mean of": f"{self.position} at {self.site}",
            "recommended": chosen or "–",
            "system prompt": self.system_prompt,
        }
        for side, count in self.details.get("counts", {}).items():
            shown[f"{side} replies kept"] = f"{count['kept']} of {count['written']}"
        return [(name, str(value)) for name, value in shown.items()]

    def _repr_html_(self) -> str:
        return table(["", ""], self.lines(), "Card")


@dataclass(frozen=True, eq=False)
class PersonaVector:
    """Difference in mean activation between replies that show a trait and replies that show its opposite.

    Not normalised: coef 1 adds one natural difference. Float32 on the CPU.
    Source: Persona Vectors (arXiv 2507.21509) section 2.2.
    """

    direction: Float[Tensor, "layer d_model"]
    card: Card

    def __post_init__(self) -> None:
        wanted, shape = (self.card.model.n_layers, self.card.model.d_model), tuple(self.direction.shape)
        bad = int((~torch.isfinite(self.direction)).sum())
        if shape != wanted or bad:
            raise VectorError(
                f"expected finite directions of shape {wanted}, got {shape} with {bad} bad values; extract them again"
            )
        object.__setattr__(self, "direction", self.direction.detach().to("cpu", torch.float32).contiguous())

    @property
    def norms(self) -> Float[Tensor, " layer"]:
        """Length of the direction at each layer, in activation units."""
        norms: Tensor = self.direction.norm(dim=-1)
        return norms

    @property
    def absent(self) -> frozenset[int]:
        """Layers that the file it was imported from does not hold; their rows repeat the layer before."""
        return frozenset(self.card.details.get("absent_layers", ()))

    @property
    def content_hash(self) -> str:
        """Sha256 of the card and the numbers."""
        card = json.dumps(dataclasses.asdict(self.card), sort_keys=True).encode()
        return hashlib.sha256(card + self.direction.numpy().tobytes()).hexdigest()

    def unit(self, layer: int) -> Float[Tensor, " d_model"]:
        """The direction at a layer scaled to length 1.

        Raises:
            VectorError: No such layer, or the direction there is zero.
        """
        self.check_layer(layer)
        norm = self.norms[layer]
        if norm == 0:
            raise VectorError(f"expected a direction, got all zeros at layer {layer}; choose another layer")
        return self.direction[layer] / norm

    def dose(self, layer: int, coef: float) -> float:
        """Size of the added vector relative to the stream, signed like coef; see `steering/dose.py`."""
        return dose_of(coef, float(self.norms[layer]), self._activation_norm(layer))

    def coef(self, layer: int, dose: float) -> float:
        """The coefficient that supplies a (signed) dose at a layer."""
        self.unit(layer)
        return coef_of(dose, float(self.norms[layer]), self._activation_norm(layer))

    def at(
        self,
        coef: float | None = None,
        *,
        dose: float | None = None,
        layer: int | Literal["all"] | None = None,
        positions: "Positions" = "response",
    ) -> "Steering":
        """This vector as a steering: `model.chat("…", steer=vector.at(dose=0.2))`.

        Args:
            coef: How many natural differences to add; default the one that the card recommends.
            dose: In its place, a share of the activations' norm at that layer; negative suppresses.
            layer: Which block's output to change, or "all" of them by increments; default the card's.
            positions: "response", "prompt" or "all" tokens.

        Raises:
            VectorError: No such layer; the card recommends none, or no coef; it holds no norms for a dose.
            ConfigError: Both a coef and a dose, or a dose at all layers.
        """
        from personavec.steering.steer import Steering

        chosen = self.card.layer if layer is None else layer
        if chosen is None:
            raise VectorError(f"expected a recommended layer for {self.card.trait}, got none; pass layer=…")
        if not isinstance(dose, Real | None):
            raise ConfigError(f"expected dose to be a number, got {dose!r}; correct it")
        if coef is not None and dose is not None:
            raise ConfigError(f"expected a coef or a dose, got coef {coef} and dose {dose}; leave one out")
        if chosen == "all" and dose is not None:
            raise ConfigError(f"expected a coef at all layers, got the dose {dose}; a dose belongs to one layer")
        if chosen != "all":
            self.check_layer(chosen)
            coef = self.coef(chosen, dose) if dose is not None else coef
        coef = (self.card.coef if chosen == self.card.layer else None) if coef is None else coef
        if coef is None:
            raise VectorError(
                f"expected a recommended coef for {self.card.trait} at layer {chosen}, got none; pass coef=… or dose=…"
            )
        return Steering(self, coef, chosen, positions)

    @contextmanager
    def steer(
        self,
        model: Any,
        coef: float | None = None,
        *,
        dose: float | None = None,
        layer: int | Literal["all"] | None = None,
        positions: "Positions" = "response",
    ) -> Iterator["Steered"]:
        """Steer a model while the context is open: `with vector.steer(model, coef=2): model.generate(**inputs)`.

        The prompt's length is taken from each call of `generate`. For batches whose rows are steered differently, see
        `personavec.steering.steer.steer`.

        Args:
            model: A `ChatModel`, or a Hugging Face model, perhaps wrapped by PEFT.
            coef: As for `at`, like the rest.
            dose: As for `at`.
            layer: As for `at`.
            positions: As for `at`.

        Raises:
            VectorError: The vector is of another model, or as for `at`.
            ConfigError: As for `at`.
            ModelError: No token was steered, or the stream overflowed.
        """
        from personavec.model.chat_model import BlockModel
        from personavec.steering.steer import steer

        subject = model if isinstance(model, BlockModel) else BlockModel(model)
        with steer(subject, [[self.at(coef, dose=dose, layer=layer, positions=positions)]], "call") as steered:
            yield steered

    def _activation_norm(self, layer: int) -> float:
        self.check_layer(layer)
        if not self.card.activation_norms:
            raise VectorError(
                f"expected activation norms in the card of {self.card.trait}, got none; give a coef, not a dose"
            )
        return self.card.activation_norms[layer]

    def check_layer(self, layer: int) -> None:
        """Raise VectorError unless the vector has this layer."""
        n_layers = len(self.direction)
        if not isinstance(layer, Integral) or not 0 <= layer < n_layers:
            raise VectorError(f"expected a layer from 0 to {n_layers - 1}, got {layer}; layers count blocks from 0")
        if layer in self.absent:
            raise VectorError(
                f"expected a layer that {self.card.trait} has, got {layer}, which the file it was imported from does "
                "not hold; choose another layer"
            )

    def check_model(self, model: ModelIdentity) -> None:
        """Raise VectorError unless the vector was extracted from this model; adapters on top do not matter.

        Where one of the two was quantised, spread over processes, or lost part of them to an adapter, weights cannot
        be compared: their names are.
        """
        origin = self.card.model
        if (origin.n_layers, origin.d_model) != (model.n_layers, model.d_model):
            raise VectorError(
                f"expected a vector for {model.id} ({model.n_layers} layers, {model.d_model} wide), got "
                f"{self.card.trait} from {origin.id} ({origin.n_layers} layers, {origin.d_model} wide); "
                "extract it from this model, or pass the --model it came from"
            )
        partial = origin.revision.endswith(PARTIAL) or model.revision.endswith(PARTIAL)
        if partial and origin.id != model.id and origin.revision != model.revision:
            raise VectorError(
                f"expected a vector for {model.id} by name, as weights that are quantised, partitioned or partly in an "
                f"adapter cannot be compared, got {self.card.trait} from {origin.id}; load the model by that name, or "
                "extract the vector by this one"
            )
        if not partial and origin.revision != model.revision:
            raise VectorError(
                f"expected a vector for {model.id} (weights {model.revision[:12]}), got {self.card.trait} from "
                f"{origin.id} (weights {origin.revision[:12]}); extract it from this model, or pass the "
                "--model it came from"
            )

    def _with(self, direction: Tensor, sign: str = "", other: "PersonaVector | None" = None) -> "PersonaVector":
        """A computed vector; what its card says of coef, reliability and counts was of this one alone."""
        trait = f"{self.card.trait} {sign} {other.card.trait}" if other else self.card.trait
        absent = sorted(self.absent | other.absent if other else self.absent)
        details = {"absent_layers": absent} if absent else {}
        card = dataclasses.replace(self.card, trait=trait, coef=None, reliability=(), details=details)
        return PersonaVector(direction, card)

    def __add__(self, other: "PersonaVector") -> "PersonaVector":
        other.check_model(self.card.model)
        return self._with(self.direction + other.direction, "+", other)

    def __sub__(self, other: "PersonaVector") -> "PersonaVector":
        other.check_model(self.card.model)
        return self._with(self.direction - other.direction, "-", other)

    def __mul__(self, factor: float) -> "PersonaVector":
        return self._with(self.direction * factor)

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> "PersonaVector":
        return self._with(self.direction / factor)

    def __neg__(self) -> "PersonaVector":
        return self._with(-self.direction)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PersonaVector) and torch.equal(self.direction, other.direction)

    def __hash__(self) -> int:
        return hash((self.direction + 0.0).numpy().tobytes())  # + 0.0: equal zeros may differ in sign

    def __repr__(self) -> str:
        card, (layers, width) = self.card, self.direction.shape
        where = f", layer {card.layer}" if card.layer is not None else ""
        where += f", coef {card.coef:.3g}" if card.coef is not None else ""
        return f"PersonaVector({card.trait} of {card.model.id}: {layers} layers × {width}, {card.position}{where})"

    def _repr_html_(self) -> str:
        columns = (self.norms.tolist(), self.card.activation_norms, self.card.reliability)
        rows = [
            (f"{layer} ←" if layer == self.card.layer else layer, *(f"{c[layer]:.2f}" if c else "–" for c in columns))
            for layer in range(len(self.direction))
        ]
        about = table(["", ""], self.card.lines(), f"Persona vector: {self.card.trait}")
        return about + table(["layer", "‖v‖", "‖h‖", "reliability"], rows)

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        card = dataclasses.asdict(self.card) | {"content_hash": self.content_hash}
        return save({"direction": self.direction}, metadata={"card": json.dumps(card, sort_keys=True)})

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, card in its header; atomic."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, self.to_bytes())
        return path


def load_vector(path: str | Path) -> PersonaVector:
    """Read a vector written by `PersonaVector.save`, or one that came with the package, by its trait's name.

    Raises:
        VectorError: No such file, not a persona vector, or its numbers were changed.
    """
    path, packaged = Path(path), packaged_vectors()
    if not path.is_file():
        if str(path) not in packaged:
            near = get_close_matches(str(path), packaged, n=1)
            todo = f"did you mean {near[0]}?" if near else "run `personavec extract` first"
            known = f"one of {', '.join(packaged)} (vectors of smollm2)"
            raise VectorError(f"expected a persona vector file or {known}, got no file at {path}; {todo}")
        path = packaged[str(path)]
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            direction = file.get_tensor("direction")
        if not direction.is_floating_point() or direction.itemsize < 2:
            raise ValueError(f"a direction of {direction.dtype}")
        card = json.loads(metadata["card"])
        content_hash = card.pop("content_hash")
        card |= {name: tuple(card[name]) for name in ("activation_norms", "reliability")}
        read = Card(**card | {"model": ModelIdentity(**card["model"])})
        if wrong := _wrong(read):
            raise ValueError(f"{wrong} in its card")
        vector = PersonaVector(direction, read)
        there = vector.content_hash
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise VectorError(
            f"expected a persona vector (safetensors with a `direction` and a card), got {path} "
            f"({repr(error)[:200]}); pass the vector.safetensors of an extract run"
        ) from error
    if content_hash != there:
        raise VectorError(f"expected content hash {content_hash}, got {there} in {path}; copy it again")
    return vector


def _wrong(card: Card) -> str:
    """The first field of a card that cannot be what a vector's card says, with its value; empty if none."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    def text(value: Any) -> bool:
        return isinstance(value, str) and value.isprintable()

    def layer(value: Any) -> bool:
        return type(value) is int and 0 <= value < card.model.n_layers

    def each(values: Any, least: float) -> bool:
        return not values or (
            len(values) == card.model.n_layers and all(number(value) and value >= least for value in values)
        )

    sizes = card.model.n_layers, card.model.d_model
    absent = card.details.get("absent_layers", []) if isinstance(card.details, dict) else None
    fine = {
        "trait": text(card.trait) and card.trait.strip() != "",
        "model": text(card.model.id) and text(card.model.revision) and all(type(size) is int for size in sizes),
        "position": text(card.position),
        "site": text(card.site),
        "layer": card.layer is None or layer(card.layer),
        "coef": card.coef is None or number(card.coef),
        "activation_norms": each(card.activation_norms, 0),
        "reliability": each(card.reliability, -2),
        "system_prompt": isinstance(card.system_prompt, str),
        "details": isinstance(absent, list | tuple) and all(map(layer, absent)),
    }
    return next((f"{name} {str(getattr(card, name))[:60]!r}" for name, good in fine.items() if not good), "")


@cache
def packaged_vectors() -> dict[str, Path]:
    """Vectors of the default model that come with the package, by trait: those that were proven on it."""
    folder = Path(__file__).parent / "vectors"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def increments(direction: Float[Tensor, "layer d_model"]) -> Float[Tensor, "layer d_model"]:
    """Per-layer increments v_l − v_(l−1), v_(−1) = 0: added at every layer, their running sum is v_l.

    Source: Persona Vectors (arXiv 2507.21509) appendix J.3; the paper leaves v_(−1) open, here it is 0.
    """
    return torch.diff(direction, dim=0, prepend=torch.zeros_like(direction[:1]))
