"""Verdicts of claims: what a control, the number of subjects, the ceiling and the origin of the data do to them."""

from typing import Any

import numpy as np
import pytest

from personavec.paper.claims import CHATS, VERDICTS, Claim, Control, above, judged, matched, tally
from personavec.stats.intervals import clustered_mean, pearson_rows


def interval(mean: float | None, low: float | None, high: float | None, **more: int) -> dict[str, Any]:
    return {"mean": mean, "ci": [low, high], **more}


def row(ours: dict[str, Any] | None, *controls: Control, judge: str = "panel", **more: Any) -> dict[str, Any]:
    """The only subject of a claim, judged."""
    return judged([Claim("section 1", "it rises", "evil", ours, controls=controls, **more)], judge)[0]


@pytest.mark.parametrize(
    ("ours", "reach", "published", "verdict"),
    [
        (interval(5, 2, 8), None, (), "same direction"),
        (interval(5, 2, 8), 1.9, (), "same direction"),
        (interval(5, 2, 8), 2.1, (), "not shown"),  # the mean lies above the control, the interval does not
        (interval(5, -0.1, 8), None, (), "not shown"),
        (interval(-5, -8, -2), None, (), "contradicted"),
        (interval(-5, -8, -2), 2.1, (), "not shown"),  # matched directions reach as far the other way
        (interval(-5, -8, -2), 1.9, (), "contradicted"),
        (interval(0.5, 0.4, 0.6), None, (0.7, 0.9), "weaker"),
        (interval(0.5, 0.4, 0.71), None, (0.7, 0.9), "same direction"),
        (interval(0.5, 0.4, 0.6), 0.45, (0.9,), "not shown"),
        (interval(0.5, None, None), None, (), "not measured"),
        (interval(None, None, None), None, (), "not measured"),
        (None, None, (), "not measured"),
    ],
)
def test_verdicts(ours: Any, reach: float | None, published: tuple[float, ...], verdict: str) -> None:
    controls = () if reach is None else (Control("matched random directions", reach),)
    assert row(ours, *controls, published=published)["verdict"] == verdict


def test_a_control_of_replies_is_beaten_by_its_own_interval() -> None:
    ours = interval(10, 6, 14)
    assert row(ours, Control("random rows", over=interval(5, 1, 9)))["verdict"] == "same direction"
    close = row(ours, Control("random rows", over=interval(5, -1, 11)))
    assert close["verdict"] == "not shown" and close["why"] == "not beyond random rows"
    assert close["controls"][0]["reach"] == 5
    down = interval(-10, -14, -6)
    assert row(down, Control("random rows", over=interval(-5, -9, -1)))["verdict"] == "contradicted"
    assert row(down, Control("random rows", over=interval(3, 1, 5)))["verdict"] == "not shown"
    unknown = row(ours, Control("random rows", over=interval(None, None, None)))
    assert unknown["verdict"] == "not shown" and unknown["least"] is None


def test_all_controls_have_to_be_beaten() -> None:
    beaten, not_beaten = Control("random directions", 1), Control("damaged words", over=interval(1, -1, 3))
    assert row(interval(5, 2, 8), beaten, not_beaten)["why"] == "not beyond damaged words"
    assert row(interval(5, -2, 8), beaten, not_beaten)["why"] == "the interval holds zero"


def test_a_lone_finding_among_twenty_is_demoted() -> None:
    lone = interval(5, 0.2, 9.8)  # p = .04
    claims = [Claim("1", "it rises", str(n), interval(0, -5, 5) if n else lone) for n in range(20)]
    first, *others = judged(claims, "panel")
    assert first["verdict"] == "not shown" and first["why"].startswith("one of 20: q = 0.8")
    assert first["p"] == pytest.approx(0.041, abs=0.002) and {row["verdict"] for row in others} == {"not shown"}
    assert judged(claims[:1], "panel")[0]["verdict"] == "same direction"
    apart = [Claim("1", f"claim {n}", "evil", claim.ours) for n, claim in enumerate(claims)]
    assert judged(apart, "panel")[0]["verdict"] == "same direction"  # other claims are not its subjects
    every = [Claim("1", "it rises", str(n), lone) for n in range(20)]
    assert {row["verdict"] for row in judged(every, "panel")} == {"same direction"}


