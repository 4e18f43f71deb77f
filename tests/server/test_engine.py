"""The engine: a batch that rows join and leave, in which nobody notices the others."""

import time
from collections.abc import Sequence

import pytest
import torch
from support import tiny, tiny_chat
from support.asking import SAMPLING, Asked, ask
from support.tiny import hooks, prompt

from personavec.model.chat_model import ChatModel
from personavec.model.kv_cache import Slots
from personavec.server.reply import RunningReply
from personavec.server.writing.engine import Engine
from personavec.server.writing.job import Full
from personavec.steering.generate import Request, Watch, generate, stream
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

SIZES = (3, 9, 1, 17, 5, 12, 2, 30)


def test_replies_are_those_of_the_offline_batch_in_every_family(any_model: ChatModel) -> None:
    """Eight prompts of different length over three rows: they wait, join, leave and move."""
    before = hooks(any_model)
    made = Engine(any_model, rows=3)
    asked = ask(made, [Asked(any_model, prompt(size), seed) for seed, size in enumerate(SIZES)])
    made.close(5)
    for seed, (size, one) in enumerate(zip(SIZES, asked, strict=True)):
        (wanted,) = generate(any_model, [Request(prompt(size), (), (seed,))], SAMPLING)
        assert tuple(one.job.reply.ids) == wanted.ids, size
        assert one.job.reply.finish == wanted.finish
    assert hooks(any_model) == before


def test_what_is_told_in_pieces_is_the_whole(model: ChatModel, engine: Engine, v: PersonaVector) -> None:
    watch = (Watch(1, v.unit(1)), Watch(3, v.unit(3)))
    (one,) = ask(engine, [Asked(model, prompt(6), watch=watch)])
    reply = one.job.reply
    assert "".join(piece for news in one.news for piece in news.pieces) == reply.text == model.decode(reply.ids)
    read = [row for news in one.news for row in news.read]
    wanted = [step.projections[0] for step in stream(model, [Request(prompt(6), (), (0,))], SAMPLING, watch)]
    torch.testing.assert_close(torch.tensor(read), torch.stack(wanted), atol=1e-4, rtol=1e-4)
    assert len(read) == len(reply.ids) + (reply.finish == "stop")


