"""The dashboard in a real browser, in front of a real server with the tiny model."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.monitor.calibration import KINDS, Band, Calibration, VectorCalibration

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")

VIEWS = ("chat", "compare", "conversations", "reports")
START_SECONDS = 120
READABLE = 4.5
"""Contrast that text needs. Source: WCAG 2.2, success criterion 1.4.3."""


@contextmanager
def serve(folder: Path, *options: object) -> Iterator[str]:
    """Address of `personavec serve` with these options."""
    command = [sys.executable, "-m", "personavec", "serve", *map(str, options), "--port", "0"]
    told = folder / "told.txt"
    with told.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=os.environ | {"HOME": str(folder)})
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", told.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, told.read_text()
            time.sleep(0.05)
        yield address[0]
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def vectors(saved: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A vector of which every turn is unusual, one of which none is, and the calibration that says so."""
    folder = tmp_path_factory.mktemp("vectors")
    tiny = load_vector(saved[1])
    other = PersonaVector(tiny.direction.flip(-1), dataclasses.replace(tiny.card, trait="other"))
    bands = {tiny: Band(1000, 1e3, 1.0, 999.0, 1001.0), other: Band(1000, 0.0, 10.0, -30.0, 30.0)}
    usual = {
        vector.content_hash: VectorCalibration(vector.card.trait, 2, {"all": dict.fromkeys(KINDS, band)})
        for vector, band in bands.items()
    }
    calibration = Calibration(dataclasses.asdict(tiny.card.model), 0.01, usual)
    calibration.save(folder / "calibration.json")
    return saved[1], other.save(folder / "other.safetensors"), folder / "calibration.json"


@pytest.fixture(scope="module")
def served(
    saved: tuple[Path, Path], vectors: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    tiny, other, calibration = vectors
    options = ("--model", saved[0], "--vectors", tiny, other, "--calibration", calibration, "--keep-text")
    with serve(tmp_path_factory.mktemp("served"), *options) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, address: str, view: str = "chat", **context: Any) -> Iterator[Any]:
    """A page whose script must not fail, with short replies and a fixed seed."""
    failures: list[str] = []
    page = browser.new_page(**context)
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda line: line.type == "error" and "Security" in line.text and failures.append(line.text))
    page.goto(f"{address}/#{view}")
    page.locator("#trait option").first.wait_for(state="attached")
    page.locator("#sampling > summary").click()
    page.locator("#max-tokens").fill("24")
    page.locator("#seed").fill("3")
    yield page
    page.close()
    assert not failures


@pytest.fixture
def page(browser: Any, served: str) -> Iterator[Any]:
    with opened(browser, served) as page:
        yield page


def send(page: Any, text: str = "Hello", view: str = "chat") -> None:
    """Send a prompt and wait for the whole reply."""
    page.locator(".reply").evaluate_all("all => all.forEach(one => { one.dataset.old = 1; })")
    page.locator(f"#{view}-form-prompt").fill(text)
    page.locator(f"#{view}-form-prompt").press("Enter")
    new = page.locator(".reply[aria-busy=false]:not([data-old])")
    new.nth(1 if view == "compare" else 0).wait_for(state="attached")


def shades(page: Any) -> list[str]:
    script = "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
    return list(page.locator(".token").evaluate_all(script))


def test_a_reply_streams(page: Any) -> None:
    page.evaluate("""() => {
        window.counts = new Set();
        const count = () => window.counts.add(document.querySelectorAll('.token').length);
        new MutationObserver(count).observe(document.querySelector('#transcript'), {subtree: true, childList: true});
    }""")
    send(page)
    assert page.locator(".question").inner_text() == "Hello"
    assert 3 < page.locator(".token").count() <= 24, "more tokens than were asked for"
    assert page.evaluate("window.counts.size") > 3, "the tokens came all at once"
    assert "Reply" in page.locator("#said").inner_text()


@pytest.mark.slow
def test_the_conversation_goes_on_with_its_turns(page: Any) -> None:
    send(page)
    with page.expect_request("**/v1/chat/completions") as sent:
        send(page, "And then?")
    body = sent.value.post_data_json
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", body["persona"]["conversation"])
    assert page.locator("#drift-here tbody tr").count() == 2


