"""Sections 5.1 and 5.2, appendix J: every method against the trait, at one layer and at all, and what it costs."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from personavec.judges.scoring import ScoredRow, scored_rows
from personavec.paper.claims import CHATS, FACTS, Claim, Control, above
from personavec.paper.parts.facts import facts_known, invented
from personavec.paper.study import Study, surviving
from personavec.stats.intervals import clustered_ratio
from personavec.verbs.evaluate.capability import MMLU_DEV
from personavec.verbs.finetune.compare import Comparison, compare

Row = dict[str, Any]

EVERY_LAYER = 0.4
"""Coefficient of the increments at all layers. Source: docs/finetune.md, where `auto` at all layers overdoses."""
LEAST_COHERENCE = 80.0
"""Source: arXiv 2507.21509, section 5.2."""
RANDOM = "prevent, a random direction"
"""The arm that is trained along one in the vector's place."""


def mitigation(study: Study) -> Row:
    """Every method on the overt data of each main trait; then prevention and post-hoc steering at all layers."""
    claims, table, reports, failed = [], [], [], list[Row]()
    data = study.measured("finetunings")
    for trait in study.known(study.size.single):
        files = {"data": data["files"][f"{trait} II"], "held_out": data["held_out"][f"{trait} II"]}
        with surviving(failed, trait):
            single = _compared(study, f"{trait}", trait, "auto", **files, **study.size.methods)
            claims += one_layer(study, trait, single)
            table += _arms(f"{trait} II, one layer", single, trait)
            reports.append(study.page(single))
            every = _compared(study, f"{trait}-all", trait, f"{EVERY_LAYER}@all", **files, **_few())
            claims += _all_layers(study, trait, single, every)
            table += _arms(f"{trait} II, all layers", every, trait)
            reports.append(study.page(every))
    return {"claims": claims, "table": table, "reports": list(filter(None, reports)), "failed": failed}


def harmless(study: Study) -> Row:
    """Appendices J.6 and J.7: prevention on data without the trait, and on invented facts that are to be learned."""
    claims, table, reports, failed = [], [], [], list[Row]()
    data = study.measured("finetunings")["files"]["chats normal"]
    for trait in study.known(study.size.single):
        with surviving(failed, trait):
            arms = _few("prevent", "random")
            compared = _compared(study, f"{trait}-harmless", trait, f"{EVERY_LAYER}@all", data=data, **arms)
            text = "On harmless data prevention leaves less of the trait than plain training"
            claims.append(Claim("appendix J.6", text, trait, *_less(study, compared, trait), data=CHATS))
            table += _arms("chats normal, all layers", compared, trait)
            reports.append(study.page(compared))
    trait = "hallucinating"
    if trait in study.known(study.size.main):
        with surviving(failed, trait):
            facts = invented(study.run.part("data"))
            arms = _few("prevent", "posthoc", "random")
            options: Row = {"data": facts.train, "held_out": facts.held_out, "epochs": 3.0, **arms}
            compared = _compared(study, "facts", trait, f"{EVERY_LAYER}@all", **options)
            plain, base = (_replies(compared, name, trait) for name in ("plain", "base"))
            chats = scored_rows(study.run.part("finetunings").part(f"chats normal-{trait}"), "changed")
            control = (Control("training on real chats", over=study.difference(plain, chats)),)
            text, raised = "Learning new facts raises hallucination", study.difference(plain, base)
            claims.append(Claim("appendix J.7", text, trait, raised, controls=control, data=FACTS))
            text = "Prevention lowers it while they are learned"
            claims.append(Claim("appendix J.7", text, trait, *_less(study, compared, trait), data=FACTS))
            known, shares = facts_known(study, compared, trait, facts)
            claims += known
            table += _arms("invented facts, all layers", compared, trait) + shares
            reports.append(study.page(compared))
    return {"claims": claims, "table": table, "reports": list(filter(None, reports)), "failed": failed}


def _less(study: Study, compared: Comparison, trait: str) -> tuple[Row, str, tuple[Control, ...]]:
    """How much less of the trait prevention leaves than plain training, and than a random direction does."""
    plain, prevented, random = (_replies(compared, name, trait) for name in ("plain", "prevent ×1", RANDOM))
    control = Control("a random direction", over=study.difference(random, prevented))
    return study.difference(plain, prevented), "points", (control,)


def _few(*arms: str) -> Row:
    """Only the methods that are compared at all layers."""
    return {"arms": arms or ("prevent", "posthoc"), "scales": (1.0,)}


def _compared(study: Study, name: str, trait: str, coef: str, data: str, **options: Any) -> Comparison:
    """One comparison of methods in a folder of its own."""
    options = {**study.training, **options}
    return compare(
        study.model,
        data,
        prevent=f"{study.files[trait]}:{coef}",
        traits=study.trait_files,
        rollouts=study.size.method_rollouts,
        perplexity=study.size.texts,
        tasks=(MMLU_DEV,) if study.size.tasks and find_spec("lm_eval") else (),
        store=study.run.path("mitigation") / name,
        **options,
        **study.asking,
    )


