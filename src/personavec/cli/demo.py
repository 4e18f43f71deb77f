"""The demo: the main job on a small real model, from a trait's words to a proven vector and its report."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.runs.rules import Free
from personavec.verbs.extract.options import ExtractConfig
from personavec.verbs.options import Common, Folder, Switch, bench_for, call, given, load_subject

if TYPE_CHECKING:
    from personavec.traits.trait import Trait

QUICK = {"extract": 8, "sweep": 6, "check": 6}
"""Questions of each set that the quick demo asks: of the last too few to prove anything by."""


@dataclass(frozen=True)
class DemoConfig(Common):
    """From a trait to a proven vector and a report, in minutes.

    Examples:
      personavec demo
      personavec demo --quick
      personavec demo --trait humorous --out runs/humorous

    More in docs/demo.md.
    """

    trait: str = "devout"
    """Built-in trait name or path to a trait file."""
    quick: Switch = False
    """A third of the questions and one dose, in a quarter of the time. The vector steers, but proves nothing: at least
    8 held-out questions would have to be asked."""
    out: Free[Folder] = None
    """Run folder; default runs/demo, with --quick runs/demo-quick."""

    def run(self) -> Result:
        """Extract one trait with the usual options, or with smaller ones."""
        out = self.out or Path("runs") / ("demo-quick" if self.quick else "demo")
        usual = ExtractConfig(traits=(self.trait,), out=out, **given(self, Common))
        return self._quickly(usual) if self.quick else usual.run()

    def _quickly(self, usual: ExtractConfig) -> Result:
        from personavec.traits.load import load_trait
        from personavec.verbs.extract.extract import extract

        trait = fewer(load_trait(self.trait))
        tell(
            f"quick: asks {len(trait.check)} held-out questions instead of 20, too few to prove anything; "
            "expect an inconclusive verdict, and leave out --quick for the proof"
        )
        model = load_subject(self)
        options = replace(usual, doses=(0.2,), check_rollouts=2)
        return call(extract, options, model, [trait], judge=bench_for(options, model), store=options.out)  # type: ignore[no-any-return]


def fewer(trait: "Trait") -> "Trait":
    """The trait with the first questions of each set."""
    return replace(trait, **{key: getattr(trait, key)[:count] for key, count in QUICK.items()})
