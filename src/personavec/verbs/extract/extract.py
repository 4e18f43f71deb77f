"""Extract: from a trait's words to a persona vector, and the proof by steering that it causes the trait."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack, overload

from personavec.data.sheet import write_twins
from personavec.errors import DataError, JudgeError, ModelError
from personavec.judges.fluency import FluencyJudge
from personavec.judges.lessons import BASE_ROLLOUTS, garbled, lessons, persona_plans
from personavec.judges.load import Bench, bench_of
from personavec.judges.scoring import (
    Judges,
    ScoredRow,
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
from personavec.model.activations import activation_norms, read_rows
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import idle_layers
from personavec.runs.progress import tell
from personavec.runs.rules import DOSES, EACH_ONCE, Count, Free, Percent, Seed, Store, at_least, settings
from personavec.runs.run import Run
from personavec.steering.projection import matched_directions, random_directions, rescaled
from personavec.steering.rollouts import Interview, Plan, ReplyOptions, ReplyRow
from personavec.steering.vector import Card, PersonaVector, load_vector
from personavec.traits.load import load_traits
from personavec.traits.trait import SETS, Trait
from personavec.verbs.extract.across import judge_by_trait
from personavec.verbs.extract.check import ARMS, Along, by_arm, check_plans
from personavec.verbs.extract.confounds import audit, length_correlation, matched
from personavec.verbs.extract.difference import difference_in_means
from personavec.verbs.extract.outlook import Load, Outlook
from personavec.verbs.extract.result import Evidence, Extraction, Extractions, summarise
from personavec.verbs.extract.sweep import cells, knee, sweep_plans, swept_layers

FILES = {"response avg": "vector", "prompt avg": "prompt_avg", "prompt last": "prompt_last", "shuffled": "shuffled"}

Several = list[str] | list[Trait] | list[str | Trait] | tuple[str | Trait, ...]
Handling = Literal["report", "match", "residualise"]


@dataclasses.dataclass(frozen=True)
class Extracting:
    """An extraction under way: who is asked, how much, and who scores it."""

    interview: Interview
    bench: Bench
    layers: tuple[int, ...]
    doses: tuple[float, ...]
    rollouts: int
    sweep_questions: int
    check_rollouts: int
    confounds: Handling
    coherence_floor: float


class ExtractOptions(ReplyOptions, total=False):
    """Options of `extract`, which says what they mean."""

    judge: str | Bench
    rollouts: int
    layers: Sequence[int]
    doses: Sequence[float]
    sweep_questions: int
    check_rollouts: int
    confounds: Handling
    coherence_floor: float
    seed: int
    store: str | Path | None


@overload
def extract(model: ChatModel, traits: str | Trait, **options: Unpack[ExtractOptions]) -> Extraction: ...
@overload
def extract(model: ChatModel, traits: Several, **options: Unpack[ExtractOptions]) -> Extractions: ...
def extract(
    model: ChatModel,
    traits: str | Trait | Several,
    *,
    judge: Free[str | Bench] = "panel",
    rollouts: Count = 1,
    layers: Annotated[Sequence[int], EACH_ONCE] = (),
    doses: Annotated[Sequence[float], DOSES] = (0.1, 0.2, 0.3),
    sweep_questions: Annotated[int, at_least(2)] = 10,
    check_rollouts: Count = 3,
    confounds: Handling = "report",
    coherence_floor: Percent = 75.0,
    seed: Seed = 0,
    store: Store = None,
    **writing: Unpack[ReplyOptions],
) -> Extraction | Extractions:
    """Extract and prove the persona vector of a trait, or of several, which share the model and the base replies.

    Args:
        model: Who shall have the traits.
        traits: A built-in trait's name, a trait file's path or a `Trait`; a list of them gives `Extractions`.
        judge: Who scores replies: a spec as for `--judge`, or what `load_bench` made.
        rollouts: Replies per extraction question, instruction pair and side.
        layers: Layers the sweep tries; default five, spread from 30% to 70% of the depth.
        doses: Doses the sweep tries at every layer, as shares of the activation norm.
        sweep_questions: Of the trait's questions for the sweep, ask only the first so many.
        check_rollouts: Replies per held-out question in the final check.
        confounds: Length of replies: only report it, match it between the sides, or take away what it explains.
        coherence_floor: Coherence that a chosen layer and dose must keep, if any does.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it.
        writing: How replies are written: fields of `Interview`.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.

    Source: Persona Vectors (arXiv 2507.21509) sections 2 and 3.
    """
    began = time.monotonic()
    chosen = settings(extract, locals())
    single = isinstance(traits, str | Trait)
    loaded = load_traits([traits] if isinstance(traits, str | Trait) else traits)
    interview = Interview(model, seed=seed, **writing)
    bench = bench_of(judge, interview)
    study = Extracting(
        interview,
        bench,
        swept_layers(layers, model.n_layers, idle_layers(model)),
        tuple(doses),
        rollouts,
        sweep_questions,
        check_rollouts,
        confounds,
        coherence_floor,
    )
    if idle := idle_layers(model):
        tell(f"{model.identity.id}: layers {', '.join(map(str, idle))} do not run on text, and are left out")
    inputs = {f"trait {trait.name}": trait.content_hash for trait in loaded}
    inputs |= {"model": model.identity.revision, "judge": bench.fingerprint, "numbers": model.numbers}
    run = Run.open(store, chosen | interview.options, inputs)

    ahead = Outlook(loads(study, loaded, run), interview, loaded[0].extract)
    base = interview.write(base_plans(study, loaded), "base replies", run=run, name="base")
    lesson = [row for row in base if row["asked_for"] == "extract"]
    if not run.done("coherence.json"):
        learn_coherence(bench.coherence, lesson, seed)
        run.write_json("coherence.json", scale(bench.coherence))
    take_scale(bench.coherence, run.read_json("coherence.json"), "coherence.json")
    if not run.done("norms.json"):
        run.write_json("norms.json", activation_norms(model, [row for row in lesson if row["response"]]))
    norms = tuple(run.read_json("norms.json"))
    for trait in loaded:
        ahead.done(f"{trait.name}: base replies")

    done: list[Extraction] = []
    failed: list[dict[str, str]] = []
    for trait in loaded:
        replies = [row for row in base if row["trait_name"] == trait.name]
        try:
            done.append(_extract_one(study, run.part(trait.name), trait, replies, norms, ahead))
        except (DataError, JudgeError, ModelError) as error:  # of this trait alone: the others go on
            if single:
                raise
            failed.append({"trait": trait.name, "error": str(error)})
    if not done:
        raise DataError(" – ".join(failure["error"] for failure in failed))
    came_out = {extraction.data["trait"] for extraction in done}
    among = judge_by_trait(bench, run, [trait for trait in loaded if trait.name in came_out])
    run.finish()
    if single:
        return done[0]
    shared = {
        "judge_by_trait": among,
        "out": run.shown(),
        "judge_usage": bench.usage,
        "seconds": round(time.monotonic() - began, 1),
    }
    return Extractions({"traits": [each.to_dict() for each in done], "failed": failed, **shared}, tuple(done))


def _extract_one(
    study: Extracting, run: Run, trait: Trait, base: Sequence[ReplyRow], norms: tuple[float, ...], ahead: Outlook
) -> Extraction:
    """One trait: rollouts, scores, vectors, sweep, check, result."""
    if run.done("result.json") and run.done("vector.safetensors"):
        sheet = _sheet(run, trait, base, study.interview.seed)
        return Extraction.of(run.read_json("result.json"), load_vector(run.path("vector.safetensors")), run, sheet)
    began = time.monotonic()
    interview, model, seed = study.interview, study.interview.model, study.interview.seed
    judges = Judges(study.bench.trait(trait), study.bench.coherence, trait.content_hash)
    plain_by_set = {key: [row for row in base if row["asked_for"] == key] for key in SETS}
    known = _scored_lessons(study, run, trait, judges, plain_by_set["extract"])
    ahead.done(f"{trait.name}: rollouts")
    rollouts = [row for row in known if "side" in row]
    kept = [row for row in rollouts if keep(row)]
    counts = {side: count([row for row in rollouts if row["side"] == side]) for side in ("pos", "neg")}
    if not counts["pos"]["kept"] or not counts["neg"]["kept"]:
        texts = "; ".join(f"{side} " + ", ".join(f"{n} {what}" for what, n in c.items()) for side, c in counts.items())
        raise DataError(
            f"expected replies to keep on both sides of {trait.name}, got {texts}; read them in "
            f"{run.path('rollouts.jsonl')} and sharpen the trait's pairs, or try more --max-new-tokens or "
            "--rollouts in another --out"
        )

    audited: dict[str, Any] = {"handling": study.confounds, "dropped": 0, "measures": audit(kept)}
    if study.confounds == "match":
        audited["dropped"] = len(kept) - len(kept := matched(kept, seed))
        if not kept:
            raise DataError(
                f"expected positive and negative replies of {trait.name} that are alike in length, got none; "
                "pass --confounds residualise, or report, in another --out"
            )
    vectors = _vectors(study, run, trait, judges, kept, counts, norms)
    vector = vectors["response avg"]
    ahead.done(f"{trait.name}: vector")

    plans = sweep_plans(interview, trait.sweep[: study.sweep_questions], vector, study.layers, study.doses)
    rows = interview.write(plans, f"{trait.name}: sweep", run=run, name="sweep")
    swept = cells(score(rows, judges, f"{trait.name}: judging the sweep", run=run, name="sweep"))
    plain = score(plain_by_set["sweep"], judges, f"{trait.name}: judging base replies", run=run, name="sweep_base")
    ahead.done(f"{trait.name}: sweep")
    chosen = knee(swept, mean_score(plain, "trait"), study.coherence_floor)
    vector = PersonaVector(vector.direction, dataclasses.replace(vector.card, layer=chosen.layer, coef=chosen.coef))
    audited["length"] = length_correlation(model, kept, vector, seed)
    details = vector.card.details | {"confounds": audited}
    vector = PersonaVector(vector.direction, dataclasses.replace(vector.card, details=details))

    replies = len(plain_by_set["check"])
    directions: dict[Along, list[PersonaVector]] = {
        "vector": [vector],
        "random": random_directions(vector, replies, seed),
        "matched": _matched(study, vector, plain_by_set["extract"], replies),
        "shuffled": [rescaled(vectors["shuffled"], vector)],
    }
    plans = check_plans(interview, trait.check, directions, chosen, study.check_rollouts)
    rows = interview.write(plans, f"{trait.name}: final check", run=run, name="check")
    arms = [*plain_by_set["check"], *rows, *garbled(plain_by_set["check"], seed)]
    checked = score(arms, judges, f"{trait.name}: judging the check", run=run, name="check")
    evidence = Evidence(known, swept, chosen, checked)
    result = summarise(interview, trait, judges, vector, study.coherence_floor, evidence) | {
        "vectors": {position: f"{name}.safetensors" for position, name in FILES.items()},
        "seconds": round(time.monotonic() - began, 1),
    }
    proof = {"verdict": result["verdict_word"], "deciding": result["deciding"]}
    proof |= {arm["arm"]: arm["trait"] for arm in result["check"]}
    details = vector.card.details | {"proof": proof}
    vector = PersonaVector(vector.direction, dataclasses.replace(vector.card, details=details))
    vector.save(run.path(f"{FILES['response avg']}.safetensors"))
    run.write_json("result.json", result)
    return Extraction.of(result, vector, run, _sheet(run, trait, base, seed))


def _sheet(run: Run, trait: Trait, base: Sequence[ReplyRow], seed: int) -> dict[str, Any]:
    """Pairs of the final check's steered replies and their twins for blind readers, written once."""
    if not run.done("sheet.json"):
        replies: Any = [*run.rows("check.jsonl"), *(row for row in base if row["asked_for"] == "check")]
        scores: Any = list(run.rows("check.scores.jsonl"))
        arms = by_arm(joined(replies, scores))
        sheet = write_twins(run.path("sheet.csv"), arms["steered"], arms["base"], trait.adjective, seed)
        run.write_json("sheet.json", sheet)
    return dict(run.read_json("sheet.json"))