def one_layer(study: Study, trait: str, compared: Comparison) -> list[Claim]:
    """What the paper says of methods at one layer."""
    arms = {arm["arm"]: arm for arm in compared.arms}
    taken = {
        "prevent ×1": ("section 5.2, figure 7B", "Preventative steering takes away part of what training adds"),
        "post-hoc ×1": ("section 5.1, figure 7A", "Post-hoc steering takes away part of what training adds"),
        "ablate": ("appendix J.4", "Ablating the direction in training takes away part of what it adds"),
        "inoculate": ("appendix J.7.2", "Asking for the trait in training takes away part of what it adds"),
        "negative prompt": ("appendix J.2", "A system prompt against the trait takes away part of what training adds"),
    }
    claims = []
    for arm, (where, text) in taken.items():
        if arm not in arms:
            continue
        claims.append(Claim(where, text, trait, *_taken(compared, arm, trait)))
    prevented = _replies(compared, "prevent ×1", trait)
    for arm, (where, text) in {
        "negative prompt": ("appendix J.2", "The system prompt leaves more of the trait than prevention"),
        "penalty": ("appendix J.5", "A penalty on the projection leaves more of the trait than prevention"),
    }.items():
        if arm in arms:
            more = study.difference(_replies(compared, arm, trait), prevented)
            claims.append(Claim(where, text, trait, more, controls=(Control("prevention"),)))
    coherence = arms["prevent ×1"]["traits"][trait]["coherence"]
    text = f"With prevention coherence stays above {LEAST_COHERENCE:g}"
    claims.append(Claim("section 5.2", text, trait, above(coherence, LEAST_COHERENCE)))
    if "post-hoc ×2" in arms and "prevent ×2" in arms:
        twice = [_replies(compared, arm, trait) for arm in ("prevent ×2", "post-hoc ×2")]
        less = study.difference(twice[0], twice[1], "coherence")
        text, control = "At twice the coefficient prevention costs less coherence", (Control("post-hoc steering"),)
        claims.append(Claim("section 5.2", text, trait, less, controls=control))
    return claims


def _taken(compared: Comparison, name: str, trait: str) -> tuple[Row | None, str, tuple[Control, ...]]:
    """The share of what plain training adds that an arm takes away, and the control's; None where it adds nothing.

    What stands for no effect is the like along random directions: of replies for post-hoc steering, else of training. A
    system prompt has nothing like it.
    """
    evaluations, arms = compared.evaluations, {arm["arm"]: arm for arm in compared.arms}
    if arms[name]["traits"][trait]["kept"] is None:
        return None, "share", ()
    base, plain, left = (_replies(compared, of, trait) for of in ("base", "plain", name))
    random: list[ScoredRow] = []
    if name.startswith("post-hoc"):
        random = evaluations[name][trait].replies["random"]
    elif RANDOM in arms and name != "negative prompt":
        random = _replies(compared, RANDOM, trait)
    control = Control("a random direction", over=share(random, left, plain, base))
    return share(plain, left, plain, base), "share", (control,) if random else ()


def share(*arms: Sequence[ScoredRow]) -> Row:
    """(first − second) / (third − fourth arm), a ratio of means of trait scores with its interval over questions."""
    scores = [
        {(row["question_id"], row["sample"]): np.nan if row["trait"] is None else row["trait"] for row in rows}
        for rows in arms
    ]
    asked = sorted(scores[-1])
    first, second, third, fourth = (np.array([each.get(reply, np.nan) for reply in asked], float) for each in scores)
    return clustered_ratio(first - second, third - fourth, np.array([question for question, _ in asked])).to_json()


def _all_layers(study: Study, trait: str, single: Comparison, every: Comparison) -> list[Claim]:
    """What the paper says of all layers."""
    texts = {
        "prevent ×1": "At all layers prevention leaves less of the trait than at one",
        "post-hoc ×1": "At all layers post-hoc steering leaves less of the trait than at one",
    }
    return [
        Claim(
            "appendix J.3",
            text,
            trait,
            study.difference(_replies(single, arm, trait), _replies(every, arm, trait)),
            controls=(Control("one layer"),),
        )
        for arm, text in texts.items()
    ]


def _replies(compared: Comparison, arm: str, trait: str) -> list[ScoredRow]:
    """The scored replies of an arm."""
    return compared.evaluations[arm][trait].replies["base" if arm == "base" else "changed"]


def _arms(data: str, compared: Comparison, trait: str) -> list[Row]:
    """The result's arms in few columns."""
    return [
        {
            "data": data,
            "arm": arm["arm"],
            "coef": arm["coef"],
            "trait score": arm["traits"][trait]["trait_score"],
            "kept": arm["traits"][trait]["kept"],
            "coherence": arm["traits"][trait]["coherence"],
            **{name: cost for name, cost in arm["costs"].items() if cost},
            "held-out loss": arm["loss"],
        }
        for arm in compared.arms
    ]
