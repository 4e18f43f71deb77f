"""Finetuning by every method: what is trained, what is prevented, that it resumes and that bad input is told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny

from personavec.cli.main import main
from personavec.data.dataset import Dataset
from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.runs.run import Run
from personavec.steering.vector import Card, PersonaVector, load_vector
from personavec.verbs.finetune import supply
from personavec.verbs.finetune.methods import Recipe
from personavec.verbs.finetune.trainer import Training, last_checkpoint

ROWS = [(f"what is {n}?", f"it is {n} {n}!") for n in range(12)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": asked, "response": said}) + "\n" for asked, said in ROWS))
    return path


@pytest.fixture
def command(saved: tuple[Path, Path], data: Path) -> list[str]:
    return [
        "finetune", str(data), "--model", str(saved[0]), "--dtype", "float32", "--rate", "1e-2", "--batch", "4",
        "--rank", "4", "--alpha", "8", "--json",
    ]  # fmt: skip


def found(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(args) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one: Path, two: Path) -> bool:
    first, second = adapter(one), adapter(two)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_all_rows_are_used_and_the_loss_falls(
    command: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = found([*command, "--epochs", "4", "--held-out", str(data), "--out", str(out)], capsys)
    assert (result["rows"], result["steps"], result["method"]) == (len(ROWS), 12, "plain")
    assert result["loss"]["last"] < result["loss"]["first"]
    held_out = result["held_out"]
    assert held_out["tuned"]["mean"] < held_out["base"]["mean"] and held_out["difference"]["ci"][1] < 0
    assert len([line for line in (out / "loss.jsonl").read_text().splitlines() if line]) == 12
    assert len(list((out / "adapter").glob("checkpoint-*"))) == 4
    assert not list((out / "adapter").glob("checkpoint-*/optimizer*"))
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], len(config["target_modules"])) == (4, 8, True, 7)


@pytest.mark.slow
def test_a_coef_trains_another_adapter_and_none_is_no_prevention(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {name: tmp_path / name for name in ("plain", "steered", "random")}
    found([*command, "--out", str(runs["plain"])], capsys)
    for name, more in (("steered", []), ("random", ["--random"])):
        found([*command, "--prevent", f"{saved[1]}:1@1", *more, "--out", str(runs[name])], capsys)
    assert main([*command, "--prevent", f"{saved[1]}:0@1", "--out", str(tmp_path / "zero")]) == 2
    assert "the coefficient is 0" in capsys.readouterr().err
    assert not same(runs["plain"], runs["steered"]) and not same(runs["steered"], runs["random"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ablate", "penalty", "inoculate"])
def test_other_methods_train_something_else(
    method: str, command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found([*command, "--out", str(tmp_path / "plain")], capsys)
    vector = load_vector(saved[1])
    card = Card("optimistic", vector.card.model, "response avg", layer=1)
    path = PersonaVector(vector.direction, card).save(tmp_path / "vector.safetensors")
    more = ["--method", method, "--vectors", str(path), "--epochs", "2"]
    result = found([*command, *more, "--out", str(tmp_path / method)], capsys)
    assert result["method"] == method and result["steering"][0]["trait"] == "optimistic"
    assert not same(tmp_path / "plain", tmp_path / method)


def moved(model_folder: Path, run: Path, vector: PersonaVector) -> float:
    """How far the adapter moved the stream along the vector at layer 1 on a row of the data, root mean square."""
    model = ChatModel.load(str(model_folder), dtype="float32", adapter=run / "adapter")
    ids = [model.render([{"role": "user", "content": asked}]) + model.encode(said) for asked, said in ROWS[:4]]
    with torch.inference_mode():
        _, _, tuned = tiny.forward(model, ids)
        with model.without_adapter():
            mask, _, base = tiny.forward(model, ids)
    return float(((tuned - base)[1][mask] @ vector.unit(1)).square().mean().sqrt())


@pytest.mark.slow
def test_a_heavy_penalty_holds_the_model_where_it_was(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = load_vector(saved[1])
    path = PersonaVector(vector.direction, Card("tiny", vector.card.model, "response avg", layer=1)).save(
        tmp_path / "v.safetensors"
    )
    moves = {}
    for weight in ("1e-6", "1e4"):
        out = tmp_path / weight
        more = ["--method", "penalty", "--vectors", str(path), "--penalty", weight, "--epochs", "6", "--out", str(out)]
        found([*command, *more], capsys)
        moves[weight] = moved(saved[0], out, vector)
    assert moves["1e4"] < moves["1e-6"] / 3


def test_full_finetuning_saves_a_model(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = found([*command, "--full", "--rate", "1e-3", "--out", str(tmp_path / "run")], capsys)
    tuned, base = (ChatModel.load(str(place), dtype="float32") for place in (result["tuned"], saved[0]))
    weights = zip(tuned.hf.parameters(), base.hf.parameters(), strict=True)
    assert not all(torch.equal(own, other) for own, other in weights)


def test_a_killed_run_resumes_to_the_same_adapter(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prevented = [*command, "--epochs", "4", "--checkpoints", "6", "--prevent", f"{saved[1]}:1@1"]
    found([*prevented, "--out", str(tmp_path / "whole")], capsys)
    code = (
        "import os, personavec.verbs.finetune.trainer as t\n"
        "old = t._Watching.on_step_end\n"
        "def dies(self, args, state, control, **more):\n"
        "    if state.global_step == 7: os._exit(9)\n"
        "    return old(self, args, state, control, **more)\n"
        "t._Watching.on_step_end = dies\n"
        "from personavec.cli.main import main\n"
        f"main({[*prevented, '--out', str(tmp_path / 'killed')]!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300).returncode == 9
    torn = tmp_path / "killed" / "adapter" / "checkpoint-9"
    torn.mkdir()
    (torn / "adapter_config.json").write_text("{")
    assert last_checkpoint(torn.parent) == str(torn.parent / "checkpoint-6")
    result = found([*prevented, "--out", str(tmp_path / "killed")], capsys)
    assert result["steps"] == 12 and same(tmp_path / "whole", tmp_path / "killed")
    whole, killed = ([*Run(tmp_path / name).rows("loss.jsonl")] for name in ("whole", "killed"))
    assert killed == whole  # counts of tokens go on, too
    again = found([*prevented, "--out", str(tmp_path / "killed")], capsys)
    assert again == result


def test_auto_supplies_what_the_data_would(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PERSONAVEC_CACHE", str(tmp_path / "cache"))
    result = found([*command, "--prevent", f"{saved[1]}:auto@1", "--out", str(tmp_path / "run")], capsys)
    (told,) = result["automatic"]
    (own,) = told["by_layer"]
    assert own["layer"] == 1 and own["coef"]["n"] == len(ROWS)
    assert result["steering"][0]["coef"] == supply.dose_of(own) == told["coef"]


def test_data_that_supplies_nothing_is_told(
    saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no other vector the training is then the plain one, which nobody who asked for prevention would guess."""
    monkeypatch.setattr(
        supply, "supplied", lambda *_: [{"layer": 1, "coef": {"mean": 0.5, "ci": [-0.1, 1.1]}, "effect": 0.2}]
    )
    (prevention,) = supply.preventions(f"{saved[1]}:auto@1")
    data = Dataset("rows.jsonl", ())
    steering, _ = supply.automatic(prevention, ChatModel.load(str(saved[0])), data, Training())
    assert (steering.coef, steering.layer) == (0, 1)
    assert f"rows.jsonl is not shown to supply {saved[1]}: nothing is added" in capsys.readouterr().err


