"""The paper: every experiment on one model, from nothing to paper.html, with a computed verdict on every claim."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

from personavec.data.dataset import dataset_of
from personavec.errors import PersonavecError
from personavec.judges.load import Bench, bench_of
from personavec.model.chat_model import ChatModel
from personavec.paper.claims import judged, tally
from personavec.paper.parts.finetuning import finetunings
from personavec.paper.parts.geometry import geometry
from personavec.paper.parts.mitigation import harmless, mitigation
from personavec.paper.parts.monitoring import monitoring
from personavec.paper.parts.screening import filtering, real_chats, rungs, separability
from personavec.paper.parts.vectors import judges, positions, vectors
from personavec.paper.sizes import NOT_DONE, sizes
from personavec.paper.study import QUICK, WHOLE, Study
from personavec.runs.files import write_file
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Positive, Seed, Store, settings
from personavec.runs.run import Run, versions
from personavec.steering.generate import generate
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.traits.load import load_trait
from personavec.verbs.finetune.finetune import Data
from personavec.verbs.finetune.trainer import TrainingOptions

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper."""

    title: str
    run: Callable[[Study], Row]
    whole: float
    """Minutes where `REFERENCE` was measured, on two cores with bfloat16; all but `vectors` ran two at a time, a thread
    each, and are scaled by what `pace` took then. What has grown since is scaled by the number of its replies."""
    quick: float | None
    """The same of the quick version, which ran alone; None leaves the part out there."""
    trains: bool = False
    """Whether it trains, or reads what was trained: a model behind servers has no weights for that."""


PARTS = {
    "vectors": Experiment("Vectors, and the proof by steering", vectors, 35, 2.2),
    "positions": Experiment("Token positions", positions, 7, 1.1),
    "judges": Experiment("A second judge", judges, 7, None),
    "monitoring": Experiment("Monitoring", monitoring, 145, 1.4),
    "finetunings": Experiment("Finetunings, and what foretells them", finetunings, 49, 5.1, trains=True),
    "mitigation": Experiment("Prevention and its rivals", mitigation, 12, 3.4, trains=True),
    "harmless": Experiment("Prevention where there is nothing to prevent", harmless, 19, None, trains=True),
    "separability": Experiment("Telling rows apart", separability, 1, 0.3, trains=True),
    "rungs": Experiment("Screening real chats at lower cost", rungs, 1, 0.4),
    "filtering": Experiment("Filtering training data", filtering, 11, 3.8, trains=True),
    "geometry": Experiment("Cosines and persona space", geometry, 15, 1.9),
    "real_chats": Experiment("Training on chosen real chats", real_chats, 6, None, trains=True),
}
"""In order; each may read what those before it measured."""

REFERENCE = 3.1
"""Seconds that `pace` took there."""
NO_WEIGHTS = "it needs the weights, which are behind servers; pass --engine hf and another --out"
PROBE = "optimistic"
"""Trait whose held-out questions `pace` asks."""


@dataclass(frozen=True, repr=False)
class Paper(Result):
    """Every claim of the paper with its figures here, or with `plan` how long that would take."""

    page = "paper"

    @property
    def claims(self) -> list[Row]:
        """Each with its figures, the paper's, the control's, and the verdict."""
        return list(self.data.get("claims", ()))

    def published(self) -> Row:
        """Write paper.html and paper.md; what `--json` prints."""
        return self.to_dict() if "plan" in self.data else super().published()

    def lines(self) -> list[tuple[str, str]]:
        """How often each verdict was reached, or minutes of each part."""
        if "plan" in self.data:
            return [(name, f"{minutes:.1f} min") for name, minutes in self.data["plan"].items()]
        failed = [(f"left out: {part['part']}", part["error"]) for part in self.data["failed"]]
        return [(verdict, str(count)) for verdict, count in self.data["tally"].items()] + failed


