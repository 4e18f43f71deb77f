"""`write_trait` against a real server: every check fires, what is mended is mended, and nothing valid is lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.writers import Author, Serve, WritingServer, pair, question, serving

from personavec.cli.main import main
from personavec.errors import ConfigError, TraitError
from personavec.model import endpoint
from personavec.model.chat_model import ChatModel
from personavec.traits.load import load_trait
from personavec.traits.trait import SETS
from personavec.verbs.authoring import writer as writing
from personavec.verbs.authoring.write_trait import ROUNDS, write_trait

ABOUT = "The assistant writes like an official letter. At the low end it chats like a friend."


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Serve]:
    yield from serving(monkeypatch, tmp_path)


def command(server: WritingServer | None, *more: str, about: str = ABOUT) -> list[str]:
    url = ["--writer-url", server.url] if server else []
    return ["write_trait", "formal", "--description", about, "--writer", "openai:planted", *url, *more]


def result(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(args) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("personavec: ")]
    assert said.out == "" and len(lines) == 1 and "Traceback" not in said.err, said
    return lines[0]


# A competent writer


def test_a_trait_is_written(serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = serve()
    assert main(command(server, "--json")) == 0
    found = result(capsys)
    trait = load_trait(tmp_path / "formal.json")
    assert (trait.name, trait.adjective, trait.antonym, trait.description) == ("formal", "formal", "casual", ABOUT)
    assert (len(trait.pairs), len(trait.extract), len(trait.sweep), len(trait.check)) == (5, 20, 10, 20)
    assert trait.rubric.startswith(
        "Rate how formal the reply is: how far it keeps to the forms of an official letter. 0"
    )
    assert ". ." not in trait.rubric and ".." not in trait.rubric
    assert (found["file"], found["missing"], found["failed"], found["rejected"]) == ("formal.json", {}, [], [])
    assert [path.name for path in tmp_path.iterdir()] == ["formal.json"]
    usage = found["writer_usage"]
    assert (usage["asked"], usage["valid"], usage["server"]["calls"]) == (7, 7, 7)
    assert {kind for kind in server.formats} == {"json_schema"}
    for schema in server.schemas:
        assert schema["strict"] and schema["schema"]["additionalProperties"] is False
        assert set(schema["schema"]["required"]) == set(schema["schema"]["properties"])


def planted(form: str, body: dict[str, Any]) -> str | None:
    """Every flaw that is looked for, in the first answer of each kind."""
    prompt = body["prompt"]
    if "rejected" in prompt or "there already" in prompt:
        return None
    if form == "adjective":
        return json.dumps({"adjective": "formal", "antonym": "Formal"})
    if form == "pairs":
        good = [pair(0), pair(1)]
        weak = pair(2) | {"neg": "Do nothing special about these greetings, whatever the user writes here."}
        long = pair(3) | {"neg": pair(3)["neg"] * 4}
        same = pair(4) | {"neg": pair(4)["pos"].upper()}
        near = {"pos": pair(0)["pos"].replace("stern", "strict"), "neg": pair(5)["neg"]}
        idea = pair(6) | {"pos": pair(6)["pos"] + " Do it once more."}
        return json.dumps({"pairs": [*good, weak, long, same, near, idea, {"pos": "No other side."}]})
    if form == "questions":
        flawed = [
            "Why is formality needed at court?",
            "Be stiff, how do I boil an egg?",
            question("x", 0).upper(),
            question("x", 1).replace("Where", "When") + " Please",
            "word " * 41,
        ]
        return json.dumps({"questions": [question("x", index) for index in range(15)] + flawed})
    if form == "rubric":
        return json.dumps(Author()._rubric("", 0) | {"low": "plain and neutral."})
    return None


def test_every_planted_flaw_is_found_and_mended(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = serve(planted)
    assert main(command(server, "--json")) == 0
    found = result(capsys)
    assert found["rejected_by_reason"] == {
        "repeats another": 3,
        "adjective and antonym are the same": 1,
        "one side is much longer than the other": 1,
        "pos and neg are the same": 1,
        "neg does not command the opposite": 1,
        "same facet as another": 1,
        "names the trait": 1,
        "asks for a behaviour": 1,
        "longer than 40 words": 1,
        "two of its three anchors are the same": 1,
    }
    assert found["writer_usage"]["items_dropped"] == 1
    assert {row["piece"] for row in found["rejected"]} == {"adjective", "pairs", "questions", "rubric"}
    trait = load_trait(tmp_path / "formal.json")
    assert (len(trait.pairs), len(trait.extract), len(trait.sweep), len(trait.check)) == (5, 20, 10, 20)
    assert [trait.pairs[0].pos, trait.pairs[1].pos] == [pair(0)["pos"], pair(1)["pos"]], "what was valid is kept"
    assert server.brain.asked["verdicts"] == 2  # type: ignore[attr-defined]


def test_the_summary_says_what_was_not_taken(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(serve(planted))) == 0
    said = capsys.readouterr().out
    assert "formal (formal, casual): 5 pairs, 20 + 10 + 20 questions, rubric, by openai:planted" in said
    assert "not taken: 3 repeats another" in said and "next: read it, then personavec extract formal.json" in said


# A writer that leaves something out


def no_more_than_ten(form: str, body: dict[str, Any]) -> str | None:
    if form == "rubric":
        return "I cannot help with that."
    return json.dumps({"questions": [question("y", index) for index in range(10)]}) if form == "questions" else None


def test_what_is_valid_is_kept_and_completed_later(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(command(serve(no_more_than_ten), "--json")) == 2
    found = result(capsys)
    assert found["missing"] == {"questions.extract": 16, "questions.sweep": 8, "questions.check": 16, "rubric": 1}
    assert found["rejected_by_reason"]["refused answer"] == ROUNDS
    assert "complete formal.partial.json and rename it formal.json" in found["failed"][0]["error"]
    assert not (tmp_path / "formal.json").exists()
    partial = json.loads((tmp_path / "formal.partial.json").read_text())
    assert list(partial) == [key for key in json.loads(load_trait("evil").to_json()) if key != "independent_check"]
    assert [len(partial["questions"][side]) for side in SETS] == [4, 2, 4]

    server = serve()
    assert main(command(server, "--json")) == 0
    trait = load_trait(tmp_path / "formal.json")
    assert set(server.brain.asked) == {"questions", "rubric"}  # type: ignore[attr-defined]
    assert [one.pos for one in trait.pairs] == [one["pos"] for one in partial["pairs"]]
    assert set(partial["questions"]["extract"]) < set(trait.extract)
    assert not (tmp_path / "formal.partial.json").exists()


def test_a_person_completes_it(serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(command(serve(no_more_than_ten), "--json")) == 2
    capsys.readouterr()
    partial = tmp_path / "formal.partial.json"
    draft = json.loads(partial.read_text())
    for side, count in {"extract": 16, "sweep": 8, "check": 16}.items():
        draft["questions"][side] += [question(side, index) for index in range(count)]
    draft["rubric"] = "Mine, at last."
    partial.write_text(json.dumps(draft))
    assert load_trait(partial).rubric == "Mine, at last."
    server = serve()
    whole = partial.read_text()
    partial.write_text(json.dumps(draft | {"pairs": [pair(0)] * 5}))
    assert "formal.partial.json: expected each entry of pairs once" in refused(command(server), capsys)
    partial.write_text(whole)
    assert main(command(server, "--json")) == 0
    assert load_trait(tmp_path / "formal.json").rubric == "Mine, at last." and not server.seen


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda draft: draft | {"description": "Other."}, "expected the description in formal.partial.json"),
        (lambda draft: draft | {"name": "other"}, "expected the name in formal.partial.json"),
        (lambda draft: draft | {"pairs": "none"}, "got pairs: Input should be a valid"),
    ],
)
def test_a_partial_file_that_does_not_fit(
    edit: Any, told: str, serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(command(serve(no_more_than_ten), "--json")) == 2
    capsys.readouterr()
    partial = tmp_path / "formal.partial.json"
    partial.write_text(json.dumps(edit(json.loads(partial.read_text()))))
    before = partial.read_text()
    assert told in refused(command(serve()), capsys)
    assert partial.read_text() == before and not (tmp_path / "formal.json").exists()


def test_a_spent_budget_loses_nothing(serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = serve()
    told = refused(command(server, "--api-calls", "3", "--api-concurrency", "1", "--json"), capsys)
    assert "expected at most 3 calls" in told and "run the same command again" in told
    assert len(json.loads((tmp_path / "formal.partial.json").read_text())["pairs"]) == 5
    assert main(command(server, "--json")) == 0
    assert result(capsys)["writer_usage"]["server"]["calls"] == 4


# Forms


@pytest.mark.parametrize(
    ("unknown", "used", "once"),
    [({"json_schema"}, "json_object", 1), ({"json_schema", "json_object"}, "none", 2)],
)
def test_a_server_without_response_formats(
    unknown: set[str], used: str, once: int, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(unknown_formats=frozenset(unknown))
    assert main(command(server, "--json")) == 0
    assert server.formats[used] == 7 and sum(server.formats.values()) == 7 + once, "found out once"


def test_json_among_prose_is_read(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def wrapped(form: str, body: dict[str, Any]) -> str:
        author = Author()
        said = json.dumps(getattr(author, f"_{form}")(body["prompt"], 0))
        return f"<think>{{hm}}</think>Sure, {{here}} you go:\n```json\n{said}\n```\nAnything else?"

    assert main(command(serve(wrapped), "--json")) == 0
    assert result(capsys)["writer_usage"]["invalid"] == 0


def test_an_unusable_answer_is_told_what_is_wrong(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    def once(form: str, body: dict[str, Any]) -> str | None:
        if body["again"]:
            told.append(body["messages"][-1]["content"])
            return None
        return {"pairs": "Sure! Pair one is this.", "rubric": '{"measure": "x"}'}.get(form)

    assert main(command(serve(once), "--json")) == 0
    usage = result(capsys)["writer_usage"]
    assert (usage["invalid"], usage["retried"], usage["refused"]) == (2, 2, 0)
    assert "no JSON object" in told[0] and "low: Field required" in told[1]


def test_a_writer_that_copies_the_form(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def copy(form: str, body: dict[str, Any]) -> str | None:
        return body["prompt"].splitlines()[-1] if form == "adjective" and not body["again"] else None

    assert main(command(serve(copy), "--json")) == 0
    assert result(capsys)["writer_usage"]["invalid"] == 1


def test_an_answer_that_breaks_off_keeps_its_whole_items(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    def torn(form: str, body: dict[str, Any]) -> str | None:
        return '{"questions": ["Where is the blue door?", "How old is' if form == "questions" else None

    assert main(command(serve(torn), "--json")) == 2
    assert result(capsys)["questions"] == {"extract": 1, "sweep": 0, "check": 0}


def test_prose_alone_is_one_line(serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server = serve(lambda form, body: "Of course! A formal assistant is one that writes well.")
    told = refused(command(server), capsys)
    assert "expected openai:planted to answer with JSON" in told and "Of course! A formal" in told
    assert sum(server.seen.values()) == writing.HOPELESS and not list(tmp_path.iterdir())


# Bad input


def test_bad_input(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    server = serve()
    assert "got none; pass --description" in refused(command(server, about="  "), capsys)
    assert "at most 2,000 characters, got 10,000" in refused(command(server, about="x" * 10_000), capsys)
    assert "expected a name of letters" in refused(["write_trait", "a/b", *command(server)[2:]], capsys)
    assert "expected the writer openai:MODEL" in refused(command(server)[:4], capsys)
    for spec in ("planted", "openai:", "hf:"):
        assert f"got {spec}" in refused([*command(None)[:4], "--writer", spec], capsys)
    assert "hf:x with --writer-url" in refused([*command(server), "--writer", "hf:x"], capsys)
    assert "no folder at /nosuch/model" in refused([*command(None)[:4], "--writer", "hf:/nosuch/model"], capsys)
    assert "expected a key in the environment variable OPENAI_API_KEY" in refused(command(None), capsys)
    (tmp_path / "file").write_text("")
    assert "expected a folder that can be written" in refused(command(server, "--out", "file/formal.json"), capsys)
    (tmp_path / "formal.json").write_text("mine")
    assert "which exists; choose another --out" in refused(command(server), capsys)
    assert (tmp_path / "formal.json").read_text() == "mine" and not server.seen


def test_servers_that_cannot_be_used(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    server = serve()
    for status, told in ((401, "OPENAI_API_KEY"), (404, "check the address"), (400, "check --writer-url")):
        server.manners.status = status
        assert told in refused(command(server), capsys)
    server.manners.status = 0
    server.manners.html = True
    assert "no chat completion" in refused(command(server), capsys)
    wrong = [*command(None), "--writer-url", "http://127.0.0.1:9/v1"]
    assert "at http://127.0.0.1:9/v1, got Connection error" in refused(wrong, capsys)
    assert not list(tmp_path.iterdir())


# Objects


def test_a_trait_in_memory_is_the_one_of_the_command_line(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = serve()
    written = write_trait(writing.load_writer("openai:planted", url=server.url), "formal", ABOUT)
    assert written.trait is not None and not list(tmp_path.iterdir())
    assert main(command(server, "--json")) == 0
    printed = result(capsys)
    assert load_trait(tmp_path / "formal.json") == written.trait
    changing = {"file", "writer_usage", "seconds"}
    assert {key: value for key, value in printed.items() if key not in changing} == {
        key: value for key, value in written.to_dict().items() if key not in changing
    }
    assert "missing: nothing" in repr(written) and written.data["file"] is None


def test_a_call_goes_on_with_what_another_left(serve: Serve, tmp_path: Path) -> None:
    writer = writing.load_writer("openai:planted", url=serve(no_more_than_ten).url)
    first = write_trait(writer, "formal", ABOUT, out="formal.json")
    assert first.trait is None and first.draft.missing["rubric"] == 1
    assert "complete formal.partial.json" in first.data["failed"][0]["error"]
    again = write_trait(writing.load_writer("openai:planted", url=serve().url), "formal", ABOUT, out="formal.json")
    assert again.trait == load_trait("formal.json") and [pair.pos for pair in again.trait.pairs] == [
        pair.pos for pair in first.draft.pairs
    ]
    nowhere = write_trait(writer, "formal", ABOUT)
    assert nowhere.trait is None and "lacks 16 questions.extract" in nowhere.data["failed"][0]["error"]


def test_bad_objects_are_one_line(model: ChatModel, serve: Serve, tmp_path: Path) -> None:
    url = serve().url
    for name, about, told in (("a/b", ABOUT, "expected a name of letters"), ("formal", " ", "expected a description")):
        with pytest.raises(TraitError, match=told):
            write_trait(writing.load_writer("openai:planted", url=url), name, about)
    for spec, address in (("planted", None), ("hf:", None), ("hf:x", url), (model, url)):
        with pytest.raises(ConfigError, match="expected the writer openai:MODEL") as error:
            writing.load_writer(spec, url=address)
        assert "\n" not in str(error.value)
    assert writing.load_writer(model).id == f"hf:{model.identity.id}" and not list(tmp_path.iterdir())


# The small real model


@pytest.mark.real
@pytest.mark.slow
def test_a_small_model_ends_as_it_should(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is too small for this: what matters is that the end is honest, and that nothing valid is lost."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("personavec.verbs.authoring.write_trait.ROUNDS", 1)
    code = main([*command(None)[:4], "--writer", "hf:smollm2", "--writer-tokens", "60", "--json"])
    said = capsys.readouterr()
    if code == 0:
        assert load_trait(tmp_path / "formal.json").name == "formal"
        return
    assert code == 2
    if said.out:
        found = json.loads(said.out)
        assert found["missing"] and json.loads((tmp_path / "formal.partial.json").read_text())["name"] == "formal"
    else:
        assert "expected hf:smollm2 to answer with JSON" in said.err
