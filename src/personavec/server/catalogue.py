"""The vectors a server knows by name: what a request may ask of them, and how much."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from personavec.errors import ConfigError, VectorError
from personavec.model.identity import ModelIdentity
from personavec.server.api.protocol import SteeringSpec, WatchSpec
from personavec.server.refused import Refused
from personavec.server.terms import Guard
from personavec.steering.dose import largest_dose
from personavec.steering.generate import Watch
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector


class Applied(NamedTuple):
    """What a request's steering comes to."""

    steering: tuple[Steering, ...]
    descriptions: list[dict[str, Any]]
    warnings: list[str]


@dataclass(frozen=True)
class Seen:
    """A direction that is read for a request."""

    key: str
    """Its name in answers: the vector's, with @LAYER if that is not the card's."""
    vector: str
    layer: int
    watch: Watch


class Catalogue:
    """Vectors by name. No text of a request ever becomes a path."""

    def __init__(self, vectors: dict[str, PersonaVector], max_dose: float, guard: Guard) -> None:
        self.vectors, self.max_dose, self.guard = vectors, max_dose, guard
        self._seen: dict[tuple[str, int], Seen] = {}

    @classmethod
    def load(
        cls, sources: Sequence[str | Path | PersonaVector], model: ModelIdentity, max_dose: float, guard: Guard
    ) -> "Catalogue":
        """Take vectors; read vector files, and all `vector.safetensors` below folders.

        Raises:
            VectorError: One is missing, damaged or of another model.
            ConfigError: A folder without vectors, or two vectors of the same trait.
        """
        vectors: dict[str, PersonaVector] = {}
        for source in sources:
            for vector, place in [(source, "memory")] if isinstance(source, PersonaVector) else _read(Path(source)):
                vector.check_model(model)
                name = vector.card.trait
                if vectors.get(name, vector) != vector:
                    raise ConfigError(f"expected one vector a trait, got another {name} in {place}; name the files")
                vectors[name] = vector
        return cls(vectors, max_dose, guard)

    def vector(self, name: str) -> PersonaVector:
        """A vector by its name.

        Raises:
            Refused: There is none.
        """
        if name not in self.vectors:
            known = ", ".join(sorted(self.vectors)) or "none"
            raise Refused(404, f"expected a vector of this server ({known}), got {name[:100]}", param="persona")
        return self.vectors[name]

    def steer(self, specs: Iterable[SteeringSpec]) -> Applied:
        """Steerings from what a request asks, held within the largest dose.

        The dose of a request is the sum of the doses it adds, or can push with a cap; with "all" layers, the largest of
        any layer's.

        Raises:
            Refused: An unknown vector or layer, too large a dose, or fields that contradict each other.
        """
        steering = [self._steering(number, spec) for number, spec in enumerate(specs)]
        doses = [largest_dose(added) for added in steering]
        known = sum(abs(amount) for amount in doses if amount is not None)
        warnings, scale = [], 1.0
        unknown = [added.vector.card.trait for added, amount in zip(steering, doses, strict=True) if amount is None]
        if unknown:
            problem = f"the dose of {', '.join(unknown)} is not known: its card has no activation norms"
            if self.guard != "warn":
                raise Refused(
                    400,
                    f"expected a dose within {self.max_dose:g}, got one that cannot be told: {problem}",
                    param="persona",
                )
            warnings.append(problem)
        if known > self.max_dose * (1 + 1e-9):
            problem = f"expected a dose of at most {self.max_dose:g} in all, got {known:.3g}"
            if self.guard == "reject":
                raise Refused(400, f"{problem}; lower coef or dose", param="persona.steering", code="dose_too_large")
            scale = self.max_dose / known if self.guard == "clamp" else 1.0
            warnings.append(f"{problem}; " + ("scaled down to it" if self.guard == "clamp" else "taken all the same"))
        steering = [_scaled(added, scale) for added in steering] if scale < 1 else steering
        return Applied(tuple(steering), [describe(added, clamped=scale < 1) for added in steering], warnings)

    def _steering(self, number: int, spec: SteeringSpec) -> Steering:
        where = f"persona.steering.{number}"
        vector = self.vector(spec.vector)
        layer = vector.card.layer if spec.layer is None else None if spec.layer == "all" else spec.layer
        bounds = {
            name: value for name in ("floor", "ceiling", "above", "below") if (value := getattr(spec, name)) is not None
        }
        amounts = [spec.coef, spec.dose]
        problem = None
        if spec.layer is None and layer is None:
            problem = "a layer, as the vector's card recommends none, got none"
        elif layer is not None and layer >= len(vector.direction):
            problem = f"a layer from 0 to {len(vector.direction) - 1}, got {layer}"
        elif spec.op == "add" and amounts.count(None) != 1:
            problem = f"either coef or dose with op add, got {'neither' if None in amounts else 'both'}"
        elif spec.op != "add" and amounts != [None, None]:
            problem = f"neither coef nor dose with op {spec.op}, got {'coef' if spec.dose is None else 'dose'}"
        elif (spec.op == "cap") != bool({"floor", "ceiling"} & bounds.keys()):
            problem = f"floor or ceiling with op cap, and with no other, got op {spec.op}"
        elif layer is None and (spec.dose is not None or {"above", "below"} & bounds.keys()):
            problem = "one layer for a dose or a condition, got all; a projection belongs to one layer"
        elif bounds.get("floor", float("-inf")) > bounds.get("ceiling", float("inf")):
            problem = "floor below ceiling, got the reverse"
        if problem:
            raise Refused(400, f"expected {problem}", param=where)
        try:
            if layer is not None:
                vector.unit(layer)
            coef = vector.coef(layer or 0, spec.dose) if spec.dose is not None else spec.coef or 0.0
        except VectorError as error:
            raise Refused(400, str(error), param=where) from None
        return Steering(vector, coef, "all" if layer is None else layer, spec.positions, spec.op, **bounds)

    def watch(self, specs: Iterable[str | WatchSpec]) -> tuple[Seen, ...]:
        """Directions to read, each once.

        Raises:
            Refused: An unknown vector or layer.
        """
        directions: dict[str, Seen] = {}
        for spec in specs:
            name, layer = (spec, None) if isinstance(spec, str) else (spec.vector, spec.layer)
            vector = self.vector(name)
            chosen = vector.card.layer if layer is None else layer
            if chosen is None:
                raise Refused(400, f"expected a layer to watch {name} at, got none in its card", param="persona.watch")
            for number in range(len(vector.direction)) if chosen == "all" else [chosen]:
                seen = self._see(name, int(number))
                directions[seen.key] = seen
        return tuple(directions.values())

    def defaults(self, names: Sequence[str]) -> tuple[Seen, ...]:
        """Directions that are read unless a request names others: of all vectors, none, or some.

        Raises:
            ConfigError: An unknown trait, or a vector whose card recommends no layer.
        """
        if tuple(names) == ("all",):
            names = [name for name, vector in self.vectors.items() if vector.card.layer is not None]
        try:
            return () if tuple(names) == ("none",) else self.watch(names)
        except Refused as error:
            raise ConfigError(f"{error}; correct --watch") from None

    def _see(self, name: str, layer: int) -> Seen:
        if (name, layer) not in self._seen:
            vector = self.vectors[name]
            try:
                unit = vector.unit(layer)
            except VectorError as error:
                raise Refused(400, str(error), param="persona.watch") from None
            key = name if layer == vector.card.layer else f"{name}@{layer}"
            self._seen[name, layer] = Seen(key, name, layer, Watch(layer, unit, vector.content_hash))
        return self._seen[name, layer]


