"""The space of personas of a model behind a server."""

from pathlib import Path

import pytest
from support import tiny
from support.vllm_double import Double

import personavec.verbs.analyse.space as verb
from personavec.model.chat_model import ChatModel
from personavec.model.engines.vllm import connect


@pytest.mark.slow
def test_it_is_the_same(saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    every = verb.geometry.built_in_personas()
    few = verb.geometry.Personas(every.names[:3], every.prompts[:3], every.questions[:6])
    monkeypatch.setattr(verb.geometry, "built_in_personas", lambda: few)
    model = ChatModel.load(str(saved[0]), dtype="float32", device="cpu")
    vector = tiny.vector(model, layer=2, coef=1.0)
    double = Double(model, [vector]).start()
    try:
        remote = connect(f"vllm:{double.url}", str(saved[0]))
        here, there = (verb.space(each, vector, max_new_tokens=5, temperature=0.0).data for each in (model, remote))
    finally:
        double.stop()
    assert here["personas"] == there["personas"] == 3
    for a, b in zip(here["ranks"], there["ranks"], strict=True):
        assert a["effective_rank"]["mean"] == pytest.approx(b["effective_rank"]["mean"], abs=1e-3)
    for a, b in zip(here["axes"]["axes"], there["axes"]["axes"], strict=True):
        assert a["share"] == pytest.approx(b["share"], abs=1e-3)
