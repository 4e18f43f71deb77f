"""Persona space: planted dimensions are counted, noise is taken away, and the whole of it on a tiny model."""

import dataclasses
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny, tiny_chat
from support.letters import Letters
from support.results import unknown

from personavec.cli.main import main
from personavec.errors import PersonavecError
from personavec.judges.load import Bench
from personavec.model.chat_model import ChatModel
from personavec.report import space as space_page
from personavec.report.labels import LETTER, LINE, labels
from personavec.stats.nulls import against
from personavec.steering.vector import load_vector
from personavec.traits.load import load_trait
from personavec.verbs.analyse import space as verb
from personavec.verbs.analyse.coexpression import reach_of, verdict
from personavec.verbs.analyse.geometry import (
    Personas,
    axes_of,
    built_in_personas,
    components_for,
    cosines,
    effective_rank,
    eigenvalues,
    held_out,
    mantel,
    noiseless_rank,
    rank_of,
)

RNG = np.random.default_rng
PEOPLE, QUESTIONS, WIDTH = 40, 8, 24
FEW = Personas(
    ("one", "two", "three"),
    ("Be one.", "Be two.", "Be three."),
    ("What now?", "And then?", "Why?", "Who?", "Where?", "When?"),
)


def planted(rank: int, noise: float = 0.3, seed: int = 0) -> np.ndarray:
    """Personas that differ along a few directions alike, with noise at every question."""
    rng = RNG(seed)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, rank)))[0]
    means = rng.standard_normal((PEOPLE, rank)) @ basis.T
    return means[:, None] + noise * rng.standard_normal((PEOPLE, QUESTIONS, WIDTH))


def test_there_are_many_personas_and_all_differ() -> None:
    found = built_in_personas()
    assert len(found.names) >= 60 and len(set(found.names)) == len(set(found.prompts)) == len(found.names)
    assert len(found.questions) >= 8


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_planted_dimensions_are_counted(rank: int) -> None:
    means = planted(rank, noise=0).mean(axis=1)
    assert effective_rank(eigenvalues(means)) == pytest.approx(rank, rel=0.25)
    assert components_for(eigenvalues(means), 0.9999) == rank


def test_what_noise_adds_is_taken_away_and_shuffled_personas_have_none() -> None:
    found = rank_of(planted(3, noise=1.0), RNG(0))
    clean, noisy = (effective_rank(eigenvalues(planted(3, noise).mean(axis=1))) for noise in (0.0, 1.0))
    low, high = found["effective_rank"]["ci"]
    assert abs(found["effective_rank"]["mean"] - clean) < 0.15 * clean < abs(noisy - clean) and low < clean < high
    assert found["with_noise"] == pytest.approx(noisy, abs=1e-3)
    assert found["shuffled"][0] > noisy and found["random"][0] > noisy
    assert found["held_out"][2] > 2 * found["held_out_shuffled"][2]


def test_components_of_one_half_hold_what_the_other_half_has() -> None:
    assert held_out(planted(3, noise=0.01))[2] > 0.99 > held_out(planted(3, noise=0.01))[1]


@pytest.mark.slow
def test_the_interval_of_a_rank_covers_and_is_hardly_too_wide() -> None:
    """Personas of a known covariance under noise of their own at each of eight questions."""
    rng, scale, inside, errors, widths = RNG(0), np.exp(-np.arange(20) / 4), [], [], []
    for _ in range(120):
        means = scale * rng.standard_normal((24, 20))
        truth = effective_rank(eigenvalues(means))
        found = noiseless_rank(means[:, None] + 0.7 * scale * rng.standard_normal((24, 8, 20)), rng)
        inside.append(found.low <= truth <= found.high)
        errors.append(found.mean - truth)
        widths.append((found.high - found.low) / 2 / 2.3646)  # Student's t with seven degrees of freedom
    assert 0.91 <= np.mean(inside) <= 0.99
    assert 0.85 <= np.mean(widths) / np.std(errors) <= 1.25


def test_axes_have_the_right_ends_and_the_assistant_its_place() -> None:
    every = 0.1 * RNG(0).standard_normal((PEOPLE, QUESTIONS, WIDTH))
    every[:, :, 0] += np.linspace(-5, 5, PEOPLE)[:, None]
    assistant = np.zeros((QUESTIONS, WIDTH))
    assistant[:, 0] = 4.9
    vectors = np.eye(WIDTH)[:2]
    found = axes_of(every, [f"p{i}" for i in range(PEOPLE)], assistant, vectors, 2, RNG(0))
    first = found["axes"][0]
    assert (first["low"][0], first["high"][0]) == ("p0", f"p{PEOPLE - 1}") and first["share"] > 0.95
    assert first["percentile"] > 90 and first["cosine"][0] > 0.99 and abs(first["cosine"][1]) < 0.1
    assert found["null"]["isotropic"] < 0.5 < found["null"]["covariance"]


