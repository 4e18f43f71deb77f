"""Decompose: which tokens carry a vector's difference, and which attentions and MLPs write it."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from personavec.errors import ConfigError, DataError, VectorError
from personavec.judges.load import Bench, bench_of
from personavec.judges.scoring import Judges, ScoredRow, keep, scaled, scored_rows
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import token_texts
from personavec.runs.files import sha256
from personavec.runs.result import Result
from personavec.runs.rules import Free, Natural, Seed, Store, settings
from personavec.runs.run import Row, Run
from personavec.runs.show import interval
from personavec.stats.intervals import difference_interval
from personavec.stats.nulls import against, rounded
from personavec.steering.projection import directions
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.load import trait_of
from personavec.traits.trait import Trait
from personavec.verbs.analyse.contributions import Row as Reply
from personavec.verbs.analyse.contributions import Token, token_activations, tokens, written
from personavec.verbs.analyse.dictionary import Dictionary, causal_rank, load_dictionary, nearest
from personavec.verbs.extract.confounds import matched

PLACES = ("first token", "first third", "second third", "last third")
SEEN = 5
"""Tokens that are shown of a feature, and how many stand before each."""
SHOWN = 3
"""Replies of each side that the page shades."""


@dataclasses.dataclass(frozen=True, repr=False)
class Decomposition(Result):
    """What writes a vector, by token and by block; `to_dict()` is what `--json` prints."""

    page = "decompose"

    @property
    def terms(self) -> dict[str, Row]:
        """Contribution of the embedding and of every attention and MLP, with its interval."""
        return {term["term"]: term["difference"] for term in self.data["terms"]}

    @property
    def tokens(self) -> dict[str, float]:
        """Share of the difference of each token that carries or takes away most."""
        return {token["token"]: token["share"] for side in ("for", "against") for token in self.data["tokens"][side]}

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        strongest = sorted(self.terms.items(), key=lambda term: -abs(term[1]["mean"]))[:5]
        return [
            ("vector", f"{data['trait']} of {data['model']}, layer {data['layer']}"),
            ("replies", f"{data['replies']['pos']} + {data['replies']['neg']}"),
            ("the sides lie apart", interval(data["whole"], 2)),
            *((name, interval(difference, 2)) for name, difference in strongest),
        ]


def decompose(
    model: ChatModel,
    vector: PersonaVector | str | Path,
    *,
    replies: Free[Sequence[ScoredRow] | None] = None,
    run: Free[str | Path | None] = None,
    layer: int | None = None,
    sae: Free[Dictionary | str | Path | None] = None,
    causal: Natural = 0,
    traits: Free[Sequence[str | Path | Trait]] = (),
    judge: Free[str | Bench] = "panel",
    top: int = 20,
    seed: Seed = 0,
    store: Store = None,
    **writing: Unpack[ReplyOptions],
) -> Decomposition:
    """Split the difference between kept positive and negative replies along a vector, by token and by block.

    The stream is the sum of what the embedding, every attention and every MLP have added. So the projection of the
    difference is the sum of their projections, and likewise of those of all tokens: both sums are checked.

    Args:
        model: Who wrote the replies, and is read.
        vector: A persona vector, or its file in the folder of its extraction.
        replies: The scored replies that it was made from.
        run: Instead, the folder of the trait in the run of the extraction; default that of the vector's file.
        layer: Where it is read; default the layer that its card recommends.
        sae: A sparse dictionary of that layer, or its file.
        causal: With `sae`, steer along so many of the first features, and judge the trait.
        traits: With `causal`, the trait or its file, where it is not built in.
        judge: With `causal`, who scores replies: a spec as for `--judge`, or what `load_bench` made.
        top: Tokens to name on either side, and features of the dictionary.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call does it again.
        writing: With `causal`, how replies are written: fields of `Interview`.

    Raises:
        PersonavecError: Bad input.
    """
    began = time.monotonic()
    chosen = settings(decompose, locals())
    loaded, at = at_layer(vector, layer)
    unit = loaded.unit(at)
    rows = replies_of(vector, loaded, replies, run)
    loaded.check_model(model.identity)
    dictionary = load_dictionary(sae, model.identity.d_model) if isinstance(sae, str | Path) else sae
    if dictionary is not None and dictionary.layer not in (None, at):
        raise ConfigError(
            f"expected a dictionary of layer {at}, got one of layer {dictionary.layer}; pass --layer "
            f"{dictionary.layer}, or another dictionary"
        )
    if causal and dictionary is None:
        raise ConfigError("expected --sae with --causal, got none; pass a dictionary")
    interview = Interview(model, seed=seed, **writing)
    inputs = {"vector": loaded.content_hash, "numbers": model.numbers}
    inputs |= {"dictionary": sha256(dictionary.file)} if dictionary else {}
    inputs |= {} if replies is None else {"replies": hashlib.sha256(json.dumps([*replies]).encode()).hexdigest()}
    trait, judges = None, None
    if causal:
        trait = trait_of(loaded.card.trait, traits)
        bench = bench_of(judge, interview)
        judges = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
        scaled(judges, bench.spec, loaded.card, loaded.card.trait)
        inputs["trait"] = trait.content_hash
        chosen |= {"judge": bench.spec}
    kept = Run.open(store, chosen | interview.options, inputs)

    random = directions([loaded], [loaded.card.trait], [at], seed).random(at)
    contributions = written(model, rows, at, torch.cat([unit[None], random]))
    is_pos = np.array([row["side"] == "pos" for row in rows])
    questions = np.array([row["question_id"] for row in rows])
    terms = []
    for index, name in enumerate(contributions.terms):
        values = contributions.values[:, index]
        difference = difference_interval(values[:, 0], is_pos, questions)
        others = values[is_pos, 1:].mean(axis=0) - values[~is_pos, 1:].mean(axis=0)
        terms.append({"term": name, "difference": difference.to_json(), "random": against(difference.mean, others)})
    whole = difference_interval(contributions.whole[:, 0], is_pos, questions)
    every = tokens(model, rows, at, unit)
    features = None
    if dictionary is not None:
        features = nearest(dictionary, unit, max(top, causal), seed)
        _describe(features["features"], model, rows, dictionary, at)
    result: Row = {
        "out": kept.shown(),
        "trait": loaded.card.trait,
        "model": model.identity.id,
        "vector": None if isinstance(vector, PersonaVector) else str(vector),
        "layer": at,
        "replies": {"pos": int(is_pos.sum()), "neg": int((~is_pos).sum())},
        "whole": whole.to_json(),
        "terms": terms,
        "sum_error": float(np.abs(contributions.values[:, :, 0].sum(axis=1) - contributions.whole[:, 0]).max()),
        "tokens": _by_token(model, rows, every, top),
        "places": _by_place(rows, every),
        "examples": _examples(model, rows, every),
        "dictionary": features,
        "causal": None,
    }
    if dictionary is not None and features is not None and judges is not None and trait is not None:
        first = [feature["feature"] for feature in features["features"][:causal]]
        result["causal"] = causal_rank(interview, kept, loaded, at, trait, judges, (dictionary, first))
    kept.complete(result, began)
    return Decomposition(result)


def at_layer(vector: PersonaVector | str | Path, layer: int | None) -> tuple[PersonaVector, int]:
    """A vector, and where it is read.

    Raises:
        ConfigError: Its card recommends no layer, and none was given.
        VectorError: No such vector or layer.
    """
    if not isinstance(vector, PersonaVector | str | Path):
        raise VectorError(f"expected a persona vector or its file, got {vector!r}; pass what load_vector returns")
    loaded = vector if isinstance(vector, PersonaVector) else load_vector(vector)
    at = loaded.card.layer if layer is None else layer
    if at is None:
        raise ConfigError("expected a recommended layer in the card, got none; pass --layer")
    loaded.unit(at)
    return loaded, at


def replies_of(
    vector: PersonaVector | str | Path,
    loaded: PersonaVector,
    replies: Sequence[ScoredRow] | None = None,
    run: str | Path | None = None,
) -> list[ScoredRow]:
    """The replies of which a vector was made: those given, or in the folder of its extraction, or next to its file.

    Raises:
        ConfigError: They are not there.
        DataError: None were kept of a side.
    """
    place = vector if run is None else run
    if replies is None:
        if isinstance(place, PersonaVector):
            raise ConfigError(
                "expected the replies that the vector was made from, got a vector alone; pass replies= or run=, or "
                "the vector's file where extract left it"
            )
        folder = Run(Path(place) if run is not None else Path(place).parent)
        if not (folder.done("rollouts.jsonl") and folder.done("rollouts.scores.jsonl")):
            raise ConfigError(
                f"expected rollouts.jsonl and rollouts.scores.jsonl beside {place}, got none; pass the vector where "
                "extract left it"
            )
        replies = scored_rows(folder, "rollouts")
    kept = [row for row in replies if keep(row)]
    if {row["side"] for row in kept} != {"pos", "neg"}:
        beside = "among the replies" if isinstance(place, PersonaVector) else f"beside {place}"
        raise DataError(f"expected kept replies of both sides {beside}, got one side; extract it again")
    handling = loaded.card.details.get("confounds", {}).get("handling")
    return matched(kept, loaded.card.details["seed"]) if handling == "match" else kept


def _by_token(model: ChatModel, rows: Sequence[Reply], every: Sequence[Token], top: int) -> Row:
    """Tokens by what all their occurrences add to the difference; the tokens' mean projection is taken away first.

    That leaves the sum as it is, since either side's weights sum to one.
    """
    centre = float(np.mean([token.projection for token in every]))
    shares: dict[int, float] = {}
    counts: dict[int, dict[str, int]] = {}
    for token in every:
        side = rows[token.row]["side"]
        sign = 1 if side == "pos" else -1
        shares[token.id] = shares.get(token.id, 0.0) + sign * token.weight * (token.projection - centre)
        counts.setdefault(token.id, {"pos": 0, "neg": 0})[side] += 1
    order = sorted(shares, key=lambda kind: -shares[kind])
    total = sum(shares.values())

    def described(kind: int) -> Row:
        values = [token.projection for token in every if token.id == kind]
        return {
            "token": model.decode([kind]),
            "share": rounded(shares[kind] / total),
            "projection": rounded(float(np.mean(values))),
            **counts[kind],
        }

    return {
        "kinds": len(shares),
        "mean_projection": rounded(centre),
        "for": [described(kind) for kind in order[:top] if shares[kind] > 0],
        "against": [described(kind) for kind in order[::-1][:top] if shares[kind] < 0],
    }


def _by_place(rows: Sequence[Reply], every: Sequence[Token]) -> list[Row]:
    """The difference of the mean projections at each place in the reply."""
    lengths = {token.row: token.place + 1 for token in every}  # the last one counts
    places: list[dict[int, list[float]]] = [{} for _ in PLACES]
    for token in every:
        place = 0 if token.place == 0 else 1 + min(2, 3 * token.place // lengths[token.row])
        places[place].setdefault(token.row, []).append(token.projection)
    table = []
    for name, by_row in zip(PLACES, places, strict=True):
        index = sorted(by_row)
        values = np.array([np.mean(by_row[row]) for row in index])
        is_pos = np.array([rows[row]["side"] == "pos" for row in index])
        questions = np.array([rows[row]["question_id"] for row in index])
        known = bool(len(values) and is_pos.any() and not is_pos.all())
        difference = difference_interval(values, is_pos, questions).to_json() if known else None
        table.append({"place": name, "difference": difference, "replies": len(index)})
    return table


def _examples(model: ChatModel, rows: Sequence[Reply], every: Sequence[Token]) -> list[Row]:
    """The first replies of each side, token by token."""
    chosen = [[index for index, row in enumerate(rows) if row["side"] == side][:SHOWN] for side in ("pos", "neg")]
    found = []
    for index in (index for side in chosen for index in side):
        tokens = [token for token in every if token.row == index]
        texts = token_texts(model, [token.id for token in tokens])
        shaded = [[text, rounded(token.projection)] for text, token in zip(texts, tokens, strict=True)]
        found.append({"side": rows[index]["side"], "question": rows[index]["question"], "tokens": shaded})
    return found


def _describe(
    features: Sequence[Row], model: ChatModel, rows: Sequence[Reply], dictionary: Dictionary, layer: int
) -> None:
    """Adds to each feature its mean strength over the replies of both sides, and where in them it is strongest."""
    chosen = [feature["feature"] for feature in features]
    seen: list[list[tuple[float, str]]] = [[] for _ in chosen]
    strengths: dict[str, list[Any]] = {"pos": [], "neg": []}
    for row, stream in token_activations(model, rows, layer) if dictionary.encoder is not None else ():
        strength = dictionary.encode(stream)[:, chosen].numpy()
        ids = row["response_ids"][row.get("reasoning_tokens", 0) :]
        strengths[row["side"]].append(strength.mean(axis=0))
        for index, by_token in enumerate(strength.T):
            at = int(by_token.argmax())
            if by_token[at] > 0:
                before, token = model.decode(ids[max(0, at - SEEN) : at]), model.decode([ids[at]])
                seen[index].append((float(by_token[at]), f"{before}⟦{token}⟧"))
    means = {side: np.mean(each, axis=0) if each else [np.nan] * len(chosen) for side, each in strengths.items()}
    for index, feature in enumerate(features):
        best = sorted(seen[index], key=lambda pair: -pair[0])[:SEEN]
        feature["shown"] = [{"strength": rounded(strength), "text": text} for strength, text in best]
        feature |= {side: rounded(float(mean[index])) for side, mean in means.items()}
