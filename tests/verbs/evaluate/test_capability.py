"""What a model loses: perplexity and accuracy are those of one text, one question at a time; coef 0 costs nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny, tiny_chat

from personavec.cli.main import main
from personavec.errors import ConfigError, DataError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering, steer
from personavec.steering.vector import PersonaVector
from personavec.verbs.evaluate import capability as module
from personavec.verbs.evaluate.capability import MMLU_DEV, capability, mmlu_dev, neutral_texts, perplexity

TEXTS = ("The river runs to the sea.", "x", "Stones are old", "", "A longer text about rain and the people under it.")
needs_eval = pytest.mark.skipif(module.find_spec("lm_eval") is None, reason="needs the extra eval")


def nll(model: ChatModel, text: str) -> torch.Tensor:
    """Of every token but the first, from one plain forward pass."""
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        logits = model.hf(ids).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")


def test_perplexity_is_exp_of_the_mean_nll(any_model: ChatModel) -> None:
    found = perplexity(any_model, TEXTS)
    alone = torch.cat([nll(any_model, text) for text in TEXTS if len(text) > 1])
    assert math.isclose(found.value.mean, math.exp(alone.mean()), rel_tol=1e-4)
    assert (found.value.n, found.value.dropped, found.tokens, found.cut) == (3, 2, len(alone), 0)
    assert found.value.low <= found.value.mean <= found.value.high


def test_long_texts_are_cut_and_counted(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXT_TOKENS", 10)
    cut = perplexity(model, ["The river runs to the sea.", "Stones"])
    assert (cut.tokens, cut.cut) == (9 + 5, 1)
    assert cut.value == perplexity(model, ["The river ", "Stones"]).value


def test_coef_0_costs_nothing_and_steering_is_at_all_positions(model: ChatModel, v: PersonaVector) -> None:
    plain = perplexity(model, TEXTS)
    assert perplexity(model, TEXTS, [Steering(v, 0.0, 1)]) == plain
    with steer(model, [[Steering(v, 1.5, 1, "all")]]):
        alone = torch.cat([nll(model, text) for text in TEXTS if len(text) > 1])
    found = perplexity(model, TEXTS, [Steering(v, 1.5, 1, "response")])
    assert math.isclose(found.value.mean, math.exp(alone.mean()), rel_tol=1e-4)
    assert found.value.mean != plain.value.mean
    assert tiny.hooks(model) == 0


def test_nothing_to_predict_is_an_error(model: ChatModel) -> None:
    with pytest.raises(DataError, match="at least two tokens, got none among 2"):
        perplexity(model, ["", "x"])


def test_a_probability_of_nothing_is_an_error(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "reply_logprobs", lambda *_: [torch.tensor([-1.0, -torch.inf])])
    with pytest.raises(ModelError, match="all 2 tokens, got 1 that are not"):
        perplexity(model, ["abc"])


def test_texts_of_the_user(tmp_path: Path) -> None:
    lines, rows = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    lines.write_text("one\n\ntwo\nthree\n", "utf-8")
    rows.write_text("\n".join(json.dumps({"text": text}) for text in ("one", "two\nlines")), "utf-8")
    assert neutral_texts(2, lines) == ("one", "two")
    assert neutral_texts(None, rows) == ("one", "two\nlines")
    with pytest.raises(DataError, match=r"expected 3 texts, got 2 in .*texts.jsonl"):
        neutral_texts(3, rows)
    rows.write_text('{"txt": "one"}\n', "utf-8")
    with pytest.raises(DataError, match=r"line 1: expected an object with text"):
        neutral_texts(None, rows)
    with pytest.raises(DataError, match="expected a file of UTF-8 text"):
        neutral_texts(None, tmp_path / "none.txt")


@needs_eval
def test_the_questions_are_whole() -> None:
    rows = mmlu_dev()
    assert len(rows) == 282
    assert len({row["subject"] for row in rows[:57]}) == 57
    assert all(len(row["choices"]) == len(row["letters"]) > row["answer"] for row in rows)
    first = rows[0]
    assert first["subject"] == "abstract algebra"
    assert first["choices"] == ["True, True", "False, False", "True, False", "False, True"]
    assert first["question"].startswith("Statement 1 |")


@needs_eval
def test_accuracy_is_that_of_one_question_at_a_time() -> None:
    model, n = small(), 6
    found = capability(model, [MMLU_DEV], n, (), 0)[MMLU_DEV]
    right = []
    for row in mmlu_dev()[:n]:
        lines = [f"{letter}. {choice}" for letter, choice in zip(row["letters"], row["choices"], strict=True)]
        about = f"The following are multiple choice questions (with answers) about {row['subject']}."
        prompt = "\n".join([about, "", row["question"], *lines, "Answer:"])
        scores = [float(-nll(model, f"{prompt} {letter}")[-2:].sum()) for letter in row["letters"]]
        right.append(int(np.argmax(scores)) == row["answer"])
    assert (found.value.mean, found.value.n, found.value.dropped) == (np.mean(right), n, 0)


@needs_eval
def test_coef_0_keeps_every_answer() -> None:
    model = small()
    v = tiny.vector(model)
    plain = capability(model, [MMLU_DEV], 4, (), 0)
    assert capability(model, [MMLU_DEV], 4, [Steering(v, 0.0, 1)], 0) == plain
    assert capability(model, [MMLU_DEV], 4, [Steering(v, 2.0, 1)], 0)[MMLU_DEV].value.n == 4
    assert tiny.hooks(model) == 0


@needs_eval
def test_a_task_out_of_reach_is_named(model: ChatModel) -> None:
    with pytest.raises(ConfigError, match=r"expected a task that lm-eval can load, got no_such_task \("):
        capability(model, ["no_such_task"], 1, (), 0)


def test_the_missing_extra_is_said(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="expected the extra eval"):
        capability(model, [MMLU_DEV], 1, (), 0)


def small() -> ChatModel:
    """A tiny model whose context holds a question: its tokens are bytes."""
    chat = tiny_chat.build()
    model = tiny.build("llama", vocab_size=chat.hf.config.vocab_size, max_position_embeddings=2048)
    return ChatModel(model.hf, chat.tokenizer, "tiny-chat")


@pytest.mark.slow
@pytest.mark.real
def test_a_real_model_reads_english() -> None:
    model = ChatModel.load("smollm2")
    texts = [text[:300] for text in neutral_texts(6)]
    english, backwards = (perplexity(model, rows) for rows in (texts, [text[::-1] for text in texts]))
    assert english.value.high < 60 < backwards.value.low
    assert english.value.dropped == 0


@pytest.mark.slow
def test_evaluate_tells_what_a_change_costs(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "personavec.verbs.evaluate.capability.neutral_texts", lambda count: (TEXTS[0], TEXTS[4])[:count]
    )
    (tmp_path / "warm.json").write_text(json.dumps(tiny_chat.WARM))
    args = [
        "evaluate",
        str(tmp_path / "warm.json"),
        "--model",
        str(saved[0]),
        "--dtype",
        "float32",
        "--rollouts",
        "1",
        "--json",
    ]
    args += ["--max-new-tokens", "24", "--perplexity", "2", "--out", str(tmp_path / "run")]
    assert main([*args, "--steer", f"{saved[1]}:3@1"]) == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)["capability"]
    base, changed = (result[arm]["perplexity"] for arm in ("base", "changed"))
    assert base["n"] == changed["n"] == 2 and base["mean"] != changed["mean"]
    assert len(list((tmp_path / "run").glob("capability-*.json"))) == 2