def test_cosines_are_corrected_for_noise() -> None:
    """Two noisy measurements of one direction have a cosine of their reliability, and of 1 without the noise."""
    rng = RNG(0)
    truth = rng.standard_normal(2000)
    halves = truth + rng.standard_normal((2, 2, 2000))
    vectors = halves.mean(axis=1)
    split = np.array([np.corrcoef(*own)[0, 1] for own in halves])
    found = cosines(vectors, split, rng.standard_normal((50, 2000)), rng)
    assert found["cosine"][0][1] == pytest.approx(2 / 3, abs=0.05)
    assert found["reliability"] == pytest.approx([2 / 3, 2 / 3], abs=0.05)
    assert found["corrected"][0][1] == pytest.approx(1, abs=0.05)
    assert cosines(vectors, np.array([0.2, np.nan]), rng.standard_normal((50, 2000)), rng)["corrected"][0][1] is None


@pytest.mark.slow  # 60 tests by permutation
@pytest.mark.usefixtures("unchecked")  # thousands of small calls
def test_mantel_keeps_rows_and_columns_together() -> None:
    """Tables whose rows have levels of their own correlate by chance; the shuffled names know."""
    ps = []
    for seed in range(60):
        rng = RNG(seed)
        one, other = (np.add.outer(level, level) for level in rng.standard_normal((2, 7)))
        ps.append(against(*mantel(one, other, rng))["p"])
    assert np.mean(np.array(ps) <= 0.05) < 0.15
    table = RNG(0).standard_normal((7, 7))
    r, shuffled = mantel(table, 2 * table + 1, RNG(0))
    assert r == pytest.approx(1) and against(r, shuffled)["p"] < 0.01
    table[2, 4] = np.nan  # one unknown pair is left out of every order, not all pairs
    r, shuffled = mantel(table, 2 * table + 1, RNG(0))
    assert r == pytest.approx(1) and np.isfinite(shuffled).all()
    for few in (1, 2, 3):  # of two traits r is 1 or -1 whatever they do
        r, shuffled = mantel(table[:few, :few], 2 * table[:few, :few] + 1, RNG(0))
        assert np.isnan(r) and against(r, shuffled)["p"] is None


@pytest.mark.parametrize(
    ("slope", "bend", "told"),
    [
        ((1, 3), (-1, 1), "linear"),
        ((1, 3), (-2, -1), "saturates"),
        ((1, 3), (1, 2), "accelerates"),
        ((-1, 3), (1, 2), "no response"),
        ((-3, -1), (-1, 1), "linear, the wrong way"),
        ((-3, -1), (1, 2), "bent, the wrong way"),
        ((np.nan, np.nan), (np.nan, np.nan), "not measured"),
    ],
)
def test_verdict_on_a_dose_curve(slope: tuple[float, float], bend: tuple[float, float], told: str) -> None:
    assert verdict(*map(float, (*slope, *bend))) == told


def test_labels_cover_nothing_and_stay_inside() -> None:
    points = [(float(x), float(y)) for x, y in RNG(0).uniform(0, 200, (40, 2))]
    found = list(labels(points, ["some name"] * 40, 200, 200))
    assert 3 < len(found) < 40
    wide = LETTER * len("some name")
    boxes = []
    for label in found:
        x, y = points[label.point]
        left = x + label.dx - {"left": 0, "right": wide, "center": wide / 2}[label.align]
        boxes.append((left, y + label.dy - LINE / 2, left + wide, y + label.dy + LINE / 2))
    assert all(left >= 0 and top >= 0 and right <= 200 and bottom <= 200 for left, top, right, bottom in boxes)
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    alone = list(labels([(195.0, 100.0)], ["a long name"], 200, 200))
    assert alone[0].align == "right", "on the side where there is room"
    crowd = [(100.0, 100.0), *((x, y) for x in range(0, 200, 10) for y in range(0, 200, 10))]
    assert not list(labels(crowd, ["some name"] * len(crowd), 200, 200))
    assert [label.point for label in labels(crowd, ["some name"] * len(crowd), 200, 200, always=1)] == [0]


