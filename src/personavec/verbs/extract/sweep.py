"""The sweep: steering at every layer and dose, and the gentlest cell that does enough."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personavec.errors import ConfigError, DataError
from personavec.judges.scoring import ScoredRow, mean_score
from personavec.stats.intervals import Interval
from personavec.steering.rollouts import Interview, Plan
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

SWEPT_DEPTH = (0.3, 0.7)
"""Share of the depth where the sweep looks. Source: replications find the best layer at 45-65%."""
SWEPT_LAYERS = 5
KNEE = 0.75
"""Share of the strongest change in the trait that the chosen cell must bring."""


@dataclass(frozen=True)
class Cell:
    """One layer and coefficient of the sweep, and what it did."""

    layer: int
    coef: float
    dose: float
    trait: Interval
    coherence: Interval


def swept_layers(layers: Sequence[int], n_layers: int, idle: Sequence[int] = ()) -> tuple[int, ...]:
    """The layers asked for, or else five spread over the middle of the depth, those that are idle left out.

    Raises:
        ConfigError: The model has no such layer, or it does not run on text.
    """
    if not_run := sorted({*layers} & {*idle}):
        raise ConfigError(
            f"expected layers that run on text, got {', '.join(map(str, not_run))}; leave these out: "
            f"{', '.join(map(str, idle))}"
        )
    wrong = [layer for layer in layers if not 0 <= layer < n_layers]
    if wrong:
        raise ConfigError(
            f"expected layers from 0 to {n_layers - 1}, got {', '.join(map(str, wrong))}; layers count blocks from 0"
        )
    low, high = SWEPT_DEPTH
    running = np.array([layer for layer in range(n_layers) if layer not in idle])
    spread = np.linspace(low * n_layers, high * n_layers, SWEPT_LAYERS).astype(int).clip(0, n_layers - 1)
    nearest = np.abs(running[:, None] - spread).argmin(axis=0)
    return tuple(layers) or tuple(np.unique(running[nearest]).tolist())


def sweep_plans(
    interview: Interview,
    questions: Sequence[str],
    vector: PersonaVector,
    layers: Sequence[int],
    doses: Sequence[float],
) -> list[Plan]:
    """One reply to each question for every layer and dose."""
    return [
        plan
        for layer in layers
        for dose in doses
        for plan in interview.answers(
            questions,
            1,
            draw="sweep",
            extra={"layer": int(layer), "dose": dose, "coef": vector.coef(layer, dose)},
            steering=[(Steering(vector, vector.coef(layer, dose), layer),)],
        )
    ]


def cells(rows: Sequence[ScoredRow]) -> list[Cell]:
    """The sweep's scored replies, averaged by layer and dose."""
    groups: dict[tuple[int, float, float], list[ScoredRow]] = {}
    for row in rows:
        groups.setdefault((row["layer"], row["coef"], row["dose"]), []).append(row)
    return [Cell(*key, mean_score(group, "trait"), mean_score(group, "coherence")) for key, group in groups.items()]


def knee(swept: Sequence[Cell], base: Interval, floor: float) -> Cell:
    """The gentlest cell that brings most of the strongest cell's change, among those that surely stay coherent.

    Surely: the interval of coherence lies above the floor. Most: `KNEE`; past it more dose buys little but damage, and
    at half of it blind readers hardly saw the trait in a small model's replies. Where no cell is coherent, the most
    coherent one: the final check then says that the floor was missed.

    Args:
        swept: The cells of the sweep.
        base: Trait score of the unsteered replies to the same questions.
        floor: Coherence, 0 to 100.

    Raises:
        DataError: No cell has a scored reply.

    Source: Persona Vectors (arXiv 2507.21509) sections 3.2 and 5.1 take the strongest cell.
    """
    scored = [cell for cell in swept if cell.trait.n and cell.coherence.n]
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
