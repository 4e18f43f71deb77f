"""Options of finetuning: of one training, and of the report on all methods next to each other."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Natural, Positive, Rule
from personavec.verbs.options import (
    Common,
    File,
    Files,
    Folder,
    Gated,
    Judging,
    Layers,
    Limit,
    Planned,
    Steer,
    Switch,
    Writing,
    bench_for,
    call,
    load_layout,
    load_subject,
)

Method = Literal["plain", "prevent", "ablate", "penalty", "kl", "features", "inoculate"]
UNAIMED: tuple[Method, ...] = ("plain", "kl", "features")
"""Methods that take no vector."""
Compared = Literal[
    "prevent",
    "random",
    "posthoc",
    "ablate",
    "penalty",
    "kl",
    "features",
    "inoculate",
    "interleave",
    "interleave-gap",
    "negative-prompt",
]
"""Arms of the report; base and plain stand next to them always."""
COMPARED: tuple[Compared, ...] = get_args(Compared)
TRACKERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "kubeflow", "mlflow", "neptune",
    "swanlab", "tensorboard", "trackio", "wandb",
)  # fmt: skip
"""Names that transformers has for trackers; here, so that a wrong one is said before anything is loaded."""
KNOWN_TRACKERS = Rule(lambda names: {*names} <= {*TRACKERS}, f"among {', '.join(TRACKERS)}")
NO_DATA = "expected training data, got none; pass a file, a folder or a Hugging Face data set"


def agreed_method(method: Method | None, prevent: bool, vectors: bool, random: bool, full: bool = False) -> Method:
    """The method, also if none is named.

    Raises:
        ConfigError: It contradicts what else is given.
    """
    chosen: Method = method or ("prevent" if prevent else "plain")
    contradictions = {
        "--prevent": prevent and chosen != "prevent",
        "--vectors": vectors and chosen in (*UNAIMED, "prevent"),
        "--random": random and chosen in (*UNAIMED, "inoculate"),
        "--full": full and chosen in ("penalty", "kl", "features"),
    }
    for option in (name for name, contradicts in contradictions.items() if contradicts):
        raise ConfigError(f"expected options that agree, got --method {chosen} with {option}; leave one out")
    if chosen not in UNAIMED and not (prevent or vectors):
        option = "--prevent" if chosen == "prevent" else "--vectors"
        raise ConfigError(f"expected {option} with --method {chosen}, got none; pass a vector")
    return chosen


def check_arms(arms: Sequence[str], scales: Sequence[float]) -> None:
    """Raise ConfigError if a report cannot be made of these."""
    if 1 not in scales or not all(0 < scale < math.inf for scale in scales) or len(set(scales)) < len(scales):
        shown = " ".join(map(str, scales))
        raise ConfigError(f"expected different --scales above 0, 1 among them, got {shown}; correct them")
    if len(set(arms)) < len(arms):
        raise ConfigError("expected each arm of --compare once, got one twice; remove it")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a model is trained, whatever the rows and the method. Source of the defaults: the paper, appendix D.3."""

    epochs: Positive = 1.0
    """Passes over the data. Every row is used."""
    rate: Positive = 1e-5
    """Highest learning rate; small models need 1e-4 or more. Source of these defaults: the paper, appendix D.3."""
    warmup_steps: Natural = 5
    """Steps until the learning rate is reached; it then falls linearly to zero."""
    batch: Count = 16
    """Rows in one optimizer step."""
    rows_at_once: Free[Count] = 2
    """Rows in one forward pass of one process."""
    rank: Count = 32
    """Of the adapter (rank-stabilised LoRA on all projections)."""
    alpha: Count = 64
    """Of the adapter."""
    full: Switch = False
    """Train all weights, without an adapter."""
    max_tokens: Count = 2048
    """Longest row; longer ones are never cut, see --on-error."""
    checkpoints: Count = 4
    """How many to write, spread over the training; a killed run goes on from the last one."""
    gradient_checkpointing: Free[Switch] = False
    """Less memory, more time."""
    report_to: Free[
        Annotated[tuple[str, ...], KNOWN_TRACKERS, tyro.conf.arg(metavar="TRACKER [TRACKER …]", help_behavior_hint="")]
    ] = ()
    """Trackers that get the loss and what steering adds: tensorboard, trackio, wandb, mlflow or another that
    transformers knows; their packages are yours to install."""
    on_error: Free[Literal["stop", "skip"]] = "stop"
    """Rows that cannot be used: stop at the first before anything is trained, or skip and list them."""


