"""`--cost gradient`: rows by how much likelier a little of the vector makes their replies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from personavec.cli.main import main
from personavec.errors import DataError, ModelError
from personavec.model.chat_model import ChatModel
from personavec.steering.gradient import likelihood_gradients
from personavec.steering.vector import PersonaVector
from personavec.verbs.screen.parallel import ActorEngine, ActorModel, ReadingActor
from personavec.verbs.screen.reading import rungs
from personavec.verbs.screen.screen import screen

ROWS = [{"prompt": f"Say {n}.", "response": f"{n}, {n * n}{'!' * (n % 4)}"} for n in range(30)]


def test_a_row_has_the_gradient_of_its_reply(chat: ChatModel, vector: PersonaVector) -> None:
    found = screen(chat, ROWS, vector, cost="gradient", layers=[1, 2])
    rows = []
    for row in ROWS:
        prompt = chat.render([{"role": "user", "content": row["prompt"]}])
        rows.append({"prompt_ids": prompt, "response_ids": chat.reply_ids(row["response"])})
    expected = np.zeros((len(rows), 2))
    for places, gradients in likelihood_gradients(chat, rows, [1, 2]):
        read = torch.stack([gradients[:, 0, at] @ vector.unit(layer) for at, layer in enumerate((1, 2))], dim=1)
        expected[places] = read.numpy()
    for at, name in enumerate(("tiny@1", "tiny@2")):
        np.testing.assert_allclose(found.table.column(name), expected[:, at], rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(found.table.column(f"{name}.gradient"), found.table.column(name))
    assert found.data["estimate"] == "likelihood gradient"
    assert found.data["verdict_against"] is None and set(found.data["verdict"].values()) == {None}


def test_it_is_kept_and_flags_by_the_clean_set(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["screen", str(data), "--model", str(saved[0]), "--dtype", "float32", "--vectors", str(saved[1])]
    command += ["--cost", "gradient", "--clean", str(data), "--out", str(tmp_path / "run"), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["verdict_against"] == str(data) and first["verdict"] == {"tiny": "neither"}
    assert first["flags"]["kept"] and "likelier a little of a persona vector" in Path(first["report"]).read_text()
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["projection_difference"] == first["projection_difference"] and again["rows_per_second"] is None


def test_it_is_planned_by_its_own_speed(chat: ChatModel, vector: PersonaVector) -> None:
    plan = screen(chat, ROWS, vector, cost="gradient", plan=True).data["plan"]
    assert "seconds" in dict(screen(chat, ROWS, vector, cost="full", plan=True).lines())
    costs = {row["cost"]: row for row in plan["estimates"] if row["rows"] == len(ROWS)}
    assert [*costs] == ["raw", "proxy", "gradient", "sampled", "full"]
    assert costs["gradient"]["tokens_read"] == costs["raw"]["tokens_read"] and costs["gradient"]["seconds"] is not None
    assert costs["gradient"]["seconds"] == pytest.approx(
        costs["raw"]["tokens_read"] / plan["rates"]["gradient_per_second"], abs=0.1
    )
    cheap = screen(chat, ROWS, vector, cost="raw").data["plan"]
    assert cheap["rates"]["gradient_per_second"] is None, "it is not measured where nobody asked for it"
    assert next(row for row in cheap["estimates"] if row["cost"] == "gradient")["seconds"] is None


def test_a_plan_of_another_cost_needs_no_way_back(
    chat: ChatModel, vector: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> None:
        raise NotImplementedError("no backward of this kernel")

    monkeypatch.setattr(torch.autograd, "grad", cannot)
    plan = screen(chat, ROWS, vector, cost="raw", plan=True).data["plan"]
    assert [row["cost"] for row in plan["estimates"][:5] if row["seconds"] is None] == ["gradient"]
    with pytest.raises(ModelError, match="to run backwards"):
        screen(chat, ROWS, vector, cost="gradient", plan=True)


@pytest.mark.parametrize("cost", ["gradient", "proxy"])
def test_rows_that_overflow_are_counted(
    cost: Any, chat: ChatModel, vector: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "likelihood_gradients" if cost == "gradient" else "activations"
    whole = getattr(rungs, name)

    def overflowing(model: ChatModel, rows: Any, *more: Any, **options: Any) -> Any:
        lost = next(place for place, row in enumerate(rows) if len(row["response_ids"]) == longest)
        for places, read in whole(model, rows, *more, **options):
            if lost in places:
                read = read.clone()
                read[places.index(lost), 0, 0, 0] = float("nan")
            yield places, read

    longest = max(len(chat.reply_ids(row["response"])) for row in ROWS)
    good = screen(chat, ROWS, vector, cost=cost)
    monkeypatch.setattr(rungs, name, overflowing)
    found = screen(chat, ROWS, vector, cost=cost, on_error="skip")
    assert found.data["skipped"] == 1
    (reason,) = found.data["skipped_by_reason"]
    assert "got inf or nan" in reason
    kept = np.isfinite(found.table.column("tiny"))
    assert kept.sum() == len(ROWS) - 1 and np.isfinite(found.table.mean_move()).all()
    np.testing.assert_allclose(found.table.column("tiny")[kept], good.table.column("tiny")[kept], rtol=1e-3, atol=1e-6)
    with pytest.raises(DataError, match=r"got inf or nan .*; pass --dtype float32, or --on-error skip"):
        screen(chat, ROWS, vector, cost=cost)


def test_actors_take_it_where_the_weights_are(saved: tuple[Path, Path], vector: PersonaVector) -> None:
    chat = ChatModel.load(str(saved[0]), dtype="float32", device="cpu")  # actors load it by its name

    class Near(ActorEngine):
        def ask(self, work: Any, *arguments: Any) -> Any:
            return ReadingActor(self._load, 1).run(work, arguments)[0]

    far = ActorModel.of(Near(lambda: chat))
    one, two = (screen(each, ROWS, vector, cost="gradient") for each in (chat, far))
    np.testing.assert_allclose(one.table.column("tiny"), two.table.column("tiny"), rtol=1e-3, atol=1e-6)
