"""The shards of a screening in parallel, with Ray Data: a model in each actor, and the same parts of the table.

Parts come back through Ray, so that the machines of a cluster need no folder in common; what has a URL of its own,
actors write there.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from personavec.data.dataset import Bad, Dataset
from personavec.data.sample import Sample, Turn
from personavec.errors import ConfigError, DataError, ModelError, PersonavecError
from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.engines.engine import Order, WrittenReply
from personavec.model.hooks import idle_layers
from personavec.model.identity import ModelIdentity
from personavec.model.logits import reply_logprobs
from personavec.model.machine.limits import PassLimits, cpu_limits
from personavec.model.machine.place import SPLIT
from personavec.model.sampling import Sampling
from personavec.runs.progress import stage, tell
from personavec.steering.generate import Request, generate
from personavec.steering.gradient import likelihood_gradients
from personavec.verbs.screen.reading.rows import RowReader
from personavec.verbs.screen.shards import Actors, DataPass, screen_shard, shards
from personavec.verbs.screen.table import Place, Table

Block = dict[str, Any]


class Screener:
    """An actor: makes the model once, then screens one shard after the other."""

    def __init__(self, actors: Actors, revision: str, options: Block, threads: int, keep: bool, table: Place) -> None:
        import torch

        torch.set_num_threads(threads)
        self._fault, self._table = "", table
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
        done = [self._screen(*each) for each in zip(block["part"], block["rows"], strict=True)]
        return {"part": block["part"], **{name: [each[name] for each in done] for name in ("rows", "packed", "error")}}

    def _screen(self, part: str, text: str) -> Block:
        if self._fault:
            return {"rows": 0, "packed": b"", "error": self._fault}
        samples = [Bad(**row["bad"]) if "bad" in row else Sample.of(row) for row in json.loads(text)]
        try:
            packed = Table.pack(screen_shard(self._reader, samples, self._base))
            if isinstance(self._table, str):
                Table.put(self._table, part, packed)
                packed = b""
        except PersonavecError as error:  # a row, with --on-error stop, or a fault; the driver says it in one line
            return {"rows": 0, "packed": b"", "error": str(error)}
        return {"rows": len(samples), "packed": packed, "error": ""}


def by_name(model: ChatModel) -> Callable[[], ChatModel]:
    """Loads a model again by its name, in another process.

    Raises:
        ConfigError: It has none, or more than its name says.
    """
    name = model.identity.id
    if model.engine is not None:
        raise ConfigError(
            f"expected a model in this process with --ray, got one behind servers ({model.engine.name}), which plan "
            "their batches by themselves; leave --ray out"
        )
    if model.adapted or name == type(model.hf).__name__:
        what = "with an adapter" if model.adapted else "in memory alone"
        raise ConfigError(
            f"expected a model that Ray's actors can load by its name, got {name} {what}; pass as ray a function that "
            "makes it, or leave ray out"
        )
    place = model.placement if model.placement == SPLIT else model.device.type
    dtype = str(model.dtype).removeprefix("torch.")
    return partial(ChatModel.load, name, dtype=dtype, device=place, quantise=model.quantised)


class ReadingActor:
    """An actor that holds the model for what is read besides the shards."""

    def __init__(self, load: Callable[[], ChatModel], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.load: Callable[[], ChatModel] = load
        self.model: ChatModel | None = None

    def run(self, work: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, str]:
        """What a function of the model gives, an iterator as a list; or what was wrong."""
        try:
            self.model = self.model or self.load()
            result = work(self.model, *arguments)
            return [*result] if isinstance(result, Iterator) else result, ""
        except PersonavecError as error:
            return None, str(error)


class ActorEngine:
    """`ModelEngine` in one of Ray's actors, which is there while it is asked: this process needs no weights."""

    name = address = "Ray"
    commit = None

    def __init__(self, load: Callable[[], ChatModel], gpus: float = 1.0) -> None:
        """Find out which model it is.

        Args:
            load: Makes it in another process.
            gpus: That it takes, where there are any.

        Raises:
            ModelError: It cannot be made.
        """
        self._load, self._gpus = load, gpus
        self._actor: Any = None
        about: tuple[ModelIdentity, str, int] = self.ask(_about)
        self.identity, self.numbers, self.context = about
        self.dtype = self.numbers.split()[0]

    def ask(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of the model gives there.

        Raises:
            ModelError: Whatever was wrong.
        """
        import ray

        if self._actor is None:
            share, threads = _share(self._gpus, 1, _nodes(ray))
            remote: Any = ray.remote
            self._actor = remote(**share)(ReadingActor).remote(self._load, threads)
        try:
            result, fault = ray.get(self._actor.run.remote(work, arguments))
        except ray.exceptions.RayError as error:  # its process or its machine is gone
            self._actor = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"expected an actor of Ray that reads, got: {reason}; run the same command again"
            ) from error
        if fault:
            raise ModelError(fault)
        return result

    def rest(self) -> None:
        """Give back what the actor takes of the machines, until it is asked again."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def write(self, orders: Sequence[Order], sampling: Sampling) -> Iterator[list[WrittenReply]]:
        """Replies to prompts, see `ModelEngine`; base replies are steered by nothing."""
        if any(order.steering for order in orders):
            raise ModelError("expected replies that nothing steers from Ray's actors, got a steering; leave --ray out")
        replies = self.ask(generate, [Request(tuple(order.prompt), (), (order.seed,)) for order in orders], sampling)
        yield [WrittenReply(place, *reply) for place, reply in enumerate(replies)]

    def means(self, rows: Sequence[Any], positions: Sequence[str], layers: Sequence[int] | None) -> Iterator[Any]:
        """See `ModelEngine`."""
        yield from self.ask(activations, rows, positions, layers)

    def gradients(self, rows: Sequence[Any], layers: Sequence[int]) -> Iterator[Any]:
        """See `ModelEngine`."""
        yield from self.ask(likelihood_gradients, rows, layers)

    def norms(self, rows: Sequence[Any]) -> Iterator[Any]:
        """See `ModelEngine`; no screening asks for it."""
        raise NotImplementedError

    def logprobs(self, prompts: Sequence[Any], replies: Sequence[Any], progress: Callable[[int], None]) -> list[Any]:
        """See `ModelEngine`."""
        found: list[Any] = self.ask(reply_logprobs, prompts, replies)
        progress(len(found))
        return found

    def idle_layers(self) -> tuple[int, ...]:
        """See `ModelEngine`."""
        return tuple(self.ask(idle_layers))


def _about(model: ChatModel) -> tuple[ModelIdentity, str, int]:
    return model.identity, model.numbers, model.context


def _nodes(ray: Any) -> list[Mapping[str, float]]:
    """What each machine of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


class ActorModel(ChatModel):
    """A model whose weights are in Ray's actors alone: tokenizer, chat template and shape are here."""

    engine: ActorEngine

    @classmethod
    def of(cls, engine: ActorEngine, trust_remote_code: bool = False) -> "ActorModel":
        """The model of an engine.

        Raises:
            ModelError: It cannot be laid out without its weights.
        """
        model = cls.load(engine.identity.id, device="cpu", trust_remote_code=trust_remote_code, weights=False)
        assert isinstance(model, cls)
        model.engine = engine
        model.identity = engine.identity
        return model

    @property
    def numbers(self) -> str:
        """Those of the actors, as a model in this process has them."""
        return self.engine.numbers

    @property
    def limits(self) -> PassLimits:
        """Not asked for: actors have theirs."""
        return cpu_limits()


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray: the cluster that is there, or one of this machine, which ends with the context.

    Raises:
        ConfigError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "expected the extra that --ray needs, got none; install it: pip install -e '.[scale]' in a clone, or pip "
            "install 'personavec[scale]'"
        ) from error
    began_here = not ray.is_initialized()
    if began_here:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        yield ray
    finally:
        if began_here:
            ray.shutdown()


