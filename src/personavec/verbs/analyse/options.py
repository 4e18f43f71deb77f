"""Options of the persona space."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Natural, at_least
from personavec.verbs.options import Engined, File, Files, Folder, Judged, Switch, bench_for, call, load_subject


@dataclass(frozen=True)
class SpaceConfig(Judged, Engined):
    """Compare vectors with each other and with many personas.

    Examples:
      personavec space runs/two/humorous/vector.safetensors runs/two/impolite/vector.safetensors
      personavec space vectors/*/vector.safetensors --coexpress --out runs/space

    More in docs/space.md.
    """

    vectors: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="VEC [VEC …]", help_behavior_hint="")] = ()
    """Vector files, all of one model."""
    out: Free[Folder] = None
    """Run folder; default runs/space-TRAITS. The same command resumes it."""
    coexpress: Switch = False
    """Also steer along every vector and judge every trait, and measure how each trait answers to the dose."""
    rollouts: Count = 1
    """With --coexpress: replies per held-out question."""
    axes: Annotated[int, at_least(2)] = 4
    """Axes to name."""
    layer: Annotated[int | None, tyro.conf.arg(metavar="LAYER", help_behavior_hint="")] = None
    """Layer of the map and its axes; default the middle one of those that the cards recommend."""
    traits: Files = ()
    """Trait files of vectors whose trait is not built in (--coexpress)."""

    def run(self) -> Result:
        """Load what is named and compare it."""
        from personavec.verbs.analyse.space import space, with_coefs

        if not self.vectors:
            raise ConfigError(
                "expected vector files, got none; for example: personavec space runs/two/*/vector.safetensors"
            )
        names = with_coefs(self.vectors)
        model = load_subject(self)
        bench = bench_for(self, model) if self.coexpress else ""
        out = self.out or Path("runs") / f"space-{'-'.join(names)}"
        return call(space, self, model, self.vectors, judge=bench, store=out)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DecomposeConfig(Judged):
    """Find which tokens and which blocks write a vector.

    Examples:
      personavec decompose runs/extract-devout/devout/vector.safetensors
      personavec decompose runs/extract-devout/devout/vector.safetensors --layer 12 --json
      personavec decompose runs/extract-devout/devout/vector.safetensors --sae sae/blocks.18.hook_resid_post --causal 10

    More in docs/decompose.md.
    """

    vector: Annotated[Positional[Path | None], tyro.conf.arg(metavar="VEC", help_behavior_hint="")] = None
    """Vector file in the run folder of its extraction: the replies that it was made from lie beside it."""
    layer: Annotated[int | None, tyro.conf.arg(metavar="LAYER", help_behavior_hint="")] = None
    """Where it is read; default the layer that its card recommends."""
    out: Free[Folder] = None
    """Run folder; default runs/decompose-TRAIT, with --sae runs/decompose-TRAIT-sae. The same command does it again."""
    sae: File = None
    """A sparse dictionary of that layer: safetensors, as SAELens, sparsify and dictionary_learning write them."""
    causal: Natural = 0
    """With --sae: steer along so many of the first features, and judge the trait; 0 leaves it out."""
    traits: Files = ()
    """Trait file, where the trait is not built in (--causal)."""
    top: int = 20
    """Tokens to name on either side, and features of the dictionary."""

    def run(self) -> Result:
        """Load what is named and decompose it."""
        from personavec.verbs.analyse.decompose import at_layer, decompose, replies_of

        if self.vector is None:
            raise ConfigError(
                "expected a vector file, got none; for example: personavec decompose "
                "runs/extract-devout/devout/vector.safetensors"
            )
        vector, _ = at_layer(self.vector, self.layer)
        replies_of(self.vector, vector)
        model = load_subject(self)
        bench = bench_for(self, model) if self.causal and self.sae else ""
        out = self.out or Path("runs") / f"decompose-{vector.card.trait}{'-sae' if self.sae else ''}"
        return call(decompose, self, model, self.vector, run=None, judge=bench, store=out)  # type: ignore[no-any-return]
