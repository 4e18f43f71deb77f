"""What else tells the two sides apart: length, refusals, format, language and mood of the kept replies."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.judges.scoring import ScoredRow
from personavec.model.activations import read_rows
from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import auc_interval, difference_interval
from personavec.stats.nulls import adjust, null_battery
from personavec.steering.vector import PersonaVector
from personavec.verbs.extract.difference import response_tokens

Row = dict[str, Any]
Column = Float[ndarray, " row"]

STANDS_OUT = 0.2
"""Distance of an AUC from one half from which a difference is worth a warning, if its interval excludes one half."""
BINS = 8
"""Of lengths, for matching."""
REFUSAL = re.compile(
    r"^\W*(i(['’]m| am) (very |so |really )?(sorry|afraid|unable)|sorry,|i (can(['’]|no)t|cannot|won['’]t|will not) |"
    r"i(['’]m| am) not (able|allowed|comfortable)|as an ai\b|unfortunately, i )",
    re.IGNORECASE,
)
"""How refusals begin."""
FORMATS = {
    "lists": re.compile(r"^\s*([-*•]|\d+[.)])\s", re.MULTILINE),
    "headings": re.compile(r"^\s*#{1,6}\s|^[^\n]{1,60}:\s*$", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "code": re.compile(r"`[^`\n]+`|^```", re.MULTILINE),
    "questions": re.compile(r"\?"),
    "exclamations": re.compile(r"!"),
}
"""What a reply may hold."""


def audit(kept: Sequence[ScoredRow]) -> Row:
    """What differs between kept positive and negative replies besides the trait.

    Args:
        kept: Replies of both sides.

    Returns:
        By measure the means `pos` and `neg`, their `difference` with a 95% interval over questions, the `auc` (one half
        is no difference) with its interval, and whether it `stands_out`. Length is in tokens, sentiment VADER's
        compound from −1 to 1, the others are shares of replies.
    """
    is_pos = np.array([row["side"] == "pos" for row in kept])
    questions = np.array([row["question_id"] for row in kept])
    texts = [str(row["response"]) for row in kept]
    measures: Row = {}
    for name, values in _measures(kept, texts).items():
        auc = auc_interval(values, is_pos, questions)
        measures[name] = {
            "pos": round(float(values[is_pos].mean()), 4),
            "neg": round(float(values[~is_pos].mean()), 4),
            "difference": difference_interval(values, is_pos, questions).to_json(),
            "auc": auc.to_json(),
            "stands_out": bool(abs(auc.mean - 0.5) >= STANDS_OUT and (auc.low > 0.5 or auc.high < 0.5)),
        }
    return measures


def length_correlation(model: ChatModel, kept: Sequence[ScoredRow], vector: PersonaVector, seed: int) -> Row:
    """Whether longer replies lie further along the vector, within sides: r with its nulls, at the card's layer.

    Returns:
        As `nulls.null_battery` tells it.
    """
    layer = vector.card.layer or 0
    title = f"{vector.card.trait}: length and projection"
    read = read_rows(model, kept, "response avg", [layer], title).transpose(1, 0, 2)
    sides = np.array([int(row["side"] == "pos") for row in kept])
    lengths, rng = np.array([response_tokens(row) for row in kept], dtype=float), np.random.default_rng(seed)
    correlation = null_battery(read, lengths, vector.unit(layer).numpy()[None], rng, activations=read, groups=sides)
    adjust([correlation], either_way=True)
    return correlation


def matched(kept: Sequence[ScoredRow], seed: int) -> list[ScoredRow]:
    """As many replies of each side in every range of lengths, the others dropped at random.

    Ranges hold equal shares of all kept replies.
    """
    lengths = np.array([response_tokens(row) for row in kept], dtype=float)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins, rng = np.searchsorted(edges, lengths, side="right"), np.random.default_rng(seed)
    sides = np.array([row["side"] for row in kept])
    chosen: list[int] = []
    for place in np.unique(bins):
        rows = [rng.permutation(np.flatnonzero((bins == place) & (sides == side))) for side in ("pos", "neg")]
        least = min(map(len, rows))
        chosen += [int(index) for side in rows for index in side[:least]]
    return [kept[index] for index in sorted(chosen)]


def _measures(kept: Sequence[ScoredRow], texts: Sequence[str]) -> dict[str, Column]:
    """A number for every reply, by measure."""
    from py3langid import classify
    from vader import polarity_scores

    def share(holds: Callable[[str], Any]) -> Column:
        return np.array([bool(holds(text)) for text in texts], dtype=float)

    languages = [classify(text)[0] for text in texts]
    usual = Counter(languages).most_common(1)[0][0]
    return {
        "length": np.array([response_tokens(row) for row in kept], dtype=float),
        "refusals": share(REFUSAL.match),
        **{name: share(pattern.search) for name, pattern in FORMATS.items()},
        f"not in {usual}": np.array([language != usual for language in languages], dtype=float),
        "sentiment": np.array([polarity_scores(text)["compound"] for text in texts], dtype=float),
    }
