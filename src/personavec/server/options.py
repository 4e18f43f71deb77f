"""Options of `serve`; their docstrings are the command line's help."""

import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from personavec.errors import ConfigError
from personavec.runs.result import Result
from personavec.runs.rules import Free, above
from personavec.server.terms import KEY, Offer, Terms, check_host
from personavec.verbs.options import Common, Engined, File, Files, Folder, Steer, Switch, call, load_subject

if TYPE_CHECKING:
    from personavec.server.service import Service


@dataclass(frozen=True)
class Served(Common):
    """What is served."""

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


@dataclass(frozen=True)
class ServeConfig(Offer, Served, Engined):
    """Serve a model over OpenAI's API, steered and watched.

    Examples:
      personavec serve --vectors runs/demo
      personavec serve --vectors runs/demo --steer devout:0.2d
      personavec serve --vectors runs/demo --calibration runs/monitor/calibration.json
      personavec serve --log runs/serve/turns.db --export turns.parquet

    The dashboard is at http://127.0.0.1:8000. More in docs/serve.md.
    """

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
        check_host(self.host, self.key)
        if not 0 <= self.port < 65536:
            raise ConfigError(f"expected a port from 0 to 65535, got {self.port}; correct it")
        if len({"all", "none"} & {*self.watch}) and len(self.watch) > 1:
            raise ConfigError(f"expected all, none, or traits, got {' '.join(self.watch)}; correct --watch")

    @property
    def key(self) -> str | None:
        """The key that requests must name."""
        return self.api_key or os.environ.get(KEY) or None

    @property
    def terms(self) -> Terms:
        """On what terms requests are answered."""
        return Terms(**{field.name: getattr(self, field.name) for field in fields(Terms)})

    def run(self) -> Result:
        """Listen, load what is named and serve; or export the log."""
        try:
            from personavec.server.log import export
            from personavec.server.serve import find_pages, listen, run
        except ImportError as error:
            raise ConfigError(
                f"expected the server's packages, got none ({error.name}); pip install -e '.[serve]' in a clone"
            ) from error
        if self.export is not None:
            return Result({"rows": export(self.log, self.export), "out": str(self.export)})
        began = time.monotonic()
        with listen(self.host, self.port) as listening:
            pages = find_pages(self.reports)
            return run(self.assemble(), listening, pages, began)

    def assemble(self) -> "Service":
        """What serves: the model, vectors and log that are named."""
        from personavec.server.service import assemble
        from personavec.steering.notation import parse_steering

        steer = [parse_steering(text) for text in self.steer]
        return call(assemble, self, load_subject(self), self.terms, steer=steer)  # type: ignore[no-any-return]
