"""What an extraction would take: its replies are planned as they would be, and none is written."""

from collections.abc import Sequence
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any, Unpack

from personavec.judges.lessons import persona_plans
from personavec.judges.load import bench_of
from personavec.model.chat_model import ChatModel
from personavec.model.machine.accelerators import accelerator
from personavec.model.machine.plan import MachinePlan, PlannedWork, machine_plan
from personavec.steering.rollouts import Interview, Plan
from personavec.traits.load import load_traits
from personavec.traits.trait import Trait
from personavec.verbs.extract.check import ARMS
from personavec.verbs.extract.extract import Extracting, ExtractOptions, base_plans, extract, loads
from personavec.verbs.extract.sweep import swept_layers

STEERED = sum(arm.share != 0 for arm in ARMS)


def plan_extract(
    model: ChatModel,
    traits: str | Trait | Sequence[str | Trait],
    *,
    device: str = "auto",
    plan_device: str | None = None,
    price_per_hour: float | None = None,
    quantise: str | None = None,
    **options: Unpack[ExtractOptions],
) -> MachinePlan:
    """Memory, tokens, hours and price of an extraction.

    Prompts are counted exactly, replies as if each were as long as it may be. A judge other than the panel is left out.

    Args:
        model: With its weights or without (`ChatModel.load(…, weights=False)`).
        traits: As for `extract`.
        device: The device here.
        plan_device: Another one by its name, such as h100 or a100x8.
        price_per_hour: Of the machine.
        quantise: How weights would be quantised.
        options: Of `extract`.

    Raises:
        PersonavecError: Bad input.
    """
    machine = accelerator(plan_device, device, model.dtype)
    defaults = {each.name: each.default for each in signature(extract).parameters.values()}
    values: dict[str, Any] = {n: v for n, v in defaults.items() if v is not Parameter.empty} | dict(options)
    writing = {name: values[name] for name in Interview.__dataclass_fields__ if name in values}
    interview = Interview(model, **writing)
    judge = values["judge"]
    bench = replace(bench_of("panel", interview), spec=judge) if isinstance(judge, str) else judge
    loaded = load_traits([traits] if isinstance(traits, str | Trait) else traits)
    study = Extracting(
        interview,
        bench,
        swept_layers(values["layers"], model.n_layers),
        *(tuple(values["doses"]), values["rollouts"], values["sweep_questions"], values["check_rollouts"]),
        *(values["confounds"], values["coherence_floor"]),
    )
    plans = [*base_plans(study, loaded), *(plan for trait in loaded for plan in _plans(study, trait))]
    prompts = sum(len(plan.request.prompt) for plan in plans)
    readings = sum(part.readings for part in loads(study, loaded).values())
    mean = prompts / len(plans) + interview.max_new_tokens
    work = PlannedWork(len(plans), interview.max_new_tokens, prompts, interview.batch_tokens, round(readings * mean))
    return machine_plan(
        model,
        work,
        machine,
        quantise=quantise,
        price_per_hour=price_per_hour,
        counted={"readings": readings, "judge_counted": bench.spec == "panel"},
    )


def _plans(study: Extracting, trait: Trait) -> list[Plan]:
    """All replies of a trait but the base replies; what would steer them changes no prompt."""
    interview, extra = study.interview, {"arm": "planned"}
    swept = interview.answers(trait.sweep[: study.sweep_questions], 1, draw="sweep", extra=extra)
    checked = interview.answers(trait.check, study.check_rollouts, draw="base", extra=extra)
    return [
        *interview.contrastive(trait, study.rollouts),
        *persona_plans(interview, trait),
        *swept * (len(study.layers) * len(study.doses)),
        *checked * STEERED,
    ]
