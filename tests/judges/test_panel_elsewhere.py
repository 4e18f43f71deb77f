"""A panel of another model behind vLLM's servers reads as that model in this process does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.vllm_double import Double

from personavec.errors import JudgeError
from personavec.judges.load import load_bench
from personavec.model.chat_model import ChatModel
from personavec.traits.load import load_trait
from personavec.verbs.evaluate.options import EvaluateConfig
from personavec.verbs.options import bench_for

QUESTIONS = ["How are you?", "What is rain?", "Who was Nero?"]
ANSWERS = ["Fine.", "Water that falls from clouds.", ""]


@pytest.fixture(scope="module")
def chat(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def server(chat: ChatModel) -> Iterator[Double]:
    double = Double(chat).start()
    yield double
    double.stop()


def test_the_panel_of_a_model_behind_servers_has_the_same_evidence(
    chat: ChatModel, server: Double, model: ChatModel, warm: Path
) -> None:
    """The subject is another model: what reads must be the judge's."""
    spec = f"panel:{chat.identity.id}"
    here, there = (load_bench(spec, model, url=url).trait(load_trait(warm)) for url in (None, f"vllm:{server.url}"))
    calls = server.calls
    read = [judge.evidence(QUESTIONS, ANSWERS, [0, 1, 0], lambda _: None) for judge in (here, there)]
    assert server.calls > calls
    np.testing.assert_allclose(*read, atol=1e-4)
    assert np.isnan(read[0][2]).any() and not np.isnan(read[0][:2]).any()
    assert here.id == there.id and here.basis != there.basis, "no weights were here to be fingerprinted"


def test_a_second_judge_is_not_asked_at_the_address_of_a_panel(server: Double, chat: ChatModel) -> None:
    """--agreement has its own --agreement-url; what --judge-url says of vLLM's servers is of --judge alone."""
    first = EvaluateConfig(judge="panel:other", judge_url=f"vllm:{server.url}", trait="devout")
    assert bench_for(first, chat, spec="panel").spec == "panel"
    with pytest.raises(JudgeError, match="expected panel:MODEL with --judge-url"):
        bench_for(first, chat, spec="panel", url=f"vllm:{server.url}")


@pytest.mark.parametrize("spec", ["panel", "hf:NAME", "openai:NAME"])
def test_other_judges_are_told_where_they_are_asked(spec: str, server: Double, model: ChatModel) -> None:
    with pytest.raises(JudgeError, match=rf"expected panel:MODEL with --judge-url vllm:.*, got {spec}"):
        load_bench(spec, model, url=f"vllm:{server.url}")
