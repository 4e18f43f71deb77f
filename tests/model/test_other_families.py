"""Families whose caches hold states, or that use none, and wrapped models: replies are those of plain passes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny
from support.tiny import prompt

from personavec.errors import ModelError, VectorError
from personavec.model.activations import branches
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import attach, capture
from personavec.model.kv_cache import cached, check_served
from personavec.model.layout.blocks import find_blocks
from personavec.model.loading import load
from personavec.model.logits import reply_logprobs
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, Watch, generate, stream
from personavec.steering.steer import Steering, steer
from personavec.verbs.interop.formats import from_reference

ROWS = [prompt(5, 1), prompt(17, 2), prompt(1, 3), prompt(9, 4)]
NEW = 10
UNCACHED = {"recurrent_gemma", *tiny.PLACED}


@pytest.fixture(params=tiny.OTHERS, scope="module")
def other(request: pytest.FixtureRequest) -> ChatModel:
    return tiny.build(request.param)


@torch.inference_mode()
def plain(model: ChatModel, row: tiny.Row, what: tuple[Steering, ...] = ()) -> list[int]:
    """A greedy reply by passes over all of one row: no cache, no padding, no positions."""
    ids = list(row)
    for _ in range(NEW):
        with steer(model, [what], [len(row)]):
            token = int(model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in model.stop_ids:
            break
        ids.append(token)
    return ids[len(row) :]


@pytest.mark.parametrize("family", [*tiny.OTHERS, *tiny.PLACED])
def test_greedy_replies_are_those_of_plain_passes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of unequal length, each steered in its way, that end at different times."""
    other = tiny.build(family)
    v = tiny.vector(other)
    whats = [(), (Steering(v, 1.0, 2, "all"),), (), (Steering(v, 1.0, "all"), Steering(v, 0.5, 1, "prompt"))]
    free = [plain(other, row, what) for row, what in zip(ROWS, whats, strict=True)]
    monkeypatch.setattr(other, "stop_ids", sorted({*other.stop_ids, free[0][2], free[1][5]}))
    wanted = [plain(other, row, what) for row, what in zip(ROWS, whats, strict=True)]
    assert len({*map(len, wanted)}) > 1
    requests = [Request(row, what) for row, what in zip(ROWS, whats, strict=True)]
    assert [list(reply.ids) for reply in generate(other, requests, Sampling(NEW, 0))] == wanted
    alone = [list(generate(other, [request], Sampling(NEW, 0))[0].ids) for request in requests]
    assert alone == wanted
    assert cached(other) == (other.identity.id.removeprefix("tiny-") not in UNCACHED)


def test_what_is_watched_is_the_last_token_of_each_row(other: ChatModel) -> None:
    unit = tiny.vector(other).unit(2)
    steps = list(stream(other, [Request(row) for row in ROWS], Sampling(3, 0), [Watch(2, unit)]))
    for index, row in enumerate(ROWS):
        ids = [*row, *(int(step.tokens[step.rows.tolist().index(index)]) for step in steps[:-1] if index in step.rows)]
        weights = torch.eye(len(ids))[None, len(row) - 1 :]
        wanted = capture(other, [ids], weights, [2])[0, :, 0] @ unit
        read = torch.stack([s.projections[s.rows.tolist().index(index), 0] for s in steps if index in s.rows])
        torch.testing.assert_close(read, wanted[: len(read)], atol=1e-3, rtol=1e-3)


def test_replies_are_scored_and_read_as_in_full_passes(other: ChatModel) -> None:
    prompts, owners = [ROWS[1], ROWS[0], ROWS[2]], [0, 0, 1, 2]
    replies = [prompt(12, 7), prompt(4, 8), prompt(6, 9), prompt(3, 2)]
    rows = [prompts[owner] + reply for owner, reply in zip(owners, replies, strict=True)]
    scores = reply_logprobs(other, [prompts[owner] for owner in owners], replies)
    tail = torch.zeros(4, 1, 13)
    for weights, reply in zip(tail, replies, strict=True):
        weights[0, : len(reply) + 1] = 1 / (len(reply) + 1)
    averages = branches(other, prompts, replies, owners, tail, [1, 3])
    for row, reply, score, average in zip(rows, replies, scores, averages, strict=True):
        with torch.inference_mode():
            logits = other.hf(input_ids=torch.tensor([row]), use_cache=False).logits[0].log_softmax(-1)
        at = range(len(row) - len(reply), len(row))
        torch.testing.assert_close(score, logits[[i - 1 for i in at], list(reply)], atol=2e-4, rtol=1e-4)
        weights = torch.zeros(1, 1, len(row))
        weights[..., len(row) - len(reply) - 1 :] = 1 / (len(reply) + 1)
        torch.testing.assert_close(average, capture(other, [row], weights, [1, 3])[0], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["lfm2", "recurrent_gemma"])
def test_what_cannot_be_served_is_said_at_once(family: str) -> None:
    with pytest.raises(ModelError, match=r"expected a cache of keys and values, got .*cannot be served yet"):
        check_served(tiny.build(family))


# padding inside a wrapper


