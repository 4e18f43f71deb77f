"""The small real model, run as a user runs it: extract, kill and resume, evaluate, verify, bad input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.machine.place import pick_device, pick_dtype
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.load import load_trait

pytestmark = pytest.mark.real

OPTIONS = "--layers 18 --doses 0.2 0.4 --sweep-questions 4 --check-rollouts 3 --max-new-tokens 24"
OPTIONS += " --batch-tokens 2500"
LEAST = "--layers 18 --doses 0.2 --sweep-questions 2 --rollouts 1 --check-rollouts 1 --max-new-tokens 16"


def part_of_devout(folder: Path, pairs: int, questions: int) -> Path:
    """The trait devout with fewer pairs and questions."""
    trait = json.loads(load_trait("devout").to_json())
    trait |= {"name": "small", "pairs": trait["pairs"][:pairs]}
    trait["questions"] = {kind: texts[:questions] for kind, texts in trait["questions"].items()}
    path = folder / "small.json"
    path.write_text(json.dumps(trait))
    return path


@pytest.fixture(scope="session")
def trait_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a trait as takes minutes."""
    return part_of_devout(tmp_path_factory.mktemp("trait"), 4, 6)


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "personavec", *map(str, args)]


def run(*args: object) -> dict[str, Any]:
    done = subprocess.run(command(*args, "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="session")
def extracted(trait_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An undisturbed run."""
    return run("extract", trait_file, "--out", tmp_path_factory.mktemp("run") / "whole", *OPTIONS.split())


@pytest.fixture(scope="session")
def smollm2() -> ChatModel:
    return ChatModel.load("smollm2")


@pytest.mark.slow
def test_a_few_replies_give_a_direction_like_that_of_many(tmp_path: Path) -> None:
    found = run("extract", part_of_devout(tmp_path, 2, 3), "--out", tmp_path / "run", *LEAST.split())
    vector = load_vector(Path(found["vector"]))
    same, other = (
        torch.cosine_similarity(vector.direction, load_vector(name).direction, dim=1).mean()
        for name in ("devout", "environmentalist")
    )
    assert same > 0.15 and same > other + 0.1  # 0.31 and 0.00 in float32, of 5 and 6 replies
    assert found["verdict_word"] != "proven", "three questions prove nothing"
    assert found["layer"] == vector.card.layer == 18 and found["coef"] == vector.card.coef
    assert Path(found["report"]).stat().st_size > 100_000


@pytest.mark.slow
def test_extract_finds_a_direction_that_moves_the_trait(extracted: dict[str, Any]) -> None:
    score = {arm: found["mean"] for arm, found in extracted["trait_score"].items()}
    assert score["steered"] > max(score["base"], score["suppressed"] + 15)
    assert {"opposite", "base", "others", "garbled"} == {*extracted["judge_aucs"]}
    assert all(auc["mean"] > 0.6 for auc in extracted["judge_aucs"].values())
    sides = extracted["independent_check"]["told"]
    assert sides["pos"]["mean"] > sides["neg"]["mean"] + 0.1, "a word list sees the instruction as well"
    assert extracted["verdict_word"] != "proven", "six questions prove nothing"
    assert extracted["layer"] == 18 and extracted["n_pos"] > 5 and extracted["n_neg"] > 5  # of 18 each
    assert Path(extracted["report"]).stat().st_size > 100_000
    vector = load_vector(Path(extracted["vector"]))
    assert vector.card.layer == 18 and vector.card.coef == extracted["coef"]
    assert len(vector.card.reliability) == 30 and all(-1 <= value <= 1 for value in vector.card.reliability)
    if pick_dtype("auto", pick_device("cpu")) == torch.bfloat16:  # in float32 these few rollouts are others: -0.04
        assert vector.card.reliability[18] > 0.1


@pytest.mark.slow  # without a model: tests/data/test_sheet.py
def test_a_sheet_that_a_reader_filled_in_stays(extracted: dict[str, Any], trait_file: Path) -> None:
    sheet, key, page = (Path(extracted["sheet"]).with_name(f"sheet.{end}") for end in ("csv", "key.csv", "html"))
    before = [path.read_bytes() for path in (sheet, key, page)]
    filled = before[0].replace(b",\r\n", b",1\r\n")
    assert filled != before[0] and b"steered" in before[1] and b"steered" not in before[0] + before[2]
    sheet.write_bytes(filled)
    for lost in ((), (sheet.with_name("sheet.json"), page)):  # those of a run from before there were sheets
        for path in lost:
            path.unlink()
        run("extract", trait_file, "--out", sheet.parents[1], *OPTIONS.split())
        assert [path.read_bytes() for path in (sheet, key, page)] == [filled, *before[1:]]
    scored = run("evaluate", "--sheet", sheet)
    assert 6 <= scored["pairs"] <= 18  # equal and empty replies are no pairs
    assert abs(scored["readers"][0]["steered_chosen"]["mean"] - 0.5) <= 0.5 / scored["pairs"], "sides are balanced"


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_vector(extracted: dict[str, Any], trait_file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    args = ("extract", trait_file, "--out", again, *OPTIONS.split())
    for reached in (
        "small/rollouts.jsonl",
        "small/vector.safetensors",
        "small/sweep.jsonl",
        "small/check.jsonl",
    ):
        process = subprocess.Popen(command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not (again / reached).exists() and time.monotonic() < deadline:
            assert process.poll() is None, f"ended before {reached} was there"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (again / reached).exists() and not (again / "small/result.json").exists()
    resumed = run(*args)
    for name in ("vector", "prompt_avg", "prompt_last", "shuffled"):
        whole = Path(extracted["vector"]).with_name(f"{name}.safetensors")
        assert whole.read_bytes() == (again / "small" / whole.name).read_bytes()
    assert resumed["trait_score"] == extracted["trait_score"]
    assert resumed["random_control"] == extracted["random_control"]


@pytest.mark.slow
def test_evaluate_takes_the_vector_and_its_scale(extracted: dict[str, Any], trait_file: Path, tmp_path: Path) -> None:
    steer = f"{extracted['vector']}:{extracted['coef']}"
    found = run(
        "evaluate", trait_file, "--steer", steer, "--rollouts", 3, "--max-new-tokens", 24, "--out", tmp_path / "e"
    )
    assert found["trait_score"]["mean"] > found["base"]["trait"]["mean"]
    assert found["difference"]["trait"]["mean"] > 4
    assert found["random_control"]["mean"] < found["trait_score"]["mean"], "random directions do less"
    # the same judge, seeds and questions as in the final check, in batches of another make-up
    assert found["base"]["trait"]["mean"] == pytest.approx(extracted["trait_score"]["base"]["mean"], abs=8)
    assert not (tmp_path / "e" / "rollouts.jsonl").exists()


@pytest.mark.slow
def test_verify_passes() -> None:
    found = run("verify", "--vector", "devout")
    assert found["passed"] and len(found["checks"]) >= 9


def test_reading_equals_hidden_states(smollm2: ChatModel) -> None:
    questions = load_trait("humorous").extract[:6]
    rows = [
        {
            "prompt_ids": smollm2.render([{"role": "user", "content": question}]),
            "response_ids": smollm2.encode(question),
        }
        for question in questions
    ]
    layers = (0, 14, smollm2.n_layers - 2)
    for batch, read in activations(smollm2, rows, layers=layers):
        for index, own in zip(batch, read[:, 0], strict=True):
            row = rows[index]
            with torch.no_grad():
                states = smollm2.hf(
                    input_ids=torch.tensor([[*row["prompt_ids"], *row["response_ids"]]]), output_hidden_states=True
                ).hidden_states
            for layer, mine in zip(layers, own, strict=True):
                theirs = states[layer + 1][0, len(row["prompt_ids"]) :].float().mean(dim=0)
                assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_no_coef_no_change(smollm2: ChatModel) -> None:
    vector = load_vector("devout")
    prompt = smollm2.render([{"role": "user", "content": "What do you think of Mondays?"}])
    requests = [
        [Request(prompt, steering, (seed,)) for seed in range(3)] for steering in ((), (Steering(vector, 0.0, 18),))
    ]
    plain, steered = (generate(smollm2, own, Sampling(16, 0.7)) for own in requests)
    assert plain == steered


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("extract optimist", "optimistic"),
        pytest.param("extract optimistic --layers 15 30", "from 0 to 29, got 30", marks=pytest.mark.slow),
        ("extract optimistic --model smolm2", "smollm2"),
        pytest.param("extract optimistic --judge gpt", "panel", marks=pytest.mark.slow),
        pytest.param("extract optimistic --model gemma3-270m", "chat template", marks=pytest.mark.slow),
        ("extract optimistic --doses 1e38", "at most 10"),
        ("evaluate optimistic --steer nowhere.safetensors:1", "no file"),
        ("evaluate optimistic --adapter nowhere", "adapter"),
        ("extract optimistic --temperature -1", "temperature"),
    ],
)
def test_bad_input_is_one_line(args: str, said: str, tmp_path: Path) -> None:
    out = [] if args.startswith("verify") else ["--out", str(tmp_path / "out")]
    done = subprocess.run(
        command(*args.split(), *out), capture_output=True, text=True, env=os.environ | {"COLUMNS": "80"}
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and done.stdout == "", done
    assert lines[-1].startswith("personavec: expected ") and said in lines[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "base.jsonl").exists()


@pytest.mark.slow  # on a tiny model: tests/steering
def test_a_coef_that_overflows_is_told_and_loses_nothing(tmp_path: Path) -> None:
    args = ["evaluate", part_of_devout(tmp_path, 2, 2), "--steer", "devout:1e38@18", "--rollouts", 1]
    args += ["--max-new-tokens", 8, "--out", tmp_path / "run"]
    done = subprocess.run(command(*args), capture_output=True, text=True)
    assert done.returncode == 2 and "lower the coef" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "base.jsonl").exists()


def test_a_vector_of_another_model_is_refused(tmp_path: Path) -> None:
    vector = load_vector("devout")
    other = dataclasses.replace(vector.card.model, d_model=64)
    narrow = PersonaVector(vector.direction[:, :64], dataclasses.replace(vector.card, model=other))
    path = narrow.save(tmp_path / "narrow.safetensors")
    done = subprocess.run(command("evaluate", "optimistic", "--steer", f"{path}:1@3"), capture_output=True, text=True)
    assert done.returncode == 2 and "wide" in done.stderr