def loads(study: Extracting, traits: Sequence[Trait], run: Run | None = None) -> dict[str, Load]:
    """What is (or in a run is left) to do, part by part; a judge that is asked elsewhere is not counted."""

    def done(name: str, trait: Trait) -> bool:
        return run is not None and run.part(trait.name).done(name)

    parts: dict[str, Load] = {}
    for trait in traits:
        if done("result.json", trait) and done("vector.safetensors", trait):
            continue
        reads = study.bench.trait(trait).steps + study.bench.coherence.steps if study.bench.spec == "panel" else 0
        base, swept = len(trait.extract) * BASE_ROLLOUTS, len(trait.sweep[: study.sweep_questions])
        told = len(study.interview.contrastive(trait, study.rollouts)) + len(persona_plans(study.interview, trait))
        cells, checked = len(study.layers) * len(study.doses) * swept, len(trait.check) * study.check_rollouts
        if run is None or not run.done("norms.json"):
            parts[f"{trait.name}: base replies"] = Load(base + swept + checked, (FluencyJudge.copies + 1) * base)
        if not done("judge.json", trait):
            parts[f"{trait.name}: rollouts"] = Load(told, reads * (told + 2 * base))
        if not done(f"{FILES['response avg']}.safetensors", trait):
            parts[f"{trait.name}: vector"] = Load(0, told)
        steered = sum(arm.share != 0 for arm in ARMS)
        parts[f"{trait.name}: sweep"] = Load(cells, reads * (cells + swept))
        parts[f"{trait.name}: check"] = Load(checked * steered, reads * checked * len(ARMS))
    return parts


