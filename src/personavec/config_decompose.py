"""Options of the decomposition of a vector."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from personavec.options import Common, File, Files, Folder, Judging, Writing


@dataclass(frozen=True)
class DecomposeConfig(Judging, Writing, Common):
    """Find which tokens and which blocks write a vector.

    Examples:
      personavec decompose runs/demo/optimistic/vector.safetensors
      personavec decompose runs/demo/optimistic/vector.safetensors --layer 12 --json
      personavec decompose runs/demo/optimistic/vector.safetensors --sae sae/blocks.18.hook_resid_post --causal 10

    More in docs/decompose.md.
    """

    vector: Annotated[Positional[Path | None], tyro.conf.arg(metavar="VEC", help_behavior_hint="")] = None
    """Vector file in the run folder of its extraction: the replies that it was made from lie beside it."""
    layer: Annotated[int | None, tyro.conf.arg(metavar="LAYER", help_behavior_hint="")] = None
    """Where it is read; default the layer that its card recommends."""
    out: Folder = None
    """Run folder; default runs/decompose-TRAIT, with --sae runs/decompose-TRAIT-sae. The same command does it again."""
    sae: File = None
    """A sparse dictionary of that layer: safetensors, as SAELens, sparsify and dictionary_learning write them."""
    causal: int = 0
    """With --sae: steer along so many of the first features, and judge the trait; 0 leaves it out."""
    traits: Files = ()
    """Trait file, where the trait is not built in (--causal)."""
    top: int = 20
    """Tokens to name on either side, and features of the dictionary."""