MOVES = {
    "toward": [{"layer": 1, "coef": {"mean": 0.5, "ci": [0.1, 0.9], "n": 8}, "effect": 0.6}],
    "against": [{"layer": 1, "coef": {"mean": -0.26, "ci": [-0.44, -0.09], "n": 8}, "effect": -0.6}],
    "neither": [{"layer": 1, "coef": {"mean": -0.2, "ci": [-1.1, 0.7], "n": 8}, "effect": -0.2}],
}


@pytest.mark.parametrize(
    ("sign", "moves", "coef", "told"),
    [
        ("", "toward", 0.5, ""),
        ("-", "against", -0.26, ""),
        ("", "against", None, "moves against the trait along VEC, by -0.26 [-0.44, -0.09]; VEC:-auto adds that dose"),
        ("-", "toward", None, "moves toward the trait along VEC, by 0.50 [0.10, 0.90]; VEC:auto adds that dose"),
        ("", "neither", None, "is not shown to supply VEC; pass"),
        ("-", "neither", None, "is not shown to move against the trait along VEC; pass"),
    ],
)
def test_a_prevention_prevents_on_the_side_that_was_asked_for_or_stops(
    saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, sign: str, moves: str, coef: float | None, told: str
) -> None:
    monkeypatch.setattr(supply, "supplied", lambda *_: MOVES[moves])
    model, data = ChatModel.load(str(saved[0])), Dataset("rows.jsonl", ())
    recipe = Recipe.of(None, f"{saved[1]}:{sign}auto@1", ())
    if coef is None:
        with pytest.raises(ConfigError) as caught:
            recipe.prepare(model, data, Training())
        assert told.replace("VEC", str(saved[1])) in str(caught.value) and "\n" not in str(caught.value)
    else:
        (steering,) = recipe.prepare(model, data, Training()).steerings
        assert steering.coef == coef
    both = Recipe.of(None, [f"{saved[1]}:{sign}auto@1", f"{saved[1]}:2@1"], ()).prepare(model, data, Training())
    assert [each.coef for each in both.steerings] == [coef or 0, 2], "another vector is still prevented"


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
def test_data_that_supply_nothing_seldom_get_a_dose(skewed: bool) -> None:
    """At no layer do the rows move on average; the best of twelve layers on all of them was above 0 in 73 to 86%."""
    rng, layers = np.random.default_rng(0), range(12)
    shared, each = rng.standard_normal((2000, 64, 1)), rng.standard_normal((2000, 64, 12))
    moved = 0.7 * shared + 0.7 * each
    moved = np.expm1(0.5 * moved) - np.expm1(0.125 * 0.98) if skewed else moved
    doses = [supply.dose_of(supply.best_of(supply.moves(rows, layers, 0))) for rows in moved]
    assert np.mean(np.array(doses) > 0) <= 0.07
    supplied = [supply.dose_of(supply.best_of(supply.moves(rows + 1, layers, 0))) for rows in moved[:200]]
    assert np.mean(supplied) == pytest.approx(1, abs=0.1), "the layer's rows do not raise its mean"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--prevent", "VEC:1@1", "--method", "plain"], "got --method plain with --prevent"),
        (["--method", "prevent"], "expected --prevent with --method prevent"),
        (["--method", "ablate"], "expected --vectors with --method ablate"),
        (["--random"], "got --method plain with --random"),
        (["--method", "penalty", "--vectors", "VEC", "--full"], "got --method penalty with --full"),
        (["--prevent", "VEC:1@9"], "layer"),
        (["--prevent", "VEC:auto@9"], "layer"),
        (["--rows-at-once", "3"], "multiple of --rows-at-once"),
        (["--rate", "0"], "rate above 0"),
        (["--max-tokens", "10"], "expected at most 10 tokens"),
        (["--held-out", "nowhere.jsonl"], "no file at nowhere.jsonl"),
        (["--batch", "64", "--epochs", "1"], "rows in one step, whose rate is 0; pass --warmup-steps 0"),
    ],
)
def test_bad_options_are_one_line(
    more: list[str], told: str, command: list[str], saved: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    more = [text.replace("VEC", str(saved[1])) for text in more]
    assert main([*command, *more, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert told in error and error.startswith("personavec: ")
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_vector_of_another_model_and_a_folder_of_another_run(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.vector(tiny.build(seed=5)).save(tmp_path / "other.safetensors")
    assert main([*command, "--prevent", f"{other}:1@1", "--out", str(tmp_path / "run")]) == 2
    assert "model" in capsys.readouterr().err
    found([*command, "--out", str(tmp_path / "one")], capsys)
    assert main([*command, "--rate", "1e-3", "--out", str(tmp_path / "one")]) == 2
    assert "rate" in capsys.readouterr().err


def test_data_without_assistant_turns(
    command: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "expected an assistant turn, got none" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    broken = ["--rate", "1e30", "--warmup-steps", "0", "--checkpoints", "12", "--epochs", "4"]
    assert main([*command, *broken, "--out", str(out)]) == 2
    assert "expected a finite loss" in capsys.readouterr().err
    kept = last_checkpoint(out / "adapter")
    assert kept is not None and all(
        w.isfinite().all() for w in load_file(Path(kept) / "adapter_model.safetensors").values()
    )


@pytest.mark.slow  # three processes that import torch and train
def test_two_processes_train_like_one(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*command, "--epochs", "3", "--prevent", f"{saved[1]}:1@1"]
    found([*args, "--rows-at-once", "4", "--out", str(tmp_path / "one")], capsys)
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "personavec"]
    done = subprocess.run(
        [*launch, *args, "--rows-at-once", "2", "--out", str(tmp_path / "two")],
        capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["rows"] == len(ROWS)
    curves = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "loss.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_a_bad_vector_leaves_no_run_behind(
    command: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, said in (
        (f"{saved[1]}:1@99", "a layer from"),
        (str(saved[1]), "VEC:COEF"),
        (f"{saved[1]}:auto@99", "99"),
    ):
        assert main([*command, "--prevent", text, "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_without_trl_it_says_what_to_install(command: list[str]) -> None:
    code = f"import sys; sys.modules['trl'] = None\nfrom personavec.cli.main import main\nsys.exit(main({command!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(
        "personavec: expected the extra train"
    )
