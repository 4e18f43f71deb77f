"""The real small model with a steering baked into its weights."""

from pathlib import Path

import pytest
from support import tiny

from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering
from personavec.verbs.interop.bake import bake


@pytest.mark.slow
@pytest.mark.real
def test_the_real_model_is_baked(tmp_path: Path) -> None:
    model = ChatModel.load("smollm2", dtype="float32")
    vector = tiny.vector(model)
    told = bake(model, Steering(vector, 1.0, 15), tmp_path / "baked")
    assert told["distance"] < 1e-4 < 1e-2 < told["moved"]
