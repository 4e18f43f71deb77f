"""The dashboard's files: what its Content-Security-Policy and the rule that data is never markup ask of them."""

import re
from pathlib import Path

STATIC = Path(__file__).parents[2] / "src" / "personavec" / "server" / "static"
OWN = [path for path in sorted(STATIC.iterdir()) if path.is_file()]
PAGE = (STATIC / "index.html").read_text("utf-8")
UNSAFE = r"\.(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\(|new Function|localStorage|\bstyle="


def test_data_never_becomes_markup() -> None:
    found = {path.name: match[0] for path in OWN for match in [re.search(UNSAFE, path.read_text("utf-8"))] if match}
    assert not found


def test_the_page_runs_nothing_inline() -> None:
    assert not re.search(r"<script(?![^>]*\ssrc=)", PAGE)
    assert not re.search(r"<[^>]*\son\w+=", PAGE)
    assert "<style" not in PAGE


def test_everything_is_here() -> None:
    asked = re.findall(r'(?:src|href)="/static/([^"]+)"', PAGE)
    asked += [name for path in OWN for name in re.findall(r'from "\./([^"]+)"', path.read_text("utf-8"))]
    assert len(asked) > 20
    assert not [name for name in asked if not (STATIC / name).is_file()]
    elsewhere = [path.name for path in OWN if re.search(r"https?://(?!www\.w3\.org/2000/svg)", path.read_text("utf-8"))]
    assert not elsewhere


def test_the_page_has_every_element_that_is_asked_for() -> None:
    made = {"drift-there", "compare-note", "chat-form-prompt", "compare-form-prompt"}  # by the script
    have = set(re.findall(r'\bid="([\w-]+)"', PAGE)) | made
    asked = {name for path in OWN for name in re.findall(r'query\("#([\w-]+)"\)', path.read_text("utf-8"))}
    assert len(asked) > 20 and not asked - have


def test_files_are_short_and_what_is_not_ours_has_its_licence() -> None:
    assert not [path.name for path in OWN if len(path.read_text("utf-8").splitlines()) >= 400]
    vendored = {path.name for path in (STATIC / "vendor").iterdir()}
    assert vendored == {"uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE"}
    assert "MIT" in (STATIC / "vendor" / "uPlot.LICENSE").read_text("utf-8")
