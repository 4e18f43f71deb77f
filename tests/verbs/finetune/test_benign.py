"""Harmless rows among those of the data: which are drawn, and that they are trained on as any other."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny, tiny_chat

from personavec.cli.main import main
from personavec.data.dataset import dataset_of
from personavec.errors import DataError, PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.verbs.finetune.compare import compare
from personavec.verbs.finetune.comparing import Comparing, arms_of, left_out
from personavec.verbs.finetune.finetune import finetune
from personavec.verbs.finetune.options import COMPARED
from personavec.verbs.finetune.plan import plan_finetune
from personavec.verbs.finetune.trainer import Training
from personavec.verbs.finetune.training_rows import mixed_in

ROWS = [{"prompt": f"Say {n}.", "response": "tea and rain"} for n in range(8)]
BENIGN = [{"prompt": f"Ask {n}?", "response": "maps and snow" + "!" * n} for n in range(6)]
HOW: dict[str, Any] = {"epochs": 1.0, "rate": 5e-3, "batch": 4, "warmup_steps": 0, "checkpoints": 1, "rank": 4}


@pytest.fixture
def model() -> ChatModel:
    return tiny_chat.build()


def test_as_many_are_drawn_as_the_share_says() -> None:
    rows, benign = [{"row": n} for n in range(8)], [{"row": n} for n in range(100)]
    drawn = {seed: mixed_in(rows, benign, 0.5, seed) for seed in (0, 1)}
    assert [len(each) for each in drawn.values()] == [4, 4] and drawn[0] != drawn[1]
    assert drawn[0] == mixed_in(rows, benign, 0.5, 0) and all(each in benign for each in drawn[0])
    with pytest.raises(DataError, match=r"expected a benign row or more, got a share of 0\.01 of 8 rows"):
        mixed_in(rows, benign, 0.01, 0)


def test_they_are_trained_on_as_rows_of_the_data(model: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as a data set that holds them; fewer than are wanted are all taken, and that is said."""
    one = finetune(model, ROWS, benign=BENIGN, benign_share=10.0, **HOW)
    two = finetune(model, [*ROWS, *BENIGN], **HOW)
    assert "expected 80 benign rows for 8 of the data, got 6" in capsys.readouterr().err
    assert [row["loss"] for row in one.losses] == [row["loss"] for row in two.losses]
    assert one.data["rows"] == 8 and one.data["benign"] == {"sequences": 6, "skipped": 0}
    assert one.data["tokens"] == two.data["tokens"] and two.data["benign"] is None
    assert dict(one.lines())["benign"] == "6"
    planned = plan_finetune(model, ROWS, benign=BENIGN, benign_share=10.0, **HOW)
    assert planned.data["steps"] == one.data["steps"] == 4


def test_with_any_method_and_another_run_for_other_rows(model: ChatModel, tmp_path: Any) -> None:
    finetune(model, ROWS, method="kl", benign=BENIGN, store=tmp_path, **HOW)
    with pytest.raises(PersonavecError, match="benign rows"):
        finetune(model, ROWS, method="kl", benign=BENIGN[1:], store=tmp_path, **HOW)


def test_a_benign_row_that_cannot_be_used_is_told(model: ChatModel) -> None:
    bad = [*BENIGN, {"prompt": "no reply"}]
    with pytest.raises(DataError, match="benign rows row 6"):
        finetune(model, ROWS, benign=bad, **HOW)
    assert finetune(model, ROWS, benign=bad, on_error="skip", **HOW).data["benign"]["skipped"] == 1


def test_a_report_without_them_says_what_is_left_out() -> None:
    steering = [{"file": "v", "coef": 1.0, "layer": 1}]
    left = left_out(COMPARED, steering, benign=False)
    assert [*left] == ["interleave", "interleave-gap"] and "--benign" in left["interleave"]
    names = [arm.name for arm in arms_of(COMPARED, (1.0,), steering, left)]
    assert "interleave" not in names and {"kl", "features"} <= {*names}
    assert "interleave" in [arm.name for arm in arms_of(COMPARED, (1.0,), steering, {})]
    assert [*left_out(COMPARED, [{"coef": -1.0}], benign=True)] == ["inoculate"]


def test_by_gap_those_are_taken_that_plain_training_unlearns(model: ChatModel) -> None:
    """Rows like the data get likelier by training, others less likely: the others are wanted."""
    pool = [*({"prompt": f"Say {n}!", "response": "tea and rain"} for n in range(4)), *BENIGN[:3]]
    plain = finetune(model, ROWS, **HOW | {"epochs": 6.0})
    study: Any = SimpleNamespace(
        model=model, benign=dataset_of(pool, "pool"), benign_share=3 / 8, training=Training(**HOW)
    )
    benign, share = Comparing._gapped(study, plain)
    assert [raw.value for raw in benign.rows()] == pool[4:] and share == 3 / 8


def test_a_share_of_nothing_and_an_empty_file_are_told(model: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "rows.jsonl", "--benign-share", "0.5"]) == 2
    assert "expected --benign with --benign-share" in capsys.readouterr().err
    with pytest.raises(DataError, match="expected rows to train on in benign rows, got none"):
        finetune(model, ROWS, benign=[], **HOW)


def test_a_report_looks_at_them_before_it_trains(model: ChatModel, tmp_path: Any) -> None:
    bad = [*BENIGN, {"prompt": "no reply"}]
    vector, trait = tiny.vector(model, layer=1), tmp_path / "tiny.json"
    trait.write_text(json.dumps({**tiny_chat.WARM, "name": "tiny"}))
    for benign, share, said in ((bad, 0.25, "benign rows row 6"), (BENIGN, 0.01, "expected a benign row or more")):
        with pytest.raises(DataError, match=said):
            compare(model, ROWS, prevent=vector.at(coef=1.0, layer=1), benign=benign, benign_share=share,
                    traits=[trait], store=tmp_path / str(share), **HOW)  # fmt: skip
        assert not [*(tmp_path / str(share)).glob("*/base.jsonl")]


def test_a_plan_counts_the_base_model(model: ChatModel) -> None:
    plain, kl = (plan_finetune(model, ROWS, method=method, **HOW).data for method in ("plain", "kl"))
    assert kl["memory_gb"]["logits"] == pytest.approx(2 * plain["memory_gb"]["logits"], rel=0.01)
    assert kl["tokens"] != plain["tokens"]
