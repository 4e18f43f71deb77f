"""Results as verbs write them, to draw pages from."""

import random
from typing import Any

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7 * 7 }}"
"""What must stay text in a page."""


def interval(mean: float, half: float = 3.0, n: int = 60) -> dict[str, Any]:
    return {"mean": mean, "ci": [mean - half, mean + half], "n": n, "dropped": 0}


def make_result(name: str = "optimistic", proven: bool = True) -> dict[str, Any]:
    """A result.json with figures like those of a real run."""
    rng = random.Random(0)
    arms = [
        ("suppressed", "vector", -1.0, 41.2, 90.1),
        ("base", "none", 0.0, 52.0, 93.4),
        ("steered", "vector", 1.0, 63.9, 86.6),
        ("random", "random", 1.0, 52.8, 91.8),
        ("matched", "matched", 1.0, 53.9, 91.0),
        ("shuffled", "shuffled", 1.0, 54.9, 89.9),
        ("garbled", "garbled", 0.0, 50.1, 30.2),
    ]
    counts = {
        "written": 100,
        "empty": 1,
        "refused": 2,
        "unjudged": 0,
        "wrong_side": 9,
        "incoherent": 3,
        "kept": 85,
        "truncated": 70,
    }
    return {
        "trait": {
            "name": name,
            "adjective": name,
            "antonym": "pessimistic",
            "description": "Sees the good side.",
            "hash": "ab12",
            "n_pairs": 5,
            "n_extract": 20,
            "n_sweep": 10,
            "n_check": 20,
        },
        "model": {
            "id": "smollm2",
            "revision": "v1",
            "n_layers": 30,
            "d_model": 576,
            "dtype": "float32",
            "device": "cpu",
        },
        "system_prompt": "template",
        "judge": {
            "id": "panel:smollm2",
            "auc": interval(0.87, 0.04, 180),
            "aucs": {name: interval(0.87, 0.04, 180) for name in ("opposite", "base", "others", "garbled")},
            "table": {
                "scores": {name: interval(30.0) for name in ("trait", "opposite", "base", "hostile", "garbled")},
                "largest": "hostile",
                "above": 22.5,
            },
            "weak": False,
            "weak_below": 0.7,
            "basis": "weights 0123456789abcdef, 3 pairs a reply",
            "coherence": {"id": "fluency:smollm2", "auc": interval(0.93, 0.03, 180)},
        },
        "keep_at": 50.0,
        "counts": {"pos": counts, "neg": counts | {"kept": 84}},
        "rollout_scores": {
            side: {"trait": [min(max(rng.gauss(mean, 18), 0), 100) for _ in range(97)], "coherence": [90.0] * 97}
            for side, mean in (("pos", 72), ("neg", 28))
        },
        "layers": [
            {"layer": i, "norm": 0.3 * 1.12**i, "activation_norm": 9 + 2.5 * i, "reliability": 0.99 - 0.3 / (i + 2)}
            for i in range(30)
        ],
        "vectors": {"response avg": "vector.safetensors", "prompt avg": "prompt_avg.safetensors"},
        "sweep": {
            "floor": 75.0,
            "cells": [
                {
                    "layer": layer,
                    "coef": 3.5 * dose,
                    "dose": dose,
                    "trait": interval(50 + 30 * dose - abs(layer - 15)),
                    "coherence": interval(95 - 45 * dose**2),
                }
                for layer in (6, 9, 12, 15, 18, 21)
                for dose in (0.1, 0.2, 0.4, 0.6, 0.8)
            ],
        },
        "choice": {"layer": 15, "coef": 2.1, "dose": 0.6, "above_floor": True},
        "check": [
            {
                "arm": arm,
                "direction": direction,
                "coef": 2.1 * way,
                "dose": 0.6 * way,
                "trait": interval(mean),
                "coherence": interval(fluency, 1.5),
                "unscored": {kind: {"empty": 1, "refused": 0} for kind in ("trait", "coherence")},
                "truncated": 50,
            }
            for arm, direction, way, mean, fluency in arms
        ],
        "proven": proven,
        "verdict": [
            {
                "text": "Subtracting the vector lowers it: 10.8 [7.8, 13.8]",
                "holds": True,
                "refuted": False,
                "least": 4.3,
            },
            {
                "text": "Steering does more than random directions: 1.1 [-1.9, 4.1]",
                "holds": proven,
                "moot": False,
                "least": 4.3,
            }
            | {"refuted": False},
        ],
        "verdict_word": "proven" if proven else "not proven",
        "deciding": "Every condition holds" if proven else "Steering does more than random directions: 1.1 [-1.9, 4.1]",
        "independent_check": {
            "kind": "sentiment",
            "direction": "more",
            "unit": "sentiment, -1 to 1",
            "told_auc": interval(0.7, 0.05),
            "told": {"pos": interval(0.7, 0.1), "neg": interval(0.2, 0.1)},
            "arms": {arm: interval(0.5, 0.1) for arm, *_ in arms},
        },
        "transcripts": [
            {
                "question": f"What do you expect of the year {year}?",
                "suppressed": "Little good. " * 12,
                "base": "I am not sure.\n\n1. Rain",
                "steered": "It will be a wonderful year! " * 8 + ATTACK,
                "cut": ["steered"],
            }
            for year in (2030, 2040, 2050)
        ],
        "sampling": {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 48},
        "seed": 0,
        "versions": {"python": "3.11.2", "torch": "2.9.0"},
        "commit": "0123456789ab",
        "seconds": 312.4,
    }


def unknown(value: Any) -> Any:
    """The same data without any mean that is known."""
    if isinstance(value, dict):
        known = {key: unknown(each) for key, each in value.items()}
        return known | {"mean": None, "ci": [None, None]} if {"mean", "ci"} <= value.keys() else known
    return [unknown(each) for each in value] if isinstance(value, list) else value