@pytest.mark.parametrize("positions_given", [True, False])
@pytest.mark.parametrize("form", ["plane", "square"])
@pytest.mark.parametrize(("kind", "wanted"), [("all", 17), ("prompt", 12), ("response", 7)])
def test_padding_is_seen_inside_a_wrapper(kind: str, wanted: int, form: str, positions_given: bool) -> None:
    model = tiny.build("gemma3_vision")
    ids, mask = model.tensor([prompt(5, 1), prompt(12, 2)], left=True)
    ids, mask = ids[:, 1:], mask[:, 1:]
    given = {"attention_mask": mask}
    if form == "square":
        square = (torch.ones(12, 12).tril().bool() & mask[:, None, :].bool())[:, None]
        given = {"attention_mask": {"full_attention": square, "sliding_attention": square}}
    if positions_given or form == "square":
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    what = (Steering(tiny.vector(model), 2.0, 2, kind),)  # type: ignore[arg-type]
    streams = []
    for row in ((), what):
        with steer(model, [row], [3, 9]) as steered, attach(model, tiny.nothing, {2: streams.append}):
            model.hf(input_ids=ids, use_cache=False, **given)
    moved = (streams[0] != streams[1]).any(-1)
    assert steered.tokens == wanted == int(moved.sum())


# a layer that was to be changed and was not


def test_a_block_that_is_not_called_is_an_error_that_names_it() -> None:
    model = tiny.build()
    for block in model.blocks:
        fast = {"__call__": lambda self, *args, **named: self.forward(*args, **named)}
        block.__class__ = type("Fast", (block.__class__,), fast)
    with (
        pytest.raises(ModelError, match="expected layer 2 to run"),
        steer(model, [(Steering(tiny.vector(model), 1, 2),)], [1]),
    ):
        tiny.forward(model, ROWS[:1])
    with pytest.raises(ModelError, match="expected layer 1 to run"):
        capture(model, ROWS[:1], torch.ones(1, 1, 5), [1])


def test_a_layer_that_does_not_run_is_named() -> None:
    model = tiny.build()
    model.decoder.config.num_hidden_layers = 3  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="expected layer 3 to run"):
        capture(model, ROWS[:1], torch.ones(1, 1, 5), [1, 3])
    assert capture(model, ROWS[:1], torch.ones(1, 1, 5), [0, 2]).shape == (1, 1, 2, tiny.D_MODEL)
    what = (Steering(tiny.vector(model), 1, 3, "all"),)
    with pytest.raises(ModelError, match="expected layer 3 to run"), steer(model, [what]) as steered:
        tiny.forward(model, ROWS[:1])
    assert steered.tokens == 0
    with pytest.raises(ModelError, match="expected layer 3 to run"):
        generate(model, [Request(ROWS[0], what)], Sampling(2, 0))


def test_a_layer_that_does_not_run_below_others_is_named() -> None:
    model = tiny.build()
    model.decoder.layers = model.decoder.layers[:1] + model.decoder.layers[2:]  # type: ignore[operator, index]
    model.decoder.config.num_hidden_layers = 3  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="expected layer 1 to run"):
        capture(model, ROWS[:1], torch.ones(1, 1, 5), [0, 1, 3])
    assert capture(model, ROWS[:1], torch.ones(1, 1, 5), [0, 2, 3]).shape == (1, 1, 3, tiny.D_MODEL)
    assert not tiny.hooks(model)


@pytest.mark.parametrize(
    ("form", "got"),
    [
        (lambda s: s.expand(4, *s.shape), r"\[4, 1, 6, 32\]"),
        (lambda s: s.transpose(0, 1), r"\[6, 1, 32\]"),
        (lambda s: s[..., :8], r"\[1, 6, 8\]"),
    ],
)
def test_another_form_of_stream_is_refused(form: Callable[[torch.Tensor], torch.Tensor], got: str) -> None:
    model = tiny.build()
    model.blocks[1].register_forward_hook(lambda *given: form(given[-1]))
    expected = r"expected blocks that give \[rows, seq, d_model\] = \[1, 6, 32\], got " + got
    with pytest.raises(ModelError, match=expected):
        capture(model, ROWS[:1], torch.ones(1, 1, 5), [1])
    with pytest.raises(ModelError, match=expected), steer(model, [(Steering(tiny.vector(model), 1, 1, "all"),)]):
        tiny.forward(model, ROWS[:1])


def test_a_block_that_runs_twice_is_refused() -> None:
    model = tiny.build()
    block = model.blocks[1]
    model.blocks[2].register_forward_pre_hook(lambda _, args, named: block(*args, **named) and None, with_kwargs=True)
    with pytest.raises(ModelError, match="expected block 1 to run once a pass, got twice"):
        capture(model, ROWS[:1], torch.ones(1, 1, 5), [1, 3])


def test_a_direction_of_zeros_is_refused(tmp_path: Path) -> None:
    model = tiny.build()
    torch.save(torch.zeros(tiny.N_LAYERS + 1, tiny.D_MODEL), tmp_path / "zero.pt")
    with pytest.raises(VectorError, match="expected a direction, got zeros at every layer"):
        from_reference(tmp_path / "zero.pt", model.identity)
    v = tiny.vector(model)
    v.direction[1] = 0
    with pytest.raises(VectorError, match="all zeros at layer 1"), steer(model, [(Steering(v, 1, 1, "all"),)]):
        tiny.forward(model, ROWS[:1])


# loading


def test_a_class_of_text_and_images_alone_is_loaded(tmp_path: Path) -> None:
    tiny.build("mistral3").hf.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    hf, _ = load(str(tmp_path), torch.device("cpu"), torch.float32)
    assert type(hf).__name__ == "Mistral3ForConditionalGeneration"


def test_a_class_that_writes_no_text_is_named(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"expected a model that transformers loads to write text, got vit .* not supported"
    ):
        load(str(tmp_path), torch.device("cpu"), torch.float32)


def test_blocks_beside_an_output_head_are_found() -> None:
    from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM

    sizes = {"vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    config = ModernBertDecoderConfig(**sizes, num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    hf = ModernBertDecoderForCausalLM(config)
    decoder, blocks = find_blocks(hf)
    assert len(blocks) == 3 and decoder is hf.model
