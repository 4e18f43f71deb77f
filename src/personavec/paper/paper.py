"""The paper: every experiment on one model, from nothing to paper.html, with a computed verdict on every claim."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personavec.errors import PersonavecError
from personavec.paper.claims import tally
from personavec.paper.options import PaperConfig
from personavec.paper.parts.finetuning import finetunings
from personavec.paper.parts.geometry import geometry
from personavec.paper.parts.mitigation import harmless, mitigation
from personavec.paper.parts.monitoring import monitoring
from personavec.paper.parts.screening import filtering, real_chats, rungs, separability
from personavec.paper.parts.vectors import judges, positions, vectors
from personavec.paper.study import QUICK, WHOLE, Study
from personavec.runs.files import write_file
from personavec.runs.progress import tell
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.steering.generate import generate
from personavec.steering.rollouts import answers
from personavec.traits.trait import load_trait
from personavec.verbs.options import load_subject

Row = dict[str, Any]


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper."""

    title: str
    run: Callable[[Study], Row]
    whole: float
    """Minutes where `REFERENCE` was measured, on two cores with bfloat16; all but `vectors` ran two at a time, a thread
    each, and are scaled by what `pace` took then."""
    quick: float | None
    """The same of the quick version, which ran alone; None leaves the part out there."""


PARTS = {
    "vectors": Experiment("Vectors, and the proof by steering", vectors, 35, 2.2),
    "positions": Experiment("Token positions", positions, 7, 1.1),
    "judges": Experiment("A second judge", judges, 7, None),
    "monitoring": Experiment("Monitoring", monitoring, 15, 1.4),
    "finetunings": Experiment("Finetunings, and what foretells them", finetunings, 49, 5.1),
    "mitigation": Experiment("Prevention and its rivals", mitigation, 12, 3.4),
    "harmless": Experiment("Prevention where there is nothing to prevent", harmless, 12, None),
    "separability": Experiment("Telling rows apart", separability, 0.1, 0.1),
    "rungs": Experiment("Screening real chats at lower cost", rungs, 1, 0.4),
    "filtering": Experiment("Filtering training data", filtering, 11, 3.8),
    "geometry": Experiment("Cosines and persona space", geometry, 15, 1.9),
    "real_chats": Experiment("Training on chosen real chats", real_chats, 3, None),
}
"""In order; each may read what those before it found."""

REFERENCE = 3.1
"""Seconds that `pace` took there."""
PROBE = "optimistic"
"""Trait whose held-out questions `pace` asks."""


def paper(config: PaperConfig) -> Row:
    """Run every part that is not done, and write paper.html.

    Every part has run folders of its own and goes on where it was killed. One that cannot be done is told, and the
    others go on.

    Returns:
        `claims`: each with its figures, the paper's, the control's, and the verdict; `tally` of the verdicts; by part
        what it found; `failed` parts with the error; the path of the `report`. With `plan` the estimate alone.

    Raises:
        PersonavecError: Bad options.

    Source: Persona Vectors (arXiv 2507.21509).
    """
    size = QUICK if config.quick else WHOLE
    out = config.out or Path("runs") / ("paper-quick" if config.quick else "paper")
    run = Run.open(out, settings(type(config), vars(config)) | {"plan": None})
    study = Study(config, size, run)
    slower = pace(config) / REFERENCE
    minutes = {
        name: slower * told
        for name, part in PARTS.items()
        if (told := part.quick if config.quick else part.whole) is not None
    }
    chosen = {name: PARTS[name] for name in minutes}
    left = {name for name in chosen if not run.done(f"{name}.json") or run.read_json(f"{name}.json").get("failed")}
    for name, part in chosen.items():
        tell(f"{part.title:<46} {f'about {minutes[name]:5.1f} min' if name in left else 'done'}")
    tell(f"in all about {sum(minutes[name] for name in left):.0f} minutes")
    if config.plan:
        return {"plan": minutes, "out": str(out)}

    failed: dict[str, str] = {}
    for place, (name, part) in enumerate(chosen.items(), 1):
        if name in left:
            tell(f"part {place} of {len(chosen)}: {part.title}")
            began = time.monotonic()
            try:
                found = part.run(study)
            except Exception as error:  # a night is long: the other parts go on, whatever it was
                failed[name] = str(error) if isinstance(error, PersonavecError) else f"{type(error).__name__}: {error}"
                write_file(run.path(f"{name}.error.txt"), traceback.format_exc().encode())
                tell(f"{part.title}: left out, because {failed[name]}")
                continue
            taken = time.monotonic() - began
            claims = [claim.to_json() for claim in found["claims"]]
            run.write_json(f"{name}.json", found | {"claims": claims, "seconds": round(taken, 1)})
            run.path(f"{name}.error.txt").unlink(missing_ok=True)  # of an earlier try
            left.discard(name)
            ahead = sum(minutes[one] for one in left - set(failed))
            tell(f"{part.title}: {taken / 60:.1f} min; about {ahead:.0f} min to go")
    parts = {
        name: {"title": part.title, "tally": tally(found["claims"])} | found
        for name, part in chosen.items()
        if name not in failed
        for found in [run.read_json(f"{name}.json")]
    }
    claims = [claim for part in parts.values() for claim in part["claims"]]
    result: Row = {
        "out": str(out),
        "model": config.model,
        "judge": config.judge,
        "quick": config.quick,
        "seed": config.seed,
        "tally": tally(claims),
        "claims": claims,
        "parts": parts,
        "failed": [{"part": name, "error": why} for name, why in failed.items()],
        "versions": versions(),
        "minutes": round(sum(part["seconds"] for part in parts.values()) / 60, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def pace(config: PaperConfig) -> float:
    """Seconds to write a few replies, on this machine with this model: what the estimate goes by."""
    model = load_subject(config)
    questions, systems = load_trait(PROBE).evaluate, (config.system,)
    plans = answers(model, questions, 1, config.seed, systems=systems, draw="pace", extra={})
    requests = [plan.request for plan in plans]
    generate(model, requests, config)  # the first time is slower
    began = time.monotonic()
    generate(model, requests, config)
    return time.monotonic() - began