def screen_in_parallel(work: DataPass, actors: Actors, rows: int) -> int:
    """Write all parts of the table that are not there; returns the rows done now.

    Raises:
        ConfigError: Ray is not installed.
        DataError: A row cannot be read, and `on_error` is "stop"; or an actor cannot make the model.
    """
    folder = work.table if isinstance(work.table, str) else work.table.resolve()
    waiting = partial(_waiting, folder, work.data, work.turn)
    options = {each.name: getattr(work.reader, each.name) for each in fields(RowReader) if each.name != "model"}
    if isinstance(work.reader.model.engine, ActorEngine):
        work.reader.model.engine.rest()
    fresh = 0
    with cluster() as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a shard is a block, else one actor would get them all
        nodes = _nodes(ray)
        if len(nodes) > 1 and work.reader.cost == "full":
            tell(f"{len(nodes)} nodes: base replies are not kept for other runs")
        share, threads = _share(actors.gpus, actors.workers, nodes)
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # the data may be on no other machine
        read = ray.data.read_datasource(_source(waiting), override_num_blocks=1, num_cpus=0, label_selector=here)
        revision = work.reader.model.identity.revision
        done = read.map_batches(
            Screener,
            fn_constructor_args=(actors, revision, options, threads, len(nodes) == 1, folder),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors.workers),
            **share,
        )
        with stage(f"rows of {work.data.name}, {actors.workers} workers", rows) as advance:
            for row in done.iter_rows():
                if row["error"]:
                    raise DataError(row["error"])
                if row["packed"]:
                    Table.put(folder, row["part"], row["packed"])
                fresh += row["rows"]
                advance(row["rows"])
    return fresh


def _share(gpus: float, workers: int, nodes: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], int]:
    """What an actor takes of the machines, and its threads: all actors fit, and each fits on one machine."""
    cores = [int(node.get("CPU", 0)) for node in nodes]
    fitting = (size for size in range(1, max(cores) + 1) if sum(each // size for each in cores) >= workers)
    threads = max(fitting, default=1)
    if any(node.get("GPU") for node in nodes):
        return {"num_gpus": gpus}, threads
    return {"num_cpus": threads}, threads


def _waiting(folder: Place, data: Dataset, turn: Turn) -> Iterator[Any]:
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
