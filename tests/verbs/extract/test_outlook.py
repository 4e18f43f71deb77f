"""The time an extraction is said to take."""

import pytest

from personavec.cli.demo import fewer
from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import FEWEST_CLUSTERS
from personavec.steering.rollouts import Interview
from personavec.traits.load import load_trait
from personavec.verbs.extract import outlook
from personavec.verbs.extract.outlook import Load, Outlook


def test_the_rest_is_scaled_by_what_was_done(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(outlook.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(outlook, "speed", lambda *_: (2.0, 1.0))
    ahead = Outlook({"base": Load(10, 20), "check": Load(100, 400)}, Interview(model), ())
    assert "about 11 minutes here: 110 replies to write, and 420 readings" in capsys.readouterr().err
    now[0] = 80.0  # twice the 40 seconds of the estimate
    ahead.done("base")
    assert "base done; in all about 20 minutes to go" in capsys.readouterr().err
    ahead.done("base")
    ahead.done("check")
    assert capsys.readouterr().err == ""


def test_a_finished_run_is_not_estimated(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outlook, "speed", lambda *_: pytest.fail("nothing is left to do"))
    Outlook({}, Interview(model), ()).done("check")
    assert capsys.readouterr().err == ""


def test_the_probe_measures_writing_and_reading(model: ChatModel) -> None:
    reply, reading = outlook.speed(Interview(model, max_new_tokens=8), ("How are you?", "What is rain?"))
    assert 0 < reading and 0 < reply


def test_the_quick_demo_asks_too_little_to_prove_anything() -> None:
    trait = load_trait("devout")
    small = fewer(trait)
    assert len(small.check) < FEWEST_CLUSTERS <= len(trait.check)
    assert small.pairs == trait.pairs and set(small.extract) < set(trait.extract)
