"""Layers that run only where there is an image are left out of reading, and said to be."""

import pytest
import torch
from support import tiny
from support.tiny import prompt

from personavec.errors import ConfigError, ModelError, VectorError
from personavec.model.activations import activation_norms, read_rows
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture, idle_layers, read
from personavec.steering.steer import Steering, steer
from personavec.verbs.evaluate.verify import verify
from personavec.verbs.extract.sweep import swept_layers

ROWS = [prompt(6), prompt(9, 1)]
WEIGHTS = torch.zeros(2, 1, 9)
WEIGHTS[0, 0, :6], WEIGHTS[1, 0, :] = 1 / 6, 1 / 9


@pytest.fixture(scope="module")
def partly() -> ChatModel:
    return tiny.build("mllama")


def test_they_are_found_and_others_have_none(partly: ChatModel, model: ChatModel) -> None:
    assert idle_layers(partly) == (1,) and idle_layers(model) == ()
    assert tiny.hooks(partly) == tiny.hooks(model) == 0


def test_reading_all_layers_repeats_the_layer_before(partly: ChatModel) -> None:
    means = capture(partly, ROWS, WEIGHTS, None)[:, 0]
    torch.testing.assert_close(means[:, [0, 2, 3]], capture(partly, ROWS, WEIGHTS, [0, 2, 3])[:, 0])
    assert torch.equal(means[:, 1], means[:, 0]), "the stream passes an idle block as it is"
    rows = [{"prompt_ids": row[:3], "response_ids": row[3:]} for row in ROWS]
    norms = activation_norms(partly, rows)
    assert len(norms) == 4 and norms[1] == norms[0]
    assert read_rows(partly, rows, "response avg", None, "reading").shape == (2, 4, tiny.D_MODEL)


@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_reading_one_that_was_asked_for_is_an_error(partly: ChatModel, layers: list[int]) -> None:
    with pytest.raises(ModelError, match="expected layer 1 to run"):
        capture(partly, ROWS, WEIGHTS, layers)
    with pytest.raises(ModelError, match="expected layer 1 to run"):
        read(partly, layers, lambda *_: None, **partly.inputs(ROWS))


def test_the_sweep_takes_layers_that_run(partly: ChatModel) -> None:
    plain = swept_layers((), 40)
    others = swept_layers((), 40, plain)
    assert len(plain) == len(others) == 5 and not {*plain} & {*others}
    assert all(abs(layer - other) == 1 for layer, other in zip(plain, others, strict=True))
    with pytest.raises(ConfigError, match="expected layers that run on text, got 1"):
        swept_layers((1, 2), 4, idle_layers(partly))


def test_a_vector_without_them_steers_the_others(partly: ChatModel) -> None:
    direction = torch.randn(4, tiny.D_MODEL, generator=torch.Generator().manual_seed(0))
    direction[1] = direction[0]
    vector = type(tiny.vector(partly))(direction, tiny.vector(partly, layer=2, details={"absent_layers": [1]}).card)
    assert set(Steering(vector, 1.0, "all").deltas()) == {0, 2, 3}
    with steer(partly, [(Steering(vector, 1.0, "all", "all"),)]) as did:
        partly.hf(torch.tensor([ROWS[0]]), use_cache=False)
    assert did.tokens == 6
    with pytest.raises(VectorError, match="got 1, which"):
        Steering(vector, 1.0, 1).deltas()


def test_verify_reads_and_steers_what_runs(partly: ChatModel) -> None:
    found = {check["name"]: check for check in verify(partly).data["checks"]}
    assert all(check["passed"] for check in found.values()), found
