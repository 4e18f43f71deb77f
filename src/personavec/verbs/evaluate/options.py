"""Options of `evaluate` and `verify`; their docstrings are the command line's help."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Natural
from personavec.traits.load import load_trait
from personavec.verbs.options import (
    Common,
    Engined,
    File,
    Files,
    Folder,
    Gated,
    Judging,
    Limit,
    Steer,
    Url,
    Writing,
    bench_for,
    call,
    load_subject,
)


@dataclass(frozen=True)
class EvaluateConfig(Judging, Writing, Gated, Engined, Common):
    """Measure trait and coherence of a model, adapted or steered.

    Examples:
      personavec evaluate optimistic
      personavec evaluate optimistic --steer runs/extract-optimistic/optimistic/vector.safetensors:0.1d
      personavec evaluate optimistic --agreement openai:gpt-4.1-mini
      personavec evaluate --sheet anna.csv ben.csv --key runs/demo/devout/sheet.key.csv

    More in docs/evaluate.md.
    """

    trait: Annotated[Positional[str], tyro.conf.arg(metavar="TRAIT", help_behavior_hint="")] = ""
    """Built-in trait name or path to a trait file."""
    out: Free[Folder] = None
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
    rollouts: Count = 3
    """Replies per held-out question."""
    agreement: Free[Annotated[str, tyro.conf.arg(metavar="JUDGE", help_behavior_hint="")]] = ""
    """A second judge, as --judge takes it: how far both agree on the same replies; with a sheet of pairs to read."""
    agreement_url: Free[Url] = None
    """Server of a second judge openai:MODEL; default that of --judge-url."""
    signals: Free[Annotated[tuple[Literal["vader", "relevance"], ...], tyro.conf.arg(help_behavior_hint="")]] = ()
    """Signals beside the scores: sentiment by VADER's word list, relevance by a small cross-encoder (extra signals)."""
    perplexity: Free[Natural] = 0
    """Also the perplexity on so many neutral texts, which are fetched once; 0 leaves it out."""
    tasks: Free[Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK [TASK …]", help_behavior_hint="")]] = ()
    """Also the accuracy on tasks of lm-eval (extra eval); mmlu_dev needs no connection."""
    task_limit: Free[Limit] = None
    """Stop each task after so many questions."""
    sheet: Free[Files] = ()
    """Score sheets that readers filled in, one each; nothing else is done."""
    key: Free[File] = None
    """Key of these sheets; default NAME.key.csv or sheet.key.csv beside the first."""

    def run(self) -> Result:
        """Load what is named and evaluate, or score sheets."""
        from personavec.data.sheet import score_sheets
        from personavec.steering.notation import parse_steering
        from personavec.verbs.evaluate.capability import check_eval
        from personavec.verbs.evaluate.evaluate import evaluate
        from personavec.verbs.evaluate.signals import check_signals

        if self.sheet:
            return Result(score_sheets(self.sheet, self.key))
        if not self.trait:
            raise ConfigError("expected a trait, got none; for example: personavec evaluate optimistic")
        trait = load_trait(self.trait)
        check_signals(self.signals)
        if self.tasks:
            check_eval()
        for text in self.steer:  # what is wrong with it is said before anything is loaded
            parse_steering(text)
        model = load_subject(self)
        bench = bench_for(self, model)
        second = self.agreement and bench_for(self, model, spec=self.agreement, url=self.agreement_url, beside=bench)
        out = self.out or self._default_out(trait.name)
        return call(evaluate, self, model, trait, judge=bench, agreement=second, store=out)  # type: ignore[no-any-return]

    def _default_out(self, trait: str) -> Path:
        """A folder of its own for what is evaluated, so that one evaluation does not meet the run of another."""
        what = [*self.steer, *(str(what) for what in (self.adapter, self.judge_file, self.instruct) if what)]
        what += [self.judge] * (self.judge != EvaluateConfig.judge)
        mark = f"-{zlib.crc32(' '.join(what).encode()):08x}" if what else ""
        return Path("runs") / f"evaluate-{trait}{mark}"


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

    def run(self) -> Result:
        """Load what is named and check it."""
        from personavec.steering.vector import load_vector
        from personavec.verbs.evaluate.verify import verify

        vector = None if self.vector is None else load_vector(self.vector)
        return verify(load_subject(self), vector, seed=self.seed)
