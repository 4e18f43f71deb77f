"""Options of the decomposition of a vector."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from personavec.options import Common, File, Folder


@dataclass(frozen=True)
class DecomposeConfig(Common):
    """Find which tokens and which blocks write a vector.

    Examples:
      personavec decompose runs/demo/optimistic/vector.safetensors
      personavec decompose runs/demo/optimistic/vector.safetensors --layer 12 --json
      personavec decompose runs/demo/optimistic/vector.safetensors --sae sae/blocks.18.hook_resid_post

    More in docs/decompose.md.
    """

    vector: Annotated[Positional[Path | None], tyro.conf.arg(metavar="VEC", help_behavior_hint="")] = None
    """Vector file in the run folder of its extraction: the replies that it was made from lie beside it."""
    layer: Annotated[int | None, tyro.conf.arg(metavar="LAYER", help_behavior_hint="")] = None
    """Where it is read; default the layer that its card recommends."""
    out: Folder = None
    """Run folder; default runs/decompose-TRAIT. The same command does it again."""
    sae: File = None
    """A sparse dictionary of that layer: safetensors, as SAELens, sparsify and dictionary_learning write them."""
    top: int = 20
    """Tokens to name on either side, and features of the dictionary."""
