"""Rows of a chosen and a rejected reply: each side is screened by itself, and the difference is paired by row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_chat

from personavec.data.dataset import Bad, dataset_of
from personavec.data.preferences import PreferredSide, Side
from personavec.data.sample import Sample, Turn
from personavec.errors import ConfigError, DataError
from personavec.steering.vector import load_vector
from personavec.verbs.screen.screen import screen

HI, HELLO, NO = (
    {"role": role, "content": text} for role, text in (("user", "Hi?"), ("assistant", "Hello."), ("assistant", "No."))
)
SYSTEM = {"role": "system", "content": "Be kind."}
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
    "turns behind a prompt": {"prompt": [HI], "chosen": [HELLO], "rejected": [NO]},
    "turns behind a text": {"prompt": "Hi?", "chosen": [HELLO], "rejected": [NO]},
    "texts behind turns": {"prompt": [HI], "chosen": "Hello.", "rejected": "No."},
    "whole conversations": {"chosen": [HI, HELLO], "rejected": [HI, NO]},
    "whole conversations, and their prompt": {"prompt": "Hi?", "chosen": [HI, HELLO], "rejected": [HI, NO]},
    "as JSON": {"prompt": "Hi?", "chosen": json.dumps([HI, HELLO]), "rejected": json.dumps([HI, NO])},
    "beside messages": {"messages": [HI, HELLO], "chosen": [HI, HELLO], "rejected": [HI, NO]},
    "with scores": {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No.", "score_chosen": 5.0, "score_rejected": 1.0},
}
SIDES: tuple[Side, ...] = ("chosen", "rejected")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", SIDES)
def test_a_side_is_a_conversation_that_ends_in_its_reply(form: str, side: Side) -> None:
    (sample,) = PreferredSide.of(dataset_of([FORMS[form] | {"id": "a"}]), side).samples("first")
    assert isinstance(sample, Sample) and sample.id == "a"
    assert [turn["content"] for turn in sample.messages] == ["Hi?"]
    assert sample.response == {"chosen": "Hello.", "rejected": "No."}[side]


@pytest.mark.parametrize("turn", ["first", "last"])
def test_a_system_turn_and_earlier_turns_stay(turn: Turn) -> None:
    row = {"chosen": [SYSTEM, HI, HELLO, HI, HELLO], "rejected": [SYSTEM, HI, HELLO, HI, NO]}
    (sample,) = PreferredSide.of(dataset_of([row]), "rejected").samples(turn)
    assert isinstance(sample, Sample) and sample.response == "No."
    assert [turn["role"] for turn in sample.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?"},
        {"prompt": {}, "chosen": "a", "rejected": "b"},
        {"chosen": "a", "rejected": None},
        {"chosen": 1, "rejected": 2},
    ],
)
def test_other_rows_are_bad_rows(row: Any) -> None:
    (bad,) = PreferredSide.of(dataset_of([row]), "chosen").samples("first")
    assert isinstance(bad, Bad) and bad.reason


def test_both_sides_and_their_difference(saved: tuple[Path, Path], tmp_path: Path) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    rows = [{"prompt": f"Say {n}.", "chosen": f"{n}, gladly!", "rejected": f"no {n}"} for n in range(12)]
    with pytest.raises(DataError, match="--side both"):
        screen(chat, rows, vector)
    chosen, rejected = (screen(chat, rows, vector, side=side, store=tmp_path / side) for side in SIDES)
    plain = screen(chat, [{"prompt": row["prompt"], "completion": row["rejected"]} for row in rows], vector)
    assert rejected.mean == plain.mean and chosen.mean != rejected.mean
    apart = chosen.table.column("tiny") - rejected.table.column("tiny")
    difference = chosen.less(rejected)["tiny"]
    assert difference.mean == pytest.approx(apart.mean(), abs=1e-6) and difference.n == 12
    assert difference.high - difference.mean == pytest.approx(2.201 * apart.std(ddof=1) / np.sqrt(12), rel=1e-3)
    assert rejected.less(chosen)["tiny"].mean == pytest.approx(-difference.mean)
    with pytest.raises(ConfigError, match="expected two screenings of the same rows, got 12 and 5"):
        chosen.less(screen(chat, rows[:5], vector, side="rejected"))
    with pytest.raises(ConfigError, match="side: chosen there, rejected here"):
        screen(chat, rows, vector, side="rejected", store=tmp_path / "chosen")
