"""The page for blind readers: it gives nothing away, and its file is the one that `evaluate --sheet` reads."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from personavec.data.sheet import score_sheets, write_twins
from personavec.report.page import render

TRAIT = {"name": "warm", "adjective": "warm", "antonym": "cold", "description": "It is kind."}
ATTACK = "</script><script>alert(1)</script> {{ 7 * 7 }}"


def made(folder: Path, seed: int = 0, swapped: bool = False, pairs: int = 5) -> Path:
    """A sheet and its page; swapped, what was steered is plain and scores what the other scored."""
    arms = [
        [
            {"question_id": n, "question": f"q{n}, “so”?", "sample": 0, "judge": "panel", "trait": score + n}
            | {"response": f'{text} {n}, "quoted",\r\n{ATTACK}'}
            for n in range(pairs)
        ]
        for text, score in (("Sure", 71.25), ("Well", 23.5))
    ]
    sheet = write_twins(folder / "sheet.csv", *(arms[::-1] if swapped else arms), "warm", seed)
    return render(folder / "sheet.html", "sheet.html", trait=TRAIT, sheet=sheet, harmful=False)


def places(folder: Path) -> list[str]:
    key = (folder / "sheet.key.csv").open(encoding="utf-8-sig")
    return [row["steered"] for row in csv.DictReader(key)]


def test_the_page_names_no_arm_and_no_score(tmp_path: Path) -> None:
    page = made(tmp_path).read_text()
    words = ("steer", "base", "plain", "judge", "score", "71.", "72.", "23.", "24.", "key.csv", "seed", "sha")
    assert not [word for word in words if word in page.lower()]
    assert page.count("<script") == page.count("</script>") == 2 and "<script>alert" not in page
    assert "default-src 'none'" in page and "//" not in page.split("<body>")[1].split("<script>")[0]


def test_one_page_comes_of_opposite_keys(tmp_path: Path) -> None:
    """Nothing in the page can tell which reply is steered: with the arms swapped another seed makes the same page."""
    page, key = made(tmp_path, pairs=2).read_text(), places(tmp_path)
    for seed in range(100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        if made(folder, seed, swapped=True, pairs=2).read_text() == page:
            assert all(here != there for here, there in zip(key, places(folder), strict=True))
            return
    raise AssertionError("no seed makes the same page")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def start(page: Any, path: Path, name: str) -> None:
    page.goto(path.as_uri())
    page.locator("#name").fill(name)
    page.locator("#name").press("Enter")


def downloaded(page: Any, path: Path) -> str:
    with page.expect_download() as waiting:
        page.locator("#download").click()
    waiting.value.save_as(path)
    return str(waiting.value.suggested_filename)


@pytest.mark.slow
def test_a_reader_fills_it_in(browser: Any, tmp_path: Path) -> None:
    path = made(tmp_path)
    key = places(tmp_path)
    failures: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda line: line.type == "error" and failures.append(line.text))
    start(page, path, "Ann A")
    assert downloaded(page, tmp_path / "blank.csv") == "warm-Ann_A.csv"
    assert (tmp_path / "blank.csv").read_bytes() == (tmp_path / "sheet.csv").read_bytes(), "the same form to the byte"
    assert "5 pairs without an answer" in page.locator("#done").inner_text()

    page.keyboard.press(key[0])
    page.locator(f"[data-said='{key[1]}']").click()
    assert page.locator("#state").inner_text() == "Pair 3 of 5; 2 answered"
    page.reload()
    start(page, path, "Ben")
    assert page.locator("#state").inner_text() == "Pair 1 of 5; 0 answered", "another reader sees nothing of the first"
    start(page, path, "Ann A")
    assert page.locator("#state").inner_text() == "Pair 3 of 5; 2 answered"
    page.keyboard.press("0")
    page.keyboard.press({"1": "2", "2": "1"}[key[3]])
    page.keyboard.press(key[4])
    assert "All pairs are answered" in page.locator("#done").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(key[3])  # changed
    downloaded(page, tmp_path / "ann.csv")
    page.close()
    assert not failures
    (reader,) = score_sheets([tmp_path / "ann.csv"])["readers"]
    assert (reader["steered_chosen"]["mean"], reader["steered_chosen"]["n"], reader["cannot_tell"]) == (1, 4, 1)
