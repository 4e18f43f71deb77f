"""What proves a vector: a sweep that finds the knee, arms on both signs, and controls of the same norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from personavec.errors import ConfigError, DataError
from personavec.model import ChatModel
from personavec.rollouts import Plan, answers
from personavec.scoring import Judges, mean_score
from personavec.stats import Interval
from personavec.steer import Steering
from personavec.trait import Trait
from personavec.vector import PersonaVector

SWEPT_DEPTH = (0.3, 0.7)
"""Share of the depth where the sweep looks. Source: replications find the best layer at 45-65%."""
SWEPT_LAYERS = 5
KNEE = 0.5
"""Share of the strongest change in the trait that the chosen cell must bring: the half-maximal effective dose."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One layer and coefficient of the sweep, and what it did."""

    layer: int
    coef: float
    dose: float
    trait: Interval
    coherence: Interval


@dataclass(frozen=True)
class Arm:
    """One way to steer in the final check."""

    name: str
    direction: str
    """"none", "vector", "random" or "shuffled"."""
    share: float
    """Coefficient as a share of the chosen one."""
    decides: bool = True
    """Whether the verdict asks for it; the others are there to be looked at."""


ARMS = (
    Arm("suppressed", "vector", -1),
    Arm("half_suppressed", "vector", -0.5, decides=False),
    Arm("base", "none", 0),
    Arm("half_steered", "vector", 0.5, decides=False),
    Arm("steered", "vector", 1),
    Arm("random", "random", 1),
    Arm("shuffled", "shuffled", 1, decides=False),
)


