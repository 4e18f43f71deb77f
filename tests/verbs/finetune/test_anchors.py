"""Terms of the loss that hold a model to the base model: what they measure, and that they hold it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import tiny_chat

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import read
from personavec.verbs.finetune import trainer
from personavec.verbs.finetune.finetune import Finetuning, finetune
from personavec.verbs.finetune.methods import Recipe

ROWS = [{"prompt": f"Say {n}.", "response": "tea and rain" + "!" * n} for n in range(6)]
HOW: dict[str, Any] = {"epochs": 8.0, "rate": 5e-3, "batch": 2, "warmup_steps": 0, "checkpoints": 1, "rank": 4}


@pytest.fixture
def model() -> ChatModel:
    return tiny_chat.build()


def sequences(model: ChatModel) -> list[tuple[list[int], int]]:
    """Ids of each row, and where its first loss token is predicted."""
    found = []
    for row in ROWS:
        prompt = model.render([{"role": "user", "content": row["prompt"]}])
        reply = [*model.reply_ids(row["response"]), model.stop_ids[0]]
        found.append(([*prompt, *reply], len(prompt) - 1))
    return found


@torch.inference_mode()
def kl(tuned: ChatModel, base: ChatModel) -> float:
    found = []
    for ids, begin in sequences(base):
        one, two = (each.hf(torch.tensor([ids])).logits[0, begin:-1].log_softmax(-1) for each in (tuned, base))
        found.append((one.exp() * (one - two)).sum(-1))
    return float(torch.cat(found).mean())


def whole(model: ChatModel, ids: list[int]) -> torch.Tensor:
    """The residual stream, [layer, token, d_model]."""
    kept: list[torch.Tensor] = []
    read(model, range(model.n_layers), lambda _, stream: kept.append(stream[0].clone()), input_ids=torch.tensor([ids]))
    return torch.stack(kept)


@torch.inference_mode()
def features(tuned: ChatModel, base: ChatModel) -> float:
    found: list[torch.Tensor] = []
    for ids, begin in sequences(base):
        streams = [whole(each, ids) for each in (tuned, base)]
        shares = [
            ((one - two) ** 2).sum(-1) / (two**2).sum(-1)
            for one, two in zip(*(each[:, begin:-1] for each in streams), strict=True)
        ]
        found.append(torch.stack(shares).mean(0))
    return float(torch.cat(found).mean())


def trained(model: ChatModel, method: Any, weight: float, **more: Any) -> Finetuning:
    return finetune(model, ROWS, method=method, penalty=weight, **HOW | more)


@pytest.mark.parametrize(("method", "distance"), [("kl", kl), ("features", features)])
def test_it_holds_the_model_the_more_the_heavier_it_is(
    method: str, distance: Callable[[ChatModel, ChatModel], float], model: ChatModel
) -> None:
    """And a weight of next to nothing trains as if there were none."""
    plain = finetune(model, ROWS, method="plain", **HOW)
    far = distance(plain.model, model)
    light, heavy = (distance(trained(model, method, weight).model, model) for weight in (1e-9, 30.0))
    assert far > 0.01
    assert light == pytest.approx(far, rel=1e-2)
    assert heavy < far / 4


@pytest.mark.parametrize(("method", "distance"), [("kl", kl), ("features", features)])
def test_the_term_is_the_distance_over_loss_tokens(
    method: Any, distance: Callable[[ChatModel, ChatModel], float], model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing at the first step; after a plain training, what is measured from outside."""
    recipe = Recipe.of(method, (), ())
    assert not recipe.vectors and recipe.method == method
    once: dict[str, Any] = {"epochs": 1.0, "batch": 6, "rows_at_once": 6, "rate": 1e-2}
    first = [trained(model, method, weight, **once).losses[0]["loss"] for weight in (1e-9, 1e6)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    # one step along the same gradient, whatever the weight: the second step's loss has its distance
    two: dict[str, Any] = once | {"epochs": 2.0, "rows_at_once": 2}
    light, heavy = (trained(model, method, weight, **two).losses[1]["loss"] for weight in (1e-9, 1e3))
    moved = distance(stepped(model, method, two), model)
    assert (heavy - light) / 1e3 == pytest.approx(moved, rel=1e-3)


def stepped(model: ChatModel, method: Any, how: dict[str, Any]) -> ChatModel:
    """The model after the first of two steps."""
    seen: list[dict[str, torch.Tensor]] = []

    def keep(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        seen.append({name: value.clone() for name, value in more["model"].state_dict().items() if "lora_" in name})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._Watching, "on_step_end", keep)
        patch.setattr(trainer._Watching, "on_train_begin", lambda *_, **__: None)
        tuned = trained(model, method, 1e-9, **how).model
    tuned.hf.load_state_dict(seen[0], strict=False)
    return tuned


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "kl", "full": True}, "got --method kl with --full"),
        ({"method": "features", "random": True}, "got --method features with --random"),
        ({"method": "kl", "penalty": 0.0}, "expected penalty above 0"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], said: str, model: ChatModel) -> None:
    with pytest.raises(ConfigError, match=said):
        finetune(model, ROWS, **HOW | options)
