"""Options that verbs share, and what each must be; their docstrings are the command line's help."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from personavec.errors import ConfigError
from personavec.model.sampling import Writing as Writing
from personavec.runs.gate import GateCondition
from personavec.runs.rules import DOSES, EACH_ONCE, Count, Free, Positive, Seed, above, at_least, check

if TYPE_CHECKING:
    from personavec.judges.load import Bench
    from personavec.model.chat_model import ChatModel
    from personavec.model.endpoint import CallLimits

Steer = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="VEC:COEF[@LAYER]", help_behavior_hint="(repeatable)"),
    tyro.conf.UseAppendAction,
]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Layers = Annotated[tuple[int, ...], EACH_ONCE, tyro.conf.arg(metavar="LAYER [LAYER …]", help_behavior_hint="")]
Doses = Annotated[tuple[float, ...], DOSES, tyro.conf.arg(metavar="DOSE [DOSE …]")]
Files = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE …]", help_behavior_hint="")]
Limit = Annotated[int | None, at_least(1), tyro.conf.arg(metavar="N", help_behavior_hint="(default: no limit)")]
Url = Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")]
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Subject:
    """The model under study."""

    model: str = "smollm2"
    """Hugging Face id, local folder, GGUF file, or an alias (smollm2, gemma3-270m)."""
    quantise: Annotated[str | None, tyro.conf.arg(metavar="SPEC", help_behavior_hint="")] = None
    """Load its weights in fewer bits: torchao:int8, torchao:int4, bitsandbytes:8bit or bitsandbytes:4bit."""
    attention: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Implementation of attention, as transformers calls it: sdpa, eager, flash_attention_2; default its choice."""


@dataclass(frozen=True)
class Engined:
    """Who computes."""

    engine: Free[Annotated[str, tyro.conf.arg(metavar="ENGINE")]] = "hf"
    """hf, this process, or vllm:URL[,URL…], servers with the plugin; a run stays on one of them (docs/engines.md)."""


@dataclass(frozen=True)
class Machine:
    """Options that every verb takes."""

    seed: Seed = 0
    """Of everything random. Equal seeds give equal results on equal software and hardware."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the model; auto is bfloat16 given matrix units for it, else float16 (GPU) or float32 (CPU)."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one, split all of them together for one large model."""
    trust_remote_code: Switch = False
    """Run code that the model repository ships. Off: such models are refused."""
    json: Switch = False
    """Print one JSON object on stdout; progress stays on stderr."""

    def __post_init__(self) -> None:
        check(type(self), vars(self))


@dataclass(frozen=True)
class Gated(Machine):
    """Options of a verb whose figures a pipeline may stop at."""

    fail_if: Free[
        Annotated[
            tuple[str, ...],
            tyro.conf.arg(metavar="CONDITION", help_behavior_hint="(repeatable)"),
            tyro.conf.UseAppendAction,
        ]
    ] = ()
    """Exit with 3 if this holds of what --json prints, such as 'projection_difference.evil.mean > 0.5'."""
    junit: Free[File] = None
    """With --fail-if: write what passed and what failed as JUnit's XML."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for text in self.fail_if:
            GateCondition.parse(text)
        if self.junit is not None and not self.fail_if:
            raise ConfigError("expected --fail-if with --junit, got none; pass a condition")


@dataclass(frozen=True)
class Common(Machine, Subject):
    """Options of every verb that works on one model."""


@dataclass(frozen=True)
class Planned:
    """What it would take, before it is begun."""

    plan: Free[Switch] = False
    """Only estimate memory, tokens, hours and price; no weights are loaded."""
    plan_device: Free[Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]] = None
    """With --plan: another device than the one here, such as h100, or a100x8 for several."""
    price_per_hour: Free[Annotated[float | None, above(0), tyro.conf.arg(metavar="PRICE", help_behavior_hint="")]] = (
        None
    )
    """With --plan: of the machine."""

    def check_plan(self) -> None:
        """Raise ConfigError if something is said of a plan that is not asked for."""
        given = {"--plan-device": self.plan_device, "--price-per-hour": self.price_per_hour}
        for option in (name for name, value in given.items() if value is not None and not self.plan):
            raise ConfigError(f"expected --plan with {option}, got none; add it, or leave {option} out")


@dataclass(frozen=True)
class Api:
    """How an OpenAI-compatible server is asked. Its key comes from OPENAI_API_KEY in the environment."""

    api_concurrency: Free[Count] = 32
    """Calls to a judge or writer server at once."""
    api_timeout: Free[Positive] = 120.0
    """Seconds that one attempt of a call may take; a slow server with a queue needs more."""
    api_calls: Free[Limit] = None
    """Stop after this many calls, retries included; the same command with more goes on."""
    api_tokens: Free[Limit] = None
    """Stop after this many tokens, as the server counts them; the same command with more goes on."""

    @property
    def call_limits(self) -> "CallLimits":
        """How servers may be asked."""
        return {
            "concurrency": self.api_concurrency,
            "timeout": self.api_timeout,
            "max_calls": self.api_calls,
            "max_tokens": self.api_tokens,
        }


@dataclass(frozen=True)
class Judging(Api):
    """Who scores replies."""

    judge: str = "panel"
    """panel (the model itself, unsteered and without adapter), panel:MODEL, hf:MODEL or openai:MODEL."""
    judge_url: Free[Url] = None
    """Server of openai:MODEL, such as http://localhost:8000/v1, default OpenAI's; vllm:URL[,URL…] of panel:MODEL."""


