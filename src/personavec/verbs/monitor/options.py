"""Options of `monitor`; their docstrings are the command line's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, at_least
from personavec.verbs.monitor.calibration import RATE
from personavec.verbs.options import Engined, File, Files, Folder, Gated, Judged, Switch, bench_for, call, load_subject


@dataclass(frozen=True)
class MonitorConfig(Gated, Judged, Engined):
    """Watch recorded conversations along persona vectors.

    Examples:
      personavec monitor chats.jsonl --vectors devout
      personavec monitor chats.jsonl --vectors evil.safetensors --calibrate benign.jsonl --out runs/watched
      personavec monitor runs/serve/turns.db --vectors evil.safetensors --calibrate runs/serve/turns.db
      personavec monitor --experiment --vectors devout

    The judge and how replies are written are those of --experiment.

    More in docs/monitor.md.
    """

    data: Annotated[Positional[str], tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = ""
    """JSONL, JSON, CSV, Parquet or Arrow file, a folder of such, a server's log or export, or a Hugging Face data set
    (NAME or NAME:SPLIT)."""
    vectors: Files = ()
    """Vector files, each read at the layer of its card; all of them in one pass."""
    calibrate: Free[Annotated[str | None, tyro.conf.arg(metavar="BENIGN", help_behavior_hint="")]] = None
    """Conversations of your own with nothing wrong in them: they set the limits, which calibration.json keeps."""
    calibration: Free[File] = None
    """Take the limits of an earlier calibration.json."""
    false_positive_rate: Free[Annotated[float, RATE, tyro.conf.arg(metavar="RATE")]] = 0.01
    """With --calibrate: the share of benign turns, and of benign conversations for drift, that may raise an alert."""
    group_by: Annotated[str, tyro.conf.arg(metavar="FIELD", help_behavior_hint="(default: all together)")] = ""
    """Limits by group: a field of the rows such as source, or system for the system prompt."""
    tokens: Switch = False
    """Also write the projection of every token of the replies."""
    out: Free[Folder] = None
    """Run folder; default runs/monitor-FILE. The same command resumes it."""
    on_error: Free[Literal["stop", "skip"]] = "stop"
    """Rows that cannot be used: stop at the first before anything is computed, or skip and list them."""
    read_tokens: Annotated[int | None, at_least(1), tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Tokens in one forward pass of reading; default 1,024 on a CPU, as many as fit on a GPU."""
    experiment: Switch = False
    """In place of FILE, the paper's test: graded system prompts and shots, projection against trait score."""
    questions: Count = 20
    """With --experiment: held-out questions that every system prompt and number of shots is tried on."""
    rollouts: Count = 10
    """With --experiment: replies per question, 10 as in the paper."""
    shots: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N [N …]")] = (0, 5, 10, 15, 20)
    """With --experiment: how many replies that show the trait come before the question."""
    traits: Files = ()
    """With --experiment: trait files of vectors whose trait is not built in."""
    graded: File = None
    """With --experiment: JSON list of system prompts, most of the trait first; built-in traits have one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibrate is not None and self.calibration is not None:
            raise ConfigError("expected --calibrate or --calibration, got both; leave one out")
        if not self.vectors:
            raise ConfigError("expected --vectors, got none; pass vector files")
        if self.experiment and (given := self.data or self.calibrate or self.calibration):
            raise ConfigError(f"expected --experiment by itself, got {given} too; leave one out")
        if not self.experiment and not self.data:
            raise ConfigError(
                "expected recorded conversations, got none; for example: personavec monitor chats.jsonl --vectors "
                "devout"
            )
        if len(set(self.shots)) < len(self.shots) or not all(shots >= 0 for shots in self.shots):
            raise ConfigError(
                f"expected different --shots of 0 or more, got {' '.join(map(str, self.shots))}; correct them"
            )

    def run(self) -> Result:
        """Load what is named and watch, or with `experiment` do the paper's test."""
        from personavec.verbs.monitor.calibration import Calibration
        from personavec.verbs.monitor.experiment import experiment, subjects_of
        from personavec.verbs.monitor.monitor import monitor, with_layers
        from personavec.verbs.monitor.turns import conversations_of

        if self.experiment:
            names = subjects_of(self.vectors, self.traits, self.graded, self.questions)
            model = load_subject(self)
            out = self.out or Path("runs") / f"monitor-experiment-{'-'.join(names)}"
            return call(experiment, self, model, self.vectors, judge=bench_for(self, model), store=out)  # type: ignore[no-any-return]
        if self.engine != "hf":
            raise ConfigError(f"expected --engine {self.engine} with --experiment, got recorded conversations; use hf")
        data = conversations_of(self.data, self.data)
        benign = None if self.calibrate is None else conversations_of(self.calibrate, self.calibrate, steered=False)
        if self.calibration:  # what is wrong with it and with the vectors is said before the model is loaded
            Calibration.load(self.calibration)
        with_layers(self.vectors)
        out = self.out or Path("runs") / f"monitor-{Path(self.data).stem}"
        return call(monitor, self, load_subject(self), data, self.vectors, calibrate=benign, store=out)  # type: ignore[no-any-return]