def test_p_is_that_of_the_interval() -> None:
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(9), 2)
    for _ in range(50):
        found = clustered_mean(rng.standard_normal(18) + 0.5, clusters).to_json()
        claim = row(found)
        assert (claim["p"] <= 0.05) == (found["ci"][0] > 0 or found["ci"][1] < 0)


@pytest.mark.slow
def test_least_is_seen_four_times_of_five() -> None:
    """Of means, and of correlations beyond what matched directions reach."""
    rng, clusters, seen, least = np.random.default_rng(1), np.arange(40), [], []
    for _ in range(400):
        claim = row(clustered_mean(rng.standard_normal(40) + 0.45, clusters).to_json())
        seen.append(claim["verdict"] == "same direction")
        least.append(claim["least"])
    assert np.mean(least) == pytest.approx(0.45, abs=0.02) and np.mean(seen) == pytest.approx(0.8, abs=0.05)

    seen, least, true = [], [], 0.765
    for _ in range(1000):
        x = rng.standard_normal(40)
        y = true * x + np.sqrt(1 - true**2) * rng.standard_normal(40)
        claim = row(pearson_rows(x, y).to_json(), Control("matched", 0.5), unit="r")
        seen.append(claim["verdict"] == "same direction")
        least.append(claim["least"])
    assert np.mean(least) == pytest.approx(true, abs=0.02) and np.mean(seen) == pytest.approx(0.8, abs=0.06)


def test_what_is_not_shown_says_what_would_have_been() -> None:
    assert row(interval(1, -3, 5))["least"] == pytest.approx(4 * 1.43)
    assert row(interval(1, -3, 5), Control("random", 2))["least"] == pytest.approx(2 + 4 * 1.43)
    over = Control("random", over=interval(-1, -2, 0))  # reaches 2
    assert row(interval(1, 0.5, 1.5), over)["least"] == pytest.approx(2 + 1.43)
    assert row(None)["least"] is None
    assert row(interval(0.2, -1, 1), unit="r")["least"] is None  # none that large
    assert row(interval(0, 0, 0))["least"] is None  # all replies alike
    assert row(interval(9, -61, 79))["least"] is None and row(interval(9, -61, 79), unit="share")["least"] > 100
    assert row(interval(0.2, -0.8, 1.2), unit="share of the facts")["least"] is None


def test_above_its_ceiling_nothing_is_measured() -> None:
    claim = row(interval(0.5, 0.3, 0.7), unit="r", ceiling=0.2, measurable=False)
    assert (claim["verdict"], claim["why"], claim["ceiling"]) == ("not measurable", "the ceiling lies under it", 0.2)
    assert row(interval(0.5, 0.3, 0.7), measurable=False)["why"] == "the ceiling is not known"
    assert row(interval(0.5, 0.3, 0.7), unit="r", ceiling=0.6)["verdict"] == "same direction"


def test_a_claim_says_what_comes_from_elsewhere() -> None:
    ours = interval(5, 2, 8)
    assert row(ours)["elsewhere"] == []
    assert row(ours, data=CHATS)["elsewhere"] == ["data: real chats"]
    assert row(ours, judge="openai:gpt")["elsewhere"] == ["judge: openai:gpt"]
    claim = Claim("section 6.2", "it ranks", "evil", ours, judge=None)  # nobody scores anything
    assert judged([claim], "openai:gpt")[0]["elsewhere"] == []


def test_without_a_control_a_claim_says_so() -> None:
    assert matched({"percentiles": {"95": 0.3}}) == (Control("matched random directions", 0.3),)
    assert matched(None) == matched({"percentiles": {}}) == ()
    assert row(interval(5, 2, 8))["controls"] == []


def test_an_auc_of_one_has_a_verdict() -> None:
    claim = row(interval(0.5, 0.3, 0.5, clusters=12), Control("matched", 0.2), unit="AUC − 0.5")
    assert claim["verdict"] == "same direction"


def test_every_verdict_is_counted() -> None:
    claims = [Claim("1", "it rises", "evil", ours) for ours in (None, interval(1, 0.5, 2), None)]
    counts = tally(judged(claims, "panel"))
    assert counts == dict.fromkeys(VERDICTS, 0) | {"same direction": 1, "not measured": 2}


def test_how_far_a_figure_lies_above_a_bound() -> None:
    assert above(interval(80, 0, 90), 80) == interval(0, -80, 10)
    assert above(interval(None, None, None, clusters=3), 80) == interval(None, None, None, clusters=3)
