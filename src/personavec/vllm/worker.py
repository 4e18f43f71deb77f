"""vLLM's worker with the edit in its blocks: `--worker-cls personavec.vllm.worker.PersonaWorker`.

Model Runner V1 and V2 are told of a step at different places; both are private to vLLM, so versions are gated, and a
server checks itself before it serves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import vllm
from torch import nn
from vllm.platforms import current_platform

from personavec.vllm.asked import FIELD, SPANS, Asked, read
from personavec.vllm.block import BlockEdit, Tables, become, edited
from personavec.vllm.book import Book, StepPart
from personavec.vllm.rewind import keep
from personavec.vllm.settings import Refusal, Settings, StoredVector, check

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as DeviceWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as DeviceWorker


class PersonaWorker(DeviceWorker):  # type: ignore[misc]
    """A worker whose model steers and reads each request as it asks."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then put the edit into its blocks, before anything is compiled or captured."""
        settings, vectors = check(self.vllm_config, vllm.__version__)
        super().load_model(*args, **kwargs)
        self.persona_book = install(self.model_runner, self.vllm_config, settings, vectors)
        if self.use_v2_model_runner:
            told_by_state(self.model_runner, self.persona_book)
        else:
            told_by_inputs(self.model_runner, self.persona_book)

    def persona_readings(self, ids: Sequence[str]) -> dict[str, Any]:
        """Readings by the ids of their requests; called by the endpoint."""
        return self.persona_book.fetch(ids)


def install(runner: Any, config: Any, settings: Settings, vectors: Mapping[str, StoredVector]) -> Book:
    """Put an edit into every block that can be steered.

    Raises:
        Refusal: The blocks are not found.
    """
    model = runner.get_model()
    n_layers = len(next(iter(vectors.values())).direction)
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
        Refusal: There is no list of as many modules, or more than one.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and not name.endswith("experts")
    }
    if len(lists) != 1:
        raise Refusal(
            f"expected one list of {n_layers} blocks, got {', '.join(lists) or 'none'}; this family is not supported"
        )
    return next(iter(lists.values()))


def told_by_inputs(runner: Any, book: Book) -> None:
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
            keep(batch, self.requests)
            return kind._prepare_inputs(self, scheduler_output, num_scheduled_tokens)

    become(runner, Told)


def told_by_state(runner: Any, book: Book) -> None:
    """Model Runner V2: told of requests and steps by the state of its model, which is outside of the graph for this.

    The state is told that a request is gone also when it is preempted, and comes again; that it is over is known to the
    runner alone.
    """
    state = runner.model_state
    runs, keeps = type(runner), type(state)
    known: dict[str, tuple[int, Any]] = {}
    """Of each request that is not over, tokens of its prompt and what it asks for."""

    class ToldRunner(runs):  # type: ignore[misc, valid-type]
        def finish_requests(self, scheduler_output: Any) -> None:
            for request in scheduler_output.finished_req_ids:
                known.pop(request, None)
            runs.finish_requests(self, scheduler_output)

    class ToldState(keeps):  # type: ignore[misc, valid-type]
        def add_request(self, req_index: int, new_req_data: Any) -> None:
            known[new_req_data.req_id] = (new_req_data.prompt_len, _asked(new_req_data.sampling_params))
            keeps.add_request(self, req_index, new_req_data)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
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
            return keeps.prepare_inputs(self, input_batch, req_states)

    become(runner, ToldRunner)
    become(state, ToldState)


def _asked(sampling: Any) -> Any:
    """What a request sent, None if it is to be left alone."""
    return (getattr(sampling, "extra_args", None) or {}).get(FIELD)