def _scored_lessons(
    study: Extracting, run: Run, trait: Trait, judges: Judges, base: Sequence[ReplyRow]
) -> list[ScoredRow]:
    """Contrastive rollouts and what they must not be mistaken for, from which the judges learn their scale."""
    interview = study.interview
    plans = interview.contrastive(trait, study.rollouts)
    rollouts = interview.write(plans, f"{trait.name}: rollouts", run=run, name="rollouts")
    known = lessons(interview, trait, rollouts, base, run)
    if not (run.done("judge.json") and run.done("rollouts.scores.jsonl")):
        run.write_rows("rollouts.scores.jsonl", learn_trait(judges, known))
        run.write_json("judge.json", judges.to_json())
    judges.restore(run.read_json("judge.json"), str(run.path("judge.json")))
    return joined(known.rows, list(run.rows("rollouts.scores.jsonl")))  # type: ignore[arg-type]


def _matched(study: Extracting, vector: PersonaVector, base: Sequence[ReplyRow], count: int) -> list[PersonaVector]:
    """Random directions with the covariance of the base replies' activations, as long as the vector."""
    model = study.interview.model
    rows = [row for row in base if row["response"]]
    read = read_rows(model, rows, "response avg", None, f"{vector.card.trait}: base activations")
    return matched_directions(vector, read, count, study.interview.seed)