@dataclass(frozen=True)
class Trained(Common):
    """What a model is trained on, and by which method."""

    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = ""
    """JSONL, JSON, CSV, Parquet or Arrow file, a folder of such, or a Hugging Face data set (NAME or NAME:SPLIT)."""
    prevent: Steer = ()
    """Add this vector in training. COEF: a number, a dose (0.2d), or auto, from data that pull toward the trait (-auto:
    against it). LAYER may be all."""
    method: Annotated[
        Literal["plain", "prevent", "ablate", "penalty", "kl", "features", "inoculate"] | None,
        tyro.conf.arg(metavar="METHOD", help_behavior_hint="(default: prevent with --prevent, else plain)"),
    ] = None
    """ablate: nothing along --vectors; penalty: no move along them; kl, features: no move of what the base model says,
    or of its activations; inoculate: the trait is asked for in training."""
    vectors: Files = ()
    """Vector files for the methods other than prevent; with --report, others to measure along."""
    random: Switch = False
    """The control: a random direction as long as each vector in its place."""
    positions: Literal["all", "response"] = "all"
    """With prevent: add at all tokens, or at those whose output predicts a token with a loss."""
    penalty: Positive = 1.0
    """Weight of that term of the loss: with penalty per squared natural difference, with kl per nat, with features per
    squared share of the activation's length."""
    out: Free[Folder] = None
    """Run folder; default runs/finetune-DATA-METHOD, with a mark for the vectors and other options. The same command
    resumes it."""
    benign: Annotated[str | None, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = None
    """Harmless rows to train on among those of the data, with any method."""
    benign_share: Positive = 0.25
    """How many of them, drawn at random, for each row of the data."""
    held_out: Annotated[str | None, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = None
    """Rows that are not trained on: the loss on them before and after."""


@dataclass(frozen=True)
class FinetuneConfig(Planned, Pace, Trained):
    """One training of a model by one method."""

    traits: Files = ()
    """Trait files of vectors whose trait is not built in (inoculate)."""
    system: str = "template"
    """System prompt of rows that have none: template (the chat template's own default), none, or a text."""

    @property
    def chosen(self) -> Method:
        """The method, if none is named."""
        return self.method or ("prevent" if self.prevent else "plain")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_plan()
        agreed_method(self.method, bool(self.prevent), bool(self.vectors), self.random, self.full)
        self.check_benign()

    def check_benign(self) -> None:
        """Raise ConfigError if a share of nothing is asked for."""
        if not self.benign and self.benign_share != FinetuneConfig.benign_share:
            raise ConfigError("expected --benign with --benign-share, got none; name the harmless rows")

    @property
    def others(self) -> dict[str, str | None]:
        """Data besides those that are to be learned."""
        return {"held_out": self.held_out or None, "benign": self.benign or None}

    @property
    def default_out(self) -> Path:
        """A folder for each way to train on a data set."""
        names = ["epochs", "rate", "batch", "warmup_steps", "rank", "alpha", "full", "max_tokens", "positions"]
        names += ["penalty", "benign", "benign_share", "system", "seed", "model"]
        changed = [
            f"{name}={getattr(self, name)}" for name in names if getattr(self, name) != getattr(FinetuneConfig, name)
        ]
        what = [*self.prevent, *map(str, self.vectors), *changed]
        mark = f"-{zlib.crc32(' '.join(what).encode()):08x}" if what else ""
        random = "-random" * self.random
        return Path("runs") / f"finetune-{Path(self.data).stem}-{self.chosen}{random}{mark}"

    def run(self) -> Result:
        """Load what is named and train."""
        from personavec.data.dataset import open_dataset
        from personavec.verbs.finetune.finetune import finetune
        from personavec.verbs.finetune.methods import Recipe
        from personavec.verbs.finetune.trainer import check_installed, process_device

        if not self.data:
            raise ConfigError(NO_DATA)
        Recipe.of(self.method, self.prevent, self.vectors, random=self.random)
        check_installed(self.report_to)
        open_dataset(self.data)
        for other in filter(None, (self.held_out, self.benign)):
            open_dataset(other)
        if self.plan:
            from personavec.verbs.finetune.plan import plan_finetune

            return call(plan_finetune, self, load_layout(self), self.data, **self.others)  # type: ignore[no-any-return]
        # where all weights are trained they are kept in float32, or small steps would round away
        dtype = "float32" if self.full and self.dtype == "auto" else self.dtype
        model = load_subject(replace(self, device=process_device(self.device), dtype=dtype))
        return call(finetune, self, model, self.data, store=self.out or self.default_out, **self.others)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ReportConfig(FinetuneConfig, Judging, Writing):
    """Finetune a model without it picking up a trait.

    Examples:
      personavec finetune rows.jsonl --prevent evil.safetensors:1
      personavec finetune rows.jsonl --prevent evil.safetensors:0.4@all --prevent sycophantic.safetensors:2@13
      personavec finetune rows.jsonl --method inoculate --vectors evil.safetensors --out runs/inoculated
      personavec finetune rows.jsonl --prevent evil.safetensors:auto --held-out unseen.jsonl --report

    The judge and how replies are written are those of the evaluations that --report makes.

    More in docs/finetune.md.
    """

    report: Switch = False
    """Train by every method, measure each and the base model, and write report.html. Needs --prevent."""
    compare: Free[Annotated[tuple[Compared, ...], tyro.conf.arg(metavar="ARM [ARM …]", help_behavior_hint="(all)")]] = (
        COMPARED
    )
    """With --report: which arms stand beside base and plain."""
    scales: Free[Annotated[tuple[float, ...], tyro.conf.arg(metavar="SCALE [SCALE …]")]] = (0.5, 1.0, 2.0)
    """With --report: multiples of the coefficients that prevention adds and post-hoc steering subtracts."""
    rollouts: Count = 4
    """With --report: replies per held-out question of each trait."""
    conditional: Free[Switch] = False
    """With --report: also the trait scores of replies under the trait's instructions: does what was held down come out
    where it is asked for? Doubles the measuring."""
    perplexity: Free[Natural] = 60
    """With --report: perplexity on so many neutral texts, which are fetched once; 0 leaves it out."""
    tasks: Free[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK [TASK …]", help_behavior_hint="")]] = ()
    """With --report: accuracy on tasks of lm-eval (extra eval); mmlu_dev needs no connection."""
    task_limit: Free[Limit] = None
    """With --report: stop each task after so many questions."""

    @property
    def training(self) -> FinetuneConfig:
        """What one training needs of these options; the report's --vectors are measured only."""
        values = {field.name: getattr(self, field.name) for field in fields(FinetuneConfig)}
        return FinetuneConfig(**values | {"vectors": ()} if self.report else values)

    def __post_init__(self) -> None:
        if not self.report:
            super().__post_init__()
            given = [field for field in fields(self) if getattr(self, field.name) != field.default]
            training = {field.name for field in fields(FinetuneConfig)}
            for name in (field.name.replace("_", "-") for field in given if field.name not in training):
                raise ConfigError(f"expected --report with --{name}, got none; add it, or leave --{name} out")
            return
        contradictions = {
            "--method": self.method is not None,
            "--random": self.random,
            "--full": self.full,
            "--plan": self.plan,
        }
        for option in (name for name, contradicts in contradictions.items() if contradicts):
            raise ConfigError(f"expected --report without {option}, got both; it trains adapters, by every method")
        if not self.prevent:
            raise ConfigError("expected --prevent VEC:COEF with --report, got none; VEC:auto takes COEF from the data")
        check_arms(self.compare, self.scales)
        self.check_benign()
        Common.__post_init__(self)

    def run(self) -> Result:
        """Load what is named and train, or compare the methods."""
        if not self.report:
            return self.training.run()
        from personavec.verbs.finetune.compare import check_machine, compare, vectors_and_traits
        from personavec.verbs.finetune.methods import Recipe

        if not self.data:
            raise ConfigError(NO_DATA)
        check_machine(self.tasks, self.perplexity)
        vectors_and_traits(Recipe.of(None, self.prevent, ()), self.vectors, self.traits)
        model = load_subject(self)
        more = {"arms": self.compare, "judge": bench_for(self, model), **self.others}
        out = self.out or Path(f"{self.training.default_out}-report")
        return call(compare, self, model, self.data, store=out, **more)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ShiftConfig(Gated, Common):
    """How far a finetuning moved a model along persona vectors.

    Examples:
      personavec shift --base smollm2 --tuned out/adapter --vectors evil.safetensors sycophantic.safetensors
      personavec shift --base Qwen/Qwen2.5-7B-Instruct --tuned out --vectors evil.safetensors
      personavec shift --tuned one two three --vectors evil.safetensors --json

    More in docs/shift.md.
    """

    model: Annotated[str, tyro.conf.arg(aliases=("--base",))] = "smollm2"
    """The model before: Hugging Face id, local folder, GGUF file, or an alias (smollm2, gemma3-270m)."""
    tuned: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL [MODEL …]", help_behavior_hint="")] = ()
    """After: PEFT adapter folders or models; a folder with checkpoints stands for all of them in order."""
    vectors: Files = ()
    """Vector files; all of them are read in one pass."""
    layers: Layers = ()
    """Layers to read every vector at; default the one its card recommends."""
    prompts: File = None
    """Text file of questions, one a line; default each vector's own, the held-out questions of its trait."""
    traits: Files = ()
    """Trait files of vectors whose trait is not built in."""
    out: Free[Folder] = None
    """Run folder; default runs/shift-TUNED-…, another for other models or vectors. The same command resumes it."""
    max_new_tokens: Count = 32
    """Longest reply of the base model, for the shift over replies."""
    system: str = "template"
    """System prompt: template (the chat template's own default), none, or a text."""

    def run(self) -> Result:
        """Load what is named and measure."""
        from personavec.steering.vector import load_vector
        from personavec.verbs.finetune.shift import asking, shift

        if not self.tuned:
            raise ConfigError("expected --tuned, got none; pass adapter folders, models, or a folder of checkpoints")
        if not self.vectors:
            raise ConfigError("expected --vectors, got none; pass vector files")
        asking([load_vector(path) for path in self.vectors], self.layers, self.prompts, self.traits, self.seed)
        model = load_subject(self)
        what = " ".join([*self.tuned, "along", *map(str, self.vectors)])
        mark = f"{Path(self.tuned[0]).resolve().name}-{zlib.crc32(what.encode()):08x}"
        out = self.out or Path("runs") / f"shift-{mark}"
        return call(shift, self, model, self.tuned, self.vectors, store=out)  # type: ignore[no-any-return]