@pytest.mark.slow
def test_a_slider_sets_the_dose_of_the_request(page: Any) -> None:
    def steering() -> Any:
        with page.expect_request("**/v1/chat/completions") as sent:
            send(page)
        return sent.value.post_data_json["persona"].get("steering")

    assert steering() is None, "the server's defaults were replaced before a slider moved"
    page.locator("#dose-tiny").fill("0.05")
    assert steering() == [{"vector": "tiny", "dose": 0.05}]
    assert page.locator(".reply").last.locator(".chip", has_text="tiny +0.05").count() == 1
    page.locator("#dose-tiny").dblclick()
    assert steering() is None
    page.get_by_label("Dose of tiny").fill("99")
    page.get_by_label("Dose of tiny").blur()
    assert page.locator("#dose-tiny").input_value() == page.locator("#dose-tiny").get_attribute("max")


def test_doses_beyond_the_safe_range_are_told(page: Any) -> None:
    slider = page.locator(".slider", has=page.locator("#dose-tiny"))
    safe = page.evaluate("fetch('/v1/vectors').then(r => r.json()).then(all => all.data[0].safe_dose)")
    slider.get_by_label("Dose of tiny").fill(str(safe + 0.01))
    slider.get_by_label("Dose of tiny").blur()
    assert "fall apart" in slider.inner_text()
    assert "beyond the safe range" in page.locator("#dose-tiny").get_attribute("aria-valuetext")
    slider.get_by_role("button").click()
    assert "fall apart" not in slider.inner_text()


def test_the_shading_is_of_the_chosen_trait(page: Any) -> None:
    send(page)
    page.locator("#trait").select_option("tiny")
    page.wait_for_timeout(100)  # a frame
    one, legend = shades(page), page.locator("#legend").inner_text()
    page.locator("#trait").select_option("other")
    page.wait_for_timeout(100)
    assert len(set(shades(page))) > 3, "every token has the same shade"
    assert shades(page) != one
    assert page.locator("#legend").inner_text() != legend


def test_a_token_tells_its_value_to_the_keyboard(page: Any) -> None:
    page.locator("#trait").select_option("other")
    send(page)
    page.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert re.match(r"other [+−]?\d+\.\d\d · token 2 of \d+", page.locator("#tip").inner_text())
    page.keyboard.press("Tab")
    assert page.locator("#tip").is_hidden()


def test_an_alert_is_seen_and_listed(page: Any) -> None:
    send(page, "Is this unusual?")
    alert = page.locator(".reply .alert")
    assert "tiny over the reply" in alert.inner_text() and "below the usual" in alert.inner_text()
    assert "other" not in alert.inner_text()
    page.locator("nav a", has_text="Conversations").click()
    page.get_by_label("with alerts only").check()
    assert "alert" in page.locator(".entry .badge").first.inner_text()
    page.locator(".entry").first.click()
    page.locator("#detail .question", has_text="Is this unusual?").wait_for()
    assert page.locator("#drift-there canvas").count() == 2


def test_compare_sends_one_prompt_twice(browser: Any, served: str) -> None:
    bodies: list[Any] = []
    with opened(browser, served, "compare", viewport={"width": 1280, "height": 900}) as page:
        page.on("request", lambda sent: "completions" in sent.url and bodies.append(sent.post_data_json))
        page.locator("#dose-tiny").fill("0.05")
        send(page, "Hello", "compare")
        left, right = (page.locator(".column").nth(index).bounding_box() for index in (0, 1))
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
        assert "tiny +0.05" in page.locator(".column h3").first.inner_text()
    assert sorted(len(body["persona"]["steering"]) for body in bodies) == [0, 1]
    assert bodies[0]["seed"] == bodies[1]["seed"] and bodies[0]["messages"] == bodies[1]["messages"]


