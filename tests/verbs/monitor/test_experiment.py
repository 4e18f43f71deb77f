"""The monitoring experiment: its correlations, its graded prompts, and the whole of it on a tiny model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny, tiny_chat
from support.letters import Letters
from support.results import unknown

from personavec.cli.main import main
from personavec.errors import PersonavecError, TraitError
from personavec.judges.load import Bench
from personavec.model.chat_model import ChatModel
from personavec.report import monitor as monitor_page
from personavec.runs.run import Run
from personavec.stats.intervals import pearson, pearson_interval
from personavec.steering.vector import load_vector
from personavec.traits.graded import graded_prompts
from personavec.traits.load import builtin_names, load_trait
from personavec.verbs.monitor.experiment import experiment


def test_r_within_groups_ignores_what_lies_between_them() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 20)
    one, other = rng.normal(size=160) + 5 * groups, rng.normal(size=160) + 5 * groups
    assert pearson(one, other) > 0.9 and abs(pearson(one, other, groups)) < 0.25
    each = [np.corrcoef(one[groups == g], other[groups == g])[0, 1] for g in range(8)]
    assert pearson(one, other, groups) == pytest.approx(np.mean(each))
    flat = np.where(groups == 3, 1.0, one)
    assert pearson(flat, other, groups) == pytest.approx(np.mean(np.delete(each, 3)))
    assert np.isnan(pearson(np.ones(160), other))


def test_values_that_are_missing_are_counted_and_the_interval_covers() -> None:
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        questions = np.tile(np.arange(40), 3)
        one = rng.normal(size=40)[questions] + 0.3 * rng.normal(size=120)
        other = 0.6 * one + 0.8 * rng.normal(size=120)
        other[:5] = np.nan
        found = pearson_interval(one, other, questions)
        assert found.dropped == 5 and found.n == 115
        assert found.mean == pytest.approx(np.corrcoef(one[5:], other[5:])[0, 1])
        truth = 0.6 * np.sqrt(1.09) / np.sqrt(0.36 * 1.09 + 0.64)
        covered += found.low <= truth <= found.high
    assert covered >= 35


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_traits_have_eight_graded_prompts_of_their_own(name: str) -> None:
    prompts, trait = graded_prompts(name), load_trait(name)
    assert len(prompts) == 8 == len(set(prompts))
    asked = {text for pair in trait.pairs for text in (pair.pos, pair.neg)}
    assert not asked & set(prompts), "those that made the vector would tell nothing new"


@pytest.mark.parametrize("text", ["", "{}", "[]", '["one"]', '["one", ""]', '["one", "one"]', '["one", 2]'])
def test_graded_prompts_of_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "graded.json"
    path.write_text(text)
    with pytest.raises(TraitError, match=r"expected (a JSON list|each system prompt once)"):
        graded_prompts("warm", path)
    with pytest.raises(TraitError, match="pass --graded FILE"):
        graded_prompts("warm")


@pytest.fixture
def command(saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    trait, graded = tmp_path / "tiny.json", tmp_path / "graded.json"
    trait.write_text(json.dumps(tiny_chat.WARM | {"name": "tiny"}))
    graded.write_text(json.dumps(["Be kind.", "Be.", "Be curt."]))
    judge_with(monkeypatch)
    return [
        "monitor", "--experiment", "--model", str(saved[0]), "--vectors", str(saved[1]), "--traits", str(trait),
        "--graded", str(graded), "--judge", "hf:letters", "--dtype", "float32", "--max-new-tokens", "6",
        "--rollouts", "2", "--shots", "0", "2", "9", "--json",
    ]  # fmt: skip


def judge_with(monkeypatch: pytest.MonkeyPatch, flat: bool = False) -> None:
    letters = Bench(Letters(flat=True), lambda _: Letters(flat), "hf:letters", "letters")
    monkeypatch.setattr("personavec.judges.load.load_bench", lambda spec, *_, **__: replace(letters, spec=spec))


def found(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(args) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_the_whole_of_it(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = found([*command, "--out", str(tmp_path / "out")], capsys)
    own = result["traits"]["tiny"]
    assert all(0 <= kind["ceiling"]["mean"] <= 1 and kind["within"]["clusters"] <= 3 for kind in own.values())
    assert result["shots_left_out"] == {"tiny": [9]} and result["questions"] == 3
    assert [one["condition"] for one in own["system"]["conditions"]] == ["1: Be kind.", "2: Be.", "3: Be curt."]
    assert [one["condition"] for one in own["shots"]["conditions"]] == ["0 shots", "2 shots"]
    chat, unit = tiny_chat.build(), load_vector(saved[1]).unit(2)
    replies = list(Run(tmp_path / "out" / "tiny").rows("replies.jsonl"))
    shown = [row for row in replies if (row["kind"], row["level"]) == ("shots", 2)]
    assert all(chat.decode(row["prompt_ids"]).count("?") == 3 for row in shown), "two questions are answered before"
    for kind, points in ((kind, one["points"]) for kind, one in own.items()):
        levels = (1, 2, 3) if kind == "system" else (0, 2)
        by_place = {(row["kind"], row["level"], row["question_id"]): row["prompt_ids"] for row in replies}
        prompts = [by_place[kind, levels[point["place"]], point["question"]] for point in points]
        assert len(points) == 3 * len(levels)
        for point, prompt in zip(points, prompts, strict=True):
            states = chat.hf(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            assert point["projection"] == pytest.approx(float(states[3][0, -1] @ unit), abs=3e-4)
        signal, score = np.array([[point["projection"], point["score"]] for point in points]).T
        places = np.array([point["place"] for point in points])
        assert own[kind]["overall"]["mean"] == pytest.approx(pearson(signal, score), abs=2e-3)
        assert own[kind]["within"]["mean"] == pytest.approx(pearson(signal, score, places), abs=2e-3)
        tested = own[kind]["nulls"]["overall"]
        assert tested["r"] == pytest.approx(own[kind]["overall"]["mean"], abs=2e-3)
        assert tested["nulls"]["isotropic"]["draws"] == 1000 and own[kind]["flat_conditions"] == 0
    assert "r = " in Path(result["report"]).read_text()


def test_conditions_whose_scores_do_not_differ_are_left_out(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_with(monkeypatch, flat=True)
    own = found([*command, "--out", str(tmp_path / "flat")], capsys)["traits"]["tiny"]["system"]
    assert own["flat_conditions"] == 3 and own["within"]["mean"] is None and own["overall"]["mean"] is None
    assert [one["reason"] for one in own["nulls"].values()] == [
        "the score is the same for every row",
        "expected 4 rows or more, got 0",
    ]
    assert main([part for part in command if part != "--json"] + ["--out", str(tmp_path / "flat")]) == 0
    assert "too few replies show the trait for 9 shots" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_experiment_ends_alike(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found([*command, "--out", str(tmp_path / "whole")], capsys)
    append, left = Run.append, {"writes": 0}

    def dying(self: Run, name: str, rows: Any) -> None:
        if not left["writes"]:
            raise KeyboardInterrupt
        left["writes"] -= 1
        append(self, name, rows)

    monkeypatch.setattr(Run, "append", dying)
    for writes in (1, 1, 1):
        left["writes"] = writes
        assert main([*command, "--out", str(tmp_path / "killed")]) == 130
    monkeypatch.setattr(Run, "append", append)
    assert found([*command, "--out", str(tmp_path / "killed")], capsys)["traits"] == whole["traits"]


def test_bad_input_is_one_line(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = load_vector(saved[1])
    other = type(vector)(vector.direction * 2, vector.card).save(tmp_path / "other.safetensors")
    place = command.index("--graded")
    for args, told in (
        ([*command, "--questions", "2"], "expected 3 questions or more, got 2"),
        ([*command, "--vectors", str(saved[1]), str(other)], "expected one vector with --graded, got 2"),
        ([*command[:place], *command[place + 2 :]], "as it is not built in; pass --graded FILE"),
        ([*command, "--judge", "panel"], "expected the scale of a judge in the card of tiny, got none"),
    ):
        assert main([*args, "--out", str(tmp_path / "bad")]) == 2
        assert told in capsys.readouterr().err


def test_objects_give_what_the_command_gives(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = found([*command, "--out", str(tmp_path / "out")], capsys)
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    letters = Bench(Letters(flat=True), lambda _: Letters(), "hf:letters", "letters")
    trait = load_trait(tmp_path / "tiny.json")
    options: dict[str, Any] = {"judge": letters, "rollouts": 2, "shots": (0, 2, 9), "traits": [trait]}
    options |= {"graded": ["Be kind.", "Be.", "Be curt."], "max_new_tokens": 6}
    made = experiment(model, vector, **options)
    assert json.loads(json.dumps(made.traits)) == printed["traits"] and made.data["out"] is None
    assert "<svg" in made._repr_html_() and "tiny, system: r " in repr(made) and tiny.hooks(model) == 0
    without = dict(unknown(json.loads(json.dumps(dict(made.drawn)))))
    for each in without["traits"].values():
        for kind in each.values():
            kind["conditions"][0].update(r=None, sd=None, projection=None)
    assert "</html>" in monitor_page.write(without, tmp_path).read_text()
    kept = experiment(model, [saved[1]], **options, store=tmp_path / "out")
    assert kept.traits == made.traits, "the folder of the command is resumed by the call"
    for changed, message in (
        ({"shots": (5, 5)}, "expected shots of 0 or more, each once"),
        ({"graded": ["one"]}, "expected a JSON list of two system prompts or more"),
        ({"questions": 2}, "expected 3 questions or more, got 2"),
    ):
        with pytest.raises(PersonavecError, match=message):
            experiment(model, vector, **options | changed)
