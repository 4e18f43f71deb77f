"""How often a GPU has to be waited for while replies are written: once a token."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from personavec.model.chat_model import ChatModel
from personavec.model.machine.limits import HABITS, ON_A_GPU
from personavec.model.sampling import Sampling
from personavec.steering import generate as writing
from personavec.steering.generate import Request, Watch, stream
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "masked_select", "equal")
"""Operations whose result a program has to look at, or whose shape depends on numbers."""


class Counting(TorchDispatchMode):
    """Counts what would wait for a GPU among the operations on tensors that would be there."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        index = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if not self.off and (name in WAITS or index):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


LENGTHS = {"alike": (9, 9, 9, 9), "padded": (9, 5, 7, 12)}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(12, 0), Sampling(12, 1.0), Sampling(12, 1.0, 0.9)], ids=str)
def test_a_token_is_waited_for_once(
    model: ChatModel, v: PersonaVector, monkeypatch: pytest.MonkeyPatch, sampling: Sampling, watched: bool, lengths: str
) -> None:
    prompts = [tiny.prompt(length, seed) for seed, length in enumerate(LENGTHS[lengths])]
    requests = [Request(p, (Steering(v, 0.3 * i, 1),), (i,)) for i, p in enumerate(prompts)]
    watch = [Watch(2, v.unit(2))] if watched else []
    monkeypatch.setattr(model, "stop_ids", [10**6])
    wanted = [(step.tokens.tolist(), step.projections) for step in stream(model, requests, sampling, watch)]
    monkeypatch.setitem(HABITS, "cpu", ON_A_GPU)
    counting, transfers = Counting(), 0
    arrive = writing._told

    def told(drawn: torch.Tensor, projections: torch.Tensor) -> Any:
        nonlocal transfers
        transfers += 1
        counting.off = True  # from here until the next pass all is on the CPU
        return arrive(drawn, projections)

    read = writing.Cached.read

    def reading(self: Any, tokens: Any, steered: Any, seen: Sequence[Any]) -> Any:
        counting.off = False
        return read(self, tokens, steered, seen)

    monkeypatch.setattr(writing, "_told", told)
    monkeypatch.setattr(writing.Cached, "read", reading)
    found, first = [], 0
    with counting:
        for step in stream(model, requests, sampling, watch):
            found.append((step.tokens.tolist(), step.projections))
            if len(found) == 1:  # what was done to prompts, and the proof of effect at the first token
                first = len(counting.waits)
    assert transfers == len(found) == 12
    # transformers looks once whether a mask is all ones, before a pass, when nothing else is under way
    looks = 11 if lengths == "padded" else 0
    assert len(counting.waits[first:]) == looks, "beside the transfer nothing is waited for"
    for (tokens, read_in), (same, before) in zip(found, wanted, strict=True):
        assert tokens == same
        torch.testing.assert_close(read_in, before, atol=1e-5, rtol=1e-4)
