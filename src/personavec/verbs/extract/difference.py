"""The vector itself: mean activations of kept replies, positive minus negative, and how steady that difference is."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from personavec.judges.scoring import ScoredRow
from personavec.model.activations import POSITIONS, activations
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import stage
from personavec.steering.vector import Card, PersonaVector

Row = dict[str, Any]


def difference_in_means(
    model: ChatModel, kept: Sequence[ScoredRow], card: Card, seed: int, residualise: bool = False
) -> dict[str, PersonaVector]:
    """Vectors from each position, `shuffled` from permuted labels beside them.

    The cards get the split-half reliability, and in their details the `pairwise_cosine`: of every layer the mean cosine
    between the difference of one question's replies and that of all. Where questions agree on a direction, steering
    along it does more. Sums are float64 and flat in the number of replies.

    Args:
        model: Who is read.
        kept: Replies of both sides.
        card: Of the vectors, but for position and reliability.
        seed: Of the permuted labels.
        residualise: Take away what length explains: h − β · tokens, β by least squares within sides, at every layer.

    Source: Persona Vectors (arXiv 2507.21509) section 2.2 and appendix A.3; the pairwise cosine as a predictor of how
    well a vector steers: Braun et al. (arXiv 2505.22637).
    """
    is_pos = np.array([row["side"] == "pos" for row in kept])
    questions, place = np.unique([row["question_id"] for row in kept], return_inverse=True)
    cells = 2 * place + is_pos  # one for every question and side
    tokens = np.array([response_tokens(row) for row in kept], dtype=float)
    inside = tokens - np.where(is_pos, tokens[is_pos].mean(), tokens[~is_pos].mean())
    relabelled = np.random.default_rng(seed).permutation(is_pos)
    groups = torch.tensor(np.column_stack([np.eye(2 * len(questions))[cells], relabelled, ~relabelled, inside]))
    sums = torch.zeros((groups.shape[1], len(POSITIONS), model.n_layers, model.identity.d_model), dtype=torch.float64)
    with stage(f"{card.trait}: activations", len(kept)) as advance:
        for batch, read in activations(model, kept, POSITIONS):
            sums += torch.einsum("bg,bpld->gpld", groups[batch], read.double())
            advance(len(batch))
    spread = float((inside**2).sum())
    slope = sums[-1] / spread if residualise and spread else torch.zeros_like(sums[-1])

    def mean(rows: Any, columns: Any = None) -> Float[Tensor, "position layer d_model"]:
        """Mean over rows, which fill the columns (default: questions and sides), less what length explains."""
        total = sums[np.unique(cells[rows]) if columns is None else columns].sum(dim=0)
        average: Tensor = total / rows.sum() - slope * tokens[rows].mean()
        return average

    odd = np.array([row["question_id"] % 2 == 1 for row in kept])
    whole = mean(is_pos) - mean(~is_pos)
    shuffled = mean(relabelled, [-3]) - mean(~relabelled, [-2])
    vectors = {"shuffled": PersonaVector(shuffled[0], dataclasses.replace(card, position="shuffled"))}
    sides = {(side, half): (is_pos == side) & (odd == half) for side in (True, False) for half in (True, False)}
    steady = all(rows.any() for rows in sides.values())  # a half may have no replies
    if steady:
        first, second = (mean(sides[True, half]) - mean(sides[False, half]) for half in (True, False))
        halves = torch.cosine_similarity(first, second, dim=-1)
    both = [at for at in range(len(questions)) if {2 * at, 2 * at + 1} <= set(cells.tolist())]
    each = torch.stack([mean(cells == 2 * at + 1) - mean(cells == 2 * at) for at in both]) if both else None
    for index, (position, direction) in enumerate(zip(POSITIONS, whole, strict=True)):
        details = card.details
        if each is not None:
            cosines = torch.cosine_similarity(each[:, index], direction, dim=-1).mean(dim=0)
            details = details | {"pairwise_cosine": [round(value, 4) for value in cosines.tolist()]}
        described = dataclasses.replace(
            card, position=position, reliability=tuple(halves[index].tolist()) if steady else (), details=details
        )
        vectors[position] = PersonaVector(direction, described)
    return vectors


def response_tokens(row: Mapping[str, Any]) -> int:
    """Tokens of a reply, its reasoning left aside."""
    return len(row["response_ids"]) - int(row.get("reasoning_tokens", 0))