def test_each_row_reads_its_own_vectors(model: ChatModel, engine: Engine, v: PersonaVector) -> None:
    watches = [(Watch(1, v.unit(1)),), (), (Watch(2, v.unit(2)), Watch(1, v.unit(1)))]
    together = ask(engine, [Asked(model, prompt(7), seed, watch=own) for seed, own in enumerate(watches)])
    for seed, (own, one) in enumerate(zip(watches, together, strict=True)):
        (alone,) = ask(engine, [Asked(model, prompt(7), seed, watch=own)])
        torch.testing.assert_close(
            torch.tensor(one.job.reply.read), torch.tensor(alone.job.reply.read), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("op", ["add", "ablate", "cap", "gated"])
def test_batch_mates_are_untouched_bit_for_bit(model: ChatModel, v: PersonaVector, op: str) -> None:
    what = {
        "add": Steering(v, 3.0, 1),
        "ablate": Steering(v, layer="all", op="ablate", positions="all"),
        "cap": Steering(v, layer=2, op="cap", ceiling=-1.0),
        "gated": Steering(v, 3.0, 1, above=-0.5),
    }[op]

    def run(steering: tuple[Steering, ...]) -> tuple[list[Asked], list[Asked]]:
        made = Engine(tiny.build("llama"), rows=4)
        watch = (Watch(3, v.unit(3)),)
        mates = [Asked(model, prompt(5 + n), n, watch=watch, top_logprobs=3) for n in range(2)]
        steered = [Asked(model, prompt(9), 7 + n, steering=steering) for n in range(2)]
        with made._changed:  # all of them join at once
            for one in (*mates, *steered):
                made._waiting.append([one.job])
            made._changed.notify()
        for one in (*mates, *steered):
            one.wait()
        made.close(5)
        return mates, steered

    (mates, plain), (beside, steered) = run(()), run((what,))
    for one, other in zip(mates, beside, strict=True):
        assert one.job.reply.ids == other.job.reply.ids
        assert one.job.reply.logprobs == other.job.reply.logprobs
        assert one.job.reply.read == other.job.reply.read
    assert [one.job.reply.ids for one in plain] != [one.job.reply.ids for one in steered]


def test_steered_rows_are_those_of_the_offline_batch(model: ChatModel, engine: Engine, v: PersonaVector) -> None:
    steerings = [
        (),
        (Steering(v, 2.0, 1),),
        (Steering(v, -2.0, 3, "prompt"),),
        (Steering(v, 1.0, "all", "all"), Steering(v, layer=2, op="cap", floor=0.5)),
        (Steering(v, layer="all", op="ablate"),),
        (Steering(v, 4.0, 2, above=0.0),),
    ]
    asked = ask(engine, [Asked(model, prompt(8), seed, steering=own) for seed, own in enumerate(steerings)])
    for seed, (own, one) in enumerate(zip(steerings, asked, strict=True)):
        (wanted,) = generate(model, [Request(prompt(8), own, (seed,))], SAMPLING)
        assert tuple(one.job.reply.ids) == wanted.ids, own


def test_replies_to_one_prompt_share_its_reading(
    model: ChatModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    own = ChatModel.tensor
    monkeypatch.setattr(
        ChatModel, "tensor", lambda self, rows, *, left: read.append(rows) or own(self, rows, left=left)
    )
    asked = [Asked(model, prompt(6), seed) for seed in range(4)]
    engine.submit([one.job for one in asked])
    replies = [tuple(one.wait().job.reply.ids) for one in asked]
    assert len(read) == 1
    assert replies == [generate(model, [Request(prompt(6), (), (seed,))], SAMPLING)[0].ids for seed in range(4)]


def test_an_overflowing_row_ends_alone(model: ChatModel, engine: Engine, v: PersonaVector) -> None:
    asked = [
        Asked(model, prompt(6), 0),
        Asked(model, prompt(6), 1, steering=(Steering(v, 1e30, 1),)),
        Asked(model, prompt(4), 2),
    ]
    good, bad, other = ask(engine, asked)
    assert bad.job.reply.finish == "error" and "overflowed" in (bad.job.reply.error or "")
    for seed, one, size in ((0, good, 6), (2, other, 4)):
        assert tuple(one.job.reply.ids) == generate(model, [Request(prompt(size), (), (seed,))], SAMPLING)[0].ids
    assert engine.running == 0


def test_whoever_leaves_frees_the_row_and_whoever_waits_gets_it(model: ChatModel, engine: Engine) -> None:
    long = [Asked(endless(model), prompt(5), seed, tokens=200) for seed in range(4)]
    for one in long:
        engine.submit([one.job])
    late = Asked(model, prompt(5), 9)
    engine.submit([late.job])
    long[1].job.cancelled = True
    late.wait()
    assert long[1].wait().job.reply.finish == "cancelled"
    assert len(long[1].job.reply.ids) < 200
    for one in long:
        one.job.cancelled = True
    for one in long:
        one.wait()


def endless(model: ChatModel) -> ChatModel:
    """The same model, whose replies go on."""
    other = ChatModel(model.hf, model.tokenizer, "endless")
    other.stop_ids = []
    return other


def test_a_deadline_ends_a_reply_and_one_that_waited_too_long(model: ChatModel, engine: Engine) -> None:
    now = time.monotonic()
    running = [Asked(endless(model), prompt(5), n, tokens=200, deadline=now + 0.2) for n in range(4)]
    waiting = Asked(model, prompt(5), 9, deadline=now)
    for one in (*running, waiting):
        engine.submit([one.job])
    assert [one.wait().job.reply.finish for one in (*running, waiting)] == ["deadline"] * 5
    assert waiting.job.reply.ids == []


def test_a_full_queue_refuses_and_recovers(model: ChatModel) -> None:
    made = Engine(model, rows=1, queue=2)
    first = Asked(endless(model), prompt(4), tokens=200)
    made.submit([first.job])
    while made.queued:
        time.sleep(0.001)
    waiting = [Asked(model, prompt(4), seed) for seed in (1, 2)]
    for one in waiting:
        made.submit([one.job])
    with pytest.raises(Full, match="expected room in the queue of 2, got 2 waiting"):
        made.submit([Asked(model, prompt(4), 3).job])
    first.job.cancelled = True
    assert [one.wait().job.reply.finish is not None for one in waiting] == [True, True]
    ask(made, [Asked(model, prompt(4), 4)])
    made.close(5)
    with pytest.raises(Full, match="shuts down"):
        made.submit([Asked(model, prompt(4), 5).job])


def test_closing_lets_replies_finish_and_ends_those_that_take_too_long(model: ChatModel) -> None:
    made = Engine(tiny.build("llama"), rows=2)
    short, long = Asked(model, prompt(4), 1), Asked(endless(model), prompt(4), 2, tokens=100_000)
    for one in (short, long):
        made.submit([one.job])
    made.close(0.5)
    assert short.wait().job.reply.finish in ("stop", "length")
    assert long.wait().job.reply.finish == "deadline"
    assert not made.alive


def test_no_error_ends_the_server(model: ChatModel, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_write", lambda self: 1 / 0)
        (one,) = ask(engine, [Asked(model, prompt(4), 1)])
    assert one.job.reply.finish == "error" and "its log says which" in (one.job.reply.error or "")
    (other,) = ask(engine, [Asked(model, prompt(4), 1)])
    assert other.job.reply.finish in ("stop", "length")


def test_an_error_after_a_reply_ended_is_not_told_twice(
    model: ChatModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits counts the ends: a second one would leave it waiting for ever."""
    first, second = Asked(model, prompt(4), 1, tokens=2), Asked(endless(model), prompt(5), 2, tokens=100)
    own = Engine._take_out

    def fail(self: Engine) -> None:
        if first.job.reply.finish and not second.job.reply.finish:
            raise RuntimeError("the disk is full")
        own(self)

    monkeypatch.setattr(Engine, "_take_out", fail)
    with engine._changed:  # they begin together, or the first may have ended and gone before the second comes
        for one in (first, second):
            engine.submit([one.job])
    for one in (first, second):
        one.wait()
    assert [sum(news.over for news in one.news) for one in (first, second)] == [1, 1]
    assert first.job.reply.error is None and "its log says which" in (second.job.reply.error or "")


@pytest.mark.slow
def test_the_cache_moves_and_grows_without_a_trace(model: ChatModel) -> None:
    """A long prompt after short ones, and more tokens than a step of room."""
    made = Engine(endless(tiny.build("llama")), rows=3)
    asked = [
        Asked(made.model, prompt(size), size, tokens=tokens)
        for size, tokens in ((2, 30), (40, 150), (3, 200), (90, 20))
    ]
    for one in asked:
        made.submit([one.job])
        time.sleep(0.02)
    model = endless(model)
    for one in asked:
        wanted = generate(model, [Request(one.job.prompt, (), one.job.seed)], one.wait().job.sampling)[0].ids
        assert tuple(one.job.reply.ids) == wanted
    made.close(5)


def test_memory_is_flat_over_many_requests(model: ChatModel, engine: Engine) -> None:
    sizes = []
    for turn in range(30):
        ask(engine, [Asked(model, prompt(3 + turn % 5), seed, tokens=5) for seed in range(4)])
        sizes.append(sum(store.numel() for layer in engine._slots._layers for store in layer.stores))
    assert max(sizes) == sizes[0]
    engine.close(5)
    assert engine.running == 0 and engine._slots.lengths == []


# replies


def reply(model: ChatModel, text: str, stops: Sequence[str] = (), tokens: int = 1000) -> tuple[RunningReply, list[str]]:
    """A reply that was given a text token by token, and what was told of it each time."""
    made, told = RunningReply(model, tokens, stops), []
    for token in model.encode(text):
        made.add(token)
        told.append("".join(made.news().pieces))
        if made.finish:
            break
    return made, told


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("abcabd", ("abd", "zz"), "abc"),
        ("aaaab", ("aab",), "aa"),
        ("END", ("END",), ""),
        ("one two", ("o t", "ne"), "o"),
    ],
)
def test_nothing_of_a_stop_text_is_ever_told(model: ChatModel, text: str, stops: tuple[str, ...], wanted: str) -> None:
    made, told = reply(model, text, stops)
    assert made.text == wanted
    assert "".join(told) == wanted if made.finish else wanted.startswith("".join(told))
    assert "".join(made.pieces) == made.text
    assert len(made.pieces) == len(made.ids)


def test_a_character_of_several_tokens_is_told_whole() -> None:
    model = tiny_chat.build()
    made, told = reply(model, "aé→😀b")
    assert "".join(told) == "aé→😀b" and not any("\ufffd" in piece for piece in told)
    assert made.text == model.decode(made.ids)


def test_a_reply_of_its_length_ends(model: ChatModel) -> None:
    made, _ = reply(model, "abcdef", tokens=4)
    assert (made.text, made.finish) == ("abcd", "length")


def test_a_mask_has_padding_before_the_longest_row(model: ChatModel) -> None:
    slots = Slots(2, torch.device("cpu"))
    slots.lengths, slots.end = [3, 1], 4
    assert slots.mask().tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
