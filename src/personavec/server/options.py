"""Options of the verbs that watch and serve a model in use."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Positive, above
from personavec.server.terms import Terms, check_watch
from personavec.verbs.options import Common, File, Files, Folder, Steer, Switch, load_subject

if TYPE_CHECKING:
    from personavec.server.service import Service


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
    calibration: Free[File] = None
    """calibration.json of personavec monitor: usual ranges, and alerts beyond them."""
    adapter: Folder = None
    """PEFT adapter folder to serve."""
    system: str = "template"
    """System prompt of conversations without one: template (what the chat template does by itself), none, or a text."""
    max_dose: Positive = 0.7
    """Largest dose that a request may add in all."""
    guard: Literal["reject", "clamp", "warn"] = "reject"
    """What happens beyond the largest dose: an error, less of it, or only a warning."""
    rows_at_once: Free[Count] = 16
    """Replies that are written at once, in one batch."""
    queue: Count = 64
    """Replies that may wait; one more gets status 429."""
    deadline: Positive = 120.0
    """Seconds that a reply may take, waiting included; then status 504."""
    max_tokens: Count = 4096
    """Most tokens that a request may have written, n replies together."""
    max_request_bytes: Count = 1048576
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
    retention_days: Annotated[float | None, above(0), tyro.conf.arg(help_behavior_hint="(default: 30)")] = 30.0
    """Days after which a turn is removed from the log."""
    reports: Files = ()
    """Run folders whose pages the dashboard lists."""
    export: File = None
    """Write the log to this Parquet file and leave; nothing is served."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_watch(self.watch)
        _ = self.terms

    @property
    def terms(self) -> Terms:
        """On which terms it serves.

        Raises:
            ConfigError: As `Terms`.
        """
        return Terms(**{field.name: getattr(self, field.name) for field in fields(Terms)})

    def service(self) -> "Service":
        """A service of what is named."""
        from personavec.server.service import assemble

        return assemble(partial(load_subject, self), terms=self.terms, **self._contents)

    def run(self) -> Result:
        """Serve what is named, or export the log."""
        from personavec.server.serve import installed, serve

        installed()
        if self.export is not None:
            from personavec.server.log import export

            return Result({"rows": export(self.log, self.export), "out": str(self.export)})
        load = partial(load_subject, self)
        return serve(load, terms=self.terms, reports=self.reports, **self._contents)

    @property
    def _contents(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("vectors", "steer", "watch", "calibration", "log")}