def _read(path: Path) -> Iterator[tuple[PersonaVector, str]]:
    """The vectors in a file or below a folder, each with its path."""
    files = sorted(path.rglob("vector.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"expected vector.safetensors files below {path}, got none; run personavec extract")
    for file in files:
        yield load_vector(file), str(file)


def _scaled(steering: Steering, scale: float) -> Steering:
    """A steering that moves the stream by a share of what it would."""
    if steering.op == "cap":
        floor, ceiling = steering.floor, steering.ceiling
        return replace(
            steering,
            floor=floor * scale if floor > 0 else floor,
            ceiling=ceiling * scale if ceiling < 0 else ceiling,
        )
    return replace(steering, coef=steering.coef * scale) if steering.op == "add" else steering


def describe(steering: Steering, clamped: bool = False) -> dict[str, Any]:
    """A steering as an answer describes it."""
    description: dict[str, Any] = {
        "vector": steering.vector.card.trait,
        "op": steering.op,
        "layer": steering.layer,
        "positions": steering.positions,
    }
    if steering.op == "add":
        description |= {"coef": steering.coef, "dose": largest_dose(steering), "clamped": clamped}
    bounds = {name: getattr(steering, name) for name in ("floor", "ceiling", "above", "below")}
    return description | {name: value for name, value in bounds.items() if abs(value) != float("inf")}
