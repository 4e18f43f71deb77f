"""Damaged copies of replies: what no score may reward."""

import numpy as np

LOOP_WORDS = 6
"""Most words in a loop that judges learn to reject."""
MASKED_SHARE = 0.3
"""Share of words that are swapped in the mildest garbling judges learn to reject."""


def garble(text: str, seed: tuple[int, ...]) -> tuple[str, str, str]:
    """Three copies of a text: words shuffled, some swapped about, the beginning looped; a short one may stay whole."""
    rng = np.random.default_rng(seed)
    words = text.split()
    shuffled = [words[i] for i in rng.permutation(len(words))]
    some = np.flatnonzero(rng.random(len(words)) < MASKED_SHARE)
    swapped = list(words)
    for target, source in zip(some, rng.permutation(some), strict=True):
        swapped[target] = words[source]
    period = max(1, min(LOOP_WORDS, len(words) // 2))
    looped = [words[i % period] for i in range(len(words))]
    return " ".join(shuffled), " ".join(swapped), " ".join(looped)
