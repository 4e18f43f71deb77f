"""Two judges on the same replies, and signals that are no scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from support.served import Server

from personavec.cli.main import main
from personavec.errors import ConfigError
from personavec.verbs.evaluate import signals
from personavec.verbs.evaluate.agreement import agreement, signal_agreement

Row = dict[str, Any]


def row(question: str, trait: float | None, coherence: float | None = 90.0, side: str = "", **more: Any) -> Row:
    why = {"trait_why": "refused"} if trait is None else {}
    return {"question": question, "trait": trait, "coherence": coherence, "judge": "one", **why, **more} | (
        {"side": side} if side else {}
    )


def two_judges(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Replies to eight questions, half of them rollouts, scored twice with some noise and some refusals."""
    rng = np.random.default_rng(seed)
    first, second = [], []
    for number in range(64):
        question, side = f"q{number % 8}", ("pos", "neg", "", "")[number % 4]
        truth = {"pos": 75, "neg": 25, "": 50}[side]
        for rows in (first, second):
            value = float(np.clip(truth + rng.normal(0, 25), 0, 100))
            rows.append(row(question, None if rng.random() < 0.1 else value, float(rng.uniform(0, 100)), side))
    return first, second


def test_agreement_is_that_of_the_libraries() -> None:
    first, second = two_judges()
    found = agreement(("one", "two"), first, second)
    one, two = (np.array([r["trait"] for r in rows], dtype=float) for rows in (first, second))
    both = ~np.isnan(one) & ~np.isnan(two)
    trait = found["trait"]
    assert found["replies"] == 64 and trait["scored_by_both"] == both.sum() < 64
    assert trait["spearman"]["mean"] == pytest.approx(spearmanr(one[both], two[both]).statistic, abs=1e-4)
    low, high = trait["spearman"]["ci"]
    assert low < trait["spearman"]["mean"] < high and trait["spearman"]["dropped"] == 64 - both.sum()
    for values, auc in zip((one, two), trait["auc"], strict=True):
        sides = np.array([r.get("side", "") for r in first])
        known = ~np.isnan(values) & (sides != "")
        assert auc["mean"] == pytest.approx(roc_auc_score(sides[known] == "pos", values[known]), abs=1e-4)
        assert auc["n"] == known.sum() and auc["dropped"] == (np.isnan(values) & (sides != "")).sum()
    above = trait["above_50"]
    assert sum(above.values()) == both.sum()
    assert above["first_only"] == ((one > 50) & (two <= 50) & both).sum()
    assert above["second_only"] == ((one <= 50) & (two > 50) & both).sum()
    assert trait["agree"] == pytest.approx((above["both"] + above["neither"]) / both.sum(), abs=1e-4)
    assert found["coherence"]["spearman"]["n"] == 64
    assert agreement(("one", "two"), first, second, same_coherence=True)["coherence"] is None
    assert [unscored["refused"] for unscored in trait["unscored"]] == [np.isnan(one).sum(), np.isnan(two).sum()]


def test_a_judge_agrees_with_itself() -> None:
    first, _ = two_judges()
    found = agreement(("one", "one"), first, first)["trait"]
    assert found["spearman"]["mean"] == found["agree"] == found["kappa"] == 1
    assert found["above_50"]["first_only"] == found["above_50"]["second_only"] == 0


def test_judges_that_never_score_are_told_as_such() -> None:
    first, second = two_judges()
    silent = [r | {"trait": None, "trait_why": "unparseable"} for r in second]
    found = agreement(("one", "two"), first, silent)["trait"]
    assert found["scored_by_both"] == 0 and found["spearman"]["mean"] is None and found["agree"] is None
    assert found["auc"][1]["mean"] is None and found["kappa"] is None
    json.dumps(found, allow_nan=False)


def test_signals_are_compared_with_the_score_of_their_kind() -> None:
    rows = [row(f"q{n % 5}", float(n), float(100 - n)) for n in range(40)]
    values = {"up": np.arange(40.0), "down": np.arange(40.0)}
    found = signal_agreement(values, rows, {"up": "trait", "down": "coherence"})
    assert found["up"] == {"with": "trait", "spearman": found["up"]["spearman"]}
    assert found["up"]["spearman"]["mean"] == 1 and found["down"]["spearman"]["mean"] == -1


def test_vader_knows_kind_words_from_unkind_ones() -> None:
    values = signals.vader(["?"] * 3, ["What a wonderful, happy day!", "This is awful and sad.", ""])
    assert values[0] > 0.5 and values[1] < -0.3 and np.isnan(values[2])


@pytest.mark.parametrize(("signal", "module"), [("vader", "vader"), ("relevance", "onnxruntime")])
def test_a_missing_extra_is_told(signal: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=rf"--signals {signal} needs.*\[signals\]"):
        signals.SIGNALS[signal][0](["Hi?"], ["Hello."])


@pytest.mark.real
def test_the_cross_encoder_knows_answers_from_gibberish() -> None:
    questions = ["How do I boil an egg?", "How do I boil an egg?", "How do I boil an egg?", "Who?"]
    answers = ["Put the egg in boiling water for eight minutes.", "The parliament voted on Tuesday.", "gl orp zik", ""]
    values = signals.relevance(questions, answers)
    assert values[0] > values[1] + 2 and values[0] > values[2] + 2 and np.isnan(values[3])
    alone = [signals.relevance([q], [a])[0] for q, a in zip(questions[:3], answers[:3], strict=True)]
    # int8 activations are scaled by the whole batch, so padding moves a logit a little
    assert values[:3] == pytest.approx(alone, abs=0.6)


@pytest.mark.slow
def test_a_second_judge_and_signals_are_added_to_a_run(
    warm: Path, judging: Server, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    args = ["evaluate", str(warm), "--model", str(saved[0]), "--max-new-tokens", "6", "--out", str(out)]
    args += ["--judge", "openai:judge", "--judge-url", judging.url, "--json"]
    assert main(args) == 0
    alone = json.loads(capsys.readouterr().out)
    scores = (out / "base.scores.jsonl").read_bytes()
    assert main([*args, "--agreement", "openai:twin", "--signals", "vader"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (out / "base.scores.jsonl").read_bytes() == scores and found["trait_score"] == alone["trait_score"]
    assert found["agreement"]["coherence"]["spearman"]["mean"] == 1
    assert found["agreement"]["judges"] == ["openai:judge", "openai:twin"]
    replies = 2 * 2 * 4 + 3 * 3  # rollouts of both sides, and three replies to each held-out question
    assert found["agreement"]["replies"] == replies
    first, second = found["agreement"]["trait"]["unscored"]
    assert first == second and sum(first.values()) == replies - found["agreement"]["trait"]["scored_by_both"]
    assert found["agreement"]["trait"]["spearman"]["mean"] == 1, "the server answers alike under both names"
    assert found["judge_usage"]["calls"] == sum(judging.answered.values()) - alone["judge_usage"]["calls"]
    kept = json.loads((out / "agreement-openai_twin/agreement.json").read_text())
    assert kept["agreement"] == found["agreement"] and (out / "signals.json").exists()
    assert found["signals"]["agreement"]["vader"]["with"] == "trait"
    rows = [json.loads(line) for line in (out / "base.signals.jsonl").open()]
    assert len(rows) == 9 and set(rows[0]) == {"id", "vader"}
    assert "vader" not in (out / "base.scores.jsonl").read_text(), "signals are never mixed into scores"
    assert Path(found["sheet"]["sheet"]).exists() and Path(found["sheet"]["key"]).exists()
