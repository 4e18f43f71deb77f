"""Sheets of reply pairs: what the order gives away, what readers' answers say, and what is wrong with a sheet."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from personavec.cli.main import main
from personavec.data.sheet import HIGH, LOW, PAIRS, TWINS, score_sheets, write_extremes, write_twins
from personavec.errors import DataError

Row = dict[str, Any]
Say = Callable[[Row, Row], str]


def reply(question: int, sample: int, text: str, trait: float | None) -> Row:
    row = {"question_id": question, "question": f"q{question}?", "sample": sample, "response": text}
    return row | {"trait": trait, "judge": "panel"}


def twins(questions: int = 20, samples: int = 4, seed: int = 1) -> tuple[list[Row], list[Row]]:
    """Steered and plain replies whose texts say which they are to a test, and scores that mostly follow."""
    rng = np.random.default_rng(seed)
    each = [(question, sample) for question in range(questions) for sample in range(samples)]
    return tuple(  # type: ignore[return-value]
        [reply(q, s, f"{kind}, {q}.{s}\n“two lines”", float(rng.normal(mean, 15))) for q, s in each]
        for kind, mean in (("up", 65), ("plain", 40))
    )


def scored_rows(questions: int = 6) -> list[Row]:
    rng = np.random.default_rng(1)
    rows = []
    for question in range(questions):
        for kind, value in (("high", 81.0), ("low", 19.0), ("middle", 50.0), ("none", None)):
            for number in range(3 if kind == "high" else 2):
                drawn = None if value is None else value + (rng.random() if kind == "high" else -rng.random())
                rows.append(reply(question, number, f"{kind}, {question}.{number}\n“two lines”", drawn))
    return rows


def table(path: Path) -> list[Row]:
    return list(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))


def answered(sheet: Path, name: str, say: Say) -> Path:
    """A copy of the sheet that a reader filled in, who is told the key as well."""
    rows, path = table(sheet), sheet.with_name(f"{name}.csv")
    key = table(sheet.with_name("sheet.key.csv"))
    for row, known in zip(rows, key, strict=True):
        row[list(row)[-1]] = say(row, known)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")  # as spreadsheet programs of many countries save it
        writer.writeheader()
        writer.writerows(rows)
    return path


def knows(row: Row, key: Row) -> str:
    return str(key["steered"])


def other(row: Row, key: Row) -> str:
    return {"1": "2", "2": "1"}[key["steered"]]


def judge(row: Row, key: Row) -> str:
    return "1" if float(key["score_1"]) > float(key["score_2"]) else "2"


def guessing(seed: int) -> Say:
    rng = np.random.default_rng(seed)
    return lambda row, key: str(rng.integers(1, 3))


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    write_twins(tmp_path / "sheet.csv", *twins(), "warm", seed=0)
    return tmp_path / "sheet.csv"


def test_a_reader_who_sees_the_trait_and_one_who_sees_the_opposite(sheet: Path) -> None:
    found = score_sheets([answered(sheet, "anna", knows), answered(sheet, "ben", other)])
    anna, ben = found["readers"]
    assert anna["steered_chosen"]["mean"] == 1 and ben["steered_chosen"]["mean"] == 0
    assert anna["steered_chosen"]["ci"] == [pytest.approx(0.025 ** (1 / 20), abs=1e-4), 1], "not a point"
    assert found["between"][0]["equal"]["mean"] == 0 and found["pairs"] == 20 and found["judge"] == "panel"


def test_a_reader_at_random_is_told_from_none(tmp_path: Path) -> None:
    """Of readers who guess, about one in twenty has an interval without one half."""
    held = 0
    for seed in range(40):
        path = tmp_path / str(seed) / "sheet.csv"
        path.parent.mkdir()
        write_twins(path, *twins(seed=seed), "warm", seed)
        low, high = score_sheets([answered(path, "guess", guessing(seed))])["readers"][0]["steered_chosen"]["ci"]
        held += low <= 0.5 <= high
    assert held >= 36


def test_always_the_first_is_no_better_than_chance(tmp_path: Path) -> None:
    for seed in range(10):
        path = tmp_path / f"{seed}" / "sheet.csv"
        path.parent.mkdir()
        write_twins(path, *twins(), "warm", seed)
        (reader,) = score_sheets([answered(path, "first", lambda row, key: "1")])["readers"]
        assert reader["steered_chosen"]["mean"] == 0.5, "each reply stands first as often as second"


def test_a_shuffled_key_shows(sheet: Path) -> None:
    path = answered(sheet, "anna", knows)
    key = table(sheet.with_name("sheet.key.csv"))
    places = np.random.default_rng(0).permutation([row["steered"] for row in key])
    with sheet.with_name("sheet.key.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(key[0]))
        writer.writeheader()
        writer.writerows(row | {"steered": place} for row, place in zip(key, places, strict=True))
    low, high = score_sheets([path])["readers"][0]["steered_chosen"]["ci"]
    assert low < 0.5 < high
    lines = sheet.with_name("sheet.key.csv").read_text().splitlines()
    shifted = [lines[0], *(f"{n},{line.partition(',')[2]}" for n, line in enumerate([*lines[2:], lines[1]], 1))]
    sheet.with_name("sheet.key.csv").write_text("\n".join(shifted))
    with pytest.raises(DataError, match="that were written with"):
        score_sheets([path])


def test_the_sheet_gives_nothing_away(tmp_path: Path) -> None:
    told = write_twins(tmp_path / "sheet.csv", *twins(), "warm", seed=0)
    rows, key = table(tmp_path / "sheet.csv"), table(tmp_path / "sheet.key.csv")
    assert list(rows[0]) == ["pair", "question", "reply_1", "reply_2", "more warm (1 or 2)"]
    assert [set(row) for row in told["pairs"]] == [{"pair", "question", "reply_1", "reply_2"}] * TWINS
    assert len({row["question"] for row in rows}) == 20, "as many questions as there are"
    for row, known in zip(rows, key, strict=True):
        steered, plain = known["steered"], {"1": "2", "2": "1"}[known["steered"]]
        assert row[f"reply_{steered}"].startswith("up") and row[f"reply_{plain}"].startswith("plain")
        assert row[f"reply_{steered}"].partition(",")[2] == row[f"reply_{plain}"].partition(",")[2], "twins"
    places = [[int(row["steered"]) for row in table(tmp_path / "sheet.key.csv")]]
    for seed in range(1, 200):
        write_twins(tmp_path / f"{seed}.csv", *twins(5), "warm", seed)
        places.append([int(row["steered"]) for row in table(tmp_path / f"{seed}.key.csv")])
    place = np.array(places)
    assert (place.mean(axis=1) == 1.5).all() and (abs(place.mean(axis=0) - 1.5) < 0.12).all(), "no place tells"
    again = write_twins(tmp_path / "again.csv", *twins(), "warm", seed=0)
    assert again == told and again != write_twins(tmp_path / "other.csv", *twins(), "warm", seed=1)


def test_equal_and_empty_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    steered, plain = twins(3, 2)
    steered[0]["response"] = f" {plain[0]['response']}\n"
    plain[1]["response"] = " "
    steered[2]["trait"] = None
    told = write_twins(tmp_path / "sheet.csv", steered[:-1], plain, "warm", seed=0)
    assert (len(told["pairs"]), told["equal"], told["empty"]) == (3, 1, 1)
    (reader,) = score_sheets([answered(tmp_path / "sheet.csv", "anna", knows)])["readers"]
    assert reader["steered_chosen"]["n"] == 3
    assert reader["judge_agreement"]["n"] == 2 and reader["judge_agreement"]["dropped"] == 1


def test_a_sheet_that_is_there_stays(sheet: Path) -> None:
    before = {path.name: path.read_bytes() for path in sheet.parent.iterdir()}
    write_twins(sheet, *twins(seed=7), "cold", seed=9)
    assert {path.name: path.read_bytes() for path in sheet.parent.iterdir()} == before


def test_readers_and_judge_are_compared(sheet: Path) -> None:
    guess = guessing(3)
    first = answered(sheet, "anna", lambda row, key: "" if row["pair"] in ("1", "2") else guess(row, key))
    second = answered(sheet, "ben", judge)
    found = score_sheets([first, second])
    one, two = ([row[list(row)[-1]] for row in csv.DictReader(p.open(), delimiter=";")] for p in (first, second))
    both = [(a, b) for a, b in zip(one, two, strict=True) if a and b]
    equal, kappa = found["between"][0]["equal"], found["between"][0]["kappa"]
    assert equal["mean"] == pytest.approx(np.mean([a == b for a, b in both]), abs=1e-4) and equal["dropped"] == 2
    assert kappa["mean"] == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)), abs=1e-4)
    assert kappa["ci"][0] < kappa["mean"] < kappa["ci"][1] and kappa["n"] == 18
    assert found["between"][0]["readers"] == ["anna", "ben"]
    anna, ben = found["readers"]
    assert anna["cannot_tell"] == 2 and anna["steered_chosen"]["n"] == 18 and ben["judge_agreement"]["mean"] == 1
    assert anna["judge_agreement"]["mean"] == equal["mean"]
    json.dumps(found, allow_nan=False)
    same = score_sheets([second, answered(sheet, "cleo", judge)])["between"][0]
    assert same["equal"]["mean"] == same["kappa"]["mean"] == 1 and same["kappa"]["ci"] == [None, None]
    ones = [answered(sheet, name, lambda row, key: "1") for name in ("dan", "eve")]
    assert score_sheets(ones)["between"][0]["kappa"]["mean"] is None, "two who always say 1 agree by chance"


def test_extreme_pairs_agree_with_the_judge(tmp_path: Path) -> None:
    rows = [*scored_rows(), reply(9, 0, "high, no other", 95.0)]
    told = write_extremes(tmp_path / "sheet.csv", rows, "warm", seed=3)
    assert told == {"pairs": 12, "questions_without_pair": 1}
    sheet, key = table(tmp_path / "sheet.csv"), table(tmp_path / "sheet.key.csv")
    shown = [row[f"reply_{n}"] for row in sheet for n in (1, 2)]
    assert len(set(shown)) == len(shown), "no reply stands in two pairs"
    assert all(max(s := [float(r["score_1"]), float(r["score_2"])]) > HIGH and min(s) < LOW for r in key)
    assert "steered" not in key[0]
    seen: Say = lambda row, key: "" if row["pair"] == "1" else judge(row, key)  # noqa: E731
    (reader,) = score_sheets([answered(tmp_path / "sheet.csv", "anna", seen)])["readers"]
    assert reader["judge_agreement"]["mean"] == 1 and reader["judge_agreement"]["n"] == 11
    assert reader["judge_agreement"]["clusters"] == 6 and reader["steered_chosen"] is None


def test_a_sheet_of_extremes_has_at_most_fifty_pairs_and_depends_on_the_seed(tmp_path: Path) -> None:
    rows = scored_rows(40)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert write_extremes(tmp_path / f"{name}.csv", rows, "warm", seed)["pairs"] == PAIRS
    text = {name: (tmp_path / f"{name}.csv").read_text() for name in "abc"}
    assert text["a"] == text["b"] != text["c"]


def test_the_key_is_found_beside_the_sheet_or_named(sheet: Path, tmp_path: Path) -> None:
    path = answered(sheet, "anna", knows)
    away = tmp_path / "downloads" / "anna.csv"
    away.parent.mkdir()
    path.rename(away)
    with pytest.raises(DataError, match="pass --key"):
        score_sheets([away])
    assert score_sheets([away], sheet.with_name("sheet.key.csv"))["pairs"] == 20
    sheet.with_name("sheet.key.csv").rename(away.with_name("anna.key.csv"))
    assert score_sheets([away])["key"] == str(away.with_name("anna.key.csv"))


def edited(path: Path, **values: str) -> None:
    """Change columns of the last row."""
    rows = list(csv.DictReader(path.open(newline=""), delimiter=";"))
    rows[-1] |= values
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def other_sheet(path: Path) -> None:
    write_twins(path.with_name("other.csv"), *twins(seed=5), "warm", seed=4)
    path.write_bytes(path.with_name("other.csv").read_bytes())


ANSWER = "more warm (1 or 2)"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.with_name("sheet.key.csv").unlink(), "pass --key"),
        (lambda path: path.unlink(), "expected a reader's sheet or its key"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "CSV in UTF-8"),
        (lambda path: path.write_text("pair,question\n1,q\n"), "expected the columns of a reader's sheet"),
        (lambda path: path.with_name("sheet.key.csv").write_bytes(path.read_bytes()), "expected the columns of a key"),
        (lambda path: path.write_text(""), "expected the columns of a reader's sheet"),
        (lambda path: answered(path.with_name("sheet.csv"), "anna", lambda *_: ""), "got none; write 1 or 2"),
        (lambda path: answered(path.with_name("sheet.csv"), "anna", lambda *_: "left"), "got 'left' in row 2"),
        (lambda path: edited(path, pair="1"), "each once, in"),
        (lambda path: edited(path, pair="99"), "got 99 in row 21"),
        (other_sheet, "that were written with"),
        (lambda path: edited(path, reply_1="another text"), "got others in row 21"),
    ],
)
def test_a_bad_sheet_is_told_in_one_line(
    spoil: Any, told: str, sheet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = answered(sheet, "anna", knows)
    spoil(path)
    kept = {file: file.read_bytes() for file in path.parent.iterdir()}
    assert main(["evaluate", "--sheet", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert told in said and "\n" not in said
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == kept


def test_one_reader_twice_is_told(sheet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = answered(sheet, "anna", knows)
    assert main(["evaluate", "--sheet", str(path), str(path)]) == 2
    assert "got anna twice" in capsys.readouterr().err


def test_scoring_sheets_from_the_command_line(sheet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(answered(sheet, "anna", knows)), str(answered(sheet, "ben", guessing(0)))]
    assert main(["evaluate", "--sheet", *paths]) == 0
    said = capsys.readouterr().out
    assert "reader anna chose the steered reply in 100.0% [83.2, 100.0] of 20 pairs" in said
    assert "readers anna and ben" in said and "kappa" in said and "people" not in said and "panel," not in said
    assert main(["evaluate", "--sheet", *paths, "--json"]) == 0
    assert [reader["reader"] for reader in json.loads(capsys.readouterr().out)["readers"]] == ["anna", "ben"]
