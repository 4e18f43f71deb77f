"""Options of `extract`; their docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from personavec.runs.rules import Count, Free, Percent, at_least
from personavec.traits.load import load_traits
from personavec.verbs.options import (
    Common,
    Doses,
    Engined,
    Folder,
    Judging,
    Layers,
    Planned,
    Writing,
    bench_for,
    call,
    load_layout,
    load_subject,
)

if TYPE_CHECKING:
    from personavec.model.machine.plan import MachinePlan
    from personavec.verbs.extract.result import Extractions


@dataclass(frozen=True)
class ExtractConfig(Planned, Judging, Writing, Engined, Common):
    """Find a trait's persona vector and prove it by steering.

    Examples:
      personavec extract optimistic
      personavec extract optimistic humorous --out runs/two
      personavec extract traits/terse.json --model Qwen/Qwen2.5-7B-Instruct --max-new-tokens 200
      personavec extract optimistic --json > optimistic.json

    More in docs/extract.md.
    """

    traits: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TRAIT [TRAIT …]", help_behavior_hint="")] = ()
    """Built-in trait names or paths to trait files; several share the model and the base replies."""
    out: Free[Folder] = None
    """Run folder; default runs/extract-TRAIT. The same command resumes it."""
    rollouts: Count = 1
    """Replies per extraction question, instruction pair and side."""
    layers: Layers = ()
    """Layers the sweep tries; default five, spread from 30% to 70% of the depth."""
    doses: Doses = (0.1, 0.2, 0.3)
    """Doses the sweep tries at every layer, as shares of the activation norm."""
    sweep_questions: Annotated[int, at_least(2)] = 10
    """Of the trait's questions for the sweep, how many it asks at every layer and dose."""
    check_rollouts: Count = 3
    """Replies per held-out question in every arm of the final check."""
    confounds: Literal["report", "match", "residualise"] = "report"
    """Length of replies: only report it, match it between the two sides, or take away what it explains."""
    coherence_floor: Percent = 75.0
    """Coherence (0-100) that a chosen layer and dose must keep, if any does. Source: the paper, section 5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_plan()

    def run(self) -> "Extractions | MachinePlan":
        """Load what is named and extract, or tell what that would take."""
        traits = load_traits(self.traits)
        if self.plan:
            from personavec.verbs.extract.plan import plan_extract

            return call(plan_extract, self, load_layout(self), traits)  # type: ignore[no-any-return]
        from personavec.verbs.extract.extract import extract

        model = load_subject(self)
        out = self.out or Path("runs") / f"extract-{'-'.join(trait.name for trait in traits)}"
        return call(extract, self, model, traits, judge=bench_for(self, model), store=out)  # type: ignore[no-any-return]
