"""The paper in one command: verdicts, parts that fail, resumption, and the pages."""

import copy
from pathlib import Path
from typing import Any

import pytest
from support import letters

from personavec.errors import ConfigError, DataError
from personavec.model.chat_model import ChatModel
from personavec.paper import paper as study
from personavec.paper.claims import Claim, Control, judged
from personavec.paper.options import PaperConfig
from personavec.paper.study import surviving
from personavec.report import paper as paper_page
from personavec.report.paper import grouped, worded
from personavec.runs.run import Run


def interval(mean: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"mean": mean, "ci": [low, high]}


def test_a_trait_that_fails_is_told_and_the_others_go_on() -> None:
    failed: list[dict[str, Any]] = []
    for trait in ("evil", "humorous"):
        with surviving(failed, trait):
            if trait == "evil":
                raise DataError("no rows")
    assert failed == [{"trait": "evil", "error": "no rows"}]


def test_claims_of_one_text_share_a_chart() -> None:
    claims = judged([Claim("1", text, name, None) for text, name in (("a", "x"), ("b", "x"), ("a", "y"))], "panel")
    assert [[claim["subject"] for claim in group] for group in grouped(claims)] == [["x", "y"], ["x"]]


def test_a_row_says_its_controls_its_ceiling_and_what_would_have_been_shown() -> None:
    beaten, taken = Control("random rows", over=interval(4, -1, 9)), Control("the other arm")
    claims = [
        Claim("1", "a", "x", interval(5, 2, 8), controls=(beaten, taken)),
        Claim("1", "b", "x", interval(0.5, 0.3, 0.7), "r", ceiling=0.2, measurable=False, data="real chats"),
    ]
    first, second = map(worded, judged(claims, "panel"))
    assert first["said"] == "not shown: not beyond random rows; 8.15 would have been"
    assert (first["control"], first["origin"]) == ("random rows 1.00, the other arm", "closed")
    assert (second["control"], second["origin"]) == ("no control", "data: real chats")
    assert second["here"] == "0.50 [0.30, 0.70], ceiling 0.20"
    assert second["said"] == "not measurable: the ceiling lies under it"


