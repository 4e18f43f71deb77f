"""Options of every verb: one frozen dataclass each, whose docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

Steer = Annotated[tuple[str, ...], tyro.conf.arg(metavar="VEC:COEF[@LAYER] …"), tyro.conf.UseAppendAction]


@dataclass(frozen=True)
class Common:
    """Options that every verb takes."""

    model: str = "smollm2"
    """Hugging Face id, local folder, GGUF file, or an alias (smollm2, gemma3-270m)."""
    seed: int = 0
    """Of everything random. Equal seeds give equal results on equal software and hardware."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the model; auto is bfloat16 where the hardware multiplies it, else float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    trust_remote_code: bool = False
    """Run code that the model repository ships. Off: such models are refused."""
    json: bool = False
    """Print one JSON object on stdout; progress stays on stderr."""


@dataclass(frozen=True)
class Writing:
    """How replies are written."""

    max_new_tokens: int = 48
    """Longest reply, in tokens. Large models deserve 200 or more."""
    temperature: float = 0.7
    """Of sampling; 0 is greedy. The paper uses 1, where a 135M model writes word salad."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this probability."""
    batch_tokens: int = 12288
    """Tokens in one batch, prompts and replies together; lower it when memory runs out."""
    system: str = "template"
    """System prompt of replies without a trait instruction: template (what the chat template does by itself), none, or a text."""


@dataclass(frozen=True)
class ExtractConfig(Common, Writing):
    """Find a trait's persona vector and prove by steering that it causes the trait."""

    traits: Positional[tuple[str, ...]] = ()
    """Built-in trait names or paths to trait files; several share the model and the base replies."""
    out: Path | None = None
    """Run folder; default runs/extract-TRAIT. The same command resumes it."""
    judge: str = "likelihood"
    """likelihood (the model itself) or likelihood:MODEL (another model as judge)."""
    rollouts: int = 1
    """Replies per extraction question, instruction pair and side."""
    layers: tuple[int, ...] = ()
    """Layers the sweep tries; default five, spread from 30% to 70% of the depth."""
    doses: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Doses the sweep tries at every layer, as shares of the activation norm."""
    check_rollouts: int = 3
    """Replies per held-out question and arm in the final check."""
    coherence_floor: float = 75.0
    """Lowest mean coherence (0-100) at which a layer and dose may be chosen. Source: the paper, section 5."""


@dataclass(frozen=True)
class EvaluateConfig(Common, Writing):
    """Measure trait expression and coherence of a model, an adapter, or a steered model."""

    trait: Positional[str] = ""
    """Built-in trait name or path to a trait file."""
    out: Path | None = None
    """Run folder; default runs/evaluate-TRAIT. The same command resumes it."""
    judge: str = "likelihood"
    """likelihood (the model itself, unsteered and without adapter) or likelihood:MODEL."""
    judge_file: Path | None = None
    """A judge.json of an earlier run: use its scale instead of learning one from new rollouts."""
    adapter: Path | None = None
    """PEFT adapter folder to evaluate."""
    steer: Steer = ()
    """Steer the replies; repeat for several vectors. COEF may be a dose (0.5d); LAYER may be all."""
    rollouts: int = 3
    """Replies per held-out question."""


@dataclass(frozen=True)
class ChatConfig(Common):
    """Chat in the terminal, steered and watched."""

    steer: Steer = ()
    """Steer every reply; repeat for several vectors. COEF may be a dose (0.5d); LAYER may be all."""
    watch: tuple[Path, ...] = ()
    """Vector files; every token is coloured by its projection on the first one."""
    adapter: Path | None = None
    """PEFT adapter folder to chat with."""
    system: str = "template"
    """System prompt: template (what the chat template does by itself), none, or a text."""
    max_new_tokens: int = 256
    """Longest reply, in tokens."""
    temperature: float = 0.7
    """Of sampling; 0 is greedy."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens that holds this probability."""


@dataclass(frozen=True)
class VerifyConfig(Common):
    """Check on this machine and this model that steering does exactly what it says."""

    vector: Path | None = None
    """Also check this persona vector against the model."""


@dataclass(frozen=True)
class DemoConfig(Common):
    """The main job on a small real model: from a trait to a proven persona vector and a report, in minutes."""

    trait: str = "optimistic"
    """Built-in trait name or path to a trait file."""
    out: Path = Path("runs/demo")
    """Run folder."""
