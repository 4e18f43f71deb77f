"""Decompose: which tokens carry a vector's difference, and which attentions and MLPs write it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from personavec.errors import ConfigError, DataError
from personavec.judges.scoring import Judges, keep, scaled, scored_rows
from personavec.model.chat_model import ChatModel
from personavec.runs.files import sha256
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import difference_interval
from personavec.stats.nulls import against, rounded
from personavec.steering.projection import directions
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.trait import trait_of
from personavec.verbs.analyse.causal import causal_rank
from personavec.verbs.analyse.contributions import Token, token_activations, tokens, written
from personavec.verbs.analyse.dictionary import Dictionary, load_dictionary, nearest
from personavec.verbs.analyse.options import DecomposeConfig
from personavec.verbs.extract.confounds import matched
from personavec.verbs.options import bench_for, load_subject

Row = dict[str, Any]

PLACES = ("first token", "first third", "second third", "last third")
SEEN = 5
"""Tokens that are shown of a feature, and how many stand before each."""
SHOWN = 3
"""Replies of each side that the page shades."""


def decompose(config: DecomposeConfig) -> Row:
    """Split the difference between kept positive and negative replies along a vector, by token and by block.

    The stream is the sum of what the embedding, every attention and every MLP have added. So the projection of the
    difference is the sum of their projections, and likewise of those of all tokens: both sums are checked.

    Returns:
        `whole`: the difference along the unit vector, with a 95% interval over questions; `terms` with theirs, and what
        random directions give; `tokens` by their share; `places` in the reply; `sum_error`: how far the terms' sum is
        from the whole; with a dictionary the features of `dictionary.nearest`, and what `causal.causal_rank` found.

    Raises:
        PersonavecError: Bad input.
    """
    began = time.monotonic()
    if config.vector is None:
        raise ConfigError(
            "expected a vector file, got none; for example: personavec decompose "
            "runs/demo/optimistic/vector.safetensors"
        )
    vector = load_vector(config.vector)
    layer = vector.card.layer if config.layer is None else config.layer
    if layer is None:
        raise ConfigError("expected a recommended layer in the card, got none; pass --layer")
    unit = vector.unit(layer)
    rows = _replies(config.vector, vector)
    model = load_subject(config)
    vector.check_model(model.identity)
    dictionary = load_dictionary(config.sae, model.identity.d_model) if config.sae else None
    if dictionary is not None and dictionary.layer not in (None, layer):
        raise ConfigError(
            f"expected a dictionary of layer {layer}, got one of layer {dictionary.layer}; pass --layer "
            f"{dictionary.layer}, or another dictionary"
        )
    if config.causal and dictionary is None:
        raise ConfigError("expected --sae with --causal, got none; pass a dictionary")
    trait, judges = None, None
    if config.causal:
        trait = trait_of(vector.card.trait, config.traits)
        bench = bench_for(config, model)
        judges = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
        scaled(judges, config.judge, vector.card, vector.card.trait)
    out = config.out or Path("runs") / f"decompose-{vector.card.trait}{'-sae' if config.sae else ''}"
    inputs = {"vector": vector.content_hash, "numbers": model.numbers}
    inputs |= {"dictionary": sha256(dictionary.file)} if dictionary else {}
    inputs |= {"trait": trait.content_hash} if trait else {}
    run = Run.open(out, settings(type(config), vars(config)), inputs)
    random = directions([vector], [vector.card.trait], [layer], config.seed).random(layer)
    found = written(model, rows, layer, torch.cat([unit[None], random]))
    is_pos = np.array([row["side"] == "pos" for row in rows])
    questions = np.array([row["question_id"] for row in rows])
    terms = []
    for index, name in enumerate(found.terms):
        own = difference_interval(found.values[:, index, 0], is_pos, questions, config.seed)
        others = found.values[is_pos, index, 1:].mean(axis=0) - found.values[~is_pos, index, 1:].mean(axis=0)
        terms.append({"term": name, "difference": own.to_json(), "random": against(own.mean, others)})
    whole = difference_interval(found.whole[:, 0], is_pos, questions, config.seed)
    every = tokens(model, rows, layer, unit)
    result: Row = {
        "out": str(out),
        "trait": vector.card.trait,
        "model": config.model,
        "vector": str(config.vector),
        "layer": layer,
        "replies": {"pos": int(is_pos.sum()), "neg": int((~is_pos).sum())},
        "whole": whole.to_json(),
        "terms": terms,
        "sum_error": float(np.abs(found.values[:, :, 0].sum(axis=1) - found.whole[:, 0]).max()),
        "tokens": _by_token(model, rows, every, config.top),
        "places": _by_place(rows, every, config.seed),
        "examples": _examples(model, rows, every),
        "dictionary": _features(config, model, rows, dictionary, layer, unit) if dictionary else None,
        "causal": None,
        "versions": versions(),
    }
    if dictionary is not None and judges is not None and trait is not None:
        first = [one["feature"] for one in result["dictionary"]["features"][: config.causal]]
        result["causal"] = causal_rank(config, run, model, vector, layer, trait, judges, dictionary, first)
    result["seconds"] = round(time.monotonic() - began, 1)
    run.write_json("result.json", result)
    run.finish()
    return result


def _replies(path: Path, vector: PersonaVector) -> list[Row]:
    """The replies of the extraction that a vector file lies in, of which the vector was made."""
    run = Run(path.parent)
    if not (run.done("rollouts.jsonl") and run.done("rollouts.scores.jsonl")):
        raise ConfigError(
            f"expected rollouts.jsonl and rollouts.scores.jsonl beside {path}, got none; pass the vector where "
            "extract left it"
        )
    rows = scored_rows(run, "rollouts")
    kept = [row for row in rows if keep(row)]
    if {row["side"] for row in kept} != {"pos", "neg"}:
        raise DataError(f"expected kept replies of both sides beside {path}, got one side; extract it again")
    how = vector.card.details.get("confounds", {}).get("handling")
    return matched(kept, vector.card.details["seed"]) if how == "match" else kept


def _by_token(model: ChatModel, rows: Sequence[Row], every: Sequence[Token], top: int) -> Row:
    """Tokens by what all their occurrences add to the difference; the tokens' mean projection is taken away first.

    That leaves the sum as it is, since either side's weights sum to one.
    """
    centre = float(np.mean([one.projection for one in every]))
    shares: dict[int, float] = {}
    counts: dict[int, dict[str, int]] = {}
    for one in every:
        side = rows[one.row]["side"]
        sign = 1 if side == "pos" else -1
        shares[one.id] = shares.get(one.id, 0.0) + sign * one.weight * (one.projection - centre)
        own = counts.setdefault(one.id, {"pos": 0, "neg": 0})
        own[side] += 1
    order = sorted(shares, key=lambda token: -shares[token])
    total = sum(shares.values())

    def told(token: int) -> Row:
        values = [one.projection for one in every if one.id == token]
        return {
            "token": model.decode([token]),
            "share": rounded(shares[token] / total),
            "projection": rounded(float(np.mean(values))),
            **counts[token],
        }

    return {
        "kinds": len(shares),
        "mean_projection": rounded(centre),
        "for": [told(token) for token in order[:top] if shares[token] > 0],
        "against": [told(token) for token in order[::-1][:top] if shares[token] < 0],
    }


def _by_place(rows: Sequence[Row], every: Sequence[Token], seed: int) -> list[Row]:
    """The difference of the mean projections at each place in the reply."""
    lengths = {one.row: one.place + 1 for one in every}  # the last one counts
    places: list[dict[int, list[float]]] = [{} for _ in PLACES]
    for one in every:
        places[0 if one.place == 0 else 1 + min(2, 3 * one.place // lengths[one.row])].setdefault(one.row, []).append(
            one.projection
        )
    found = []
    for name, own in zip(PLACES, places, strict=True):
        index = sorted(own)
        values = np.array([np.mean(own[row]) for row in index])
        is_pos = np.array([rows[row]["side"] == "pos" for row in index])
        questions = np.array([rows[row]["question_id"] for row in index])
        known = bool(len(values) and is_pos.any() and not is_pos.all())
        difference = difference_interval(values, is_pos, questions, seed).to_json() if known else None
        found.append({"place": name, "difference": difference, "replies": len(index)})
    return found


def _examples(model: ChatModel, rows: Sequence[Row], every: Sequence[Token]) -> list[Row]:
    """The first replies of each side, token by token."""
    chosen = [[index for index, row in enumerate(rows) if row["side"] == side][:SHOWN] for side in ("pos", "neg")]
    return [
        {
            "side": rows[index]["side"],
            "question": rows[index]["question"],
            "tokens": [[model.decode([one.id]), rounded(one.projection)] for one in every if one.row == index],
        }
        for side in chosen
        for index in side
    ]


def _features(
    config: DecomposeConfig,
    model: ChatModel,
    rows: Sequence[Row],
    dictionary: Dictionary,
    layer: int,
    unit: Float[Tensor, " d_model"],
) -> Row:
    """The features of a dictionary most like the vector, and the tokens of the replies that show them most.

    Of each the `cosine`, the mean strength over the replies of both sides, and where in a reply it is strongest.
    """
    found = nearest(dictionary, unit, max(config.top, config.causal), config.seed)
    chosen = [one["feature"] for one in found["features"]]
    seen: list[list[tuple[float, str]]] = [[] for _ in chosen]
    strengths: dict[str, list[Any]] = {"pos": [], "neg": []}
    for row, stream in token_activations(model, rows, layer) if dictionary.encoder is not None else ():
        strength = dictionary.encode(stream)[:, chosen].numpy()
        ids = row["response_ids"][row.get("reasoning_tokens", 0) :]
        strengths[row["side"]].append(strength.mean(axis=0))
        for index, own in enumerate(strength.T):
            at = int(own.argmax())
            if own[at] > 0:
                before, token = model.decode(ids[max(0, at - SEEN) : at]), model.decode([ids[at]])
                seen[index].append((float(own[at]), f"{before}⟦{token}⟧"))
    means = {side: np.mean(own, axis=0) if own else [np.nan] * len(chosen) for side, own in strengths.items()}
    for index, one in enumerate(found["features"]):
        best = sorted(seen[index], key=lambda pair: -pair[0])[:SEEN]
        one["shown"] = [{"strength": rounded(strength), "text": text} for strength, text in best]
        one |= {side: rounded(float(own[index])) for side, own in means.items()}
    return found