def test_parts_that_fail_are_told_and_tried_again(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The others go on; what is done is not done again; the pages show both."""
    calls: list[str] = []

    def good(_: Any) -> dict[str, Any]:
        calls.append("good")
        claims = [
            Claim("section 3.2", "It rises", name, interval(*ours), "r", (Control("random ones", 0.1),), (0.9,))
            for name, ours in (("evil", (0.5, 0.3, 0.7)), ("hallucinating", (-0.5, -0.7, -0.3)))
        ]
        table = [{"trait": "evil", "score": interval(0.5, 0.3, 0.7), "proven": True}, {"trait": "without a score"}]
        return {"claims": claims, "table": table}

    def bad(_: Any) -> dict[str, Any]:
        calls.append("bad")
        raise DataError("expected replies, got none; ask again")

    none = study.Experiment("No figures", lambda _: {"claims": [], "table": []}, 1, 1)
    parts = {
        "good": study.Experiment("Good & sound", good, 1, 1),
        "bad": study.Experiment("Bad", bad, 2, 2),
        "none": none,
    }
    monkeypatch.setattr(study, "PARTS", parts)
    monkeypatch.setattr(study, "pace", lambda _: study.REFERENCE)
    options: Any = {"quick": True, "store": tmp_path / "paper", "judge": letters.bench()}
    found = study.paper(model, **options).published()
    assert found["failed"] == [{"part": "bad", "error": "expected replies, got none; ask again"}]
    assert found["tally"] | {"weaker": 1, "contradicted": 1} == found["tally"]
    page = Path(found["report"]).read_text("utf-8")
    assert "0 of 2 claims hold here, 1 are contradicted" in page and "expected replies, got none" in page
    assert "Good &amp; sound" in page
    table = (tmp_path / "paper" / "paper.md").read_text("utf-8")
    assert "| evil | 0.50 [0.30, 0.70] | random ones 0.10 | 0.9 | judge: letters | weaker |" in table
    assert "## Good & sound" in table and "0 of 2 claims are closed in themselves" in table
    assert "- appendix B.3, agreement with external benchmarks" in table and "appendix B.3" in page
    assert "## No figures\n\nNothing here was compared with the paper." in table
    again = study.paper(model, **options).published()
    assert calls == ["good", "bad", "bad"]
    assert again["claims"] == found["claims"]
    assert study.paper(model, plan=True, **options).data["plan"] == {
        "good": 1.0,
        "bad": 2.0,
        "none": 1.0,
    }
    assert Run(tmp_path / "paper").read_json("result.json")["claims"] == found["claims"]


def test_of_a_model_behind_servers_what_trains_is_not_done(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def good(_: Any) -> dict[str, Any]:
        return {"claims": [Claim("section 1", "It rises", "evil", interval(5, 2, 8))], "table": []}

    def bad(_: Any) -> dict[str, Any]:
        raise AssertionError("it was begun")

    parts = {"one": study.Experiment("One", good, 1, 1), "two": study.Experiment("Two", bad, 1, 1, trains=True)}
    monkeypatch.setattr(study, "PARTS", parts)
    monkeypatch.setattr(study, "pace", lambda _: study.REFERENCE)
    monkeypatch.setattr(type(model), "engine", object())
    result = study.paper(model, quick=True, judge=letters.bench(), store=tmp_path)
    assert [*result.data["parts"]] == ["one"] and not result.data["failed"]
    assert {"what": "Two", "why": study.NO_WEIGHTS} in result.data["not_done"]
    assert "Two " in (said := capsys.readouterr().err) and study.NO_WEIGHTS in said
    monkeypatch.setattr(type(model), "engine", None)
    with pytest.raises(ConfigError, match="numbers"):
        study.paper(model, quick=True, judge=letters.bench(), store=tmp_path)


@pytest.mark.slow
def test_without_a_store_nothing_is_kept(model: ChatModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    claims = [Claim("section 1", "It rises", "evil", interval(5, 2, 8))]
    part = study.Experiment("One", lambda _: {"claims": claims, "table": []}, 1, 1)
    monkeypatch.setattr(study, "PARTS", {"part": part})
    result = study.paper(model, quick=True, judge=letters.bench())
    assert result.data["out"] is None and result.claims[0]["verdict"] == "same direction"
    assert "same direction: 1" in repr(result)
    assert result.report(tmp_path / "page").name == "paper.html" and (tmp_path / "page" / "paper.md").is_file()
    without = copy.deepcopy(dict(result.data)) | {"failed": [{"part": "two", "error": "no data"}]}
    for claim in [*without["claims"], *without["parts"]["part"]["claims"]]:
        claim.update(mean=None, ci=[None, None], controls=[], elsewhere=[], ceiling=None)
    for parts in (without["parts"], {"part": without["parts"]["part"] | {"claims": []}}):
        assert "</html>" in paper_page.write(without | {"parts": parts}, tmp_path).read_text("utf-8")
    with pytest.raises(ConfigError, match=r"report\(path\)"):
        result.report()
    plan = study.paper(model, quick=True, plan=True, judge=letters.bench())
    assert plan.published() == plan.to_dict() and plan.claims == []


def test_a_folder_that_an_older_version_began_resumes(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It kept every option of the command line, and no inputs."""
    monkeypatch.setattr(study, "PARTS", {"part": study.Experiment("One", lambda _: pytest.fail("again"), 1, 1)})
    old = vars(PaperConfig(quick=True, model=model.identity.id, judge=letters.bench().spec)) | {"inputs": {}}
    Run(tmp_path).write_json("config.json", {name: old[name] for name in old if name not in ("out", "json", "plan")})
    Run(tmp_path).write_json("part.json", {"claims": [], "table": [], "seconds": 60.0})
    options: Any = {"quick": True, "judge": letters.bench(), "store": tmp_path}
    assert study.paper(model, **options).data["minutes"] == 1.0
    with pytest.raises(ConfigError, match=r"rate: 0\.0002 there, 0\.1 here"):
        study.paper(model, rate=0.1, **options)


def test_verdicts_by_an_older_rule_are_not_shown(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such a part is measured again, from the replies that it kept."""
    claims = [Claim("section 1", "It rises", "evil", interval(5, 2, 8))]
    part = study.Experiment("One", lambda _: {"claims": claims, "table": []}, 1, 1)
    monkeypatch.setattr(study, "PARTS", {"part": part})
    options: Any = {"quick": True, "judge": letters.bench(), "store": tmp_path}
    study.paper(model, **options)
    old = {"where": "section 1", "claim": "It rises", "subject": "evil", "verdict": "absent"}
    Run(tmp_path).write_json("part.json", {"claims": [old], "table": [], "seconds": 60.0})
    assert study.paper(model, **options).claims[0]["verdict"] == "same direction"
