"""How much a pass holds: as before on a CPU, by free memory on a GPU, and less once that has run out."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from torch import Tensor
from transformers import Qwen2Config

from personavec.model import activations as reading
from personavec.model import logits as judging
from personavec.model.activations import activations, by_length
from personavec.model.chat_model import ChatModel
from personavec.model.machine.limits import Limit, cpu_limits, habits, in_parts, limits_on
from personavec.model.sampling import Sampling
from personavec.steering import generate as writing
from personavec.verbs.analyse import contributions

GB = 10**9
SEVEN_B = Qwen2Config(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
)
PROMPTS = [tiny.prompt(length, length) for length in (9, 5, 7, 12, 3, 8, 4)]
REPLIES = [tiny.prompt(length, 40 + length) for length in (4, 6, 2, 5, 3, 1, 7)]


def most(limits: Any) -> list[float]:
    return [limits.read.most, limits.screened.most, limits.cached.most, limits.logits.most]


def test_a_cpu_holds_what_its_caches_hold(model: ChatModel) -> None:
    assert most(cpu_limits()) == [2048, 1024, 8192, 75_000_000]
    assert most(limits_on([torch.device("cpu")], SEVEN_B, 2)) == most(cpu_limits())
    assert model.tensor([(5, 6)], left=True)[1].tolist() == [[0, 1, 1]], "a column is padding"
    assert (habits(torch.device("cpu")).draw_rows, habits(torch.device("cuda")).padding) == (8, 0)


def test_a_gpu_holds_what_fits() -> None:
    gpu = [torch.device("cuda", 0)]
    before = most(cpu_limits())
    for free in (1, 8 * GB, 60 * GB, 180 * GB):
        now = most(limits_on(gpu, SEVEN_B, 2, free))
        assert all(more >= less for more, less in zip(now, before, strict=True))
        before = now
    assert before[0] == 32_768 and before[3] > 1e9


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 100))
def test_what_does_not_fit_is_done_in_parts(rows: int, room: int, most: int) -> None:
    limit, tried = Limit(most), []

    def work(part: Sequence[int]) -> int:
        tried.append(len(part))
        if len(part) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(part)

    done = list(in_parts(range(rows), work, limit))
    assert [row for part, _ in done for row in part] == list(range(rows))
    assert all(len(part) == result <= room for part, result in done)
    failed = len(tried) - len(done)
    assert limit.most == most / 2**failed and (failed == 0) == (rows <= room)


def test_one_row_that_does_not_fit_is_an_error() -> None:
    def work(_: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_parts([1, 2, 3], work, Limit(9)))


def test_later_batches_are_smaller() -> None:
    limit = Limit(40)
    batches = by_length([range(10)] * 12, limit)
    assert len(next(batches)) == 4
    limit.halve()
    assert [len(batch) for batch in batches] == [2] * 4


def failing(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, rows: int, at: int) -> list[int]:
    """A function that has no memory for more than so many rows; how many it was given each time."""
    whole, sizes = getattr(place, name), list[int]()

    def small(*given: Any, **named: Any) -> Any:
        sizes.append(len(given[at]))
        if len(given[at]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*given, **named)

    monkeypatch.setattr(place, name, small)
    return sizes


def everything(model: ChatModel) -> list[Any]:
    rows = [{"prompt_ids": p, "response_ids": r} for p, r in zip(PROMPTS, REPLIES, strict=True)]
    read: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch, means in activations(model, rows):
        for place, mean in zip(batch, means, strict=True):
            read[place] = mean
    requests = [writing.Request(prompt, seed=(place,)) for place, prompt in enumerate(PROMPTS)]
    replies = writing.generate(model, requests, Sampling(6))
    return [torch.stack(read), torch.cat(judging.reply_logprobs(model, PROMPTS, REPLIES)), replies]


@pytest.mark.parametrize("room", [1, 3])
def test_reading_judging_and_writing_go_on_with_less(
    tiny_model: Callable[[str], ChatModel], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    model = tiny.build("llama")
    wanted = everything(model)
    sizes = [
        failing(monkeypatch, reading, "capture", room, 1),
        failing(monkeypatch, judging, "_batch", room, 1),
        failing(monkeypatch, writing, "_generate", room, 1),
    ]
    means, logprobs, replies = everything(model)
    torch.testing.assert_close(means, wanted[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logprobs, wanted[1], atol=1e-5, rtol=1e-4)
    assert replies == wanted[2]
    assert all(max(each) == len(PROMPTS) and min(each) <= room for each in sizes)
    assert model.limits.read.most < 2048 and model.limits.logits.most < 75_000_000


@pytest.mark.parametrize("room", [1, 3])
def test_taking_apart_goes_on_with_less(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    model = tiny.build("llama")
    unit = torch.nn.functional.normalize(torch.ones(model.identity.d_model), dim=0)
    rows = [{"prompt_ids": p, "response_ids": r, "side": "pos"} for p, r in zip(PROMPTS, REPLIES, strict=True)]

    def apart() -> list[Any]:
        streams = [stream for _, stream in sorted(contributions.token_activations(model, rows, 2), key=str)]
        placed = [token.projection for token in contributions.tokens(model, rows, 2, unit)]
        return [torch.tensor(contributions.written(model, rows, 2, unit[None]).values), torch.tensor(placed), *streams]

    wanted = apart()
    whole, sizes = model.inputs, list[int]()

    def small(ids: Sequence[Sequence[int]], **named: Any) -> Any:
        sizes.append(len(ids))
        if len(ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(ids, **named)

    monkeypatch.setattr(model, "inputs", small)
    for found, before in zip(apart(), wanted, strict=True):
        torch.testing.assert_close(found, before, atol=1e-5, rtol=1e-4)
    assert max(sizes) == len(PROMPTS) and min(sizes) <= room
