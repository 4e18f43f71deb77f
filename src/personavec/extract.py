"""Extract: from a trait's words to a persona vector, and the proof by steering that it causes the trait."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from personavec import proof
from personavec.activations import activation_norms
from personavec.config import ExtractConfig
from personavec.confounds import audit, length_correlation, matched
from personavec.difference import difference_in_means
from personavec.errors import DataError, JudgeError, ModelError
from personavec.judges.load import load_bench
from personavec.model import ChatModel
from personavec.result import outcome, summarise
from personavec.rollouts import answers, contrastive, write
from personavec.run import Run
from personavec.scoring import (
    Judges,
    count,
    joined,
    keep,
    learn_coherence,
    learn_trait,
    mean_score,
    scale,
    score,
    take_scale,
)
from personavec.trait import Trait, load_traits
from personavec.vector import Card, PersonaVector, load_vector

FILES = {"response avg": "vector", "prompt avg": "prompt_avg", "prompt last": "prompt_last", "shuffled": "shuffled"}

Row = dict[str, Any]


def extract(config: ExtractConfig) -> Row:
    """Extract and prove the persona vectors of one or more traits, which share the model and the base replies.

    Returns:
        One object per trait under `traits`; with a single trait its keys stand at the top as well. Under `failed`,
        those of several traits whose replies could not be used, with the error.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the run folder.
    """
    began = time.monotonic()
    traits = load_traits(config.traits)
    model = ChatModel.from_config(config)
    layers = proof.swept_layers(config.layers, model.n_layers)
    bench = load_bench(config.judge, model, config.system, config, config)
    out = config.out or Path("runs") / f"extract-{'-'.join(trait.name for trait in traits)}"
    inputs = {f"trait {trait.name}": trait.content_hash for trait in traits}
    inputs |= {"model": model.identity.revision, "judge": bench.fingerprint, "numbers": model.numbers}
    run = Run.open(out, dataclasses.asdict(config), inputs)

    base = _base_replies(config, run, model, traits)
    if not run.done("coherence.json"):
        learn_coherence(bench.coherence, base, config.seed)
        run.write_json("coherence.json", scale(bench.coherence))
    take_scale(bench.coherence, run.read_json("coherence.json"), "coherence.json")
    if not run.done("norms.json"):
        run.write_json("norms.json", activation_norms(model, [row for row in base if row["response"]]))
    norms = tuple(run.read_json("norms.json"))

    found, failed = [], []
    for trait in traits:
        judges = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
        own = [row for row in base if row["trait_name"] == trait.name]
        try:
            found.append(_extract_one(config, run.part(trait.name), model, trait, judges, own, norms, layers))
        except (DataError, JudgeError, ModelError) as error:  # of this trait alone: the others go on
            failed.append({"trait": trait.name, "error": str(error)})
    if not found:
        raise DataError(" – ".join(failure["error"] for failure in failed))
    run.finish()
    seconds = round(time.monotonic() - began, 1)
    done = {"traits": found, "failed": failed, "out": str(out), "judge_usage": bench.usage, "seconds": seconds}
    return (found[0] if len(traits) == 1 else {}) | done


def _extract_one(
    config: ExtractConfig,
    run: Run,
    model: ChatModel,
    trait: Trait,
    judges: Judges,
    base: list[Row],
    norms: tuple[float, ...],
    layers: Sequence[int],
) -> Row:
    """One trait: rollouts, scores, vectors, sweep, check, result."""
    if run.done("result.json"):
        return outcome(run.read_json("result.json"), run.folder)
    began = time.monotonic()
    seed, system = config.seed, config.system
    plans = contrastive(model, trait, config.rollouts, seed)
    rollouts = write(model, run, "rollouts.jsonl", plans, config, f"{trait.name}: rollouts")
    if not (run.done("judge.json") and run.done("rollouts.scores.jsonl")):
        run.write_rows("rollouts.scores.jsonl", learn_trait(judges, rollouts, seed))
        run.write_json("judge.json", judges.to_json())
    judges.restore(run.read_json("judge.json"), str(run.path("judge.json")))
    rollouts = joined(rollouts, list(run.rows("rollouts.scores.jsonl")))
    kept = [row for row in rollouts if keep(row)]
    counts = {side: count([row for row in rollouts if row["side"] == side]) for side in ("pos", "neg")}
    if not counts["pos"]["kept"] or not counts["neg"]["kept"]:
        told = "; ".join(f"{side} " + ", ".join(f"{n} {what}" for what, n in c.items()) for side, c in counts.items())
        raise DataError(
            f"expected replies to keep on both sides of {trait.name}, got {told}; read them in "
            f"{run.path('rollouts.jsonl')} and sharpen the trait's pairs, or try more --max-new-tokens or "
            "--rollouts in another --out"
        )

    confounds: Row = {"handling": config.confounds, "dropped": 0, "measures": audit(kept, seed)}
    if config.confounds == "match":
        confounds["dropped"] = len(kept) - len(kept := matched(kept, seed))
        if not kept:
            raise DataError(
                f"expected positive and negative replies of {trait.name} that are alike in length, got none; "
                "pass --confounds residualise, or report, in another --out"
            )
    if not all(run.done(f"{name}.safetensors") for name in FILES.values()):
        card = Card(
            trait.name,
            model.identity,
            "response avg",
            activation_norms=norms,
            system_prompt=system,
            details={
                "counts": counts,
                "judge": judges.to_json(),
                "seed": seed,
                "sampling": config.sampling,
            },
        )
        for position, vector in difference_in_means(model, kept, card, seed, config.confounds == "residualise").items():
            vector.save(run.path(f"{FILES[position]}.safetensors"))
    vectors = {position: load_vector(run.path(f"{name}.safetensors")) for position, name in FILES.items()}
    vector = vectors["response avg"]

    sweep = proof.sweep_plans(model, trait, vector, layers, config.doses, config.sweep_questions, seed, system)
    rows = write(model, run, "sweep.jsonl", sweep, config, f"{trait.name}: sweep")
    cells = proof.cells(score(run, "sweep", rows, judges, f"{trait.name}: judging the sweep"), seed)
    base = score(run, "base", base, judges, f"{trait.name}: judging base replies")
    asked = [row for row in base if row["question_id"] < config.sweep_questions]
    chosen = proof.knee(cells, mean_score(asked, "trait", seed), config.coherence_floor)
    vector = PersonaVector(vector.direction, dataclasses.replace(vector.card, layer=chosen.layer, coef=chosen.coef))
    confounds["length"] = length_correlation(model, kept, vector, seed)
    details = vector.card.details | {"confounds": confounds}
    vector = PersonaVector(vector.direction, dataclasses.replace(vector.card, details=details))

    directions = {
        "vector": [vector],
        "random": proof.random_directions(vector, len(base), seed),
        "shuffled": [proof.rescaled(vectors["shuffled"], vector)],
    }
    check = proof.check_plans(model, trait, directions, chosen.layer, chosen.coef, config.check_rollouts, seed, system)
    rows = write(model, run, "check.jsonl", check, config, f"{trait.name}: final check")
    rows = [*base, *score(run, "check", rows, judges, f"{trait.name}: judging the check")]
    vector.save(run.path(f"{FILES['response avg']}.safetensors"))
    result = summarise(config, model, trait, judges, vector, rollouts, counts, cells, chosen, rows) | {
        "vectors": {position: f"{name}.safetensors" for position, name in FILES.items()},
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    return outcome(result, run.folder)


def _base_replies(config: ExtractConfig, run: Run, model: ChatModel, traits: Sequence[Trait]) -> list[Row]:
    plans = [
        plan
        for trait in traits
        for plan in answers(
            model,
            trait.evaluate,
            config.check_rollouts,
            config.seed,
            systems=(config.system,),
            draw="base",
            extra={"arm": "base", "trait_name": trait.name},
        )
    ]
    return write(model, run, "base.jsonl", plans, config, "base replies")