def test_nothing_is_cut_off_on_a_phone(browser: Any, served: str) -> None:
    with opened(browser, served, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        send(page, "A long word: " + "w" * 90)
        for view in VIEWS:
            page.goto(f"{served}/#{view}")
            page.locator(f"#{view}").wait_for()
            for panel in page.locator("aside > details:not([open]) > summary").all():
                panel.click() if panel.is_visible() else None
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, view


def test_the_keyboard_is_enough(page: Any) -> None:
    page.reload()  # nothing has the focus
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "chat-form-prompt":
            break
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    page.keyboard.press("Enter")
    page.locator(".token").nth(3).wait_for(state="attached")
    assert page.locator(".question").inner_text() == "One\nTwo"


ESCAPE_AT_THE_FIRST_TOKEN = """new MutationObserver((_, self) => {
    if (!document.querySelector(".token")) return;
    self.disconnect();
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
}).observe(document.body, {childList: true, subtree: true})"""


def test_escape_stops_a_reply(page: Any) -> None:
    page.locator("#max-tokens").fill("220")
    page.evaluate(ESCAPE_AT_THE_FIRST_TOKEN)  # from here a tiny model may have ended before the key arrives
    page.locator("#chat-form-prompt").fill("Hello")
    page.locator("#chat-form-prompt").press("Enter")
    page.locator(".chip", has_text="stopped").wait_for()
    assert page.get_by_role("button", name="Send").is_visible()
    assert page.locator(".token").count() < 220


def test_text_is_never_markup(page: Any) -> None:
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    send(page, attack)
    assert page.locator(".question").inner_text() == attack
    page.locator("nav a", has_text="Conversations").click()
    page.locator(".entry").first.click()
    page.locator("#detail .question", has_text=attack).first.wait_for()
    assert page.locator("main img, main script").count() == 0


@pytest.mark.slow
def test_a_lost_connection_is_told_and_tried_again(page: Any) -> None:
    page.context.set_offline(True)
    page.locator("#chat-form-prompt").fill("Hello")
    page.locator("#chat-form-prompt").press("Enter")
    page.locator(".problem", has_text="does not answer").wait_for()
    page.locator("#notice", has_text="Trying again").wait_for()
    page.context.set_offline(False)
    page.locator(".problem button").click()
    page.locator(".token").first.wait_for(state="attached")
    assert page.locator(".problem").count() == 0 and page.locator(".question").count() == 1
    page.locator("#status[data-state=ok]").wait_for()


def test_the_words_of_the_server_are_shown(page: Any) -> None:
    page.locator("#temperature").fill("99")
    with page.expect_response("**/v1/chat/completions") as answered:
        page.locator("#chat-form-prompt").fill("Hello")
        page.locator("#chat-form-prompt").press("Enter")
    assert answered.value.status == 400
    assert answered.value.json()["error"]["message"] in page.locator(".problem").inner_text()


def luminance(colour: str) -> float:
    """Relative luminance of a computed colour. Source: WCAG 2.2."""
    shares = [int(figure) / 255 for figure in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(page: Any, text: str, ground: str) -> float:
    script = """names => names.map(name => {
        const probe = document.body.appendChild(document.createElement('i'));
        probe.style.color = `var(--${name})`;
        const colour = getComputedStyle(probe).color;
        probe.remove();
        return colour;
    })"""
    dark, light = sorted(map(luminance, page.evaluate(script, [text, ground])))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(browser: Any, served: str, scheme: str, tmp_path: Path) -> None:
    pairs = [("ink", ground) for ground in ("ground", "paper", "raised", "low", "high", "accent-tint", "alert-tint")]
    pairs += [
        ("quiet", "ground"),
        ("quiet", "paper"),
        ("accent", "paper"),
        ("alert", "alert-tint"),
        ("caution", "paper"),
    ]
    with opened(browser, served, color_scheme=scheme) as page:
        send(page)
        weak = {pair: contrast(page, *pair) for pair in pairs if contrast(page, *pair) < READABLE}
        assert not weak
        before = page.screenshot(path=tmp_path / f"{scheme}.png")
        page.locator("#theme").click()
        assert page.screenshot() != before
        assert luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2 or scheme == "dark"


def test_a_key_is_asked_for(browser: Any, saved: tuple[Path, Path], tmp_path: Path) -> None:
    with serve(tmp_path, "--model", saved[0], "--vectors", saved[1], "--api-key", "open-sesame") as address:
        page = browser.new_page()
        page.goto(address)
        for key, told in (("guess", "did not accept"), ("open-sesame", "")):
            page.get_by_label("Key", exact=True).fill(key)
            page.get_by_label("Key", exact=True).press("Enter")
            page.locator("#key-note", has_text=told).wait_for(state="attached")
        page.locator("#trait option", has_text="tiny").wait_for(state="attached")
        send(page)
        assert page.locator(".token").count() > 0
        page.close()


def test_without_a_calibration_the_curve_has_a_measure(page: Any) -> None:
    said = page.evaluate("""async () => {
        const { drift } = await import("/static/drift.js");
        const box = document.body.appendChild(document.createElement("div"));
        const turn = { turn: 1, projections: { tiny: { prompt_last: 1, response_avg: 2 } }, alerts: [] };
        drift(box, [turn], { id: "tiny", trait: "warm", difference: 5.66 });
        return box.textContent;
    }""")
    assert "Start the server with --calibration FILE." in said
    assert "replies written to be warm lay 5.7 above those written to be the opposite" in said