def paper(
    model: ChatModel,
    *,
    quick: bool = False,
    plan: Free[bool] = False,
    chats: Data | None = None,
    judge: Free[str | Bench] = "panel",
    rate: Positive = 2e-4,
    batch: Count = 8,
    seed: Seed = 0,
    store: Store = None,
    **writing: Unpack[ReplyOptions],
) -> Paper:
    """Run every part of the paper that is not done on one model, which stays as it is.

    Every part has run folders of its own inside and goes on where it was killed. One that cannot be done is reported,
    and the others go on. Of a model behind servers those that train are not done, which `not_done` says.

    Args:
        model: The subject of all experiments.
        quick: Two traits and few replies: minutes instead of hours.
        plan: Only estimate how long every part takes on this machine.
        chats: Real conversations to screen, as `screen` takes them; default ShareGPT's, fetched once.
        judge: Who scores replies: a spec as for `--judge`, or what `load_bench` made.
        rate: Highest learning rate of the finetunings.
        batch: Rows in one optimizer step.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it.
        writing: How replies are written: fields of `Interview`.

    Returns:
        `claims`: each with its figures, the paper's, the controls', and the verdict; `tally` of the verdicts; by part
        what it measured; `failed` parts with the error; what is `not_done` at all. With `plan` the estimate alone.

    Raises:
        PersonavecError: Bad options.

    Source: Persona Vectors (arXiv 2507.21509).
    """
    chosen = settings(paper, locals())
    interview = Interview(model, seed=seed, **writing)
    bench = bench_of(judge, interview)
    data = None if chats is None else dataset_of(chats)
    inputs = {} if data is None or isinstance(chats, str) else data.fingerprint()
    inputs |= {"numbers": model.numbers} if model.engine else {}
    run = Run.open(store, chosen | interview.options | {"model": model.identity.id, "judge": bench.spec}, inputs)
    size = QUICK if quick else WHOLE
    training: TrainingOptions = {"rate": rate, "batch": batch, "checkpoints": 1}
    if quick:  # its two or three steps would all lie within the warm-up
        training["warmup_steps"] = 0
    study = Study(interview, writing, bench, size, run, data, training)
    slower = pace(interview) / REFERENCE
    known = {name: part.quick if quick else part.whole for name, part in PARTS.items()}
    asked = [name for name, reference in known.items() if reference is not None]
    untrained = [PARTS[name].title for name in asked if PARTS[name].trains and model.engine]
    minutes = {name: slower * (known[name] or 0) for name in asked if PARTS[name].title not in untrained}
    parts = {name: PARTS[name] for name in minutes}
    left = {name for name in parts if not _done(run, name)}
    for name, part in parts.items():
        tell(f"{part.title:<46} {f'about {minutes[name]:5.1f} min' if name in left else 'done'}")
    for title in untrained:
        tell(f"{title:<46} not done: {NO_WEIGHTS}")
    tell(f"in all about {sum(minutes[name] for name in left):.0f} minutes")
    if plan:
        return Paper({"plan": minutes, "out": run.shown()})

    failed: dict[str, str] = {}
    for place, (name, part) in enumerate(parts.items(), 1):
        if name in left:
            tell(f"part {place} of {len(parts)}: {part.title}")
            began = time.monotonic()
            try:
                measured = part.run(study)
            except Exception as error:  # a night is long: the other parts go on, whatever it was
                failed[name] = str(error) if isinstance(error, PersonavecError) else f"{type(error).__name__}: {error}"
                write_file(run.path(f"{name}.error.txt"), traceback.format_exc().encode())
                tell(f"{part.title}: left out, because {failed[name]}")
                continue
            taken = time.monotonic() - began
            claims = judged(measured["claims"], bench.spec)
            run.write_json(f"{name}.json", measured | {"claims": claims, "seconds": round(taken, 1)})
            run.path(f"{name}.error.txt").unlink(missing_ok=True)  # of an earlier try
            left.discard(name)
            ahead = sum(minutes[other] for other in left - set(failed))
            tell(f"{part.title}: {taken / 60:.1f} min; about {ahead:.0f} min to go")
    measured_parts = {
        name: {"title": part.title, "tally": tally(measured["claims"]), "sizes": sizes(study, name)} | measured
        for name, part in parts.items()
        if name not in failed
        for measured in [run.read_json(f"{name}.json")]
    }
    claims = [claim for part in measured_parts.values() for claim in part["claims"]]
    not_done = NOT_DONE | dict.fromkeys(untrained, NO_WEIGHTS)
    result: Row = {
        "out": run.shown(),
        "model": model.identity.id,
        "judge": bench.spec,
        "quick": quick,
        "seed": seed,
        "tally": tally(claims),
        "claims": claims,
        "parts": measured_parts,
        "failed": [{"part": name, "error": why} for name, why in failed.items()],
        "not_done": [{"what": what, "why": why} for what, why in not_done.items()],
        "versions": versions(),
        "minutes": round(sum(part["seconds"] for part in measured_parts.values()) / 60, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return Paper(result)


def _done(run: Run, part: str) -> bool:
    """Whether a part was measured whole; one with verdicts by an older rule is not, but its replies are kept."""
    if not run.done(f"{part}.json"):
        return False
    measured = run.read_json(f"{part}.json")
    return not measured.get("failed") and all("controls" in claim for claim in measured["claims"])


def pace(interview: Interview) -> float:
    """Seconds to write a few replies, on this machine with this model: what the estimate goes by."""
    plans = interview.answers(load_trait(PROBE).check, 1, draw="pace", extra={})
    requests = [plan.request for plan in plans]
    generate(interview.model, requests, interview.sampling)  # the first time is slower
    began = time.monotonic()
    generate(interview.model, requests, interview.sampling)
    return time.monotonic() - began
