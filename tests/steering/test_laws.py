"""Laws of steering: what must hold whatever the model, the vector and the batch."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.tiny import KINDS, Row, hooks, mixed, own, prompt, steered
from torch import Tensor

from personavec.errors import ConfigError, ModelError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import attach, capture
from personavec.model.kv_cache import empty, using
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, Watch, generate, stream
from personavec.steering.steer import Positions, Steering, ablation, capping, steer
from personavec.steering.vector import PersonaVector, increments

ROWS = [prompt(5, 1), prompt(13, 2), prompt(9, 3), prompt(1, 4)]
LENGTHS = [3, 9, 9, 1]


# what a coefficient means


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 2, "all"])
def test_coef_zero_changes_no_bit(model: ChatModel, v: PersonaVector, layer: Any, kind: Positions) -> None:
    _, plain, streams = tiny.forward(model, ROWS)
    logits, moved = steered(model, ROWS, [(Steering(v, 0.0, layer, kind),)], LENGTHS)
    assert torch.equal(logits, plain) and torch.equal(moved, streams)
    # also as the one idle row of a batch that is steered elsewhere
    logits, _ = steered(model, ROWS, [(Steering(v, 0.0, layer, kind),), (Steering(v, 1.0, 1),), (), ()], LENGTHS)
    assert torch.equal(logits[0], plain[0])


@pytest.mark.parametrize("layer", [1, "all"])
def test_coef_scales_the_vector(model: ChatModel, v: PersonaVector, layer: Any) -> None:
    by_coef, _ = steered(model, ROWS, [(Steering(v, 2.0, layer),)], LENGTHS)
    by_vector, _ = steered(model, ROWS, [(Steering(2 * v, 1.0, layer),)], LENGTHS)
    assert torch.equal(by_coef, by_vector)
    assert not torch.equal(by_coef, tiny.forward(model, ROWS)[1])


def test_vector_minus_itself_is_baseline(model: ChatModel, v: PersonaVector) -> None:
    logits, _ = steered(model, ROWS, [(Steering(v - v, 3.0, 1, "all"),)], LENGTHS)
    assert torch.equal(logits, tiny.forward(model, ROWS)[1])
    logits, _ = steered(model, ROWS, [(Steering(v, 1.0, 1, "all"), Steering(-v, 1.0, 1, "all"))], LENGTHS)
    assert torch.equal(logits, tiny.forward(model, ROWS)[1])


def test_two_steerings_add_up(model: ChatModel, v: PersonaVector) -> None:
    other = tiny.vector(model, 1)
    together, _ = steered(model, ROWS, [(Steering(v, 1.5, 2), Steering(other, -0.5, 2))], LENGTHS)
    at_once, _ = steered(model, ROWS, [(Steering(1.5 * v - other / 2, 1.0, 2),)], LENGTHS)
    torch.testing.assert_close(together, at_once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_positions_move(model: ChatModel, v: PersonaVector, kind: Positions) -> None:
    _, _, plain = tiny.forward(model, ROWS)
    _, moved = steered(model, ROWS, [(Steering(v, 2.0, 1, kind),)], LENGTHS)
    for row, length, before, after in zip(ROWS, LENGTHS, plain[1], moved[1], strict=True):
        at = torch.arange(before.shape[0])
        wanted = {"all": at >= 0, "prompt": at < length, "response": at >= length - 1}[kind] & (at < len(row))
        assert torch.equal(after, before + wanted[:, None] * (2.0 * v.direction[1]))


def test_steering_every_layer_adds_its_increment_at_each(model: ChatModel, v: PersonaVector) -> None:
    """What a block adds depends on what it reads: feed the steered stream of the layer below, then compare."""
    mask, _, plain = tiny.forward(model, ROWS)
    _, moved = steered(model, ROWS, [(Steering(v, 1.0, "all", "all"),)], LENGTHS)
    delta = increments(v.direction)
    torch.testing.assert_close(moved[0][mask], (plain[0] + delta[0])[mask])
    for layer in (1, 2, 3):
        with attach(model, tiny.nothing, {layer - 1: lambda _, below=moved[layer - 1]: below}):  # type: ignore[misc]
            _, _, unsteered = tiny.forward(model, ROWS)
        wanted = unsteered[layer] + delta[layer]
        torch.testing.assert_close(moved[layer][mask], wanted[mask], atol=1e-5, rtol=1e-5)


def test_running_sum_of_increments_is_the_vector(v: PersonaVector) -> None:
    torch.testing.assert_close(increments(v.direction).cumsum(0), v.direction)
    assert torch.equal(increments(v.direction)[0], v.direction[0])


def test_all_layer_steering_accumulates_to_the_vector() -> None:
    """In a model whose blocks are the identity, the stream at layer l moves by coef·v_l."""
    identity = tiny.build("llama", seed=3)
    for block in identity.blocks:
        block.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
        block.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]
    v = tiny.vector(identity)
    mask, _, plain = tiny.forward(identity, ROWS)
    assert torch.equal(plain[0], plain[-1])
    _, moved = steered(identity, ROWS, [(Steering(v, 1.7, "all", "all"),)], LENGTHS)
    wanted = plain + mask[None, :, :, None] * (1.7 * v.direction)[:, None, None]
    torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=1e-5)


# the same tokens are steered however they are fed


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", ["add", "ablate", "cap"])
def test_cached_equals_uncached(tiny_model: Callable[[str], ChatModel], family: str, kind: Positions, op: str) -> None:
    model = tiny_model(family)
    what = (Steering(tiny.vector(model), 1.5, 1, kind, op=op, ceiling=0.5),)  # type: ignore[arg-type]
    row, length = prompt(15, 5), 6
    whole, _ = steered(model, [row], [what], [length])
    for cuts in ((length - 1, *range(length, 16)), tuple(range(1, 16)), (4, 9, 10, 15), (15,)):
        torch.testing.assert_close(
            in_chunks(model, row, cuts, what, length), own(row, whole[0], False), atol=2e-5, rtol=1e-4
        )


@torch.inference_mode()
def in_chunks(model: ChatModel, row: Row, cuts: tuple[int, ...], what: Sequence[Steering], length: int) -> Tensor:
    """Logits of a row fed with a cache, cut at the given positions, without telling the model its positions."""
    cache = empty(model)
    logits = []
    with steer(model, [what], [length]):
        for start, end in pairwise((0, *cuts)):
            ids = torch.tensor([row[start:end]])
            logits.append(model.hf(input_ids=ids, **using(model, cache)).logits[0])
    return torch.cat(logits)


@settings(deadline=None, max_examples=15)
@given(cuts=st.sets(st.integers(1, 14)), kind=st.sampled_from(KINDS), length=st.integers(1, 15))
def test_any_chunks_equal_uncached(model: ChatModel, cuts: set[int], kind: Positions, length: int) -> None:
    row, what = prompt(15, 6), (Steering(tiny.vector(model), -1.0, "all", kind),)
    whole, _ = steered(model, [row], [what], [length])
    chunked = in_chunks(model, row, (*sorted(cuts), 15), what, length)
    torch.testing.assert_close(chunked, own(row, whole[0], False), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("left", [True, False])
def test_each_row_of_a_mixed_batch_equals_the_row_alone(any_model: ChatModel, left: bool) -> None:
    what = mixed(tiny.vector(any_model))
    logits, streams = steered(any_model, ROWS, what, LENGTHS, left)
    for index, row in enumerate(ROWS):
        alone, lone_streams = steered(any_model, [row], [what[index]], [LENGTHS[index]])
        torch.testing.assert_close(
            own(row, logits[index], left), own(row, alone[0], False), atol=1e-4, rtol=1e-4, msg=str(index)
        )
        torch.testing.assert_close(
            own(row, streams[:, index], left), own(row, lone_streams[:, 0], False), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("left", [True, False])
def test_batch_mates_are_untouched(model: ChatModel, v: PersonaVector, left: bool) -> None:
    _, plain, _ = tiny.forward(model, ROWS, left)
    logits, _ = steered(model, ROWS, [(), (Steering(v, 3.0, "all", "all"),), (), ()], LENGTHS, left)
    for index in (0, 2, 3):
        assert torch.equal(logits[index], plain[index])
    assert not torch.allclose(logits[1], plain[1])


def test_padding_is_never_steered(model: ChatModel, v: PersonaVector) -> None:
    mask, _, plain = tiny.forward(model, ROWS, left=True)
    with steer(model, [(Steering(v, 2.0, 0, "all"),)], LENGTHS) as did:
        _, _, moved = tiny.forward(model, ROWS, left=True)
    assert torch.equal(moved[0][~mask], plain[0][~mask])
    assert did.tokens == sum(map(len, ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_positions_follow_the_mask_when_none_are_given(model: ChatModel, v: PersonaVector, kind: Positions) -> None:
    """Left-padded rows, whole and cut in two with a cache, called with a mask alone."""
    ids, mask = model.tensor(ROWS, left=True)
    own_position = torch.where(mask.bool(), mask.cumsum(-1) - 1, -1)
    length = torch.tensor(LENGTHS)[:, None]
    wanted = {"all": own_position >= 0, "prompt": own_position < length, "response": own_position >= length - 1}[kind]
    wanted = (wanted & mask.bool())[..., None] * (2.0 * v.direction[0])
    for cut in (0, 9):
        seen: dict[bool, list[Tensor]] = {}
        for active in (False, True):
            seen[active] = []
            cache = empty(model)
            read = attach(model, tiny.nothing, {0: seen[active].append})  # type: ignore[dict-item]
            with torch.inference_mode(), read, steer(model, [(Steering(v, 2.0 * active, 0, kind),)], LENGTHS):
                for start, end in ((0, cut), (cut, ids.shape[1])) if cut else ((0, ids.shape[1]),):
                    model.hf(ids[:, start:end], attention_mask=mask[:, :end], **using(model, cache))
        moved = torch.cat(seen[True], dim=1) - torch.cat(seen[False], dim=1)
        torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=1e-5)


def test_whoever_reads_sees_the_steered_stream(model: ChatModel, v: PersonaVector) -> None:
    """Hooks that were there before, the library's own among them, come after steering."""
    row, seen = prompt(6), []
    with attach(model, tiny.nothing, {1: seen.append}):  # type: ignore[dict-item]
        plain = model.hf(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
        with steer(model, [(Steering(v, 2.0, 1, "all"),)]):
            moved = model.hf(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(seen[1] - seen[0], (2.0 * v.direction[1]).expand(1, 6, -1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved[2], seen[1])
    torch.testing.assert_close(plain[2], seen[0])


def test_training_under_steering_has_gradients(v: PersonaVector) -> None:
    """Vectors made from captured activations may steer a backward pass; the gradient sees the steered stream."""
    subject = tiny.build("llama").hf.requires_grad_(True)
    model = ChatModel(subject, tiny.tokenizer(), "tiny-llama")
    rows = [prompt(6), prompt(6, 1)]
    read = capture(model, rows, torch.full((2, 1, 6), 1 / 6), range(4))[:, 0]
    own_vector = PersonaVector(read[0] - read[1], v.card)
    ids, mask = model.tensor(rows, left=False)
    gradients = []
    for what in (
        (),
        (Steering(own_vector, 3.0, 1, "all"), Steering(own_vector, layer="all", op="ablate", positions="all")),
    ):
        with steer(model, [what], [3, 3]):
            loss = model.hf(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
        subject.zero_grad()
        loss.backward()
        gradients.append(model.blocks[0].mlp.up_proj.weight.grad.clone())  # type: ignore[union-attr]
    assert torch.isfinite(gradients[1]).all() and gradients[1].norm() > 0
    assert not torch.allclose(*gradients)


# no trace is left


@pytest.fixture
def fresh() -> ChatModel:
    """A model without hooks; the library leaves some of its own once hidden states were asked for."""
    return tiny.build("llama")


def test_no_hooks_after_an_exception(fresh: ChatModel, v: PersonaVector) -> None:
    assert hooks(fresh) == 0
    with pytest.raises(RuntimeError, match="inside"), steer(fresh, [(Steering(v, 1.0, "all"),)], [3]):
        assert hooks(fresh) > 0
        raise RuntimeError("inside")
    assert hooks(fresh) == 0
    with pytest.raises(IndexError):
        with steer(fresh, [(Steering(v, 1.0, 0, "all"),)]):
            tiny.forward(fresh, [(10**6,)])
    assert hooks(fresh) == 0
    with pytest.raises(IndexError):
        capture(fresh, [(10**6,)], torch.ones(1, 1, 1), [1])
    assert hooks(fresh) == 0
    with pytest.raises(VectorError, match="expected a layer from 0 to 3, got 4"):
        capture(fresh, [prompt(3)], torch.ones(1, 1, 3), [1, 4])
    with pytest.raises(VectorError, match="got -1"):
        capture(fresh, [prompt(3)], torch.ones(1, 1, 3), [-1])
    assert hooks(fresh) == 0

    def explode(_: Tensor) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attach(fresh, tiny.nothing, {2: explode}):
        tiny.forward(fresh, [prompt(3)])
    assert hooks(fresh) == 0


def test_no_hooks_after_a_failing_or_abandoned_stream(fresh: ChatModel, v: PersonaVector) -> None:
    requests = [Request(prompt(5), (Steering(v, 1.0, 1, "all"),)), Request(prompt(7))]
    watch = [Watch(2, v.unit(2))]
    running = stream(fresh, requests, Sampling(20), watch)
    next(running), next(running)
    assert hooks(fresh) > 0
    running.close()
    assert hooks(fresh) == 0
    with pytest.raises(IndexError):
        list(stream(fresh, [*requests, Request((10**6,) * 3)], Sampling(20), watch))
    assert hooks(fresh) == 0
    with pytest.raises(IndexError):
        list(stream(fresh, [*requests, Request((5, 10**6))], Sampling(20), watch))
    assert hooks(fresh) == 0
    with pytest.raises(VectorError, match="layer"):
        list(stream(fresh, requests, Sampling(20), [Watch(9, v.unit(2))]))
    assert hooks(fresh) == 0
    generate(fresh, requests, Sampling(3))
    assert hooks(fresh) == 0


def test_steering_that_touches_nothing_is_an_error(model: ChatModel, v: PersonaVector) -> None:
    with pytest.raises(ModelError, match=r"expected steering .* got none"), steer(model, [(Steering(v, 1.0, 1),)], [3]):
        pass
    with pytest.raises(ModelError, match="got none"):
        steered(model, [prompt(4)], [(Steering(v, 1.0, 1, "response"),)], [9])
    with steer(model, [(Steering(v, 0.0, 1),)]):
        pass


def test_a_stream_that_overflows_is_an_error(fresh: ChatModel, v: PersonaVector) -> None:
    with pytest.raises(ModelError, match="lower"):
        steered(fresh, ROWS, [(Steering(v, 3e38, 1, "all"), Steering(v, 3e38, 1, "all"))], LENGTHS)
    assert hooks(fresh) == 0


def test_a_vector_of_another_model_is_refused(model: ChatModel) -> None:
    for other in (tiny.build("llama", hidden_size=48), tiny.build("llama", seed=9)):
        with pytest.raises(VectorError, match="expected a vector for tiny-llama"):
            steered(model, ROWS, [(Steering(tiny.vector(other), 1.0, 1),)], LENGTHS)
    with pytest.raises(VectorError, match="expected a layer from 0 to 3, got 4"):
        steered(model, ROWS, [(Steering(tiny.vector(model), 1.0, 4),)], LENGTHS)


# ablation and capping


@pytest.mark.parametrize("layer", [2, "all"])
@pytest.mark.parametrize("count", [1, 3])
def test_ablation_leaves_no_projection(model: ChatModel, layer: Any, count: int) -> None:
    vectors = [tiny.vector(model, seed) for seed in range(count)]
    mask, _, plain = tiny.forward(model, ROWS)
    what = [tuple(Steering(v, layer=layer, positions="all", op="ablate") for v in vectors)]
    _, moved = steered(model, ROWS, what, LENGTHS)
    for site in range(model.n_layers) if layer == "all" else [layer]:
        for v in vectors:
            assert (plain[site][mask] @ v.unit(site)).abs().max() > 0.1
            assert (moved[site][mask] @ v.unit(site)).abs().max() < 1e-4


def test_ablating_parallel_directions_removes_one_direction(model: ChatModel, v: PersonaVector) -> None:
    once, _ = steered(model, ROWS, [(Steering(v, layer=1, positions="all", op="ablate"),)], LENGTHS)
    twice, _ = steered(
        model, ROWS, [tuple(Steering(x, layer=1, positions="all", op="ablate") for x in (v, 2 * v))], LENGTHS
    )
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=1e-4)


def test_edits_of_a_row_do_not_depend_on_its_mates(model: ChatModel, v: PersonaVector) -> None:
    """The same cap in two rows, in one of them after an ablation."""
    cap = Steering(v, layer=1, positions="all", op="cap", floor=0.5)
    what = [(cap,), (Steering(v, layer=1, positions="all", op="ablate"), cap)]
    rows = [prompt(5), prompt(8)]
    together, _ = steered(model, rows, what, [3, 3])
    for row, steering, logits in zip(rows, what, together, strict=True):
        alone, _ = steered(model, [row], [steering], [3])
        torch.testing.assert_close(logits[: len(row)], alone[0, : len(row)], atol=1e-4, rtol=1e-4)


def test_prompt_and_response_need_the_prompt_length(model: ChatModel, v: PersonaVector) -> None:
    for positions in ("prompt", "response"):
        with (
            pytest.raises(ConfigError, match="expected prompt_tokens"),
            steer(model, [(Steering(v, 1.0, 1, positions),)]),  # type: ignore[arg-type]
        ):
            pass


floats = st.floats(-3, 3, width=32)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 99), low=floats, high=floats)
def test_capping_is_idempotent_and_moves_only_what_lies_outside(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    generator = torch.Generator().manual_seed(seed)
    stream_, direction = torch.randn((3, 7, 16), generator=generator), torch.randn(16, generator=generator)
    direction /= direction.norm()
    cap = capping(direction, low, high)
    once = cap(stream_)
    assert once is not None
    along = once @ direction
    assert (along >= low - 1e-5).all() and (along <= high + 1e-5).all()
    before = stream_ @ direction
    inside = (before > low + 1e-5) & (before < high - 1e-5)
    torch.testing.assert_close(once[inside], stream_[inside], atol=0, rtol=0)
    across = stream_ - before[..., None] * direction
    torch.testing.assert_close(once - along[..., None] * direction, across, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cap(once), once, atol=1e-5, rtol=1e-5)


def test_capping_without_bounds_and_ablation_of_nothing_there(model: ChatModel, v: PersonaVector) -> None:
    logits, _ = steered(model, ROWS, [(Steering(v, layer=1, positions="all", op="cap"),)], LENGTHS)
    torch.testing.assert_close(logits, tiny.forward(model, ROWS)[1])
    edit = ablation(torch.eye(4)[:2])
    assert torch.equal(edit(torch.tensor([[1.0, 2, 3, 4]])), torch.tensor([[0.0, 0, 3, 4]]))  # type: ignore[arg-type]
