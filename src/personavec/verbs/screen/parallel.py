"""The shards of a screening in parallel, with Ray Data: a model in each actor, and the same parts of the table.

Parts come back through Ray, so that the machines of a cluster need no folder in common.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from personavec.data.dataset import Bad, Dataset
from personavec.data.sample import Sample, Turn
from personavec.errors import ConfigError, DataError, PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.model.engines.vllm import connect
from personavec.model.machine.place import SPLIT
from personavec.runs.progress import stage, tell
from personavec.verbs.screen.shards import Actors, DataPass, RowReader, screen_shard, shards
from personavec.verbs.screen.table import Table

Block = dict[str, Any]


class Screener:
    """An actor: makes the model once, then screens one shard after the other."""

    def __init__(self, actors: Actors, revision: str, options: Block, threads: int, keep: bool) -> None:
        import torch

        torch.set_num_threads(threads)
        self._fault = ""
        try:
            model = actors.load()
        except PersonavecError as error:
            self._fault = str(error)
            return
        if model.identity.revision != revision:
            self._fault = (
                f"expected the model that was given under the name {model.identity.id}, got another one; pass as ray a "
                "function that makes it"
            )
        self._reader = RowReader(model, **options)
        self._base = actors.answer(model) if self._reader.cost == "full" else None
        if self._base and not keep:
            self._base.path = Path(":memory:")

    def __call__(self, block: Block) -> Block:
        """Screen the shards of a block, each to its part of the table."""
        done = [self._screen(text) for text in block["rows"]]
        return {"part": block["part"], **{name: [each[name] for each in done] for name in ("rows", "packed", "error")}}

    def _screen(self, text: str) -> Block:
        if self._fault:
            return {"rows": 0, "packed": b"", "error": self._fault}
        samples = [Bad(**row["bad"]) if "bad" in row else Sample.of(row) for row in json.loads(text)]
        try:
            packed = Table.pack(screen_shard(self._reader, samples, self._base))
        except PersonavecError as error:  # a row, with --on-error stop, or a server; the driver says it in one line
            return {"rows": 0, "packed": b"", "error": str(error)}
        return {"rows": len(samples), "packed": packed, "error": ""}


def by_name(model: ChatModel) -> Callable[[], ChatModel]:
    """Loads a model again by its name, in another process.

    Raises:
        ConfigError: It has none, or more than its name says.
    """
    name = model.identity.id
    if model.engine is not None:
        return partial(connect, model.engine.address, name)
    if model.adapted or name == type(model.hf).__name__:
        what = "with an adapter" if model.adapted else "in memory alone"
        raise ConfigError(
            f"expected a model that Ray's actors can load by its name, got {name} {what}; pass as ray a function that "
            "makes it, or leave ray out"
        )
    place = model.placement if model.placement == SPLIT else model.device.type
    return partial(ChatModel.load, name, dtype=str(model.dtype).removeprefix("torch."), device=place)


def screen_in_parallel(work: DataPass, actors: Actors, rows: int) -> int:
    """Write all parts of the table that are not there; returns the rows done now.

    Raises:
        ConfigError: Ray is not installed.
        DataError: A row cannot be read, and `on_error` is "stop"; or an actor cannot make the model.
    """
    try:
        import ray
        from ray.data import DataContext
    except ImportError as error:
        raise ConfigError(
            "expected the extra that --ray needs, got none; install it: pip install -e '.[scale]' in a clone, or pip "
            "install 'personavec[scale]'"
        ) from error
    folder = work.run.path("table").resolve()
    waiting = partial(_waiting, folder, work.data, work.turn)
    options = {each.name: getattr(work.reader, each.name) for each in fields(RowReader) if each.name != "model"}
    began_here = not ray.is_initialized()
    if began_here:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a shard is a block, else one actor would get them all
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) > 1 and work.reader.cost == "full":
        tell(f"{len(nodes)} nodes: base replies are not kept for other runs")
    share, threads = _share(actors, nodes)
    fresh = 0
    try:
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # the data may be on no other machine
        read = ray.data.read_datasource(_source(waiting), override_num_blocks=1, num_cpus=0, label_selector=here)
        done = read.map_batches(
            Screener,
            fn_constructor_args=(actors, work.reader.model.identity.revision, options, threads, len(nodes) == 1),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors.workers),
            **share,
        )
        with stage(f"rows of {work.data.name}, {actors.workers} workers", rows) as advance:
            for row in done.iter_rows():
                if row["error"]:
                    raise DataError(row["error"])
                Table.put(folder, row["part"], row["packed"])
                fresh += row["rows"]
                advance(row["rows"])
    finally:
        if began_here:
            ray.shutdown()
    return fresh


def _share(actors: Actors, nodes: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], int]:
    """What an actor takes of the machines, and its threads: all actors fit, and each fits on one machine."""
    cores = [int(node.get("CPU", 0)) for node in nodes]
    fitting = (size for size in range(1, max(cores) + 1) if sum(each // size for each in cores) >= actors.workers)
    threads = max(fitting, default=1)
    if actors.gpus and any(node.get("GPU") for node in nodes):
        return {"num_gpus": actors.gpus}, threads
    return {"num_cpus": threads}, threads


def _waiting(folder: Path, data: Dataset, turn: Turn) -> Iterator[Any]:
    """Shards that are not in the table yet, as text that any machine can read; a block each."""
    for number, shard in enumerate(shards(data.samples(turn))):
        part = f"part-{number:06d}"
        if not Table.has(folder, part):
            rows = [{"bad": sample._asdict()} if isinstance(sample, Bad) else asdict(sample) for sample in shard]
            yield pa.table({"part": [part], "rows": [json.dumps(rows)]})


def _source(read: Callable[[], Iterator[Any]]) -> Any:
    """A Ray data source that reads the data set once, as a stream."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Shards(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    return Shards()  # type: ignore[no-untyped-call]
