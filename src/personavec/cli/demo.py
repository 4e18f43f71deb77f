"""The demo: the main job on a small real model, from a trait's words to a proven vector and its report."""

from dataclasses import dataclass
from pathlib import Path

from personavec.runs.result import Result
from personavec.runs.rules import Free
from personavec.verbs.extract.options import ExtractConfig
from personavec.verbs.options import Common, given


@dataclass(frozen=True)
class DemoConfig(Common):
    """From a trait to a proven vector and a report, in minutes.

    Examples:
      personavec demo
      personavec demo --trait humorous --out runs/humorous

    More in docs/demo.md.
    """

    trait: str = "devout"
    """Built-in trait name or path to a trait file."""
    out: Free[Path] = Path("runs/demo")
    """Run folder."""

    def run(self) -> Result:
        """Extract one trait with the usual options."""
        return ExtractConfig(traits=(self.trait,), out=self.out, **given(self, Common)).run()
