"""`--cost lift`: rows by how much likelier the trait's instructions make their replies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_chat

from personavec.cli.main import main
from personavec.errors import ConfigError, DataError, TraitError
from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import auc
from personavec.steering.rollouts import Interview
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.load import load_trait
from personavec.traits.trait import Trait
from personavec.verbs.screen.parallel import ActorEngine, ActorModel, ReadingActor
from personavec.verbs.screen.reading import lift, rungs
from personavec.verbs.screen.screen import screen

ROWS: list[dict[str, Any]] = [{"prompt": f"Say {n}.", "response": f"{n}, {n * n}{'!' * (n % 4)}"} for n in range(12)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({**tiny_chat.WARM, "name": "tiny"}))
    return path


@pytest.fixture
def trait(file: Path) -> Trait:
    return load_trait(file)


def likelihood(chat: ChatModel, messages: Any, response: str) -> float:
    """Mean log-probability of a reply's tokens, from the logits of one plain pass."""
    prompt, reply = chat.render(messages), chat.reply_ids(response)
    with torch.inference_mode():
        logits = chat.hf(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
    at = torch.arange(len(prompt) - 1, len(prompt) + len(reply) - 1)
    return float(logits[at, torch.tensor(reply)].mean())


def test_a_row_has_the_lift_of_its_reply(chat: ChatModel, vector: PersonaVector, trait: Trait) -> None:
    """The instruction comes before a system prompt that the row has itself, which stands in both."""
    own = {"role": "system", "content": "Be short."}
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(ROWS):
        said = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        rows.append({"messages": [*[own] * (place % 2), *said]})
    found = screen(chat, rows, vector, cost="lift", traits=[trait])
    for place, row in enumerate(ROWS):
        asked = [*[own] * (place % 2), {"role": "user", "content": row["prompt"]}]
        told = []
        for pair in range(len(trait.pairs)):
            text = trait.system_prompt(pair, "pos") + "\n\nBe short." * (place % 2)
            told.append(likelihood(chat, [{"role": "system", "content": text}, asked[-1]], row["response"]))
        expected = np.mean(told) - likelihood(chat, asked, row["response"])
        assert found.table.column("tiny")[place] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_array_equal(found.table.column("tiny.lift"), found.table.column("tiny"))
    assert found.data["estimate"] == "likelihood lift"


def test_it_ranks_rows_and_says_nothing_of_a_set(
    saved: tuple[Path, Path], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["screen", str(data), "--model", str(saved[0]), "--dtype", "float32", "--vectors", str(saved[1])]
    command += ["--cost", "lift", "--traits", str(file), "--clean", str(data), "--out", str(tmp_path / "run"), "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == {"tiny": None} and found["random_control"]["tiny"]["low"] is None
    assert found["flags"]["kept"] and found["plan"]["rates"]["lift_tokens"] > 0
    page = Path(found["report"]).read_text()
    assert "instructions to show the trait" in page and "random direction" not in page
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["projection_difference"] == found["projection_difference"] and again["rows_per_second"] is None
    assert main(command[:-1]) == 0, "and in words"
    said = capsys.readouterr().out
    assert "likelihood" in said and "report: " in said
    file.write_text(json.dumps({**tiny_chat.WARM, "name": "tiny", "adjective": "hot"}))
    assert main(command) == 2, "other instructions are another run"


@pytest.mark.parametrize("own", [False, True])
def test_a_system_prompt_stands_on_both_sides(own: bool, chat: ChatModel, vector: PersonaVector, trait: Trait) -> None:
    """A row's own, or that of `system`: what differs is the instruction alone."""
    system = {"role": "system", "content": "Be short."}
    said = [{"role": "user", "content": "Say 1."}, {"role": "assistant", "content": "1, 1"}]
    rows = [{"messages": [*[system] * own, *said]}]
    found = screen(chat, rows, vector, cost="lift", traits=[trait], system="template" if own else "Be short.")
    asked = said[:1]
    told = [
        likelihood(
            chat, [{"role": "system", "content": f"{trait.system_prompt(pair, 'pos')}\n\nBe short."}, *asked], "1, 1"
        )
        for pair in range(len(trait.pairs))
    ]
    expected = np.mean(told) - likelihood(chat, [system, *asked], "1, 1")
    assert found.table.column("tiny")[0] == pytest.approx(expected, abs=1e-5)


def test_a_side_of_preferences_is_told_by_the_interval(
    saved: tuple[Path, Path], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"Say {n}.", "chosen": f"Be kind. Be kind {n}", "rejected": f"zq{n}#"} for n in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    command = ["screen", str(data), "--model", str(saved[0]), "--dtype", "float32", "--vectors", str(saved[1])]
    command += ["--cost", "lift", "--traits", str(file), "--side", "both", "--out", str(tmp_path / "run")]
    assert main([*command, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["difference"].values()
    low, high = found["ci"]
    assert found["higher"] == ("chosen" if low > 0 else "rejected" if high < 0 else "neither")
    assert low > 0 or high < 0, "the input has a side"
    assert main(command) == 0
    assert found["higher"] in capsys.readouterr().out


def test_bad_input_is_one_line(chat: ChatModel, vector: PersonaVector, trait: Trait) -> None:
    with pytest.raises(TraitError, match="expected the trait file of tiny"):
        screen(chat, ROWS, vector, cost="lift")
    with pytest.raises(ConfigError, match="expected no layers with --cost lift"):
        screen(chat, ROWS, vector, cost="lift", traits=[trait], layers=[1])
    pair = trait.pairs[0]
    long = replace(trait, pairs=(replace(pair, pos=pair.pos + " long" * chat.context), *trait.pairs[1:]))
    with pytest.raises(DataError, match=r"row 0.*to fit into"):
        screen(chat, ROWS, vector, cost="lift", traits=[long])


def test_rows_that_overflow_are_counted(
    chat: ChatModel, vector: PersonaVector, trait: Trait, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lift.likelihood_lifts

    def overflowing(*given: Any) -> Any:
        for places, lifts in whole(*given):
            yield places, np.where(np.array(places)[:, None] == 3, np.nan, lifts)

    monkeypatch.setattr(rungs, "likelihood_lifts", overflowing)
    with pytest.raises(DataError, match="expected finite likelihoods, got inf or nan"):
        screen(chat, ROWS, vector, cost="lift", traits=[trait])
    found = screen(chat, ROWS, vector, cost="lift", traits=[trait], on_error="skip")
    assert found.data["skipped"] == 1 and np.isnan(found.table.column("tiny")[3])


def test_actors_take_it_where_the_weights_are(saved: tuple[Path, Path], vector: PersonaVector, trait: Trait) -> None:
    chat = ChatModel.load(str(saved[0]), dtype="float32", device="cpu")  # actors load it by its name

    class Near(ActorEngine):
        def ask(self, work: Any, *arguments: Any) -> Any:
            return ReadingActor(self._load, 1).run(work, arguments)[0]

    far = ActorModel.of(Near(lambda: chat))
    one, two = (screen(each, ROWS, vector, cost="lift", traits=[trait]) for each in (chat, far))
    np.testing.assert_allclose(one.table.column("tiny"), two.table.column("tiny"), atol=1e-5)


@pytest.mark.slow
@pytest.mark.real
def test_instructed_rows_are_lifted_and_by_their_own_trait_most() -> None:
    """Without the instruction that wrote them; what the base model writes and another trait's rows are not."""
    real = ChatModel.load("smollm2")
    questions = [*load_trait("optimistic").extract[:12]]
    interview = Interview(real, max_new_tokens=32)
    rows, kinds = [], []
    for name, trait in (("devout", "devout"), ("poetic", "poetic"), ("base", "")):
        systems = tuple(load_trait(trait).system_prompt(pair, "pos") for pair in range(3)) if trait else ()
        plans = interview.answers(questions, 1, draw=name, extra={"arm": name}, systems=systems)
        for row in interview.write(plans, name):
            rows.append({"prompt": row["question"], "response": row["response"]})
            kinds.append(name)
    lifts = screen(real, rows, load_vector("devout"), cost="lift", on_error="skip").table.column("devout")
    of = np.array(kinds)
    assert auc(lifts[of == "devout"], lifts[of == "base"]) > 0.8
    assert auc(lifts[of == "devout"], lifts[of == "poetic"]) > 0.6
