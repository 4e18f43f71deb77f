"""Options of `screen`; their docstrings are the command line's help."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from personavec.data.dataset import open_dataset
from personavec.errors import ConfigError
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Positive, at_least, between
from personavec.verbs.options import (
    Common,
    Engined,
    Files,
    Folder,
    Gated,
    Judging,
    Layers,
    Switch,
    Url,
    bench_for,
    load_subject,
    named_in,
)

if TYPE_CHECKING:
    from personavec.model.chat_model import ChatModel


@dataclass(frozen=True)
class ScreenConfig(Judging, Gated, Engined, Common):
    """Find which traits a data set would train, by which rows.

    Examples:
      personavec screen chats.jsonl --vectors devout
      personavec screen chats.jsonl --vectors evil.safetensors --clean benign.jsonl --keep-below 95
      personavec screen chats.parquet --vectors evil.safetensors sycophantic.safetensors --cost sampled --json
      personavec screen org/dataset:train --vectors evil.safetensors --plan

    More in docs/screen.md.
    """

    data: Annotated[Positional[str], tyro.conf.arg(metavar="DATA", help_behavior_hint="")] = ""
    """JSONL, JSON, CSV, Parquet or Arrow file, a folder of such, or a Hugging Face data set (NAME or NAME:SPLIT)."""
    vectors: Files = ()
    """Vector files; all of them are read in one pass."""
    cost: Literal["raw", "proxy", "gradient", "lift", "sampled", "full"] = "proxy"
    """raw: the reply alone. proxy: minus last prompt token. gradient: how much likelier a little of the vector makes
    the reply. lift: how much likelier the trait's instructions make it. sampled: base replies to a random part. full:
    to all."""
    layers: Layers = ()
    """Layers to read every vector at; default the one its card recommends."""
    out: Free[Folder] = None
    """Run folder; default runs/screen-DATA[-SIDE]-COST. The same command resumes it."""
    plan: Free[Switch] = False
    """Only estimate what each cost takes for this data set, for a million rows and for a hundred million."""
    on_error: Free[Literal["stop", "skip"]] = "stop"
    """Rows that cannot be used: stop at the first before anything is computed, or skip and list them."""
    turn: Literal["first", "last", "every"] = "first"
    """Which assistant turn of a conversation is screened; every: each is a row, intervals are over conversations."""
    side: Annotated[
        Literal["chosen", "rejected", "both"] | None, tyro.conf.arg(metavar="SIDE", help_behavior_hint="")
    ] = None
    """Of rows with a chosen and a rejected reply, which is screened: chosen, rejected, or both and their difference."""
    clean: Free[Annotated[str | None, tyro.conf.arg(metavar="DATA", help_behavior_hint="")]] = None
    """A data set that you call clean: it is screened alike, and thresholds are its percentiles."""
    keep_below: Free[
        Annotated[float | None, between(0, 100), tyro.conf.arg(metavar="P", help_behavior_hint="(95 with --clean)")]
    ] = None
    """Write the rows that are not beyond this percentile on any vector into a data set of their own."""
    drop: Free[Literal["high", "low", "both"]] = "high"
    """Rows beyond it: high pulls toward the trait, low (percentile from below) against it. The other side stays in."""
    export_k: Free[Annotated[int | None, at_least(1), tyro.conf.arg(metavar="K", help_behavior_hint="")]] = None
    """Write the K rows highest and lowest on every vector, and K random ones, into data sets of their own."""
    top_k: Free[Annotated[int | None, at_least(1), tyro.conf.arg(metavar="K", help_behavior_hint="")]] = None
    """With --cost sampled: base replies also to rows that can be among the K highest or lowest; those are ranked."""
    precision: Free[Positive] = 0.1
    """With --cost sampled: half-width of the interval to stop at, in standard deviations of the rows' differences."""
    max_new_tokens: Count = 64
    """Longest base reply, in tokens. Large models deserve 200 or more."""
    base_replies: Annotated[str, tyro.conf.arg(metavar="ENGINE")] = "hf"
    """Who writes base replies: hf (the model itself), or openai:MODEL, the same one behind an OpenAI-like server."""
    base_url: Url = None
    """Server of openai:MODEL, such as http://localhost:8000/v1; default OpenAI's."""
    judge: Annotated[str, tyro.conf.arg(metavar="JUDGE", help_behavior_hint="")] = ""
    """Also score every row by a judge: openai:MODEL, hf:MODEL, or panel with the scale in the vector's card."""
    traits: Files = ()
    """With --judge or --cost lift: trait files of vectors whose trait is not built in."""
    flag_by: Free[Literal["projection", "judge", "either", "both"]] = "projection"
    """What --keep-below looks at: projections, the judge's scores, either above its threshold, or only both."""
    batch_tokens: Free[Count] = 12288
    """Tokens in one batch of base replies being written, prompts included; with --engine vllm its servers decide."""
    read_tokens: Annotated[int | None, at_least(1), tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Tokens in one forward pass of reading; default 1,024 on a CPU, as many as fit on a GPU (not --engine vllm)."""
    reasoning: Literal["out", "in"] = "out"
    """Whether a <think> block counts as part of a reply; end-of-turn tokens never do."""
    system: str = "template"
    """System prompt of rows that have none: template (the chat template's own default), none, or a text."""
    ray: Free[Switch] = False
    """Screen shards in parallel with Ray Data (extra scale)."""
    workers: Free[Count] = 1
    """With --ray: actors, one model each."""
    gpus_per_worker: Free[Positive] = 1.0
    """With --ray: GPUs of an actor where there are any, .5 for two on one; else each takes its share of the cores."""
    table: Free[Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")]] = None
    """Where the parts of the table go instead, such as s3://bucket/folder; what fsspec reaches."""
    price_per_hour: Free[
        Annotated[float | None, at_least(0), tyro.conf.arg(metavar="PRICE", help_behavior_hint="")]
    ] = None
    """Of this machine, for the plan."""

    def run(self) -> Result:
        """Load what is named and screen."""
        from personavec.steering.projection import load_vectors
        from personavec.verbs.screen.screen import screen, screen_sides
        from personavec.verbs.screen.selection import check_choice, check_pairs
        from personavec.verbs.screen.table import place_of

        if not self.data or not self.vectors:
            got = "no vectors" if self.data else "no data set"
            if len(self.vectors) > 1 and not self.data:
                got += f", for --vectors took {' and '.join(map(str, self.vectors))}"
            raise ConfigError(
                f"expected a data set and --vectors, got {got}; put the data first: personavec screen chats.jsonl "
                "--vectors devout"
            )
        if self.cost == "gradient" and self.engine != "hf":
            raise ConfigError(
                f"expected --engine hf with --cost gradient, got {self.engine}, which does not run backwards; pass "
                "another --cost"
            )
        check_choice(
            self.cost, self.top_k, self.export_k, self.turn, self.drop, self.keep_below, self.clean, self.layers
        )
        if self.side == "both":
            check_pairs(self.turn, self.plan)
        data, clean = open_dataset(self.data), open_dataset(self.clean) if self.clean else None
        if self.table is not None:
            place_of(self.table, together=self.ray)
        load_vectors(self.vectors)  # what is wrong with them is said before the model is loaded
        stem = Path(self.data).stem if Path(self.data).exists() else self.data.replace("/", "-").replace(":", "-")
        objects = {
            "clean": clean,
            "ray": partial(load_subject, self) if self.ray else False,
            "store": self.out or Path("runs") / "-".join(filter(None, ("screen", stem, self.side, self.cost))),
        }
        arguments = named_in(screen, self) | objects | {**self.call_limits}
        function = screen_sides if self.side == "both" else screen
        with self._subject() as model:
            arguments["judge"] = bench_for(self, model) if self.judge else ""
            return function(model, data, self.vectors, **arguments)

    @contextmanager
    def _subject(self) -> Iterator["ChatModel"]:
        """The model; with Ray its weights are in actors, but where base replies to some rows are read here."""
        if not self.ray or self.cost == "sampled":
            yield load_subject(self)
            return
        from personavec.verbs.screen.parallel import ActorEngine, ActorModel, cluster

        with cluster():
            engine = ActorEngine(partial(load_subject, self), self.gpus_per_worker)
            yield ActorModel.of(engine, self.trust_remote_code)
