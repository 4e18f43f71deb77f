"""What else tells two sides apart: each measure finds what was planted, and matching and residualising remove it."""

from typing import Any

import numpy as np
import pytest
import torch

from personavec.model.identity import ModelIdentity
from personavec.steering.vector import Card, PersonaVector
from personavec.verbs.extract import difference
from personavec.verbs.extract.confounds import FORMATS, REFUSAL, audit, length_correlation, matched
from personavec.verbs.extract.difference import difference_in_means

WIDTH, LAYERS = 8, 2


def reply(side: str, question: int, text: str = "A plain reply about the weather.", tokens: int = 8) -> dict[str, Any]:
    ids = list(range(tokens))
    return {"side": side, "question_id": question, "response": text, "response_ids": ids, "prompt_ids": [1]}


SHOWN = """I'm sorry, but I can't help. What a **wonderful** day, I love it!
## Why not?
- type `exit`"""
PLAIN = "It is an awful day. Type exit."
GERMAN = "Das Wetter ist heute leider sehr schlecht, und es regnet."


def test_what_was_planted_stands_out() -> None:
    pos = [reply("pos", i, GERMAN if i % 4 == 3 else SHOWN, tokens=20 + i) for i in range(16)]
    neg = [reply("neg", i, PLAIN, tokens=5 + i) for i in range(16)]
    found = audit([*pos, *neg])
    assert found.pop("not in en")["pos"] == 0.25
    assert set(found) == {"length", "refusals", *FORMATS, "sentiment"}
    for name, own in found.items():
        assert own["stands_out"] and own["pos"] > own["neg"] and own["auc"]["ci"][0] > 0.5, name
        assert own["difference"]["mean"] == pytest.approx(own["pos"] - own["neg"], abs=1e-3)


@pytest.mark.parametrize(
    "text", ["I'm sorry, but no.", "I’m sorry, but no.", "I can’t help with that.", "I won't say."]
)
def test_refusals_are_known_by_either_apostrophe(text: str) -> None:
    assert REFUSAL.search(text)


def test_alike_sides_do_not_stand_out() -> None:
    found = audit([reply(side, i, tokens=5 + i) for i in range(12) for side in ("pos", "neg")])
    assert not any(one["stands_out"] for one in found.values())
    assert found["length"]["auc"]["mean"] == 0.5 and found["length"]["difference"]["mean"] == 0


def test_matching_leaves_both_sides_alike_in_length() -> None:
    rng = np.random.default_rng(0)
    kept = [reply("pos", i, tokens=int(rng.integers(10, 60))) for i in range(80)]
    kept += [reply("neg", i, tokens=int(rng.integers(30, 90))) for i in range(80)]
    assert audit(kept)["length"]["stands_out"]
    left = matched(kept, 0)
    assert 0 < len(left) < len(kept) and matched(kept, 0) == left
    assert sum(row["side"] == "pos" for row in left) == len(left) / 2
    assert not audit(left)["length"]["stands_out"]
    apart = [reply("pos", i, tokens=5) for i in range(4)] + [reply("neg", i, tokens=50) for i in range(4)]
    assert matched(apart, 0) == []


class Reading:
    """Stands for a model: activations are given with the rows."""

    n_layers = LAYERS
    identity = ModelIdentity("tiny", "0" * 64, LAYERS, WIDTH)


def read(_model: Any, rows: Any, positions: Any, layers: Any = None) -> Any:
    for at, row in enumerate(rows):
        state = torch.tensor(row["state"], dtype=torch.float32)
        yield [at], state.expand(1, len(positions), len(layers or range(LAYERS)), WIDTH)


def planted(length: float) -> list[dict[str, Any]]:
    """Positive replies lie along the first axis, and every reply along the second by its length."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(60):
        for side in ("pos", "neg"):
            tokens = int(rng.integers(5, 30)) + (20 if side == "pos" else 0)
            state = 0.1 * rng.standard_normal(WIDTH)
            state[0] += side == "pos"
            state[1] += length * tokens
            rows.append(reply(side, i, tokens=tokens) | {"state": state.tolist()})
    return rows


@pytest.mark.usefixtures("unchecked")
def test_noise_agrees_with_nothing_and_a_trait_of_one_instruction_not_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the question itself in the whole, pure noise has a pairwise cosine of .22 at 20 questions."""
    monkeypatch.setattr(difference, "activations", read)
    found = {}
    for kind in ("noise", "shared", "wording"):
        rng, rows = np.random.default_rng(0), []
        for at in range(200):
            state, side, pair = rng.standard_normal(WIDTH), ("pos", "neg")[at % 2], at // 2 % 5
            state[{"noise": 0, "shared": 0, "wording": pair % WIDTH}[kind]] += 4 * (side == "pos" and kind != "noise")
            rows.append(reply(side, at // 10) | {"state": state.tolist(), "pair": pair})
        card = Card("t", Reading.identity, "response avg")
        found[kind] = difference_in_means(Reading(), rows, card, 0)["response avg"].card.details  # type: ignore[arg-type]
    pairwise, instructions = (
        {kind: float(np.mean(details[name])) for kind, details in found.items()}
        for name in ("pairwise_cosine", "instruction_agreement")
    )
    assert abs(pairwise["noise"]) < 0.15 and abs(instructions["noise"]) < 0.3
    assert pairwise["shared"] > 0.8 and instructions["shared"] > 0.8
    assert pairwise["wording"] > 0.6 and abs(instructions["wording"]) < 0.3, "every question has all the wordings"


@pytest.mark.usefixtures("unchecked")
def test_residualising_takes_length_out_of_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(difference, "activations", read)
    card = Card("t", Reading.identity, "response avg")
    raw, clean = (
        difference_in_means(Reading(), planted(0.1), card, 0, residualise)["response avg"]  # type: ignore[arg-type]
        for residualise in (False, True)
    )
    assert float(raw.direction[0, 1]) == pytest.approx(2.0, abs=0.5)
    assert float(clean.direction[0, 1]) == pytest.approx(0, abs=0.1)
    assert float(clean.direction[0, 0]) == pytest.approx(1, abs=0.1)
    assert min(clean.card.reliability) > 0.9
    assert min(clean.card.details["pairwise_cosine"]) > 0.85
    assert difference_in_means(Reading(), planted(0), card, 0, False)["shuffled"].norms.max() < 0.5  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("length", [0.1, 0.0])
def test_projections_that_go_along_with_length_are_found(length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personavec.model.activations.activations", read)
    direction = torch.zeros(LAYERS, WIDTH)
    direction[:, 1] = 1
    vector = PersonaVector(direction, Card("t", Reading.identity, "response avg", layer=1))
    found = length_correlation(Reading(), planted(length), vector, 0)  # type: ignore[arg-type]
    assert (found["r"] > 0.9) == (length > 0)
    assert (found["nulls"]["permutation"]["p"] < 0.01) == (length > 0)