def test_the_whole_of_it(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb.geometry, "built_in_personas", lambda: FEW)
    letters = Bench(Letters(flat=True), lambda _: Letters(), "hf:letters", "letters")
    monkeypatch.setattr("personavec.judges.load.load_bench", lambda *_, **__: letters)
    trait = tmp_path / "tiny.json"
    trait.write_text(json.dumps(tiny_chat.WARM | {"name": "tiny"}))
    other = tmp_path / "other.safetensors"
    (-load_vector(saved[1])).save(other)
    args = ["space", str(saved[1]), "--model", str(saved[0]), "--dtype", "float32", "--max-new-tokens", "5"]
    args += ["--judge", "hf:letters", "--traits", str(trait), "--out", str(tmp_path / "out"), "--json"]
    assert main(args) == 0, capsys.readouterr().err
    plain = json.loads(capsys.readouterr().out)
    assert plain["coexpression"] is None and plain["personas"] == 3
    read = load_file(tmp_path / "out" / "personas.safetensors")["read"]
    assert read.shape[:2] == (4 * 6, len(plain["ranks"]))
    written = (tmp_path / "out" / "personas.jsonl").read_bytes()
    assert main([*args, "--coexpress"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert (tmp_path / "out" / "personas.jsonl").read_bytes() == written, "not written again"
    assert found["axes"] == plain["axes"] and found["coexpression"]["reach"]["tiny"]["verdict"]
    assert found["coexpression"]["pairs"] == 0 and found["coexpression"]["r"] is None
    assert "The axes" in Path(found["report"]).read_text("utf-8")
    assert main(["space", "--model", str(saved[0])]) == 2
    assert "expected vector files, got none" in capsys.readouterr().err
    assert main([*args[:2], "--layer", "99", *args[2:]]) == 2
    assert "expected a layer from 0 to" in capsys.readouterr().err


@pytest.mark.slow
def test_objects_give_what_the_command_gives(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb.geometry, "built_in_personas", lambda: FEW)
    args = ["space", str(saved[1]), "--model", str(saved[0]), "--dtype", "float32", "--max-new-tokens", "5"]
    assert main([*args, "--out", str(tmp_path / "out"), "--json"]) == 0, capsys.readouterr().err
    printed = json.loads(capsys.readouterr().out)
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    made = verb.space(model, [vector], max_new_tokens=5)
    for key in ("cosines", "ranks", "axes", "layers", "vector_rank"):
        assert json.loads(json.dumps(made.data[key])) == printed[key]
    assert made.data["out"] is None and made.cosines["tiny"]["tiny"] == pytest.approx(1) and len(made.axes) >= 2
    assert "<svg" in made._repr_html_() and "effective rank" in repr(made) and tiny.hooks(model) == 0
    kept = verb.space(model, vector, max_new_tokens=5, store=tmp_path / "out")
    assert kept.data["axes"] == made.data["axes"], "the folder of the command is resumed by the call"
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps(tiny_chat.WARM | {"name": "tiny"}))
    warm = load_trait(file)
    letters = Bench(Letters(flat=True), lambda _: Letters(), "hf:letters", "letters")
    both = verb.space(model, vector, coexpress=True, traits=[warm], judge=letters, max_new_tokens=5)
    assert both.data["coexpression"]["traits"] == ["tiny"] and "co-expression" in repr(both)
    for data in (both.data, {**made.data, "empty_replies": 3}, unknown(dict(both.data))):
        assert "</html>" in space_page.write(data, tmp_path).read_text("utf-8")


def test_bad_objects_are_one_line(saved: tuple[Path, Path], unchecked: None) -> None:
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    aimless = type(vector)(vector.direction, dataclasses.replace(vector.card, coef=None))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "expected persona vectors or their files, got none"),
        ([vector, 3], {}, "files, got 3"),
        (aimless, {}, "expected a recommended layer and coef for tiny"),
        (vector, {"layer": 99}, "expected a layer from 0 to 3, got 99"),
        (vector, {"axes": 1}, "expected axes at least 2"),
    ]
    for vectors, options, message in cases:
        with pytest.raises(PersonavecError, match=message) as error:
            verb.space(model, vectors, **options)
        assert "\n" not in str(error.value)


def test_a_straight_line_of_evidence_is_not_bent_by_the_scale() -> None:
    """Scores of 90 and more at the highest dose: their own curve bends, what they are made of does not."""
    rng, times = RNG(0), np.tile([-1, -0.5, 0, 0.5, 1, 1.5], 12)
    verdicts = []
    for _ in range(150):
        slopes = 1.2 + 0.2 * rng.standard_normal(12)
        odds = np.repeat(slopes, 6) * times + 0.3 * rng.standard_normal(72)
        rows = [
            {"times": dose, "question_id": place // 6, "trait": 100 / (1 + np.exp(-x))}
            for place, (dose, x) in enumerate(zip(times, odds, strict=True))
        ]
        verdicts.append(reach_of(rows)["verdict"])
    assert np.mean([found != "linear" for found in verdicts]) <= 0.08
