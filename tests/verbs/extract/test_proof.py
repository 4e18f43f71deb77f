"""The choice of layer and coefficient."""

import pytest
import torch
from support import tiny

from personavec.errors import ConfigError, DataError
from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import Interval
from personavec.steering.projection import random_directions
from personavec.verbs.extract.sweep import Cell, knee, swept_layers

BASE = Interval(40.0, 35.0, 45.0, 20)


def interval(mean: float, half: float = 3.0) -> Interval:
    return Interval(mean, mean - half, mean + half, 10)


def cell(layer: int, dose: float, trait: float, coherence: float) -> Cell:
    return Cell(layer, 10 * dose, dose, interval(trait), interval(coherence))


def test_knee_takes_the_gentlest_of_the_strong() -> None:
    cells = [
        cell(9, 0.1, 60, 95),
        cell(9, 0.2, 88, 94),
        cell(12, 0.2, 90, 92),
        cell(12, 0.4, 98, 85),
        cell(9, 0.4, 99, 50),
    ]
    assert knee(cells, BASE, 75) is cells[2]  # three quarters of 40 → 98 is 83.5; the cell at 99 is not coherent


def test_knee_is_three_quarters_where_nothing_saturates() -> None:
    cells = [cell(9, dose, 40 + 100 * dose, 95) for dose in (0.1, 0.2, 0.3, 0.4)]
    assert knee(cells, BASE, 75) is cells[2]


def test_knee_wants_the_whole_interval_of_coherence() -> None:
    cells = [cell(9, 0.1, 60, 90), cell(9, 0.2, 99, 76)]
    assert knee(cells, BASE, 75) is cells[0]


def test_knee_falls_back_to_the_most_coherent() -> None:
    cells = [cell(9, 0.1, 60, 50), cell(9, 0.2, 90, 30)]
    assert knee(cells, BASE, 75) is cells[0]
    with pytest.raises(DataError, match="empty ones only"):
        knee([Cell(9, 1.0, 0.1, Interval(float("nan"), float("nan"), float("nan"), 0), interval(9))], BASE, 75)


def test_knee_bears_a_vector_that_does_not_work() -> None:
    cells = [cell(9, 0.1, 30, 95), cell(9, 0.2, 35, 94), cell(12, 0.1, 20, 95)]
    assert knee(cells, BASE, 75) is cells[1], "all below base: the check will say so"
    empty = Interval(float("nan"), float("nan"), float("nan"), 0)
    assert knee(cells, empty, 75) is cells[1]


def test_random_directions_are_the_vector_turned(model: ChatModel) -> None:
    vector = tiny.vector(model, seed=3)
    drawn = random_directions(vector, 10, 0)
    assert len(drawn) == 10
    gram = vector.direction @ vector.direction.T
    for random in drawn:
        torch.testing.assert_close(random.direction @ random.direction.T, gram, atol=1e-3, rtol=1e-4)
    cosines = torch.stack([torch.cosine_similarity(r.direction, vector.direction, dim=-1) for r in drawn])
    expected = vector.direction.shape[1] ** -0.5
    assert 0.5 * expected < float(cosines.square().mean().sqrt()) < 2 * expected
    many = torch.cat([torch.stack([r.unit(0) for r in random_directions(vector, 10, seed)]) for seed in range(60)])
    spread = (len(many) * many.shape[1]) ** -0.5
    assert (many.mean(dim=0).abs() < 5 * spread).all(), "no side is preferred"


def test_swept_layers() -> None:
    assert swept_layers((), 30) == (9, 12, 15, 18, 21)
    assert swept_layers((3, 1), 4) == (3, 1)
    assert swept_layers((), 1) == (0,)
    with pytest.raises(ConfigError, match="from 0 to 3, got 4"):
        swept_layers((1, 4), 4)
