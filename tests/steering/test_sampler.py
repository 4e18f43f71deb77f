"""Laws of the sampler: the distribution that was asked for, from one uniform number a row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from personavec.errors import ModelError, PersonavecError
from personavec.model.sampling import Sampling
from personavec.steering.generate import check_finite, draw

DRAWS = 24_000
EDGES = torch.tensor([0.0, 2.0**-30, 0.5, 1 - 2.0**-24])
"""The ends of what a float32 uniform number can be."""


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(count, dtype=np.float32))


def logits_of(vocab: int, spread: float, seed: int = 0) -> Tensor:
    return spread * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))


def nucleus(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities after temperature and top-p, from the definition."""
    mass = torch.softmax(logits.double() / sampling.temperature, -1)
    order = mass.argsort(descending=True)
    before = mass[order].cumsum(0) - mass[order]
    kept = torch.zeros_like(mass)
    kept[order] = mass[order] * (before < sampling.top_p)
    return kept / kept.sum()


@pytest.mark.parametrize(("vocab", "spread"), [(12, 2.0), (300, 1.0), (1200, 0.1)])
@pytest.mark.parametrize("sampling", [Sampling(1, 1.0), Sampling(1, 0.7), Sampling(1, 1.0, 0.9), Sampling(1, 1.5, 0.4)])
def test_draws_follow_the_distribution(vocab: int, spread: float, sampling: Sampling) -> None:
    logits = logits_of(vocab, spread)
    wanted = nucleus(logits, sampling).numpy()
    counts = np.zeros(vocab)
    for seed in range(4):
        drawn = draw(logits.expand(DRAWS // 4, vocab), uniforms(DRAWS // 4, seed), sampling)
        counts += np.bincount(drawn.numpy(), minlength=vocab)
    assert counts[wanted == 0].sum() == 0
    expected = wanted * DRAWS
    rare = expected < 8  # chi-square needs several expected draws a bin: pool the rare tokens
    bins = np.array([*counts[~rare], counts[rare].sum()]), np.array([*expected[~rare], expected[rare].sum()])
    some = bins[1] > 0
    if some.sum() == 1:
        return
    assert chisquare(bins[0][some], bins[1][some]).pvalue > 1e-3


def test_temperature_zero_is_greedy_and_ignores_chance() -> None:
    logits = torch.stack([logits_of(50, 3.0, seed) for seed in range(20)])
    for seed in range(3):
        assert torch.equal(draw(logits, uniforms(20, seed), Sampling(1, 0)), logits.argmax(-1))
    cold = draw(logits, uniforms(20), Sampling(1, 1e-4))
    assert torch.equal(cold, logits.argmax(-1))


def test_high_temperature_is_flat() -> None:
    counts = np.bincount(draw(logits_of(40, 5.0).expand(DRAWS, 40), uniforms(DRAWS), Sampling(1, 1e6)), minlength=40)
    assert chisquare(counts).pvalue > 1e-3


def test_every_row_uses_its_own_logits_and_its_own_number() -> None:
    logits = torch.stack([logits_of(300, 1.0, seed) for seed in range(64)])
    chance = uniforms(64)
    for sampling in (Sampling(1), Sampling(1, 1.0, 0.8)):
        together = draw(logits, chance, sampling)
        alone = [int(draw(logits[i : i + 1], chance[i : i + 1], sampling)) for i in range(64)]
        assert together.tolist() == alone


@settings(deadline=None, max_examples=80)
@given(
    logits=st.lists(st.one_of(st.floats(-200, 80, width=32), st.just(float("-inf"))), min_size=1, max_size=20),
    fill=st.sampled_from([0, 200]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999999, 1.0]),
)
def test_no_token_without_mass_is_drawn(logits: list[float], fill: int, temperature: float, top_p: float) -> None:
    """Also at the ends of the unit interval, with impossible tokens first and last."""
    row = torch.tensor([float("-inf"), 0.0, *logits, *[float("-inf")] * fill])
    mass = torch.softmax(row / temperature, -1)
    before = torch.stack([mass.double()[mass > m].sum() for m in mass])
    for token in draw(row.expand(len(EDGES), -1), EDGES, Sampling(1, temperature, top_p)).tolist():
        assert mass[token] > 0
        assert before[token] < top_p + 1e-6


def test_tiny_top_p_is_greedy() -> None:
    logits = torch.stack([logits_of(300, 1.0, seed) for seed in range(20)])
    for chance in EDGES:
        assert torch.equal(draw(logits, chance.expand(20), Sampling(1, 1.0, 1e-9)), logits.argmax(-1))


@pytest.mark.parametrize("sampling", [Sampling(1, 0), Sampling(1), Sampling(1, 1.0, 0.9)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(sampling: Sampling, bad: float) -> None:
    logits = torch.zeros(3, 200)
    logits[1, 7] = bad
    with pytest.raises(ModelError, match="expected finite logits"):
        check_finite(draw(logits, EDGES[:3], sampling))
    check_finite(draw(logits[::2], EDGES[:2], sampling))


@pytest.mark.parametrize("options", [(8, -0.5), (8, float("nan")), (8, 1.0, 0.0), (8, 1.0, -1.0), (0, 1.0)])
def test_settings_that_mean_nothing_are_refused(options: tuple[int, float]) -> None:
    """Not drawn from: top-p 0 or a negative temperature would pick the least likely token."""
    with pytest.raises(PersonavecError, match=r"^expected .*, got"):
        Sampling(*options)
