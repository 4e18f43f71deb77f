"""A tiny chat model, and a vector of it that was read from a file."""

from pathlib import Path

import pytest
from support import tiny_chat

from personavec.model.chat_model import ChatModel
from personavec.steering.vector import PersonaVector, load_vector


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny_chat.build()


@pytest.fixture(scope="module")
def vector(saved: tuple[Path, Path]) -> PersonaVector:
    return load_vector(saved[1])
