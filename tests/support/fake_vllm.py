"""The parts of vLLM 0.32 that the plugin touches, restated: names and order of calls are those of its source."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

OURS = ("personavec.vllm.worker", "personavec.vllm.admission")
"""Import vLLM, so they are imported anew."""


class Block(nn.Module):
    """Of a model: what it adds to the stream, and the rest of it; here the test says both."""

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, residual


class Model(nn.Module):
    def __init__(self, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(n_layers))


class RunnerV1:
    """`vllm/v1/worker/gpu_model_runner.py`: a preempted request stays in `requests`."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.device = model, torch.device("cpu")
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(req_ids=[], num_computed_tokens_cpu=np.zeros(8, np.int32), generators={})

    def get_model(self) -> nn.Module:
        return self.model

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> str:
        return "prepared"


class StateV2:
    """`vllm/v1/worker/gpu/model_states`."""

    def add_request(self, req_index: int, new_req_data: Any) -> None: ...

    def remove_request(self, req_id: str) -> None: ...

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        return {}


class RunnerV2:
    """`vllm/v1/worker/gpu/model_runner.py`: a preempted request is removed, and added again as a new one."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.device, self.model_state = model, torch.device("cpu"), StateV2()

    def get_model(self) -> nn.Module:
        return self.model

    def finish_requests(self, scheduler_output: Any) -> None:
        for request in sorted(scheduler_output.finished_req_ids | scheduler_output.preempted_req_ids):
            self.model_state.remove_request(request)


class Worker:
    def __init__(self, vllm_config: Any, runner: RunnerV1 | RunnerV2) -> None:
        self.vllm_config, self.model_runner = vllm_config, runner
        self.use_v2_model_runner = isinstance(runner, RunnerV2)

    def load_model(self) -> None: ...


class InputProcessor:
    def __init__(self, vllm_config: Any, renderer: Any = None) -> None:
        self.vllm_config = vllm_config

    def process_inputs(self, request_id: str, prompt: Any, params: Any) -> Any:
        return SimpleNamespace(prompt_token_ids=prompt, sampling_params=params, cache_salt=None)


class VLLMValidationError(ValueError):
    def __init__(self, message: str, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


@contextmanager
def installed(version: str = "0.32.0") -> Iterator[None]:
    """Have `import vllm` find these."""
    members: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": version},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
        "vllm.exceptions": {"VLLMValidationError": VLLMValidationError},
        "vllm.v1": {},
        "vllm.v1.worker": {},
        "vllm.v1.worker.cpu_worker": {"CPUWorker": Worker},
        "vllm.v1.engine": {},
        "vllm.v1.engine.input_processor": {"InputProcessor": type("InputProcessor", (InputProcessor,), {})},
    }
    before = {name: sys.modules.pop(name, None) for name in (*members, *OURS)}
    try:
        for name, values in members.items():
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(values)
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def config(settings: dict[str, Any], n_layers: int, width: int, **parallel: Any) -> Any:
    """A vLLM configuration with settings of the plugin."""
    alone = {"data_parallel_size": 1, "prefill_context_parallel_size": 1, "use_ubatching": False}
    return SimpleNamespace(
        additional_config=settings,
        speculative_config=None,
        parallel_config=SimpleNamespace(
            worker_cls="personavec.vllm.worker.PersonaWorker",
            **{name: parallel.get(name, alone[name]) for name in alone},
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=64),
        model_config=SimpleNamespace(
            hf_text_config=SimpleNamespace(num_hidden_layers=n_layers, hidden_size=width),
            dtype=torch.float32,
            max_model_len=1000,
        ),
    )


def step(
    runner: Any,
    parts: Sequence[tuple[str, int, int]],
    requests: dict[str, tuple[int, Any]],
    *,
    over: Sequence[str] = (),
    preempted: Sequence[str] = (),
    new: Sequence[str] = (),
) -> None:
    """What a runner does before its model runs.

    Args:
        runner: V1 or V2.
        parts: Of each request of the step: name, tokens computed so far, tokens to compute.
        requests: Of each, tokens of the prompt and sampling parameters.
        over: Requests that ended in the step before.
        preempted: Those that lost their place.
        new: Those that are new, or come again.
    """
    names = [name for name, _, _ in parts]
    starts, counts = (np.array([part[place] for part in parts], np.int32) for place in (1, 2))
    if isinstance(runner, RunnerV1):
        for name in over:
            del runner.requests[name]
        for name in new:
            prompt, sampling = requests[name]
            runner.requests[name] = SimpleNamespace(num_prompt_tokens=prompt, sampling_params=sampling)
        runner.input_batch.req_ids = names
        runner.input_batch.num_computed_tokens_cpu[: len(parts)] = starts
        assert runner._prepare_inputs(None, counts) == "prepared"
        return
    runner.finish_requests(SimpleNamespace(finished_req_ids=set(over), preempted_req_ids=set(preempted)))
    for index, name in enumerate(new):
        runner.model_state.remove_request(name)
        prompt, sampling = requests[name]
        data = SimpleNamespace(req_id=name, prompt_len=prompt, sampling_params=sampling)
        runner.model_state.add_request(index, data)
    batch = SimpleNamespace(req_ids=names, num_computed_tokens_np=starts, num_scheduled_tokens=counts)
    assert runner.model_state.prepare_inputs(batch, None) == {}
