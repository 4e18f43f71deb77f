"""Memory that runs out costs rows and time, and nobody's reply."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.asking import Asked
from support.serving import Client, bad, good
from support.tiny import hooks, prompt

from personavec.model.chat_model import ChatModel
from personavec.model.kv_cache import Slots
from personavec.server.writing import drawing
from personavec.server.writing.engine import Engine
from personavec.steering.generate import Watch
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

Forward = Callable[..., torch.Tensor]


class Small(Engine):
    """An engine on a device that holds so many rows, and so many tokens of prompts next to a row that is written."""

    def __init__(self, holds: int, tokens: int = 2**30, **options: Any) -> None:
        self.holds, self.tokens = holds, tokens
        super().__init__(tiny.build("llama"), **options)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows, columns = ids.shape
        out = super()._forward(ids, mask, *rest)
        if (columns == 1 and rows > self.holds) or (columns > 1 and rows * columns + 20 * self.running > self.tokens):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out


@pytest.fixture
def small() -> Iterator[Callable[..., Small]]:
    made: list[Small] = []

    def make(*given: int, **options: Any) -> Small:
        made.append(Small(*given, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close(5)
        assert hooks(engine.model) == 0


def replies(engine: Engine, asked: Sequence[Sequence[Asked]]) -> list[Asked]:
    """Submitted at once, so that they begin together; each group has one prompt."""
    with engine._changed:
        engine.submit(*([one.job for one in group] for group in asked))
    return [one.wait() for group in asked for one in group]


def said(asked: Sequence[Asked]) -> list[tuple[Any, ...]]:
    return [(one.job.reply.ids, one.job.reply.finish, one.job.reply.text, one.job.reply.error) for one in asked]


def requests(model: ChatModel, v: PersonaVector, sizes: Sequence[int]) -> list[list[Asked]]:
    """Some of each kind: steered in prompts, replies or both, watched, with log-probabilities, several to a prompt."""
    kinds: list[dict[str, Any]] = [
        {"watch": (Watch(2, v.unit(2)),)},
        {"steering": (Steering(v, 1.0, 2),), "watch": (Watch(3, v.unit(3)), Watch(1, v.unit(1)))},
        {"steering": (Steering(v, 1.5, 1, positions="prompt"),), "top_logprobs": 2, "scores_prompt": True},
        {"steering": (Steering(v, 0.5, 1, positions="all"),)},
    ]
    return [
        [Asked(model, prompt(size), 10 * place + n, 14, **kinds[place % 4]) for n in range(1 + place % 3)]
        for place, size in enumerate(sizes)
    ]


@settings(max_examples=3, deadline=None)
@given(holds=st.integers(1, 5), rows=st.integers(1, 7), sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4))
def test_all_replies_are_those_of_a_device_with_enough_memory(holds: int, rows: int, sizes: list[int]) -> None:
    engines = [Small(holds, rows=rows), Small(2**30, rows=rows)]
    v = tiny.vector(engines[0].model)
    found, wanted = (replies(engine, requests(engine.model, v, sizes)) for engine in engines)
    for engine in engines:
        engine.close(5)
    assert said(found) == said(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            torch.tensor(one.job.reply.read), torch.tensor(other.job.reply.read), atol=1e-4, rtol=1e-4
        )
        news = [row for each in one.news for row in each.read]
        assert news == one.job.reply.read and sum(each.over for each in one.news) == 1
        scores = [[each.logprob for each in asked.job.prompt_logprobs] for asked in (one, other)]
        assert not scores[1] or scores[0] == pytest.approx(
            scores[1], abs=1e-4, nan_ok=True
        )  # of a prompt's first reply
        assert [each.token for each in one.job.reply.logprobs] == [each.token for each in other.job.reply.logprobs]
    assert engines[0].most <= max(holds, 1) or not engines[0].out_of_memory
    assert engines[1].out_of_memory == 0 and engines[1].most == rows


def test_it_is_counted_told_once_and_stays(small: Callable[..., Small], caplog: pytest.LogCaptureFixture) -> None:
    engine = small(3, rows=8)
    with caplog.at_level(logging.WARNING, "personavec.server"):
        replies(engine, [[Asked(engine.model, prompt(5), seed)] for seed in range(8)])
        replies(engine, [[Asked(engine.model, prompt(5), seed)] for seed in range(8)])
    assert engine.out_of_memory == 2 and engine.most == 2
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"memory ran out: from here on {most} of 8 rows are used" for most in (4, 2)]


def test_a_row_that_does_not_fit_by_itself_is_refused_and_the_next_is_served(small: Callable[..., Small]) -> None:
    engine = small(0, rows=3)
    for one in replies(engine, [[Asked(engine.model, prompt(5), seed)] for seed in range(3)]):
        assert one.job.reply.finish == "error"
        assert re.match(r"expected a reply that fits into memory by itself, got \d tokens", one.job.reply.error or "")
    engine.holds = 1
    (good,) = replies(engine, [[Asked(engine.model, prompt(5), 1)]])
    assert good.job.reply.finish in ("stop", "length")


def test_a_prompt_that_does_not_fit_beside_others_is_read_alone_and_costs_no_rows(small: Callable[..., Small]) -> None:
    engine, plenty = small(9, 60, rows=4), small(9, rows=4)
    sizes = (6, 50, 7, 8)
    found, wanted = (
        replies(made, [[Asked(made.model, prompt(size), size)] for size in sizes]) for made in (engine, plenty)
    )
    assert said(found) == said(wanted)
    assert engine.out_of_memory and engine.most == 4


def test_a_prompt_that_never_fits_costs_its_asker_alone(small: Callable[..., Small]) -> None:
    engine = small(9, 60, rows=4)
    first, long, last = replies(engine, [[Asked(engine.model, prompt(size), 1)] for size in (6, 70, 7)])
    assert long.job.reply.finish == "error" and "fits into memory" in (long.job.reply.error or "")
    assert {first.job.reply.finish, last.job.reply.finish} <= {"stop", "length"} and engine.most == 4


@pytest.mark.parametrize("where", ["reserve", "add", "draw", "_held", "logprobs_at", "keep"])
def test_wherever_it_runs_out_no_token_is_lost_or_doubled(
    small: Callable[..., Small], v: PersonaVector, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    engine, plenty = small(9, rows=4), small(9, rows=4)
    wanted = replies(plenty, requests(plenty.model, v, (9, 20, 33, 5)))
    target: Any = {"reserve": Slots, "add": Slots, "keep": type(engine.prefixes)}.get(where, drawing)
    real, calls = getattr(target, where), iter(range(1000))

    def failing(*given: Any) -> Any:
        if next(calls) in (2, 6):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    monkeypatch.setattr(target, where, failing)
    found = replies(engine, requests(engine.model, v, (9, 20, 33, 5)))
    assert next(calls) > 6 and said(found) == said(wanted)
    assert engine.out_of_memory == (0 if where == "keep" else 2)
    for one, other in zip(found, wanted, strict=True):
        assert len(one.job.reply.read) == len(other.job.reply.read)
        assert len(one.job.reply.logprobs) == len(other.job.reply.logprobs)


def test_over_http_it_is_one_line_in_the_form_of_all_errors_and_counted(
    server: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.service.engine
    with monkeypatch.context() as patched:

        def never(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        patched.setattr(engine, "_forward", never)
        bad(server.ask(), 500, "fits into memory")
    good(server.ask())
    text = server.get("/metrics").text
    assert f"personavec_out_of_memory_total {engine.out_of_memory}.0" in text and engine.out_of_memory == 2
    assert f"personavec_rows {engine.rows}.0" in text
