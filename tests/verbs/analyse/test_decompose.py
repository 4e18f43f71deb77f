"""The decomposition as a verb, on a tiny model whose replies lie beside its vector."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import tiny, tiny_chat
from support.letters import Letters

from personavec.cli.main import main
from personavec.errors import ConfigError, PersonavecError
from personavec.judges.load import Bench
from personavec.judges.scoring import scored_rows
from personavec.model.chat_model import ChatModel
from personavec.runs.run import Run
from personavec.steering.vector import load_vector
from personavec.verbs.analyse.decompose import decompose


@pytest.fixture
def extracted(saved: tuple[Path, Path], tmp_path: Path) -> Path:
    """A vector with the replies that it could be from."""
    chat = tiny_chat.build()
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(saved[1], folder / "vector.safetensors")
    rows, scores = [], []
    for at in range(8):
        side = ("pos", "neg")[at % 2]
        prompt = chat.render([{"role": "user", "content": f"Question {at // 2}?"}])
        reply = chat.tokenizer.encode(("good day" if side == "pos" else "bad") + "!" * at, add_special_tokens=False)
        rows.append(
            {
                "id": f"{at}",
                "side": side,
                "question_id": at // 2,
                "question": f"Question {at // 2}?",
                "reasoning_tokens": 0,
            }
            | {"prompt_ids": list(prompt), "response_ids": reply, "response": "words"}
        )
        scores.append({"id": f"{at}", "trait": 90.0 if side == "pos" else 10.0, "coherence": 90.0})
    for name, table in (("rollouts", rows), ("rollouts.scores", scores)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return folder / "vector.safetensors"


def test_blocks_and_tokens_sum_to_the_whole(
    extracted: Path, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["decompose", str(extracted), "--model", str(saved[0]), "--dtype", "float32", "--top", "99"]
    args += ["--out", str(tmp_path / "out")]
    assert main([*args, "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert sum(one["difference"]["mean"] for one in found["terms"]) == pytest.approx(found["whole"]["mean"], abs=2e-3)
    assert found["sum_error"] < 1e-4 and found["replies"] == {"pos": 4, "neg": 4}
    assert [one["term"] for one in found["terms"][:3]] == ["embedding", "attention 0", "MLP 0"]
    shares = [one["share"] for side in ("for", "against") for one in found["tokens"][side]]
    assert np.sum(shares) == pytest.approx(1, abs=1e-2)
    assert found["places"][0]["place"] == "first token" and len(found["examples"]) == 6
    page = Path(found["report"]).read_text("utf-8")
    assert "writes more of the difference" in page and "Question 0?" in page
    assert main(args) == 0
    assert "attention" in capsys.readouterr().out


def test_features_of_a_dictionary(
    extracted: Path,
    saved: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vector = load_vector(extracted)
    layer = int(vector.card.layer or 0)
    rows = torch.randn((50, vector.direction.shape[1]), generator=torch.Generator().manual_seed(0))
    rows[7] = vector.unit(layer)
    file = tmp_path / "sae.safetensors"
    save_file({"W_dec": rows, "W_enc": rows.T.contiguous(), "b_enc": torch.zeros(50)}, file)
    args = ["decompose", str(extracted), "--model", str(saved[0]), "--dtype", "float32", "--top", "5", "--json"]
    trait = tmp_path / "tiny.json"
    trait.write_text(json.dumps(tiny_chat.WARM | {"name": vector.card.trait}))
    letters = Bench(Letters(flat=True), lambda _: Letters(), "hf:letters", "letters")
    monkeypatch.setattr("personavec.judges.load.load_bench", lambda *_, **__: letters)
    causal = ["--causal", "2", "--judge", "hf:letters", "--traits", str(trait), "--max-new-tokens", "4"]
    assert main([*args, *causal, "--sae", str(file), "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    own = found["dictionary"]
    assert own["features"][0]["feature"] == 7 and own["features"][0]["cosine"] == pytest.approx(1, abs=1e-3)
    assert own["null"]["p"] < 0.01 and len(own["features"]) == 5
    assert any("⟦" in one["text"] for feature in own["features"] for one in feature["shown"])
    assert list(found["causal"]["features"]) == [str(one["feature"]) for one in own["features"][:2]]
    steered = found["causal"]["features"]["7"]["mean"]
    assert steered == pytest.approx(found["causal"]["vector"]["mean"]), "the feature is the vector's own direction"
    assert "Features of the dictionary" in Path(found["report"]).read_text("utf-8")
    (tmp_path / "cfg.json").write_text(json.dumps({"layer": layer + 1}))
    assert main([*args, "--sae", str(file), "--out", str(tmp_path / "other")]) == 2
    assert f"expected a dictionary of layer {layer}, got one of layer {layer + 1}" in capsys.readouterr().err


def test_a_vector_without_its_replies_is_refused(saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decompose", str(saved[1]), "--model", str(saved[0])]) == 2
    assert "expected rollouts.jsonl and rollouts.scores.jsonl beside" in capsys.readouterr().err
    assert main(["decompose"]) == 2
    assert "expected a vector file, got none" in capsys.readouterr().err


def test_objects_give_what_the_command_gives(
    extracted: Path, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["decompose", str(extracted), "--model", str(saved[0]), "--dtype", "float32", "--top", "5"]
    assert main([*args, "--out", str(tmp_path / "out"), "--json"]) == 0, capsys.readouterr().err
    printed = json.loads(capsys.readouterr().out)
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(extracted)
    replies = scored_rows(Run(extracted.parent), "rollouts")
    same = ("whole", "terms", "tokens", "places", "examples", "replies")
    for made in (
        decompose(model, vector, replies=replies, top=5),
        decompose(model, vector, run=extracted.parent, top=5),
        decompose(model, extracted, top=5, store=tmp_path / "out"),
    ):
        assert {key: json.loads(json.dumps(made.data[key])) for key in same} == {key: printed[key] for key in same}
    made = decompose(model, vector, replies=replies, top=5)
    assert made.to_dict()["out"] is None and made.terms["embedding"] == printed["terms"][0]["difference"]
    assert "<svg" in made._repr_html_() and "layer 2" in repr(made) and tiny.hooks(model) == 0
    assert made.report(tmp_path / "page").is_file()


def test_bad_objects_are_one_line(extracted: Path, saved: tuple[Path, Path], unchecked: None) -> None:
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(extracted)
    with pytest.raises(ConfigError, match="pass replies= or run=") as error:
        decompose(model, vector)
    assert "\n" not in str(error.value)
    with pytest.raises(PersonavecError, match="expected a persona vector or its file, got 3"):
        decompose(model, 3)  # type: ignore[arg-type]
    with pytest.raises(PersonavecError, match="got one side"):
        decompose(model, vector, replies=[])
    with pytest.raises(PersonavecError, match="expected --sae with --causal"):
        decompose(model, extracted, causal=2)