def _vectors(
    study: Extracting,
    run: Run,
    trait: Trait,
    judges: Judges,
    kept: Sequence[ScoredRow],
    counts: dict[str, dict[str, int]],
    norms: tuple[float, ...],
) -> dict[str, PersonaVector]:
    """The vector from each position, and from shuffled labels."""
    interview = study.interview
    paths = {position: run.path(f"{name}.safetensors") for position, name in FILES.items()}
    if not all(path.is_file() for path in paths.values()):
        card = Card(
            trait.name,
            interview.model.identity,
            "response avg",
            activation_norms=norms,
            system_prompt=interview.system,
            details={
                "counts": counts,
                "judge": judges.to_json(),
                "seed": interview.seed,
                "sampling": interview.sampling.sampling,
            }
            | ({"absent_layers": [*idle]} if (idle := idle_layers(interview.model)) else {}),
        )
        residualise = study.confounds == "residualise"
        for position, vector in difference_in_means(interview.model, kept, card, interview.seed, residualise).items():
            vector.save(paths[position])
    return {position: load_vector(path) for position, path in paths.items()}


def base_plans(study: Extracting, traits: Sequence[Trait]) -> list[Plan]:
    """The model as it is is asked the questions of every set."""
    rollouts = {"extract": BASE_ROLLOUTS, "sweep": 1, "check": study.check_rollouts}
    return [
        plan
        for trait in traits
        for key in SETS
        for plan in study.interview.answers(
            getattr(trait, key)[: study.sweep_questions] if key == "sweep" else getattr(trait, key),
            rollouts[key],
            draw="sweep" if key == "sweep" else "base",
            extra={"arm": "base", "trait_name": trait.name, "asked_for": key},
        )
    ]