@dataclass(frozen=True)
class Judged(Judging, Writing, Common):
    """Options of a verb that asks the model and has its replies judged."""


@dataclass(frozen=True)
class Authoring(Api, Machine):
    """Who writes traits and datasets."""

    writer: Annotated[str, tyro.conf.arg(metavar="MODEL", help_behavior_hint="(required)")] = ""
    """openai:MODEL, or hf:MODEL in this process: a Hugging Face id, folder, GGUF file or alias."""
    writer_url: Url = None
    """Server of openai:MODEL, such as http://localhost:8000/v1; default OpenAI's."""
    writer_tokens: Count = 2048
    """Longest answer of an hf: writer, in tokens; a server decides by itself."""


def load_subject(
    options: Common, name: str | None = None, *, adapter: Path | None = None, plain_template: bool = False
) -> "ChatModel":
    """Load what a verb's options ask for: the model and its (or another) adapter, or else another model by name.

    Raises:
        ModelError: As `ChatModel.load`, or as `connect` where the model runs elsewhere.
        ConfigError: No such engine, or one that cannot do it.
    """
    from personavec.model.chat_model import ChatModel

    engine = getattr(options, "engine", "hf")
    if name is None and engine != "hf":
        from personavec.model.engines.vllm import connect

        if adapter or getattr(options, "adapter", None):
            raise ConfigError(f"expected no --adapter with --engine {engine}, got one; merge it and serve the result")
        for option in ("quantise", "attention"):
            if getattr(options, option):
                raise ConfigError(f"expected no --{option} with --engine {engine}, got one; start the servers with it")
        return connect(engine, options.model, options.trust_remote_code)
    return ChatModel.load(
        name or options.model,
        dtype=options.dtype,
        device=options.device,
        adapter=None if name else adapter or getattr(options, "adapter", None),
        trust_remote_code=options.trust_remote_code,
        plain_template=plain_template,
        quantise=None if name else options.quantise,
        attention=options.attention,
    )


def load_layout(options: Any) -> "ChatModel":
    """The model that a plan (`Planned` and `Common`) is made of: without its weights.

    Raises:
        ModelError: As `ChatModel.load`.
    """
    from personavec.model.chat_model import ChatModel

    here = options.plan_device is None
    dtype = options.dtype if here or options.dtype != "auto" else "bfloat16"
    device, trust = options.device if here else "cpu", options.trust_remote_code
    return ChatModel.load(options.model, dtype=dtype, device=device, trust_remote_code=trust, weights=False)


def bench_for(
    options: Any, model: "ChatModel", *, spec: str = "", url: str | None = None, beside: "Bench | None" = None
) -> "Bench":
    """The judges that a verb's options ask for (`Judging` and `Common`), or others by spec.

    Raises:
        JudgeError: As `judges.load.load_bench`.
        ModelError: Likewise.
    """
    from personavec.judges.load import load_bench
    from personavec.model.engines.introduction import SCHEME

    return load_bench(
        spec or options.judge,
        model,
        system=options.system,
        url=url or (None if spec and (options.judge_url or "").startswith(SCHEME) else options.judge_url),
        beside=beside,
        load=partial(load_subject, options),
        trust_remote_code=options.trust_remote_code,
        **options.call_limits,
    )


def call(function: Callable[..., Any], options: Any, *objects: Any, **named: Any) -> Any:
    """Call a verb's function with objects, and with every option that has the name of one of its parameters."""
    return function(*objects, **named_in(function, options) | named)


def named_in(function: Callable[..., Any], options: Any) -> dict[str, Any]:
    """The options that have the name of one of a function's parameters."""
    parameters = signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    for behind in (each.annotation for each in parameters if each.kind is each.VAR_KEYWORD):  # Unpack[a TypedDict]
        names += get_args(behind)[0].__annotations__
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def given(config: Any, *kinds: type) -> dict[str, Any]:
    """The options of these kinds as they were given, for another verb's."""
    return {field.name: getattr(config, field.name) for kind in kinds for field in fields(kind)}
