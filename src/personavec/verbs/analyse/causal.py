"""The causal rank of a dictionary's features: steer along each as far as along the vector, and judge the trait."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from personavec.judges.scoring import Judges, mean_difference, score
from personavec.runs.run import Run
from personavec.steering.rollouts import Interview
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.traits.trait import Trait
from personavec.verbs.analyse.dictionary import Dictionary

Row = dict[str, Any]

BASE, RANDOM, VECTOR = "base", "random", "vector"


def causal_rank(
    interview: Interview,
    run: Run,
    vector: PersonaVector,
    layer: int,
    trait: Trait,
    judges: Judges,
    features: tuple[Dictionary, Sequence[int]],
) -> Row:
    """What steering along single features does to the trait, next to the vector itself and random features.

    The vector is added with the dose that its card recommends, and each feature's decoder direction as long as that.
    The held-out questions are answered with the same random numbers in every arm; the random arm takes another feature
    for every reply.

    Args:
        interview: Who is asked, and how.
        run: Keeps the replies.
        vector: What the features belong to.
        layer: Where to steer.
        trait: What is judged.
        judges: Who judges it.
        features: A dictionary, and the places of some of its features.

    Returns:
        `vector` and `random`: mean change of the trait score with its 95% interval; `features`: the same of each, by
        its place in the dictionary.

    Source: Persona Vectors (arXiv 2507.21509) appendix M.
    """
    (dictionary, places), seed, card = features, interview.seed, vector.card
    at_card = layer if card.layer is None else card.layer
    coef = vector.coef(layer, vector.dose(at_card, card.coef or 1.0))
    length = float(vector.norms[layer])

    def along(direction: Float[Tensor, " d_model"]) -> tuple[Steering, ...]:
        rows = torch.zeros_like(vector.direction)
        rows[layer] = direction / direction.norm() * length
        return (Steering(PersonaVector(rows, vector.card), coef, layer),)

    drawn = np.random.default_rng(seed).integers(0, len(dictionary.decoder), len(trait.check))
    arms: dict[str, list[tuple[Steering, ...]]] = {
        BASE: [()],
        VECTOR: [(Steering(vector, coef, layer),)],
        RANDOM: [along(dictionary.decoder[int(at)]) for at in drawn],
        **{str(at): [along(dictionary.decoder[at])] for at in places},
    }
    plans = [
        plan
        for name, steering in arms.items()
        for plan in interview.answers(trait.check, 1, draw="causal", extra={"arm": name}, steering=steering)
    ]
    replies = interview.write(plans, "features steer", run=run, name="causal")
    rows = score(replies, judges, "judging them", run=run, name="causal")
    by_arm = {name: [row for row in rows if row["arm"] == name] for name in arms}
    moved = {
        name: mean_difference(steered, by_arm[BASE], "trait", seed).to_json()
        for name, steered in by_arm.items()
        if name != BASE
    }
    known = [at for at in places if moved[str(at)]["mean"] is not None]
    ranked = sorted(known, key=lambda at: -moved[str(at)]["mean"]) + [at for at in places if at not in known]
    return {VECTOR: moved[VECTOR], RANDOM: moved[RANDOM], "features": {at: moved[str(at)] for at in ranked}}
