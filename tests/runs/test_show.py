"""What shows itself in a notebook is escaped, whatever a model or a file wrote."""

import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavec.errors import ConfigError
from personavec.runs import progress
from personavec.runs.progress import stage
from personavec.runs.result import Result
from personavec.runs.show import interval, shaded, table

TAGS = {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "span", "svg"}


class Tags(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text(), st.floats(allow_nan=False, allow_infinity=False, width=16))
def test_nothing_of_a_text_becomes_a_tag(one: str, other: str, value: float) -> None:
    for html in (
        table([one, "b"], [(one, other)], other),
        shaded([one, other], [value, -value], -1.0, 1.0),
        Result({"name": one, "other": other})._repr_html_(),
    ):
        seen = Tags(html)
        assert seen.tags <= TAGS and seen.attributes <= {"style", "title"}


def test_an_attack_is_text() -> None:
    html = shaded(["<script>alert(1)</script>", '" onload="x'], [0.5, -0.5], -1, 1)
    assert "<script" not in html and "&lt;script&gt;" in html and "onload" in Tags(html).text


def test_shades_go_from_blue_to_orange() -> None:
    html = shaded(["a", "b", "c"], [-2.0, 0.0, 5.0], -2.0, 2.0)
    assert html.index("0,114,178") < html.index("213,94,0") and "0.55" in html and "+5.00" in html


def test_intervals() -> None:
    assert interval({"mean": 41.25, "ci": [38.0, 44.1]}) == "41.2 [38.0, 44.1]"
    assert interval({"mean": None, "ci": [None, None]}) == interval(None) == "–"
    assert interval({"mean": 1.0, "ci": [None, None]}, 2) == "1.00 [–, –]"


def test_a_result_says_what_it_holds_and_has_no_page() -> None:
    result = Result({"rows": 3, "mean": 0.12345678, "skipped_by_reason": {}, "model": "m"})
    assert repr(result).splitlines() == ["Result", "  rows: 3", "  mean: 0.1235", "  model: m"]
    assert result.to_dict() == dict(result.data) == result.published()
    with pytest.raises(ConfigError, match=r"expected a result with a page, got Result; use to_dict\(\)"):
        result.report("x")


def test_a_page_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Paged(Result):
        page = "paged"

    drawn = types.SimpleNamespace(write=lambda data, folder: folder / "report.html", notebook=lambda data: "")
    monkeypatch.setitem(sys.modules, "personavec.report.paged", drawn)
    with pytest.raises(ConfigError, match=r"expected a folder for the page, got none; pass one: report\(path\)"):
        Paged({"out": None}).report()
    assert Paged({"out": None}).report(tmp_path / "new") == tmp_path / "new" / "report.html"
    assert Paged({"out": str(tmp_path)}).published()["report"] == str(tmp_path / "report.html")


def test_a_plain_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with stage("reading", 10) as advance:
        for _ in range(10):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert 2 < len(lines) <= 10 and lines[-1].startswith("reading: 10 of 10 in")
    assert all("\x1b" not in line and "\r" not in line for line in lines)
    assert "about" in lines[0] and "min to go" in lines[0]


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pictures: list[str] = []

    class ZMQInteractiveShell:
        """As the kernel of a notebook names it."""

    class Handle:
        def update(self, html: Any) -> None:
            pictures.append(html)

    def display(html: Any, display_id: bool) -> Handle:
        pictures.append(html)
        return Handle()

    shell = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(HTML=str, display=display))
    with pytest.raises(RuntimeError), stage("<reading>", 10) as advance:
        advance(4)
        raise RuntimeError
    assert "&lt;reading&gt;" in pictures[0] and 'value="0"' in pictures[0] and 'value="4"' in pictures[-1]
    assert capsys.readouterr().err == ""
