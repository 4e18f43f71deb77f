"""Options of `interop`; their docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError
from personavec.runs.result import Result
from personavec.runs.rules import Free
from personavec.verbs.options import Common, Switch, load_subject


@dataclass(frozen=True)
class InteropConfig(Common):
    """Take vectors over from other tools, and hand them on.

    Examples:
      personavec interop evil_response_avg_diff.pt evil.safetensors --model Qwen/Qwen2.5-7B-Instruct --layer 19
      personavec interop devout:0.2d devout.gguf
      personavec interop devout:0.2d steered.pt
      personavec interop devout:0.2d baked

    More in docs/interop.md.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="IN", help_behavior_hint="")] = ""
    """To take over: a .pt file of the reference's or a GGUF control vector. To hand on: VEC:COEF[@LAYER]."""
    out: Free[Annotated[Positional[Path | None], tyro.conf.arg(metavar="OUT", help_behavior_hint="")]] = None
    """To take over: NAME.safetensors. To hand on: NAME.gguf (llama.cpp), NAME.pt (lm-eval) or a folder (baked)."""
    trait: str = ""
    """Name of a vector taken over; default from its file name. With --norms a built-in trait or a trait file."""
    layer: Annotated[int | None, tyro.conf.arg(metavar="LAYER", help_behavior_hint="")] = None
    """Layer that the card of a vector taken over recommends, counted from 0: the reference's 20 is 19."""
    norms: Switch = False
    """Measure activation norms on the model's replies to the trait's held-out questions, so that doses work."""

    def run(self) -> Result:
        """Check the names, load the model, and take over or hand on."""
        from personavec.verbs.interop.interop import transfer

        if not self.source or self.out is None:
            raise ConfigError(
                "expected IN and OUT, got one or none; for example: personavec interop in.pt out.safetensors"
            )
        do = transfer(self.source, self.out, trait=self.trait, layer=self.layer, norms=self.norms)
        return do(load_subject(self))
