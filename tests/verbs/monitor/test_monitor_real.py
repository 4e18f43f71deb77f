"""Monitoring on the small real model: one pass over a conversation gives what reading it reply by reply gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.steering.vector import Card, PersonaVector
from personavec.traits.load import load_trait

pytestmark = pytest.mark.real
SAID = ("Yes, and gladly.", "I would rather not.", "It depends on the weather.", "Ask me again tomorrow.")


@pytest.mark.slow
def test_one_pass_over_a_conversation_equals_reply_by_reply(tmp_path: Path) -> None:
    model = ChatModel.load("smollm2", dtype="float32")
    direction = torch.randn((model.n_layers, model.identity.d_model), generator=torch.Generator().manual_seed(0))
    vector = PersonaVector(direction, Card("some", model.identity, "response avg", layer=14))
    asked = load_trait("optimistic").check
    talks = [
        [
            {"role": role, "content": text}
            for turn in range(1 + n % 3)
            for role, text in (("user", asked[n + turn]), ("assistant", SAID[(n + turn) % 4]))
        ]
        for n in range(6)
    ]
    data = tmp_path / "talks.jsonl"
    data.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    args = ["monitor", str(data), "--vectors", str(vector.save(tmp_path / "some.safetensors")), "--dtype", "float32"]
    command = [sys.executable, "-m", "personavec", *args, "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in Path(json.loads(done.stdout)["table"]).open()]

    places = [(talk, place) for talk in talks for place, turn in enumerate(talk) if turn["role"] == "assistant"]
    replies = [
        {"prompt_ids": model.render(talk[:place]), "response_ids": model.encode(talk[place]["content"])}
        for talk, place in places
    ]
    for batch, read in activations(model, replies, ("prompt last", "response avg"), [14]):
        for index, own in zip(batch, read[:, :, 0] @ vector.unit(14), strict=True):
            found = rows[index]["vectors"]["some"]
            assert [found["prompt_last"], found["response_avg"]] == pytest.approx(own.tolist(), abs=5e-3)
    assert len(rows) == len(replies) == 12
