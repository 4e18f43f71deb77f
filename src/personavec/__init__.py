"""Persona vectors: extract them, prove that they work, steer and watch with them.

`import personavec as pv` loads nothing; each name below loads its module on first use. docs/api.md shows all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personavec.errors import PersonavecError as PersonavecError
    from personavec.judges.load import load_bench as load_bench
    from personavec.model.chat_model import ChatModel as ChatModel
    from personavec.server.serve import serve as serve
    from personavec.steering.preventative import PreventativeSteering as PreventativeSteering
    from personavec.steering.reading import project as project
    from personavec.steering.steer import Steering as Steering
    from personavec.steering.steer import steer as steer
    from personavec.steering.vector import PersonaVector as PersonaVector
    from personavec.steering.vector import load_vector as load_vector
    from personavec.traits.load import load_trait as load_trait
    from personavec.traits.trait import Trait as Trait
    from personavec.verbs.analyse.decompose import decompose as decompose
    from personavec.verbs.analyse.space import space as space
    from personavec.verbs.authoring.write_dataset import write_dataset as write_dataset
    from personavec.verbs.authoring.write_trait import write_trait as write_trait
    from personavec.verbs.evaluate.evaluate import evaluate as evaluate
    from personavec.verbs.evaluate.verify import verify as verify
    from personavec.verbs.extract.extract import extract as extract
    from personavec.verbs.finetune.finetune import finetune as finetune
    from personavec.verbs.finetune.shift import shift as shift
    from personavec.verbs.interop.interop import interop as interop
    from personavec.verbs.monitor.monitor import monitor as monitor
    from personavec.verbs.screen.screen import screen as screen

__version__ = "0.1.0"

_PLACES = {
    "errors": ("PersonavecError",),
    "judges.load": ("load_bench",),
    "model.chat_model": ("ChatModel",),
    "server.serve": ("serve",),
    "steering.preventative": ("PreventativeSteering",),
    "steering.reading": ("project",),
    "steering.steer": ("Steering", "steer"),
    "steering.vector": ("PersonaVector", "load_vector"),
    "traits.load": ("load_trait",),
    "traits.trait": ("Trait",),
    "verbs.analyse.decompose": ("decompose",),
    "verbs.analyse.space": ("space",),
    "verbs.authoring.write_dataset": ("write_dataset",),
    "verbs.authoring.write_trait": ("write_trait",),
    "verbs.evaluate.evaluate": ("evaluate",),
    "verbs.evaluate.verify": ("verify",),
    "verbs.extract.extract": ("extract",),
    "verbs.finetune.finetune": ("finetune",),
    "verbs.finetune.shift": ("shift",),
    "verbs.interop.interop": ("interop",),
    "verbs.monitor.monitor": ("monitor",),
    "verbs.screen.screen": ("screen",),
}
"""Where each name lives."""

__all__ = sorted(name for names in _PLACES.values() for name in names)


def __getattr__(name: str) -> Any:
    for place, names in _PLACES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(f"personavec.{place}"), name))
    raise AttributeError(f"module 'personavec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
