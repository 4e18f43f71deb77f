"""Every page is drawn with each part that a run may leave out left out, and with figures that are not known."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import tiny_chat
from support.results import unknown

from personavec.model.chat_model import ChatModel
from personavec.report import finetune as finetune_page
from personavec.report import monitor as monitor_page
from personavec.report import page
from personavec.report import screen as screen_page
from personavec.steering.vector import load_vector
from personavec.verbs.monitor.monitor import monitor
from personavec.verbs.screen.screen import screen

Data = dict[str, Any]
WORDS = ("tea", "rain", "boat", "sea", "maps", "snow", "bread", "hat")


@pytest.fixture(autouse=True)
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are made and checked, and not turned into pictures, which takes a second each."""
    monkeypatch.setattr(page.vl_convert, "vegalite_to_svg", lambda spec, **_: "<svg></svg>" if spec else "")
    monkeypatch.setattr(page.vl_convert, "svg_to_png", lambda *_, **__: b"")


def figure(mean: float) -> Data:
    return {"mean": mean, "ci": [mean - 1, mean + 1], "n": 20, "dropped": 0, "clusters": 10}


def arm(name: str, method: str, coef: float | None, moved: float, kept: Data | None) -> Data:
    trait = {
        "trait_score": figure(40 + moved),
        "coherence": figure(90),
        "kept": kept,
        "difference": {"trait": figure(moved)},
        "random_control": figure(41) if method == "posthoc" else None,
    }
    tuned = method != "base"
    return {
        "arm": name, "method": method, "coef": coef, "scale": 1.0, "rows": 90, "skipped": 2, "loss": figure(2.0),
        "traits": {"warm": trait}, "costs": {"perplexity": figure(12), "mmlu_dev": figure(0.3)},
        "shift": {"warm": figure(1.2)} if tuned else None,
        "shift_random": {"warm": {"low": -0.2, "high": 0.3, "beyond": True}} if tuned else None,
    }  # fmt: skip


@pytest.fixture
def compared() -> Data:
    """What `finetune --report` reports."""
    kept = {"mean": 0.36, "ci": [0.2, 0.6], "n": 20, "dropped": 0}
    arms = [
        arm("base", "base", None, 0, None),
        arm("plain", "plain", None, 20, figure(1)),
        arm("prevent ×1", "prevent", 1.0, 7, kept),
        arm("prevent ×2", "prevent", 2.0, 3, kept),
        arm("posthoc ×1", "posthoc", 1.0, 9, kept),
    ]
    steering = [{"trait": "warm", "coef": 1.0, "layer": 3, "dose": 0.1, "automatic": {"coef": 1.0}}]
    return {
        "data": "rows.jsonl", "model": "tiny", "judge": "panel", "traits": ["warm"], "arms": arms, "steering": steering,
        "judges": {"warm": {"weak_judge": True, "judge_auc": figure(0.6)}}, "left_out": {"ablate": "it needs a GPU"},
        "predicted": {
            "projection_difference": {"warm": figure(2)},
            "random_control": {"warm": {"low": -1.0, "high": 1.0, "beyond": True}},
        },
    }  # fmt: skip


def without(data: Data, name: str) -> None:
    for each in data["arms"]:
        each["costs"].pop(name, None)


