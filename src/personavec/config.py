"""Options of every verb: one frozen dataclass each, whose docstrings are the command line's help, examples included."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError
from personavec.options import (
    Authoring,
    Common,
    Doses,
    File,
    Files,
    Folder,
    Judging,
    Layers,
    Limit,
    Sampling,
    Steer,
    Switch,
    Url,
    Writing,
)

LARGEST_DOSE = 10.0
"""Ten times the activations' own length: far beyond where any model still writes text."""


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
    confounds: Literal["report", "match", "residualise"] = "report"
    """Length of replies: only report it, match it between the two sides, or take away what it explains."""
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
    """A judge.json, or a vector: its scale is used, and of a run that is alike the base replies too."""
    adapter: Folder = None
    """PEFT adapter folder to evaluate."""
    instruct: Annotated[Literal["pos", "neg"] | None, tyro.conf.arg(metavar="SIDE", help_behavior_hint="")] = None
    """Ask for the trait (pos) or against it (neg) in the system prompt, by each of its instructions in turn."""
    steer: Steer = ()
    """Steer the replies; repeat for several vectors. COEF may be a dose (0.2d); LAYER may be all."""
    questions: Limit = None
    """Ask only the first so many of the held-out questions."""
    rollouts: int = 3
    """Replies per held-out question."""
    agreement: Annotated[str, tyro.conf.arg(metavar="JUDGE", help_behavior_hint="")] = ""
    """A second judge, as --judge takes it: how far both agree on the same replies; with a sheet of pairs for people."""
    agreement_url: Url = None
    """Server of a second judge openai:MODEL; default that of --judge-url."""
    signals: Annotated[tuple[Literal["vader", "relevance"], ...], tyro.conf.arg(help_behavior_hint="")] = ()
    """Signals beside the scores: sentiment by VADER's word list, relevance by a small cross-encoder (extra signals)."""
    perplexity: int = 0
    """Also the perplexity on so many neutral texts, which are fetched once; 0 leaves it out."""
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK [TASK …]", help_behavior_hint="")] = ()
    """Also the accuracy on tasks of lm-eval (extra eval); mmlu_dev needs no connection."""
    task_limit: Limit = None
    """Stop each task after so many questions."""
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


@dataclass(frozen=True)
class ScreenConfig(Judging, Common):
    """Find which traits a data set would train, by which rows.

    Examples:
      personavec screen chats.jsonl --vectors runs/demo/optimistic/vector.safetensors
      personavec screen chats.jsonl --vectors evil.safetensors --clean benign.jsonl --keep-below 95
      personavec screen chats.parquet --vectors evil.safetensors sycophantic.safetensors --cost sampled --json
      personavec screen org/dataset:train --vectors evil.safetensors --plan

    More in docs/screen.md.
    """

    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = ""
    """JSONL, JSON, CSV or Parquet file, a folder of such files, or a Hugging Face data set (NAME or NAME:SPLIT)."""
    vectors: Files = ()
    """Vector files; all of them are read in one pass."""
    cost: Literal["raw", "proxy", "sampled", "full"] = "proxy"
    """raw: the reply alone. proxy: minus last prompt token. sampled: base replies to a random part. full: to all."""
    layers: Layers = ()
    """Layers to read every vector at; default the one its card recommends."""
    out: Folder = None
    """Run folder; default runs/screen-DATA-COST. The same command resumes it."""
    plan: Switch = False
    """Only estimate what each cost takes for this data set, for a million rows and for a hundred million."""
    on_error: Literal["stop", "skip"] = "stop"
    """Rows that cannot be used: stop at the first before anything is computed, or skip and list them."""
    turn: Literal["first", "last"] = "first"
    """Which assistant turn of a conversation is screened."""
    clean: Annotated[str | None, tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = None
    """A data set that you call clean: it is screened alike, and thresholds are its percentiles."""
    keep_below: Annotated[float | None, tyro.conf.arg(metavar="P", help_behavior_hint="(95 with --clean)")] = None
    """Write the rows below this percentile on every vector into a data set of their own."""
    export_k: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint="")] = None
    """Write the K rows highest and lowest on every vector, and K random ones, into data sets of their own."""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="K", help_behavior_hint="")] = None
    """With --cost sampled: base replies also to rows that can be among the K highest or lowest; those are ranked."""
    precision: float = 0.1
    """With --cost sampled: half-width of the interval to stop at, in standard deviations of the rows' differences."""
    max_new_tokens: int = 64
    """Longest base reply, in tokens. Large models deserve 200 or more."""
    base_replies: Annotated[str, tyro.conf.arg(metavar="ENGINE")] = "hf"
    """Who writes base replies: hf (this process), or openai:MODEL, the same model behind a server such as vLLM's."""
    base_url: Url = None
    """Server of openai:MODEL, such as http://localhost:8000/v1; default OpenAI's."""
    judge: Annotated[str, tyro.conf.arg(metavar="JUDGE", help_behavior_hint="")] = ""
    """Also score every row by a judge: openai:MODEL, hf:MODEL, or likelihood with the scale in the vector's card."""
    traits: Files = ()
    """With --judge: trait files of vectors whose trait is not built in."""
    flag_by: Literal["projection", "judge", "either", "both"] = "projection"
    """What --keep-below looks at: projections, the judge's scores, either above its threshold, or only both."""
    batch_tokens: int = 12288
    """Tokens in one batch of base replies being written, prompts included."""
    read_tokens: int = 1024
    """Tokens in one forward pass of reading; a GPU bears many more."""
    reasoning: Literal["out", "in"] = "out"
    """Whether a <think> block counts as part of a reply; end-of-turn tokens never do."""
    system: str = "template"
    """System prompt of rows that have none: template (the chat template's own default), none, or a text."""
    ray: Switch = False
    """Screen shards in parallel with Ray Data (extra scale)."""
    workers: int = 1
    """With --ray: actors, one model each; each takes a GPU where there are any, else its share of the cores."""
    price_per_hour: Annotated[float | None, tyro.conf.arg(metavar="PRICE", help_behavior_hint="")] = None
    """Of this machine, for the plan."""


@dataclass(frozen=True)
class ShiftConfig(Common):
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
    out: Folder = None
    """Run folder; default runs/shift-TUNED-…, another for other models or vectors. The same command resumes it."""
    max_new_tokens: int = 32
    """Longest reply of the base model, for the shift over replies."""
    system: str = "template"
    """System prompt: template (the chat template's own default), none, or a text."""
