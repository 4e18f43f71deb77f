"""The likeliest dose: found where it is planted, none where there is none, and told where it lies beyond the grid."""

from pathlib import Path

import numpy as np
import pytest

from personavec.data.dataset import dataset_of
from personavec.errors import DataError
from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.finetune import likeliest as module
from personavec.verbs.finetune.likeliest import DOSES, likeliest, peak

COEFS = np.array([-4.0, -2, -1, 0, 1, 2, 4])


@pytest.fixture(scope="module")
def chat(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vector(saved: tuple[Path, Path]) -> PersonaVector:
    return load_vector(saved[1])


def rows_at(top: float, count: int = 32, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(10, 60, count).astype(float)
    tops = top + noise * rng.standard_normal(count)
    return -(0.01 * (COEFS - tops[:, None]) ** 2 + 2) * tokens[:, None], tokens


@pytest.mark.parametrize("top", [-1.6, 0.3, 1.4])
def test_the_vertex_is_found(top: float) -> None:
    found = peak(COEFS, *rows_at(top, noise=0), 0)
    assert found["coef"]["mean"] == pytest.approx(top, abs=1e-3) and not found["edge"]
    assert found["gain"] == pytest.approx(0.01 * top**2, abs=1e-4)


def test_intervals_cover_and_nothing_is_seldom_something() -> None:
    hits = nothing = 0
    for seed in range(60):
        found = peak(COEFS, *rows_at(1.0, noise=2.0, seed=seed), seed)["coef"]["ci"]
        hits += found[0] <= 1.0 <= found[1]
        none = peak(COEFS, *rows_at(0.0, noise=2.0, seed=seed), seed)["coef"]["ci"]
        nothing += not none[0] <= 0 <= none[1]
    assert hits >= 51 and nothing <= 9


def test_a_peak_beyond_the_grid_is_told() -> None:
    found = peak(COEFS, *rows_at(9.0, noise=0), 0)
    assert found["edge"] and found["coef"]["mean"] == 4.0


@pytest.mark.parametrize("dose", [0.1, -0.1, 0.0])
def test_what_steered_replies_ask_for_is_what_steered_them(
    chat: ChatModel, vector: PersonaVector, dose: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies that are drawn from the steered model are likeliest under that steering, token by token."""
    layer = 2
    asked = [f"Say {n} {word}." for n in range(16) for word in ("now", "then", "again", "twice")]
    prompts = [chat.render([{"role": "user", "content": text}]) for text in asked]
    applied = (vector.at(dose=dose, layer=layer, positions="all"),) if dose else ()
    requests = [Request(prompt, applied, seed=(5, place)) for place, prompt in enumerate(prompts)]
    replies = generate(chat, requests, Sampling(32, 1.0))
    rows = [
        {"prompt_ids": prompt, "response_ids": ids, "response_tokens": len(ids), "reasoning_tokens": 0}
        for prompt, (ids, *_) in zip(prompts, replies, strict=True)
    ]
    monkeypatch.setattr(module, "_drawn", lambda *_: (rows, 0))  # a random model's text has other tokens once encoded
    (found,) = likeliest(chat, dataset_of([]), vector, [layer])
    low, high = (vector.dose(layer, end) for end in found["coef"]["ci"])
    assert low - 0.03 <= dose <= high + 0.03, (found, low, high)
    assert -0.2 == min(DOSES) and found["coef"]["n"] == 32


def test_too_few_rows_are_refused(chat: ChatModel, vector: PersonaVector) -> None:
    with pytest.raises(DataError, match="expected rows to find the dose from, got 2"):
        likeliest(chat, dataset_of([{"prompt": "a", "response": "b"}] * 2), vector, [1])
