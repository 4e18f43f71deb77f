"""vLLM's worker with the edit in its blocks: `--worker-cls personavec.vllm.worker.PersonaWorker`.

Model Runner V1 and V2 are told of a step at different places; both are private to vLLM, so versions are gated, and a
server checks itself before it serves.
"""

from collections.abc import Sequence
from typing import Any

import torch
import vllm
from torch import nn
from vllm.platforms import current_platform

from personavec.vllm.asked import FIELD, SPANS, Asked, read
from personavec.vllm.block import BlockEdit, Tables, edited
from personavec.vllm.book import Book, StepPart
from personavec.vllm.settings import Settings, load, settings_of

VERSIONS = ("0.32.",)
"""Beginnings of the versions of vLLM that the hooks were written and tried with."""

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as DeviceWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as DeviceWorker


class PersonaWorker(DeviceWorker):  # type: ignore[misc, valid-type]
    """A worker whose model steers and reads each request as it asks."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then put the edit into its blocks, before anything is compiled or captured."""
        settings = check(self.vllm_config)
        super().load_model(*args, **kwargs)
        self.persona_book = install(self.model_runner, self.vllm_config, settings)
        if self.use_v2_model_runner:
            _told_by_state(self.model_runner, self.persona_book)
        else:
            _told_by_inputs(self.model_runner, self.persona_book)

    def persona_readings(self, ids: Sequence[str]) -> dict[str, Any]:
        """Readings by the ids of their requests; called by the endpoint."""
        return self.persona_book.fetch(ids)


def check(config: Any) -> Settings:
    """The settings of a configuration that the plugin can work in.

    Raises:
        ValueError: It cannot: another version of vLLM, or something that changes what a step is.
    """
    if not vllm.__version__.startswith(VERSIONS):
        raise ValueError(
            f"expected vLLM {' or '.join(f'{version}x' for version in VERSIONS)}, got {vllm.__version__}; the plugin "
            "reaches into parts of vLLM that change, so install a version that it was tried with"
        )
    settings = settings_of(config)
    if settings is None:
        raise ValueError("expected settings of personavec, got none; start with `python -m personavec.vllm`")
    parallel = config.parallel_config
    unknown = {
        "speculative decoding": config.speculative_config is not None,
        "data parallelism inside a server (start one server for each replica)": parallel.data_parallel_size > 1,
        "context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "micro-batches": bool(getattr(parallel, "enable_dbo", False)),
        "sequence parallelism": bool(getattr(config.compilation_config.pass_config, "enable_sp", False)),
    }
    if used := [name for name, there in unknown.items() if there]:
        raise ValueError(f"expected a server without {used[0]}, got one with it; leave it out")
    return settings


def install(runner: Any, config: Any, settings: Settings) -> Book:
    """Put an edit into every block that can be steered.

    Raises:
        ValueError: The vectors are of a model of another depth or width, or the blocks are not found.
    """
    vectors = load(settings)
    model, text = runner.get_model(), config.model_config.hf_text_config
    n_layers, width = next(iter(vectors.values())).direction.shape
    if (n_layers, width) != (text.num_hidden_layers, text.hidden_size):
        raise ValueError(
            f"expected vectors of a model with {text.num_hidden_layers} layers, {text.hidden_size} wide, got some with "
            f"{n_layers} layers, {width} wide in {settings.folder}; give the folder of this model's vectors"
        )
    blocks = find_blocks(model, n_layers)
    chosen = range(n_layers) if settings.layers is None else settings.layers
    layers = [layer for layer in chosen if type(blocks[layer]).__name__ != "PPMissingLayer"]
    scheduler = config.scheduler_config
    units = torch.stack([torch.stack([vector.unit(layer) for layer in range(n_layers)]) for vector in vectors.values()])
    tables = Tables(
        units.transpose(0, 1)[layers],
        rows=1 + 3 * scheduler.max_num_seqs,
        edits=settings.edits,
        tokens=max(scheduler.max_num_batched_tokens, getattr(runner, "max_num_tokens", 0)),
        spans=1 + SPANS * scheduler.max_num_seqs if settings.means else 0,
        dtype=config.model_config.dtype,
        device=runner.device,
    )
    for index, layer in enumerate(layers):
        edited(blocks[layer], BlockEdit(tables, index))

    def read_asked(value: Any) -> Asked:
        return read(value, vectors, settings, config.model_config.max_model_len)

    return Book(tables, vectors, layers, settings.edits, read_asked)


def find_blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The blocks of the language model, by structure.

    Raises:
        ValueError: There is no list of as many modules, or more than one.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and not name.endswith("experts")
    }
    if len(lists) != 1:
        raise ValueError(
            f"expected one list of {n_layers} blocks, got {', '.join(lists) or 'none'}; this family is not supported"
        )
    return next(iter(lists.values()))


def _asked(sampling: Any) -> Any:
    """What a request sent, None if it is to be left alone."""
    return (getattr(sampling, "extra_args", None) or {}).get(FIELD)


def _told_by_inputs(runner: Any, book: Book) -> None:
    """Model Runner V1: told of a step when it prepares its inputs."""
    kind = type(runner)

    class Told(kind):  # type: ignore[misc, valid-type]
        def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
            batch = self.input_batch
            states = [self.requests[request] for request in batch.req_ids]
            parts = [
                StepPart(request, int(start), int(count), state.num_prompt_tokens, _asked(state.sampling_params))
                for request, state, start, count in zip(
                    batch.req_ids, states, batch.num_computed_tokens_cpu, num_scheduled_tokens, strict=False
                )
            ]
            book.step(parts, self.requests.keys())
            return kind._prepare_inputs(self, scheduler_output, num_scheduled_tokens)

    Told.__name__, Told.__qualname__, Told.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    runner.__class__ = Told


def _told_by_state(runner: Any, book: Book) -> None:
    """Model Runner V2: told by the state of its model, which is there for this, outside of the graph."""
    state = runner.model_state
    kind = type(state)
    known: dict[str, tuple[int, Any]] = {}
    """Of each request, tokens of its prompt and what it asks for; those that are preempted come again."""

    class Told(kind):  # type: ignore[misc, valid-type]
        def add_request(self, req_index: int, new_req_data: Any) -> None:
            known[new_req_data.req_id] = (new_req_data.prompt_len, _asked(new_req_data.sampling_params))
            kind.add_request(self, req_index, new_req_data)

        def remove_request(self, req_id: str) -> None:
            known.pop(req_id, None)
            kind.remove_request(self, req_id)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
            parts = [
                StepPart(request, int(start), int(count), *known.get(request, (0, None)))
                for request, start, count in zip(
                    input_batch.req_ids,
                    input_batch.num_computed_tokens_np,
                    input_batch.num_scheduled_tokens,
                    strict=True,
                )
            ]
            book.step(parts, known.keys())
            inputs: dict[str, Any] = kind.prepare_inputs(self, input_batch, req_states)
            return inputs

    Told.__name__, Told.__qualname__, Told.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    state.__class__ = Told
