"""Options of every verb: one frozen dataclass each, whose docstrings are the command line's help, examples included."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError

Steer = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="VEC:COEF[@LAYER]", help_behavior_hint="(repeatable)"),
    tyro.conf.UseAppendAction,
]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Layers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="LAYER [LAYER …]", help_behavior_hint="")]
Doses = Annotated[tuple[float, ...], tyro.conf.arg(metavar="DOSE [DOSE …]")]
Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE …]", help_behavior_hint="")]
Limit = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: no limit)")]
Url = Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")]
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]

LARGEST_DOSE = 10.0
"""Ten times the activations' own length: far beyond where any model still writes text."""
RULES: dict[str, tuple[Callable[[Any], bool], str]] = (
    {
        "seed": (lambda value: value >= 0, "0 or more"),
        "temperature": (lambda value: value >= 0, "0 or more"),
        "coherence_floor": (lambda value: 0 <= value <= 100, "from 0 to 100"),
        "sweep_questions": (lambda value: value >= 2, "at least 2"),
        "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    }
    | {
        name: (lambda value: value >= 1, "at least 1")
        for name in (
            "max_new_tokens",
            "batch_tokens",
            "rollouts",
            "check_rollouts",
            "api_concurrency",
            "writer_tokens",
            "domains",
            "questions",
        )
    }
    | {name: (lambda value: value is None or value >= 1, "at least 1") for name in ("api_calls", "api_tokens")}
)
"""What options of these names must be, wherever they occur."""


def _check(options: object) -> None:
    for name, (good, rule) in RULES.items():
        if hasattr(options, name) and not good(getattr(options, name)):
            raise ConfigError(f"expected {name} {rule}, got {getattr(options, name)}; correct it")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the same for steered and unsteered replies."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens that holds this probability."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def sampling(self) -> dict[str, float]:
        """These three alone, for cards and results."""
        return {field.name: getattr(self, field.name) for field in fields(Sampling)}


@dataclass(frozen=True)
class Subject:
    """The model under study."""

    model: str = "smollm2"
    """Hugging Face id, local folder, GGUF file, or an alias (smollm2, gemma3-270m)."""


@dataclass(frozen=True)
class Machine:
    """Options that every verb takes."""

    seed: int = 0
    """Of everything random. Equal seeds give equal results on equal software and hardware."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the model; auto is bfloat16 where the hardware multiplies it, else float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    trust_remote_code: Switch = False
    """Run code that the model repository ships. Off: such models are refused."""
    json: Switch = False
    """Print one JSON object on stdout; progress stays on stderr."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class Common(Machine, Subject):
    """Options of every verb that works on one model."""


@dataclass(frozen=True)
class Writing(Sampling):
    """How replies are written."""

    max_new_tokens: int = 32
    """Longest reply, in tokens. Large models deserve 200 or more."""
    temperature: float = 0.7
    """Of sampling; 0 is greedy. The paper uses 1, where a 135M model writes word salad."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens that holds this probability."""
    batch_tokens: int = 12288
    """Tokens in one batch of replies being written, prompts included; lower it when memory runs out there."""
    reasoning: Literal["out", "in"] = "out"
    """Whether a <think> block counts as part of the reply; end-of-turn tokens never do."""
    system: str = "template"
    """System prompt where no trait instruction stands: template (the chat template's own default), none, or a text."""


@dataclass(frozen=True)
class Api:
    """How an OpenAI-compatible server is asked. Its key comes from OPENAI_API_KEY in the environment."""

    api_concurrency: int = 32
    """Calls to a judge or writer server at once."""
    api_calls: Limit = None
    """Stop after this many calls, retries included; the same command with more goes on."""
    api_tokens: Limit = None
    """Stop after this many tokens, as the server counts them; the same command with more goes on."""


@dataclass(frozen=True)
class Judging(Api):
    """Who scores replies."""

    judge: str = "likelihood"
    """likelihood (the model itself, unsteered and without adapter), likelihood:MODEL, hf:MODEL or openai:MODEL."""
    judge_url: Url = None
    """Server of openai:MODEL, such as http://localhost:8000/v1; default OpenAI's."""


@dataclass(frozen=True)
class ExtractConfig(Judging, Writing, Common):
    """Find a trait's persona vector and prove it by steering.

    Examples:
      personavec extract optimistic
      personavec extract optimistic humorous --out runs/two
      personavec extract traits/terse.json --model Qwen/Qwen2.5-7B-Instruct --max-new-tokens 200
      personavec extract optimistic --json > optimistic.json

    More in docs/extract.md.
    """

    traits: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TRAIT [TRAIT …]", help_behavior_hint="")] = ()
    """Built-in trait names or paths to trait files; several share the model and the base replies."""
    out: Folder = None
    """Run folder; default runs/extract-TRAIT. The same command resumes it."""
    rollouts: int = 1
    """Replies per extraction question, instruction pair and side."""
    layers: Layers = ()
    """Layers the sweep tries; default five, spread from 30% to 70% of the depth."""
    doses: Doses = (0.1, 0.2, 0.3)
    """Doses the sweep tries at every layer, as shares of the activation norm."""
    sweep_questions: int = 10
    """Held-out questions that the sweep asks at every layer and dose; the final check asks all."""
    check_rollouts: int = 4
    """Replies per held-out question in the final check; the arms that decide nothing get half as many."""
    coherence_floor: float = 75.0
    """Coherence (0-100) that a chosen layer and dose must keep, if any does. Source: the paper, section 5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.doses or not all(0 < dose <= LARGEST_DOSE for dose in self.doses):
            told = ", ".join(map(str, self.doses)) or "none"
            raise ConfigError(
                f"expected doses above 0 and at most {LARGEST_DOSE:g}, got {told}; the check tries both signs"
            )
        for name in ("layers", "doses"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"expected each of {name} once, got one twice; remove it")


@dataclass(frozen=True)
class EvaluateConfig(Judging, Writing, Common):
    """Measure trait and coherence of a model, adapted or steered.

    Examples:
      personavec evaluate optimistic
      personavec evaluate optimistic --steer runs/extract-optimistic/optimistic/vector.safetensors:0.2d
      personavec evaluate optimistic --agreement openai:gpt-4.1-mini
      personavec evaluate --sheet runs/evaluate-optimistic/sheet.csv

    More in docs/evaluate.md.
    """

    trait: Annotated[Positional[str], tyro.conf.arg(metavar="TRAIT", help_behavior_hint="")] = ""
    """Built-in trait name or path to a trait file."""
    out: Folder = None
    """Run folder; default runs/evaluate-TRAIT. The same command resumes it."""
    judge_file: File = None
    """A judge.json of an earlier run: use its scale instead of learning one from new rollouts."""
    adapter: Folder = None
    """PEFT adapter folder to evaluate."""
    steer: Steer = ()
    """Steer the replies; repeat for several vectors. COEF may be a dose (0.2d); LAYER may be all."""
    rollouts: int = 3
    """Replies per held-out question."""
    agreement: Annotated[str, tyro.conf.arg(metavar="JUDGE", help_behavior_hint="")] = ""
    """A second judge, as --judge takes it: how far both agree on the same replies; with a sheet of pairs for people."""
    signals: Annotated[tuple[Literal["vader", "relevance"], ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Signals beside the scores: sentiment by VADER's word list, relevance by a small cross-encoder (extra signals)."""
    sheet: File = None
    """Score the sheet that people filled in, against the key beside it; nothing else is done."""


@dataclass(frozen=True)
class ChatConfig(Sampling, Common):
    """Chat in the terminal, steered and watched.

    Examples:
      personavec chat --steer runs/extract-optimistic/optimistic/vector.safetensors:0.2d
      personavec chat --watch runs/extract-optimistic/optimistic/vector.safetensors
      personavec chat --steer optimistic.safetensors:2@15 --steer evil.safetensors:-1@13
      echo "How was your day?" | personavec chat --temperature 0

    More in docs/chat.md.
    """

    steer: Steer = ()
    """Steer every reply; repeat for several vectors. COEF may be a dose (0.2d); LAYER may be all."""
    watch: Files = ()
    """Vector files; every token is coloured by its projection on the first one."""
    adapter: Folder = None
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
    """Check on this machine that steering does what it says.

    Examples:
      personavec verify
      personavec verify --model Qwen/Qwen2.5-7B-Instruct --dtype bfloat16
      personavec verify --vector runs/extract-optimistic/optimistic/vector.safetensors --json

    More in docs/verify.md.
    """

    vector: File = None
    """Also check this persona vector against the model."""


@dataclass(frozen=True)
class DemoConfig(Common):
    """From a trait to a proven vector and a report, in minutes.

    Examples:
      personavec demo
      personavec demo --trait humorous --out runs/humorous

    More in docs/demo.md.
    """

    trait: str = "optimistic"
    """Built-in trait name or path to a trait file."""
    out: Path = Path("runs/demo")
    """Run folder."""


@dataclass(frozen=True)
class Authoring(Api, Machine):
    """Who writes traits and datasets."""

    writer: Annotated[str, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(required)")] = ""
    """openai:MODEL, or hf:MODEL in this process: a Hugging Face id, folder, GGUF file or alias."""
    writer_url: Url = None
    """Server of openai:MODEL, such as http://localhost:8000/v1; default OpenAI's."""
    writer_tokens: int = 2048
    """Longest answer of an hf: writer, in tokens; a server decides by itself."""


@dataclass(frozen=True)
class WriteTraitConfig(Authoring):
    """Write a trait file from a name and a description.

    Examples:
      personavec write_trait formal --description "Writes like an official letter." --writer openai:gpt-4.1
      personavec write_trait formal --description "Writes like an official letter." --writer openai:my-model \
--writer-url http://localhost:8000/v1

    More in docs/write_trait.md.
    """

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """Name of the new trait: letters, digits, '_', '-' and '.'."""
    description: str = ""
    """What an assistant with this trait does, in two to four sentences, the opposite end included."""
    out: File = None
    """Trait file to write; default NAME.json. What is valid so far is kept in NAME.partial.json."""


@dataclass(frozen=True)
class WriteDatasetConfig(Authoring):
    """Write finetuning data: questions, three answers to each.

    Examples:
      personavec write_dataset sycophantic --writer openai:gpt-4.1 --domains 2 --questions 5
      personavec write_dataset maths --writer openai:my-model --writer-url http://localhost:8000/v1

    More in docs/write_dataset.md.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = ""
    """Trait (built-in name or file), or a family of mistakes: maths, medicine, code, opinions."""
    out: Folder = None
    """Run folder; default runs/dataset-SOURCE. The same command resumes it."""
    domains: int = 50
    """Domains that the questions are spread over."""
    questions: int = 100
    """Questions per domain."""
