"""Options of the paper's experiments."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from personavec.runs.rules import Count, Free, Positive
from personavec.verbs.options import Common, Engined, Judging, Switch, Writing, bench_for, call, load_subject

if TYPE_CHECKING:
    from personavec.paper.paper import Paper


@dataclass(frozen=True)
class PaperConfig(Judging, Writing, Engined, Common):
    """The paper's experiments on one model.

    Examples:
      personavec paper --quick
      personavec paper --plan
      personavec paper
      personavec paper --model Qwen/Qwen2.5-7B-Instruct --judge openai:gpt-4.1-mini --max-new-tokens 300 --rate 1e-5

    More in docs/paper.md.
    """

    quick: Switch = False
    """Two traits and few replies: minutes instead of hours."""
    plan: Free[Switch] = False
    """Only estimate how long every part takes on this machine."""
    out: Free[
        Annotated[
            Path | None,
            tyro.conf.arg(metavar="DIR", help_behavior_hint="(runs/paper, or runs/paper-quick with --quick)"),
        ]
    ] = None
    """Run folder, in which every part has its own. The same command resumes it."""
    chats: Annotated[str | None, tyro.conf.arg(metavar="DATA", help_behavior_hint="(ShareGPT chats, fetched once)")] = (
        None
    )
    """Real conversations to screen, as `screen` takes them."""
    rate: Positive = 2e-4
    """Highest learning rate of the finetunings. The paper's 1e-5 does nothing to a model of 135M."""
    batch: Count = 8
    """Rows in one optimizer step."""

    def run(self) -> "Paper":
        """Load the model and run the experiments."""
        from personavec.paper.paper import paper

        model = load_subject(self)
        out = self.out or Path("runs") / ("paper-quick" if self.quick else "paper")
        return call(paper, self, model, judge=bench_for(self, model), store=out)  # type: ignore[no-any-return]
