"""Options that verbs share, and what each must be; their docstrings are the command line's help."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

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

HIGHEST_RATE = 0.5
"""False-positive rate beyond which a limit would be none."""

RULES: dict[str, tuple[Callable[[Any], bool], str]] = (
    {
        "seed": (lambda value: value >= 0, "0 or more"),
        "temperature": (lambda value: value >= 0, "0 or more"),
        "api_timeout": (lambda value: value > 0, "above 0"),
        "coherence_floor": (lambda value: 0 <= value <= 100, "from 0 to 100"),
        "sweep_questions": (lambda value: value >= 2, "at least 2"),
        "axes": (lambda value: value >= 2, "at least 2"),
        "causal": (lambda value: value >= 0, "0 or more"),
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
            "read_tokens",
            "workers",
            "batch",
            "rows_at_once",
            "rank",
            "alpha",
            "max_tokens",
            "checkpoints",
            "queue",
            "max_request_bytes",
        )
    }
    | {
        name: (lambda value: value is None or value >= 1, "at least 1")
        for name in ("api_calls", "api_tokens", "top_k", "export_k", "task_limit", "questions")
    }
    | {"keep_below": (lambda value: value is None or 0 < value < 100, "between 0 and 100")}
    | {"precision": (lambda value: value > 0, "above 0")}
    | {
        name: (lambda value: 0 < value < math.inf, "above 0")
        for name in ("rate", "epochs", "penalty", "max_dose", "deadline")
    }
    | {"retention_days": (lambda value: value is None or value > 0, "above 0")}
    | {name: (lambda value: value >= 0, "0 or more") for name in ("warmup_steps", "perplexity")}
    | {"price_per_hour": (lambda value: value is None or value >= 0, "at least 0")}
    | {"false_positive_rate": (lambda value: 0 < value <= HIGHEST_RATE, f"above 0 and at most {HIGHEST_RATE:g}")}
    | {"layers": (lambda value: len(set(value)) == len(value), "each once")}
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
    api_timeout: float = 120.0
    """Seconds that one attempt of a call may take; a slow server with a queue needs more."""
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
class Authoring(Api, Machine):
    """Who writes traits and datasets."""

    writer: Annotated[str, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(required)")] = ""
    """openai:MODEL, or hf:MODEL in this process: a Hugging Face id, folder, GGUF file or alias."""
    writer_url: Url = None
    """Server of openai:MODEL, such as http://localhost:8000/v1; default OpenAI's."""
    writer_tokens: int = 2048
    """Longest answer of an hf: writer, in tokens; a server decides by itself."""


def given(config: Any, *kinds: type) -> dict[str, Any]:
    """The options of these kinds as they were given, for another verb's."""
    return {one.name: getattr(config, one.name) for kind in kinds for one in fields(kind)}
