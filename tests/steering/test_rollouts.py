"""How a model is asked: every combination once, arms that differ in steering alone, and resumption to the byte."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny

import personavec.steering.rollouts
from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.runs.run import Run
from personavec.steering.rollouts import Interview
from personavec.steering.steer import Steering
from personavec.traits.trait import Pair, Trait

CONFIG: dict[str, Any] = {"seed": 0}

TRAIT = Trait(
    name="terse",
    adjective="terse",
    antonym="wordy",
    description="",
    pairs=(Pair("Be short.", "Be long."), Pair("Few words.", "Many words.")),
    extract=("How are you?", "What is rain?"),
    sweep=("What is hail?", "Who was Nero?"),
    check=("Who was Caesar?", "What is snow?"),
    rubric="0 is wordy, 100 is terse.",
)


def test_plans_hold_every_combination_once(model: ChatModel) -> None:
    plans = Interview(model).contrastive(TRAIT, 3)
    assert len(plans) == len({plan.row["id"] for plan in plans}) == 2 * 2 * 2 * 3
    assert len({plan.request.seed for plan in plans}) == len(plans)
    text = model.tokenizer.decode(list(plans[0].request.prompt))
    assert TRAIT.system_prompt(0, "pos") in text and "How are you?" in text and text.endswith("<assistant>")
    assert text.count("<s>") == 1, "no double beginning of text"


def test_arms_differ_in_steering_alone(model: ChatModel) -> None:
    v = tiny.vector(model)
    what = (Steering(v, 1.0, 1),)
    arms = [
        Interview(model).answers(TRAIT.check, 2, draw="check", extra={"arm": arm}, steering=[steering])
        for arm, steering in (("base", ()), ("steered", what))
    ]
    for base, steered in zip(*arms, strict=True):
        assert base.request.prompt == steered.request.prompt and base.request.seed == steered.request.seed
        assert base.row["id"] != steered.row["id"] and steered.request.steering == what


def test_a_killed_run_resumes_to_the_same_file(
    tmp_path: Path, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a write, or between two: the file ends up the same, byte for byte."""
    interview = Interview(model, max_new_tokens=6, temperature=1.0, batch_tokens=500)
    plans = interview.contrastive(TRAIT, 2)
    whole_run = Run.open(tmp_path / "whole", CONFIG)
    rows = interview.write(plans, "whole", run=whole_run, name="rows")
    whole = whole_run.path("rows.jsonl").read_bytes()
    assert [row["id"] for row in rows] == [plan.row["id"] for plan in plans]
    assert all(row["response_ids"] and row["prompt_ids"] for row in rows)
    for cut in (0, 7, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)):
        run = Run.open(tmp_path / f"cut{cut}", CONFIG)
        run.path("rows.jsonl").write_bytes(whole[:cut])
        assert interview.write(plans, "cut", run=run, name="rows") == rows
        assert run.path("rows.jsonl").read_bytes() == whole

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is left to write")

    dated = [replace(plan, request=replace(plan.request, prompt=(5, *plan.request.prompt))) for plan in plans]
    with pytest.raises(ConfigError, match="some chat templates contain the date"):
        interview.write(dated, "tomorrow", run=whole_run, name="rows")
    monkeypatch.setattr(personavec.steering.rollouts, "generate", refuse)
    assert interview.write(plans, "again", run=whole_run, name="rows") == rows


def test_without_a_run_the_same_replies_are_written(tmp_path: Path, model: ChatModel) -> None:
    interview = Interview(model, max_new_tokens=6, batch_tokens=500)
    plans = interview.contrastive(TRAIT, 1)
    kept = interview.write(plans, "kept", run=Run.open(tmp_path / "run", {}), name="rows")
    assert interview.write(plans, "not kept") == kept
