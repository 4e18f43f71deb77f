"""With turn="every" each reply is a row, and means, intervals and subsets are of whole conversations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from personavec.errors import ConfigError, DataError
from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import clustered_mean
from personavec.steering.vector import PersonaVector
from personavec.verbs.screen.screen import screen


def talk(n: int) -> dict[str, Any]:
    """A conversation of one to three replies; in every fifth the first is not to be learned."""
    turns: list[dict[str, Any]] = []
    for turn in range(1 + n % 3):
        turns += [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n * n + turn}!"}]
    if n % 5 == 2:
        turns[1]["weight"] = 0
    return {"messages": turns, "source": "ab"[n % 2]}


TALKS = [talk(n) for n in range(12)]
REPLIES = sum(1 + n % 3 - (n % 5 == 2) for n in range(12))


def test_every_reply_is_a_row_of_its_conversation(chat: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    shown = screen(chat, TALKS, vector, turn="every", keep_below=80, export_k=1, store=tmp_path / "run")
    table = shown.rows
    assert shown.data["rows"] == len(table) == REPLIES and shown.data["conversations"] == len(TALKS)
    assert table["row"].to_pylist() == list(range(REPLIES)) and shown.data["rows_with_more_turns"] == 0
    conversations = table["conversation"].to_numpy()
    assert set(conversations.tolist()) == set(range(12))
    values = table["tiny"].to_numpy().astype(float)
    assert shown.mean["tiny"] == clustered_mean(values, conversations)
    first = screen(chat, TALKS, vector)
    assert first.data["rows"] == 12 and first.rows["conversation"].to_pylist() == list(range(12))

    def written(name: str) -> list[int]:
        lines = Path(shown.data["files"][name]).read_text().splitlines()
        return [TALKS.index(json.loads(line)) for line in lines]

    limit = shown.data["flags"]["thresholds"]["tiny"]
    over = set(conversations[values > limit].tolist())
    assert written("kept") == [n for n in range(12) if n not in over]
    assert shown.data["flags"]["kept_conversations"] == 12 - len(over) != shown.data["flags"]["kept"]
    assert written("top-tiny") == [conversations[np.argmax(values)]]


def test_a_reply_that_the_model_cannot_take_stops_the_run_before_anything_is_read(
    chat: ChatModel, vector: PersonaVector, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whether a conversation can be rendered is known only with the model; it is looked at before the speed is."""
    called = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]
    rows = [*TALKS, {"messages": [*TALKS[0]["messages"][:1], *called, {"role": "tool", "content": "1"}]}]
    with pytest.raises(DataError, match=r"row 12: .*correct that row"):
        screen(chat, rows, vector, turn="last")
    assert "measuring speed" not in capfd.readouterr().err


@pytest.mark.parametrize("cost", ["raw", "proxy", "full"])
def test_a_reply_has_the_value_that_it_has_as_the_last_of_a_conversation(
    cost: Any, chat: ChatModel, vector: PersonaVector
) -> None:
    shown = screen(chat, TALKS, vector, turn="every", cost=cost, max_new_tokens=6).rows
    talks = [talk["messages"] for talk in TALKS]
    learned = [
        {"messages": turns[: end + 1]}
        for turns in talks
        for end, turn in enumerate(turns)
        if turn["role"] == "assistant" and turn.get("weight") != 0
    ]
    alone = screen(chat, learned, vector, turn="last", cost=cost, max_new_tokens=6).rows
    np.testing.assert_allclose(shown["tiny"].to_numpy(), alone["tiny"].to_numpy(), rtol=1e-3, atol=1e-4)


def test_a_sampled_interval_is_not_for_replies_of_one_conversation(chat: ChatModel, vector: PersonaVector) -> None:
    with pytest.raises(ConfigError, match="expected --turn first or last with --cost sampled"):
        screen(chat, TALKS, vector, turn="every", cost="sampled")