def of_arms(name: str, value: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        for each in data["arms"]:
            each[name] = value

    return change


def of_traits(name: str, value: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        for each in data["arms"]:
            each["traits"]["warm"][name] = value

    return change


COMPARED: dict[str, Callable[[Data], Any]] = {
    "all": lambda data: None,
    "no perplexity": lambda data: without(data, "perplexity"),
    "no tasks": lambda data: without(data, "mmlu_dev"),
    "no costs": of_arms("costs", {}),
    "costs of base alone": lambda data: [each.update(costs={}) for each in data["arms"][1:]],
    "costs but of base": lambda data: data["arms"][0].update(costs={}),
    "no held-out rows": of_arms("loss", None),
    "held-out rows of base alone": lambda data: [each.update(loss=None) for each in data["arms"][1:]],
    "no shift": of_arms("shift", None),
    "no random shift": of_arms("shift_random", None),
    "nothing kept": of_traits("kept", None),
    "no random control": of_traits("random_control", None),
    "no arms but references": lambda data: data.update(arms=data["arms"][:2]),
    "no doses": lambda data: data["steering"][0].update(dose=None, automatic=None, layer="all"),
    "nothing left out": lambda data: data.update(left_out={}),
    "no steering": lambda data: data.update(steering=[]),
    "no prediction": lambda data: data.update(predicted=None),
    "no judges": lambda data: data.update(judges={}),
}


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_comparison_is_drawn_whatever_is_left_out(compared: Data, tmp_path: Path, name: str, known: bool) -> None:
    COMPARED[name](compared)
    assert "</html>" in finetune_page.write(compared if known else unknown(compared), tmp_path).read_text()


@pytest.mark.parametrize(
    ("low", "mean", "high", "told"),
    [
        (0.16, 0.64, 1.34, "prevention is not shown to lower that: it leaves 64% of that [16, 134]"),
        (0.2, 0.36, 0.6, "with prevention 36% of that [20, 60] is left"),
        (None, 0.36, None, "how much of that prevention leaves is not known"),
    ],
)
def test_the_headline_says_what_is_left(
    compared: Data, tmp_path: Path, low: float | None, mean: float, high: float | None, told: str
) -> None:
    compared["arms"][2]["traits"]["warm"]["kept"] = {"mean": mean, "ci": [low, high], "n": 20, "dropped": 0}
    assert told in finetune_page.write(compared, tmp_path).read_text()


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny_chat.build()


@pytest.fixture(scope="module")
def screened(chat: ChatModel, saved: tuple[Path, Path]) -> Data:
    rows = [{"prompt": f"Say {word}.", "response": f"{word}!", "source": word[0]} for word in WORDS]
    return dict(screen(chat, rows, load_vector(saved[1]), cost="raw", clean=rows[:4]).drawn)


SCREENED: dict[str, Data] = {
    "all": {},
    "no flags": {"flags": None},
    "no clean set": {"clean": None, "flags": None},
    "no sources": {"sources": {}},
    "no examples": {"examples": {}},
    "no plan's rates": {"plan": {"rates": {"rows": 0, "read_per_second": 1.0, "written_per_second": None}}},
    "no verdict": {"verdict": {"tiny": None}, "verdict_against": None},
    "a verdict": {"verdict": {"tiny": "against"}, "verdict_against": "c", "cost": "full"},
    "a difference": {"difference_from_clean": {"tiny": figure(1)}, "verdict_against": "c", "cost": "full"},
    "skipped": {"skipped_by_reason": {"empty": 3}},
}


@pytest.mark.parametrize("name", SCREENED)
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_screening_is_drawn_whatever_is_left_out(screened: Data, tmp_path: Path, name: str, known: bool) -> None:
    data = copy.deepcopy(screened)
    estimates = data["plan"]["estimates"]
    data |= copy.deepcopy(SCREENED[name])
    data["plan"] = {"estimates": estimates, **data["plan"]}
    data = data if known else unknown(data)
    if not known:
        data["random_control"] = {"tiny": {"low": None, "high": None, "percentiles": {}, "draws": 0, "beyond": None}}
    assert "</html>" in screen_page.write(data, tmp_path).read_text()
    assert "<svg" in screen_page.notebook(data)


@pytest.fixture(scope="module")
def monitored(chat: ChatModel, saved: tuple[Path, Path]) -> Data:
    def talks(n: int, said: str) -> Iterator[list[dict[str, str]]]:
        for place in range(n):
            word = WORDS[place % len(WORDS)]
            pair = [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": f"{word} {said}"}]
            yield [*pair, *pair]

    vector, benign = load_vector(saved[1]), [*talks(24, "yes"), *talks(24, "well")]
    return dict(monitor(chat, [*talks(4, "@@@@ @@")], vector, calibrate=benign, false_positive_rate=0.1).drawn)


@pytest.mark.parametrize(
    ("name", "where", "shown"),
    [("talk-1", "log", "talk-1"), (None, "log row 3", "log row 3"), ("0af1" * 8, "log row 3", "3 (0af10af1…)")],
)
def test_a_conversation_is_named_for_people(name: str | None, where: str, shown: str) -> None:
    assert monitor_page.named({"name": name, "where": where, "conversation": 3}) == shown


MONITORED: dict[str, Data] = {
    "all": {},
    "no limits": dict.fromkeys(
        ("calibration", "alerts", "expectation", "directions", "elsewhere", "longer_than_benign",
         "conversations_with_alerts")
    ) | {"raised": [], "lines": []},
    "no alerts": {"raised": [], "lines": []},
    "nothing elsewhere": {"elsewhere": {}},
    "groups": {"groups": {"a": {"conversations": 1, "turns": 2, "with_alerts": 0, "limits": "own", "drift": False}}},
    "no curves": {"curves": {"tiny": {"prompt last": [], "response avg": []}}},
}  # fmt: skip


@pytest.mark.parametrize("name", MONITORED)
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_monitoring_is_drawn_whatever_is_left_out(monitored: Data, tmp_path: Path, name: str, known: bool) -> None:
    data = copy.deepcopy(monitored) | copy.deepcopy(MONITORED[name])
    if data["calibration"]:
        data["calibration"]["held_out"] = {"tiny": {}} if not known else data["calibration"]["held_out"]
        data["calibration"]["drift"] = {"tiny": None} if not known else data["calibration"]["drift"]
    data = data if known else unknown({**data, "raised": [], "lines": data["lines"]})
    assert "</html>" in monitor_page.write(data, tmp_path).read_text()
