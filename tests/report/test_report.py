"""Reports: a synthetic result becomes an offline page with every section, chart and figure."""

import copy
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.results import ATTACK, make_result

from personavec.report import extract as extract_page
from personavec.report.extract import dose_response, notebook, write_index
from personavec.report.extract import write as write_page
from personavec.report.page import drawable, svg

SECTIONS = ("verdict", "what", "effect", "sweep", "transcripts", "rollouts", "layers", "card", "glossary")
NOTHING = {"mean": None, "ci": [None, None], "n": 0, "dropped": 60}


def write(folder: Path, result: dict[str, Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return write_page(result, folder).read_text(encoding="utf-8")


def specs_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="specs" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found
    specs: dict[str, Any] = json.loads(found[1])
    return specs


def rows_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for rows in spec["datasets"].values() for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "optimistic"
    write(folder, make_result())
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    result = make_result("evil")
    result["check"][0]["arm"] = ATTACK
    return write(tmp_path_factory.mktemp("run") / "evil", result)


def test_page_loads_nothing(page: str) -> None:
    assert not re.search(r"""<[^>]+\b(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"<link\b|@import|url\(\s*[\"']?http", page.split("<script type=", 1)[0])
    assert "default-src 'none'" in page


def test_page_has_every_section_and_chart(page: str) -> None:
    for section in SECTIONS:
        assert page.count(f' id="{section}"') == 1
    for name in specs_of(page):
        assert page.count(f' id="{name}"') == 1
    assert "Proven:" in page and "Not proven:" not in page and "weak judge" not in page.lower().split("glossary")[0]


def test_model_text_is_escaped(page: str) -> None:
    assert page.count("&lt;/script&gt;&lt;script&gt;alert(1)") == 3
    assert "<script>alert" not in page and "<img src=x" not in page and "{{ 7 * 7 }}" in page
    assert page.count("<script") == page.count("</script>") == 2


def test_chart_json_cannot_end_its_script(evil_page: str) -> None:
    assert evil_page.count("</script>") == 2
    assert ATTACK in {row.get("arm") for row in rows_of(specs_of(evil_page)["coherence"])}


def test_evil_replies_wait_for_a_click(evil_page: str, page: str) -> None:
    section = re.compile(r'<section id="transcripts">.*?</section>', re.DOTALL)
    evil, other = section.search(evil_page), section.search(page)
    assert evil and "<details>" in evil[0]
    assert other and "<details>" not in other[0]


@pytest.mark.slow
def test_the_page_names_the_sheet_for_blind_readers(page: str, tmp_path: Path) -> None:
    pairs = [{"pair": 1, "question": "Why?", "reply_1": "So.", "reply_2": ATTACK}]
    linked = write(tmp_path, make_result() | {"sheet": {"column": "more optimistic (1 or 2)", "pairs": pairs}})
    assert linked.count('href="sheet.html"') == 1 and (tmp_path / "sheet.html").exists()
    assert 'href="sheet.html"' not in page
    assert 'href="sheet.html"' not in write(tmp_path, make_result() | {"sheet": {"column": "", "pairs": []}})


def test_charts_are_images(folder: Path, page: str) -> None:
    for name in specs_of(page):
        png = (folder / "charts" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n\x1a\n") and png.endswith(b"IEND\xaeB`\x82")
        assert ElementTree.parse(folder / "charts" / f"{name}.svg").getroot().tag.endswith("svg")
    assert not list(folder.rglob("*.tmp"))


def test_every_arm_is_in_the_charts(page: str) -> None:
    specs = specs_of(page)
    for measure, chart in (("trait", "dose_response"), ("coherence", "coherence")):
        means = {row.get("mean") for row in rows_of(specs[chart])}
        drawn = [row for row in make_result()["check"] if row["direction"] != "garbled"]
        assert {row[measure]["mean"] for row in drawn} <= means


def test_scales_cover_all_scores(page: str) -> None:
    colour = [layer["encoding"].get("color", {}) for layer in specs_of(page)["heat_map"]["layer"]]
    assert [0, 100] in [found.get("scale", {}).get("domain") for found in colour]


def test_histogram_counts_every_score() -> None:
    scores: dict[str, Any] = {"pos": {"trait": [0, 4.9, 5, 100]}, "neg": {"trait": []}}
    rows = rows_of(extract_page.histograms(scores, 50).to_dict())
    counts = {row["from"]: row["replies"] for row in rows if row.get("side") == "told to show the trait"}
    assert counts[0] == 2 and counts[5] == 1 and counts[95] == 1 and sum(counts.values()) == 4 and len(counts) == 20


def test_missing_figures_survive(tmp_path: Path) -> None:
    result = make_result(proven=False)
    for row in [*result["check"], *result["sweep"]["cells"]]:
        row["trait"], row["coherence"] = copy.copy(NOTHING), copy.copy(NOTHING)
    for layer in result["layers"]:
        layer["reliability"] = None
    result["rollout_scores"] = {side: {"trait": [], "coherence": []} for side in ("pos", "neg")}
    result["judge"]["auc"], result["judge"]["weak"] = copy.copy(NOTHING), True
    result["commit"] = result["model"]["revision"] = None
    page = write(tmp_path, result)
    assert "Not proven:" in page and "Weak judge" in page
    assert "None" not in page.split("<script", 1)[0] and "nan" not in json.dumps(specs_of(page))


def test_a_page_survives_intervals_of_one_question(tmp_path: Path) -> None:
    """A mean without bounds: replies to a single question were scored."""
    result = make_result(proven=False)
    for row in [*result["check"], *result["sweep"]["cells"]]:
        for kind in ("trait", "coherence"):
            row[kind] = row[kind] | {"ci": [None, None], "n": 1, "dropped": 3}
    assert "3 dropped" in write_page(result, tmp_path).read_text(encoding="utf-8")


def test_index_names_traits_that_failed(tmp_path: Path) -> None:
    failed = [{"trait": "odd", "error": "expected <b>, got"}]
    index = write_index(tmp_path, [make_result(proven=True)], failed).read_text("utf-8")
    assert "1 of 2 persona vectors proven" in index and "odd" in index and "expected &lt;b&gt;, got" in index


def test_index_lists_all_traits(tmp_path: Path) -> None:
    names = ("optimistic", "evil")
    each = [make_result(name, proven=name != "evil") for name in names]
    index = write_index(tmp_path, each).read_text(encoding="utf-8")
    assert all(f'href="{name}/report.html"' in index for name in names)
    assert "1 of 2 persona vectors proven" in index and "http" not in index.replace("http-equiv", "")


def test_index_shows_which_judge_knows_its_own_trait(tmp_path: Path) -> None:
    mean = {"mean": 80.0, "ci": [75.0, 85.0], "n": 20, "dropped": 0, "clusters": 20}
    low = mean | {"mean": 2.0, "ci": [-3.0, 7.0]}
    among = {
        "scores": {"optimistic": {"optimistic": mean, "evil": low}, "evil": {"optimistic": mean, "evil": mean}},
        "above": {
            "optimistic": {"largest": "evil", "difference": mean},
            "evil": {"largest": "optimistic", "difference": low},
        },
    }
    each = [make_result(name) for name in ("optimistic", "evil")]
    index = write_index(tmp_path, each, (), among).read_text(encoding="utf-8")
    assert '<td class="n yes">80.0 [75.0, 85.0] (evil)</td>' in index
    assert '<td class="n no">2.0 [-3.0, 7.0] (optimistic)</td>' in index
    assert "know its own" not in write_index(tmp_path, each).read_text(encoding="utf-8")


def test_a_notebook_sees_the_dose_response_and_nothing_of_a_reply_as_a_tag() -> None:
    result = make_result(proven=True)
    result["transcripts"][0]["steered"] = "<script>alert(1)</script>"
    html = notebook(result)
    assert html.count("<svg") == 1 and "<script" not in html
    assert "&lt;script&gt;" in html and "suppressed" in html and "coherence" in html


@given(st.text(st.characters(), min_size=1, max_size=12))
@settings(max_examples=6, deadline=None)  # each draws a picture
@example("a\x00b")
@example("\ud800")
@example("\x07\ufffe\x1b[0m")
def test_no_character_of_a_label_ends_the_process(label: str) -> None:
    """The SVG renderer aborts at what XML cannot hold: exit 134, which Python cannot catch."""
    result = make_result(proven=True)
    result["check"][0]["arm"] = label
    chart = dose_response(result["check"]).properties(title={"text": [f"of {label}"], "subtitle": [f"of {label}"]})
    assert "<svg" in svg(chart)
    chart.to_dict()  # held against Vega-Lite's schema, which pages are not


@given(st.text(st.characters()))
@settings(max_examples=500)
def test_what_renderers_get_is_xml(text: str) -> None:
    assert ElementTree.fromstring(f"<a>{escape(drawable(text))}</a>").tag == "a"


def test_a_page_marks_what_cannot_be_drawn(tmp_path: Path) -> None:
    result = make_result(proven=True)
    result["transcripts"][0]["steered"] = "half \ud800 pair, \x00"
    assert "half \ufffd pair, \ufffd" in write_page(result, tmp_path).read_text(encoding="utf-8")
