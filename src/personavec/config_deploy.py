"""Options of the verbs that watch and serve a model in use."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from personavec.errors import ConfigError
from personavec.options import Common, File, Files, Folder, Judging, Steer, Switch, Writing

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY = "PERSONAVEC_API_KEY"
"""Where the server's key comes from, unless it is an option: other users of the machine see options."""


@dataclass(frozen=True)
class MonitorConfig(Judging, Writing, Common):
    """Watch recorded conversations along persona vectors.

    Examples:
      personavec monitor chats.jsonl --vectors runs/demo/optimistic/vector.safetensors
      personavec monitor chats.jsonl --vectors evil.safetensors --calibrate benign.jsonl --out runs/watched
      personavec monitor more.jsonl --vectors evil.safetensors --calibration runs/watched/calibration.json
      personavec monitor --experiment --vectors runs/demo/optimistic/vector.safetensors

    The judge and how replies are written are those of --experiment.

    More in docs/monitor.md.
    """

    data: Annotated[Positional[str], tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = ""
    """JSONL, JSON, CSV or Parquet file, a folder of such files, or a Hugging Face data set (NAME or NAME:SPLIT)."""
    vectors: Files = ()
    """Vector files, each read at the layer of its card; all of them in one pass."""
    calibrate: Annotated[str | None, tyro.conf.arg(metavar="BENIGN", help_behavior_hint="")] = None
    """Conversations of your own with nothing wrong in them: they set the limits, which calibration.json keeps."""
    calibration: File = None
    """Take the limits of an earlier calibration.json."""
    false_positive_rate: Annotated[float, tyro.conf.arg(metavar="RATE")] = 0.01
    """With --calibrate: the share of benign turns, and of benign conversations for drift, that may raise an alert."""
    group_by: Annotated[str, tyro.conf.arg(metavar="FIELD", help_behavior_hint="(default: all together)")] = ""
    """Limits by group: a field of the rows such as source, or system for the system prompt."""
    tokens: Switch = False
    """Also write the projection of every token of the replies."""
    out: Folder = None
    """Run folder; default runs/monitor-FILE. The same command resumes it."""
    on_error: Literal["stop", "skip"] = "stop"
    """Rows that cannot be used: stop at the first before anything is computed, or skip and list them."""
    read_tokens: int = 1024
    """Tokens in one forward pass of reading; a GPU bears many more."""
    experiment: Switch = False
    """In place of FILE, the paper's test: graded system prompts and shots, projection against trait score."""
    questions: int = 20
    """With --experiment: held-out questions that every system prompt and number of shots is tried on."""
    rollouts: int = 3
    """With --experiment: replies per question; the paper writes 10."""
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
                "runs/demo/optimistic/vector.safetensors"
            )
        if len(set(self.shots)) < len(self.shots) or not all(shots >= 0 for shots in self.shots):
            raise ConfigError(
                f"expected different --shots of 0 or more, got {' '.join(map(str, self.shots))}; correct them"
            )


@dataclass(frozen=True)
class ServeConfig(Common):
    """Serve a model over OpenAI's API, steered and watched.

    Examples:
      personavec serve --vectors runs/demo
      personavec serve --vectors runs/demo --steer runs/demo/optimistic/vector.safetensors:0.1d
      personavec serve --vectors runs/demo --calibration runs/monitor/calibration.json
      personavec serve --log runs/serve/turns.db --export turns.parquet

    The dashboard is at http://127.0.0.1:8000. More in docs/serve.md.
    """

    vectors: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH [PATH …]", help_behavior_hint="")] = ()
    """Vectors that requests may name by their trait: files, or folders of runs."""
    steer: Steer = ()
    """Steer every reply whose request does not ask for another steering."""
    watch: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TRAIT [TRAIT …]")] = ("all",)
    """Vectors that are read for every request that does not name others: all, none, or traits."""
    calibration: File = None
    """calibration.json of personavec monitor: usual ranges, and alerts beyond them."""
    adapter: Folder = None
    """PEFT adapter folder to serve."""
    system: str = "template"
    """System prompt of conversations without one: template (what the chat template does by itself), none, or a text."""
    max_dose: float = 0.7
    """Largest dose that a request may add in all."""
    guard: Literal["reject", "clamp", "warn"] = "reject"
    """What happens beyond the largest dose: an error, less of it, or only a warning."""
    rows_at_once: int = 16
    """Replies that are written at once, in one batch."""
    queue: int = 64
    """Replies that may wait; one more gets status 429."""
    deadline: float = 120.0
    """Seconds that a reply may take, waiting included; then status 504."""
    max_tokens: int = 4096
    """Most tokens that a request may have written, n replies together."""
    max_request_bytes: int = 1048576
    """Longest body of a request."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs a key."""
    port: int = 8000
    """0 takes a free one."""
    api_key: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: $PERSONAVEC_API_KEY, else none)")] = ""
    """Key that requests must name. Better in the environment, where other users do not see it."""
    log: Path = Path("runs/serve/turns.db")
    """SQLite file of every turn: projections, steering, ids."""
    keep_text: Switch = False
    """Keep conversations in the log too."""
    retention_days: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: 30)")] = 30.0
    """Days after which a turn is removed from the log."""
    reports: Files = ()
    """Run folders whose pages the dashboard lists."""
    export: File = None
    """Write the log to this Parquet file and leave; nothing is served."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.host not in LOOPBACK and not self.key:
            raise ConfigError(f"expected a key with --host {self.host}, got none; set {KEY}")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"expected a port from 0 to 65535, got {self.port}; correct it")
        if len({"all", "none"} & {*self.watch}) and len(self.watch) > 1:
            raise ConfigError(f"expected all, none, or traits, got {' '.join(self.watch)}; correct --watch")

    @property
    def key(self) -> str | None:
        """The key that requests must name."""
        return self.api_key or os.environ.get(KEY) or None


@dataclass(frozen=True)
class InteropConfig(Common):
    """Take vectors over from other tools, and hand them on.

    Examples:
      personavec interop evil_response_avg_diff.pt evil.safetensors --model Qwen/Qwen2.5-7B-Instruct --layer 19
      personavec interop runs/demo/optimistic/vector.safetensors:0.2d optimistic.gguf
      personavec interop runs/demo/optimistic/vector.safetensors:0.2d steered.pt
      personavec interop runs/demo/optimistic/vector.safetensors:0.2d baked

    More in docs/interop.md.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="IN", help_behavior_hint="")] = ""
    """To take over: a .pt file of the reference's or a GGUF control vector. To hand on: VEC:COEF[@LAYER]."""
    out: Annotated[Positional[Path | None], tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = None
    """To take over: NAME.safetensors. To hand on: NAME.gguf (llama.cpp), NAME.pt (lm-eval) or a folder (baked)."""
    trait: str = ""
    """Name of a vector taken over; default from its file name. With --norms a built-in trait or a trait file."""
    layer: Annotated[int | None, tyro.conf.arg(metavar="LAYER", help_behavior_hint="")] = None
    """Layer that the card of a vector taken over recommends, counted from 0: the reference's 20 is 19."""
    norms: Switch = False
    """Measure activation norms on the model's replies to the trait's held-out questions, so that doses work."""
