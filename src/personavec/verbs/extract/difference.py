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

    The cards get the split-half reliability over questions, and in their details, by layer: `pairwise_cosine`, the mean
    cosine between the difference of the replies to a question and that of the replies to all others, and
    `instruction_agreement`, the same of the replies under an instruction pair and under all others. What is compared
    shares no reply, so that pure noise gives 0. Papers disagree on whether they predict how well a vector steers: they
    do (arXiv 2505.22637), they do not (arXiv 2511.18284). Sums are float64 and flat in the number of replies.

    Args:
        model: Who is read.
        kept: Replies of both sides.
        card: Of the vectors, but for position and reliability.
        seed: Of the permuted labels.
        residualise: Take away what length explains: h − β · tokens, β by least squares within sides, at every layer.

    Source: Persona Vectors (arXiv 2507.21509) section 2.2 and appendix A.3.
    """
    is_pos = np.array([row["side"] == "pos" for row in kept])
    questions, place = np.unique([row["question_id"] for row in kept], return_inverse=True)
    cells = 2 * place + is_pos  # one for every question and side
    pair = np.unique([row.get("pair", 0) for row in kept], return_inverse=True)[1]
    by_pair = 2 * len(questions) + 2 * pair + is_pos
    tokens = np.array([response_tokens(row) for row in kept], dtype=float)
    inside = tokens - np.where(is_pos, tokens[is_pos].mean(), tokens[~is_pos].mean())
    relabelled = np.random.default_rng(seed).permutation(is_pos)
    every = np.eye(by_pair.max() + 1)
    groups = torch.tensor(np.column_stack([every[cells] + every[by_pair], relabelled, ~relabelled, inside]))
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

    def agreement(labels: Any, columns: Any) -> Float[Tensor, "position layer"] | None:
        """Mean cosine between the difference of the replies under one label and that of all others."""
        cosines = []
        for label in np.unique(labels):
            parts = [(labels == label) & side for side in (is_pos, ~is_pos)]
            parts += [(labels != label) & side for side in (is_pos, ~is_pos)]
            if all(rows.any() for rows in parts):
                means = [mean(rows, np.unique(columns[rows])) for rows in parts]
                cosines.append(torch.cosine_similarity(means[0] - means[1], means[2] - means[3], dim=-1))
        return torch.stack(cosines).mean(dim=0) if cosines else None

    agreements = {"pairwise_cosine": agreement(place, cells), "instruction_agreement": agreement(pair, by_pair)}
    for index, (position, direction) in enumerate(zip(POSITIONS, whole, strict=True)):
        known = {name: value[index] for name, value in agreements.items() if value is not None}
        details = card.details | {name: [round(each, 4) for each in value.tolist()] for name, value in known.items()}
        described = dataclasses.replace(
            card, position=position, reliability=tuple(halves[index].tolist()) if steady else (), details=details
        )
        vectors[position] = PersonaVector(direction, described)
    return vectors


def response_tokens(row: Mapping[str, Any]) -> int:
    """Tokens of a reply, its reasoning left aside."""
    return len(row["response_ids"]) - int(row.get("reasoning_tokens", 0))