def swept_layers(asked: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """The layers asked for, or else five spread over the middle of the depth.

    Raises:
        ConfigError: The model has no such layer.
    """
    wrong = [layer for layer in asked if not 0 <= layer < n_layers]
    if wrong:
        raise ConfigError(
            f"expected layers from 0 to {n_layers - 1}, got {', '.join(map(str, wrong))}; layers count blocks from 0"
        )
    low, high = SWEPT_DEPTH
    spread = np.unique(np.linspace(low * n_layers, high * n_layers, SWEPT_LAYERS).astype(int).clip(0, n_layers - 1))
    return tuple(asked) or tuple(spread.tolist())


def sweep_plans(
    model: ChatModel,
    trait: Trait,
    vector: PersonaVector,
    layers: Sequence[int],
    doses: Sequence[float],
    questions: int,
    seed: int,
    system: str,
) -> list[Plan]:
    """One reply to each of the first held-out questions for every layer and dose."""
    return [
        plan
        for layer in layers
        for dose in doses
        for plan in answers(
            model,
            trait.evaluate[:questions],
            1,
            seed,
            systems=(system,),
            draw="sweep",
            extra={"layer": int(layer), "dose": dose, "coef": vector.coef(layer, dose)},
            steering=[(Steering(vector, vector.coef(layer, dose), layer),)],
        )
    ]


def cells(rows: Sequence[Row], seed: int) -> list[Cell]:
    """The sweep's scored replies, averaged by layer and dose."""
    groups: dict[tuple[int, float, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["layer"], row["coef"], row["dose"]), []).append(row)
    return [
        Cell(*key, mean_score(group, "trait", seed), mean_score(group, "coherence", seed))
        for key, group in groups.items()
    ]


def knee(found: Sequence[Cell], base: Interval, floor: float) -> Cell:
    """The gentlest cell that brings half of the strongest cell's change, among those that surely stay coherent.

    Surely: the interval of coherence lies above the floor. Half: past it more dose buys less and less, and damage of
    which random directions do as much. Where no cell is coherent, the most coherent one:
    the final check then says that the floor was missed.

    Args:
        found: The cells of the sweep.
        base: Trait score of the unsteered replies to the same questions.
        floor: Coherence, 0 to 100.

    Raises:
        DataError: No cell has a scored reply.

    Source: Persona Vectors (arXiv 2507.21509) sections 3.2 and 5.1 take the strongest cell.
    """
    scored = [cell for cell in found if cell.trait.n and cell.coherence.n]
    if not scored:
        raise DataError(
            "expected steered replies in the sweep, got empty ones only; choose smaller --doses and another --out"
        )
    coherent = [cell for cell in scored if cell.coherence.low >= floor]
    if not coherent:
        return max(scored, key=lambda cell: cell.coherence.mean)
    best = max(cell.trait.mean for cell in coherent)
    enough = min(best, base.mean + KNEE * (best - base.mean))
    strong = [cell for cell in coherent if cell.trait.mean >= enough]
    return min(strong, key=lambda cell: (cell.dose, -cell.trait.mean))


def check_plans(
    model: ChatModel,
    trait: Trait,
    directions: dict[str, list[PersonaVector]],
    layer: int,
    coef: float,
    rollouts: int,
    seed: int,
    system: str,
) -> list[Plan]:
    """Fresh replies of every arm but the base, with the base replies' random numbers."""
    return [
        plan
        for arm in ARMS
        if arm.direction != "none"
        for plan in answers(
            model,
            trait.evaluate,
            rollouts if arm.decides else (rollouts + 1) // 2,
            seed,
            systems=(system,),
            draw="base",
            extra={"arm": arm.name, "layer": layer, "coef": arm.share * coef},
            steering=[(Steering(vector, arm.share * coef, layer),) for vector in directions[arm.direction]],
        )
    ]


def random_directions(vector: PersonaVector, count: int, seed: int) -> list[PersonaVector]:
    """The vector turned at random as a whole: without meaning, but as long at every layer and from layer to layer.

    A single direction may push a trait far up or down by chance. With another one for every reply of an arm, the arm's
    interval speaks of random directions in general.
    """
    _, shape = torch.linalg.qr(vector.direction.T)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((count, vector.direction.shape[1], len(shape)), generator=generator)
    basis, mixed = torch.linalg.qr(drawn)
    # the signs make it uniform: the factorisation has a convention of its own
    turned = basis * mixed.diagonal(dim1=-2, dim2=-1).sign()[:, None] @ shape
    return [PersonaVector(direction.T, vector.card) for direction in turned]


def rescaled(other: PersonaVector, vector: PersonaVector) -> PersonaVector:
    """Another vector made as long as the vector at every layer."""
    factor = vector.norms / other.norms.clamp(min=torch.finfo(torch.float32).tiny)
    return PersonaVector(other.direction * factor[:, None], vector.card)


def verdict(arms: dict[str, Row], judges: Judges, floor: float) -> list[Row]:
    """The conditions of a proof, each with its figures and whether it holds."""
    trait = {name: arm["trait"] for name, arm in arms.items()}
    base, steered, suppressed, random = (trait[name] for name in ("base", "steered", "suppressed", "random"))
    up, down = (arms[name]["coherence"] for name in ("steered", "suppressed"))
    auc = judges.trait.auc or Interval(np.nan, np.nan, np.nan, 0)
    return [
        {"text": f"Suppressed lies below base: {_ci(suppressed)} < {_ci(base)}", "holds": suppressed.high < base.low},
        {"text": f"Steered lies above base: {_ci(steered)} > {_ci(base)}", "holds": steered.low > base.high},
        {
            "text": f"Random directions of the same norm do not move it: {_ci(random)} covers {base.mean:.1f}",
            "holds": random.low <= base.mean <= random.high,
        },
        {
            "text": f"Replies stay coherent: {_ci(up)} steered, {_ci(down)} suppressed, floor {floor:g}",
            "holds": up.mean >= floor and down.mean >= floor,
        },
        {
            "text": f"The judge separates the sides it never saw: AUC {auc.mean:.2f} [{auc.low:.2f}, {auc.high:.2f}]",
            "holds": not judges.weak,
        },
    ]


def _ci(value: Interval) -> str:
    return f"{value.mean:.1f} [{value.low:.1f}, {value.high:.1f}]"
