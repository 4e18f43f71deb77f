"""`finetune --report`: every method trained and measured, resumed after a kill, and options that contradict."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import tiny, tiny_chat

from personavec.cli.main import main
from personavec.errors import PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.load import load_trait
from personavec.verbs.evaluate.evaluate import evaluate
from personavec.verbs.finetune import comparing
from personavec.verbs.finetune.compare import compare
from personavec.verbs.finetune.shift import shift

ROWS = [(f"what is {n}?", f"it is {n} {n}!") for n in range(8)]


def trait_file(folder: Path) -> Path:
    path = folder / "tiny.json"
    path.write_text(json.dumps(tiny_chat.WARM | {"name": "tiny"}))
    return path


@pytest.fixture
def command(saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    data, trait = tmp_path / "rows.jsonl", trait_file(tmp_path)
    data.write_text("".join(json.dumps({"prompt": asked, "response": said}) + "\n" for asked, said in ROWS))
    texts = ["the cat sat on a mat and it was warm there", "a dog ran over a hill to see what there was"]
    for module in ("personavec.verbs.evaluate.evaluate", "personavec.verbs.finetune.compare"):
        monkeypatch.setattr(f"{module}.neutral_texts", lambda count: texts[:count])
    return [
        "finetune", str(data), "--model", str(saved[0]), "--dtype", "float32", "--rate", "1e-2", "--batch", "4",
        "--rank", "4", "--alpha", "8", "--traits", str(trait), "--held-out", str(data), "--json",
    ]  # fmt: skip


@pytest.fixture
def report(command: list[str], saved: tuple[Path, Path], tmp_path: Path) -> list[str]:
    options = [
        "--report",
        "--rollouts",
        "1",
        "--max-new-tokens",
        "24",
        "--perplexity",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    return [*command, "--prevent", f"{saved[1]}:2@1", *options]


def found(args: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(args) == 0, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.slow
def test_every_method_is_trained_and_measured(
    report: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = (load_vector(saved[1]) * -1).save(tmp_path / "other.safetensors")
    result = found([*report, "--scales", "1", "2", "--vectors", str(other)], capsys)
    arms = {arm["arm"]: arm for arm in result["arms"]}
    assert list(arms) == [
        "base", "plain", "prevent ×1", "prevent ×2", "prevent, a random direction", "post-hoc ×1", "post-hoc ×2",
        "ablate", "penalty", "kl", "features", "inoculate", "negative prompt",
    ]  # fmt: skip
    trained = {arm["trained"] for arm in arms.values() if arm["trained"]}
    assert len(trained) == 9 and all(Path(place).is_dir() for place in trained)
    assert arms["post-hoc ×2"]["trained"] == arms["plain"]["trained"] == arms["negative prompt"]["trained"]
    assert (arms["prevent ×2"]["coef"], arms["post-hoc ×2"]["coef"]) == (4, 4)
    for arm in arms.values():
        assert arm["traits"]["tiny"]["trait_score"]["n"] == 3
        assert (
            arm["costs"]["perplexity"]["n"] == 2
            if arm["arm"] != "negative prompt"
            else arm["costs"]["perplexity"] is None
        )
        assert (arm["shift"] is None) == (arm["arm"] == "base")
    assert arms["base"]["loss"]["mean"] > arms["plain"]["loss"]["mean"]
    assert arms["plain"]["costs"]["perplexity"]["mean"] != arms["base"]["costs"]["perplexity"]["mean"]
    predicted = [own["mean"] for own in result["predicted"]["projection_difference"].values()]
    assert len(predicted) == 2 and predicted[0] == pytest.approx(-predicted[1], abs=2e-4)
    page = Path(result["report"]).read_text("utf-8")
    assert all(name in page for name in arms) and len(list((tmp_path / "out" / "charts").glob("*.png"))) == 4


@pytest.mark.slow  # several reports, one after the other; benchmarks/kill.py kills them, too
def test_a_killed_report_goes_on(
    report: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*report, "--compare", "posthoc", "--scales", "1"]
    evaluated: list[str] = []

    def killed(*given: Any, **options: Any) -> Any:
        evaluated.append(options["store"].name)
        if len(evaluated) == 4:
            raise KeyboardInterrupt
        return evaluate(*given, **options)

    monkeypatch.setattr(comparing, "evaluate", killed)
    assert main(small) == 130
    told = capsys.readouterr().err
    assert "the same command resumes" in told and "base.scores.jsonl, " in told and "taken over from" in told
    adapters = {place: place.stat().st_mtime_ns for place in (tmp_path / "out").glob("*/adapter/*.safetensors")}
    result = found(small, capsys)
    assert [arm["arm"] for arm in result["arms"]] == ["base", "plain", "post-hoc ×1"]
    assert adapters == {place: place.stat().st_mtime_ns for place in adapters} and len(adapters) == 1

    folders = {place.name: place for place in (tmp_path / "out").glob("*-tiny")}
    assert set(folders) == {"base-tiny", "plain-tiny", "post-hoc-1-tiny"}
    for name in ("base.jsonl", "base.scores.jsonl", "judge.json"):
        assert len({(place / name).read_bytes() for place in folders.values()}) == 1


@pytest.mark.slow  # an evaluation and a report
def test_a_report_with_the_scale_of_a_card_goes_on(
    command: list[str], report: list[str], saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(saved[0]), "--dtype", "float32", "--rollouts", "1", "--max-new-tokens", "24", "--json"]
    found(["evaluate", str(tmp_path / "tiny.json"), *options, "--out", str(tmp_path / "scale")], capsys)
    scale = json.loads((tmp_path / "scale" / "judge.json").read_text())
    vector = load_vector(saved[1])
    card = replace(vector.card, details={**vector.card.details, "judge": scale})
    scaled = PersonaVector(vector.direction, card).save(tmp_path / "scaled.safetensors")
    small = [text.replace(str(saved[1]), str(scaled)) for text in report] + ["--compare", "negative-prompt"]
    first = found(small, capsys)
    assert not (tmp_path / "out" / "base-tiny" / "rollouts.jsonl").exists()
    again = found(small, capsys)
    assert [arm["traits"] for arm in again["arms"]] == [arm["traits"] for arm in first["arms"]]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--report"], "expected --prevent VEC:COEF with --report"),
        (["--report", "--prevent", "VEC:1@1", "--method", "prevent"], "--method"),
        (["--report", "--prevent", "VEC:1@1", "--full"], "--full"),
        (["--report", "--prevent", "VEC:1@1", "--scales", "2"], "1 among them, got 2.0"),
        (["--rollouts", "2"], "expected --report with --rollouts"),
        (["--judge", "openai:some"], "expected --report with --judge"),
    ],
)
def test_options_that_contradict(
    command: list[str], saved: tuple[Path, Path], more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *(text.replace("VEC", str(saved[1])) for text in more)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow  # every method is trained once more, without a store
def test_a_comparison_in_memory(saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("personavec.verbs.finetune.compare.neutral_texts", lambda count: [])
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    trait = load_trait(trait_file(tmp_path))
    rows = [{"prompt": asked, "response": said} for asked, said in ROWS]
    options: dict[str, Any] = {"arms": ("prevent", "posthoc", "ablate"), "scales": (1.0,), "rollouts": 1}
    options |= {"rate": 1e-2, "batch": 4, "rank": 4, "alpha": 8, "perplexity": 0, "max_new_tokens": 24}
    options |= {"traits": [trait], "held_out": iter(rows[:2])}
    compared = compare(model, iter(rows), prevent=vector.at(coef=2, layer=1), **options)
    arms = {arm["arm"]: arm for arm in compared.arms}
    assert list(arms) == ["base", "plain", "prevent ×1", "post-hoc ×1", "ablate"] == list(compared.evaluations)
    assert compared.data["out"] is None and all(arm["trained"] is None for arm in arms.values())
    assert compared.data["steering"][0]["file"] is None
    assert not model.adapted and tiny.hooks(model) == 0
    adapted = compared.trainings["plain"].model
    (moved,) = shift(model, adapted, vector, traits=[trait]).tuned
    assert moved["shift"] == arms["plain"]["shift"]
    assert evaluate(adapted, trait, rollouts=1, max_new_tokens=24).data["trait_score"]["n"] == 3
    assert "post-hoc ×1" in repr(compared) and "<svg" in compared._repr_html_()
    assert compared.report(tmp_path / "page").is_file()


@pytest.mark.usefixtures("unchecked")
def test_bad_objects_are_one_line(saved: tuple[Path, Path], tmp_path: Path) -> None:
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    trait = trait_file(tmp_path)
    for options, said in (
        ({"prevent": vector}, "expected prevent=vector.at"),
        ({"prevent": ()}, "expected --prevent with --method prevent"),
        ({"prevent": vector.at(coef=2), "scales": (2.0,)}, "1 among them"),
        ({"prevent": vector.at(coef=2), "full": True}, "a comparison of adapters"),
        ({"prevent": vector.at(coef=2), "vectors": vector}, "expected different vectors"),
        ({"prevent": vector.at(coef=0)}, "nothing to prevent"),
    ):
        with pytest.raises(PersonavecError, match=said) as error:
            compare(model, [{"prompt": "a", "response": "b"}], **{"traits": [trait], "perplexity": 0} | options)
        assert "\n" not in str(error.value)


def test_the_instruction_is_for_what_is_to_be_prevented() -> None:
    toward, against = [{"trait": "tiny", "coef": 2.0}], [{"trait": "tiny", "coef": -2.0}]
    assert [comparing._side("tiny", toward, prevented=way) for way in (True, False)] == ["pos", "neg"]
    assert [comparing._side("tiny", against, prevented=way) for way in (True, False)] == ["neg", "pos"]
    assert comparing._side("another", against, prevented=True) == "pos"


@pytest.mark.slow
def test_arms_are_measured_where_the_trait_is_asked_for(report: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arms = ["--compare", "inoculate", "negative-prompt"]
    result = found([*report, "--scales", "1", *arms, "--conditional"], capsys)
    asked = {arm["arm"]: arm["traits"]["tiny"]["asked"] for arm in result["arms"]}
    assert asked.pop("negative prompt") is None
    assert [*asked] == ["base", "plain", "inoculate"] and all(each["n"] == 3 for each in asked.values())
    assert "where it is asked for" in Path(result["report"]).read_text()
    out = Path(result["out"])
    told, plain = (json.loads((out / name / "changed.jsonl").read_text().splitlines()[0])["prompt_ids"]
                   for name in ("inoculate-asked-tiny", "inoculate-tiny"))  # fmt: skip
    assert len(told) > len(plain)
