"""Options of the persona space."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from personavec.options import Common, Files, Folder, Judging, Switch, Writing


@dataclass(frozen=True)
class SpaceConfig(Judging, Writing, Common):
    """Compare vectors with each other and with many personas.

    Examples:
      personavec space runs/two/humorous/vector.safetensors runs/two/impolite/vector.safetensors
      personavec space vectors/*/vector.safetensors --coexpress --out runs/space

    More in docs/space.md.
    """

    vectors: Annotated[Positional[tuple[Path, ...]], tyro.conf.arg(metavar="VEC [VEC …]", help_behavior_hint="")] = ()
    """Vector files, all of one model."""
    out: Folder = None
    """Run folder; default runs/space-TRAITS. The same command resumes it."""
    coexpress: Switch = False
    """Also steer along every vector and judge every trait, and measure how each trait answers to the dose."""
    rollouts: int = 1
    """With --coexpress: replies per held-out question."""
    axes: int = 4
    """Axes to name."""
    layer: Annotated[int | None, tyro.conf.arg(metavar="LAYER", help_behavior_hint="")] = None
    """Layer of the map and its axes; default the middle one of those that the cards recommend."""
    traits: Files = ()
    """Trait files of vectors whose trait is not built in (--coexpress)."""
