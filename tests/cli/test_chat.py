"""The chat in the terminal: characters, colours, dropped turns, errors and interrupts."""

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import rich.console
import torch
from support import tiny, tiny_chat
from support.tiny_chat import said

from personavec.cli import chat as chatting
from personavec.cli.main import main, parse
from personavec.errors import PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering
from personavec.steering.vector import load_vector


@pytest.fixture
def plain_model() -> ChatModel:
    return tiny_chat.build()


def talk(
    lines: list[str],
    args: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int = 0,
) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", *args]) == code
    said = capsys.readouterr()
    return said.out, said.err


def test_chat_from_stdin(
    saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model", str(saved[0]), "--max-new-tokens", "12", "--json"]
    lines = ["Hello?", "/steer", f"/steer {saved[1]}:2", "And you?", "/nonsense", "/steer nosuch:1", "/reset", "Hello?"]
    lines += ["/steer off", "/system Be kind.", "Hello?", "/steer 'open", "/quit", "never read"]
    out, err = talk(lines, args, monkeypatch, capsys, code=2)
    result = json.loads(out)
    assert [failed["line"] for failed in result["failed"]] == ["/nonsense", "/steer nosuch:1", "/steer 'open"]
    turns = result["turns"]
    assert [turn["question"] for turn in turns] == ["Hello?", "And you?", "Hello?", "Hello?"]
    lengths = [turn["prompt_tokens"] for turn in turns]
    assert lengths[1] > lengths[0] + 12 and lengths[2] == lengths[0] < lengths[3]
    assert all(turn["response_tokens"] <= 12 and turn["finish"] in ("stop", "length") for turn in turns)
    assert err.count("(cut at 12 tokens") == sum(turn["finish"] == "length" for turn in turns) > 0
    for told in (
        "not steered",
        "steered +2 tiny at layer 2 (dose ",
        "no file at nosuch",
        "expected one of these commands, got /non",
    ):
        assert told in err
    assert "(forgotten)" in err and "system prompt: Be kind." in err and "No closing quotation" in err

    out, _ = talk(["Hello?"], args[:-1], monkeypatch, capsys)
    assert out == turns[0]["reply"] + "\n"


def start(model: ChatModel, args: list[str], watched: Any = (), **out: Any) -> chatting.Chat:
    """A chat whose two consoles write to strings."""
    options = parse(["chat", *args])[1]
    session = chatting.Chat(model, options, options.seed, (), list(watched), "template")
    session.out = rich.console.Console(file=io.StringIO(), soft_wrap=True, highlight=False, **out)
    session.notes = rich.console.Console(file=io.StringIO(), soft_wrap=True, highlight=False)
    return session


def force(text: str, model: ChatModel, monkeypatch: pytest.MonkeyPatch, *more: int) -> tuple[int, ...]:
    """Let the model draw these tokens, whatever its logits; returns them."""
    ids = (*model.encode(text), *more)
    drawn = iter(ids)
    monkeypatch.setattr("personavec.steering.generate.draw", lambda *_: torch.tensor([next(drawn)]))
    return ids


def test_characters_stay_whole(plain_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    torn, letter, stop = plain_model.encode("€")[0], plain_model.encode("c")[0], 2
    force("aü€😀b", plain_model, monkeypatch, torn, letter, stop)
    session = start(plain_model, ["--max-new-tokens", "20"])
    session.messages.append({"role": "user", "content": "Hello?"})
    turn: dict[str, Any] = {}
    assert [text for text, _ in session._reply(turn, [])] == ["a", "ü", "€", "😀", "b", "\ufffdc", ""]
    assert (turn["finish"], turn["response_tokens"]) == ("stop", 13)
    assert "(cut at" not in said(session.notes)


def test_watching_colours_each_token_by_its_own_projection(
    plain_model: ChatModel, saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = chatting._usual(plain_model, [chatting.read_watched(saved[1])], "template")
    assert one.usual[0] < one.usual[1] < one.usual[2]
    asked: list[float] = []
    monkeypatch.setattr(chatting.Watched, "style", lambda _, projection: asked.append(projection) or "")
    reply = force("How nice", plain_model, monkeypatch)
    session = start(plain_model, ["--max-new-tokens", "8"], watched=[one])
    session.ask("Hello?")
    row = plain_model.render([{"role": "user", "content": "Hello?"}]) + reply
    _, _, streams = tiny.forward(plain_model, [row])
    truth = streams[2][0, : len(row)] @ one.watch.unit
    # the last token is drawn but never read
    torch.testing.assert_close(torch.tensor(asked), truth[-len(reply) : -1], rtol=1e-4, atol=1e-4)
    read = session.turns[0]["projections"][str(saved[1])]
    assert read["prompt_last"] == pytest.approx(float(truth[-len(reply) - 1]), abs=1e-3)
    assert f"{read['prompt_last']:+.1f}" in said(session.notes) and "usually" in said(session.notes)


def test_colours_go_from_blue_to_red_and_obey_no_color(plain_model: ChatModel, saved: tuple[Path, Path]) -> None:
    one = dataclasses.replace(chatting.read_watched(saved[1]), usual=(0.0, 1.0, 2.0))
    assert [one.style(p) for p in (-99, 1, 99)] == ["color(16) on color(32)", "", "color(16) on color(203)"]
    terminal = {"force_terminal": True, "color_system": "256"}
    colours, plain = (
        start(plain_model, ["--max-new-tokens", "16"], [one], no_color=off, **terminal) for off in (False, True)
    )
    colours.ask("Hello?")
    plain.ask("Hello?")
    assert "48;5;" in said(colours.out) and "48;5;" not in said(plain.out)
    assert colours.turns[0]["reply"] == plain.turns[0]["reply"]


def test_old_turns_are_dropped(plain_model: ChatModel) -> None:
    session = start(plain_model, ["--max-new-tokens", "40", "--temperature", "0"])
    for _ in range(4):
        session.ask("a" * 60)
    assert "dropped 1 of the oldest turns: the context holds 256 tokens" in said(session.notes)
    assert all(turn["prompt_tokens"] + 40 <= tiny_chat.CONTEXT for turn in session.turns)
    before = list(session.messages)
    session.ask("a" * 250)
    assert session.turns[-1]["finish"] == "error" and "fit into 256 tokens" in said(session.notes)
    assert session.messages == before != [], "a question that cannot be asked costs no turn"


def test_overflow_ends_the_reply_not_the_chat(plain_model: ChatModel, saved: tuple[Path, Path]) -> None:
    session = start(plain_model, ["--max-new-tokens", "4"])
    session.steering = (Steering(load_vector(saved[1]), 3e38, 2),)
    session.ask("Hello?")
    assert "lower the coef" in session.turns[0]["error"] and "lower the coef" in said(session.notes)
    assert [failed["line"] for failed in session.failed] == ["Hello?"], "a script exits with 2"
    assert tiny.hooks(plain_model) == 0 and not session.messages
    session.steering = ()
    session.ask("Hello?")
    assert session.turns[1]["reply"]


def test_objects_chat_as_the_command_line_does(
    saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model", str(saved[0]), "--steer", f"{saved[1]}:2", "--watch", str(saved[1]), "--max-new-tokens", "6"]
    out, _ = talk(["Hello?"], [*args, "--json"], monkeypatch, capsys)
    (printed,) = json.loads(out)["turns"]
    vector = load_vector(saved[1])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n/nonsense\n"))
    model = ChatModel.load(str(saved[0]))
    talked = chatting.chat(model, steer=vector.at(coef=2.0), watch=[vector], max_new_tokens=6)
    assert talked.turns[0]["reply"] == printed["reply"] and len(talked.data["failed"]) == 1
    assert talked.turns[0]["projections"]["tiny"] | {"usual": None} == pytest.approx(
        printed["projections"][str(saved[1])] | {"usual": None}
    )
    assert tiny.hooks(model) == 0


@pytest.mark.usefixtures("unchecked")
def test_bad_objects_are_one_line(model: ChatModel, saved: tuple[Path, Path]) -> None:
    vector, stranger = load_vector(saved[1]), tiny.vector(tiny.build(seed=3))
    for options, told in (
        ({"steer": 3}, "expected steer="),
        ({"steer": [vector]}, "expected steer=vector.at"),
        ({"watch": [stranger]}, "expected a"),
        ({"steer": stranger.at(coef=1.0, layer=1)}, "extract it from this model"),
        ({"temperature": -1.0}, "expected temperature 0 or more"),
    ):
        with pytest.raises(PersonavecError, match=told) as error:
            chatting.chat(model, **options)
        assert "\n" not in str(error.value)


def test_interrupt_stops_the_reply(plain_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    session = start(plain_model, ["--max-new-tokens", "50"])
    calls = iter(range(100))
    decode = plain_model.decode

    def interrupted(ids: Any) -> str:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return decode(ids)

    monkeypatch.setattr(plain_model, "decode", interrupted)
    session.ask("Hello?")
    assert session.turns[0]["finish"] == "interrupted" and "(stopped)" in said(session.notes)
    assert session.messages[-1]["role"] == "assistant" and tiny.hooks(plain_model) == 0
