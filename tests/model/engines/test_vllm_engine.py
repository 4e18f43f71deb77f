"""The client of vLLM against a server that answers by our own loop: all of it comes out as in this process."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny
from support.vllm_double import Double, Manners

from personavec.errors import ConfigError, ModelError
from personavec.model.activations import POSITIONS, activation_norms, activations, read_rows
from personavec.model.chat_model import ChatModel
from personavec.model.engines.engine import ModelEngine
from personavec.model.engines.vllm import connect, segments
from personavec.model.hooks import idle_layers
from personavec.model.logits import reply_logprobs
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.gradient import likelihood_gradients
from personavec.steering.orders import number_of
from personavec.steering.rollouts import Interview
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

GREEDY = Sampling(12, 0.0)


@pytest.fixture(scope="module")
def chat(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def v(chat: ChatModel) -> PersonaVector:
    return tiny.vector(chat, layer=2)


@pytest.fixture(scope="module")
def servers(chat: ChatModel, v: PersonaVector) -> Iterator[list[Double]]:
    doubles = [Double(chat, [v]).start() for _ in range(2)]
    yield doubles
    for double in doubles:
        double.stop()


def test_it_does_not_run_backwards(remote: ChatModel) -> None:
    with pytest.raises(ModelError, match=r"here for a gradient, got vLLM 0\.32\.0, which does not run backwards"):
        list(likelihood_gradients(remote, [{"prompt_ids": (5, 6), "response_ids": (7,)}], [1]))


@pytest.fixture(scope="module")
def remote(chat: ChatModel, servers: list[Double]) -> ChatModel:
    return connect("vllm:" + ",".join(double.url for double in servers), chat.identity.id)


def kinds(v: PersonaVector, other: PersonaVector) -> list[tuple[Steering, ...]]:
    norm = float(v.norms[2])
    return [
        (),
        (Steering(v, 1.5, 2),),
        (Steering(v, -0.8, "all"),),
        (Steering(other, 1.0, 1, "all"), Steering(v, 0.5, 3, "prompt")),
        (Steering(v, layer=2, op="ablate", positions="all"),),
        (Steering(v, layer=2, op="cap", ceiling=0.1 * norm, floor=-0.1 * norm),),
        (Steering(other, 2.0, 1, above=0.0),),
        (Steering(v, 0.0, 2),),
    ]


def test_there_are_no_weights_here(chat: ChatModel, remote: ChatModel, v: PersonaVector) -> None:
    assert isinstance(remote.engine, ModelEngine)
    assert all(weight.is_meta for weight in remote.hf.parameters())
    assert (remote.n_layers, remote.stop_ids, remote.pad_id) == (chat.n_layers, chat.stop_ids, chat.pad_id)
    turns = [{"role": "user", "content": "Hi?"}]
    assert remote.render(turns) == chat.render(turns)
    assert remote.numbers == "float32 by vLLM 0.32.0" and remote.context == chat.context - 1
    v.check_model(remote.identity)
    with pytest.raises(ModelError, match="got a model behind servers; this needs --engine hf"):
        remote.chat("Hi?")


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(12, 1.0), Sampling(12, 0.8, 0.9)])
def test_replies_are_those_of_our_loop(
    chat: ChatModel, remote: ChatModel, servers: list[Double], v: PersonaVector, sampling: Sampling
) -> None:
    """Steered by a vector of the folder and by one that is sent, and unsteered."""
    what = kinds(v, tiny.vector(chat, seed=7))
    requests = [Request(tiny.prompt(3 + n % 5, n), what[n % len(what)], (n, 5)) for n in range(4 * len(what))]
    here = [Request(each.prompt, each.steering, (number_of(each.seed),)) for each in requests]
    assert generate(remote, requests, sampling) == [generate(chat, [each], sampling)[0] for each in here]
    assert all(double.calls for double in servers), "both have worked"


def test_equal_seeds_give_equal_replies(remote: ChatModel) -> None:
    requests = [Request(tiny.prompt(5), seed=(seed, 1)) for seed in (3, 3, 4)]
    first, second, third = generate(remote, requests, Sampling(20, 1.0))
    assert first == second != third


def rows() -> list[dict[str, Any]]:
    lengths = [(5, 7, 0), (1, 4, 2), (9, 1, 0), (4, 12, 3), (2, 3, 0)] * 5
    return [
        {"prompt_ids": [*tiny.prompt(a, n)], "response_ids": [*tiny.prompt(b, n + 50)], "reasoning_tokens": c}
        for n, (a, b, c) in enumerate(lengths)
    ]


@pytest.mark.parametrize("layers", [None, [3, 1]])
def test_means_are_those_of_our_hooks(chat: ChatModel, remote: ChatModel, layers: list[int] | None) -> None:
    read: dict[int, torch.Tensor] = {}
    for model in (chat, remote):
        places = []
        for batch, means in activations(model, rows(), POSITIONS, layers):
            for place, mean in zip(batch, means, strict=True):
                places.append(place)
                if model is chat:
                    read[place] = mean
                else:
                    torch.testing.assert_close(mean, read[place], rtol=1e-5, atol=1e-5)
        assert sorted(places) == list(range(len(rows())))


@pytest.mark.slow
def test_what_is_made_of_means(chat: ChatModel, remote: ChatModel) -> None:
    np.testing.assert_allclose(activation_norms(remote, rows()), activation_norms(chat, rows()), rtol=1e-5)
    here, there = (read_rows(model, rows(), "prompt last", [2], "") for model in (chat, remote))
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)
    assert idle_layers(remote) == idle_layers(chat) == ()


def test_log_probabilities_are_ours(chat: ChatModel, remote: ChatModel) -> None:
    prompts = [tiny.prompt(4 + n % 3, n) for n in range(12)]
    replies = [tiny.prompt(n % 5, n + 90) for n in range(12)]
    done: list[int] = []
    there = reply_logprobs(remote, prompts, replies, done.append)
    assert sum(done) == 12
    for a, b in zip(there, reply_logprobs(chat, prompts, replies), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


Spans = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)).map(lambda s: (s[0], s[0] + s[1])), min_size=1)


@given(Spans)
def test_segments_make_up_every_span_and_do_not_overlap(spans: list[tuple[int, int]]) -> None:
    cut = segments(spans)
    assert all(stop <= first for (_, stop), (first, _) in pairwise(cut))
    for span in spans:
        inside = [place for a, b in cut if span[0] <= a and b <= span[1] for place in range(a, b)]
        assert inside == list(range(*span))
    assert {p for a, b in cut for p in range(a, b)} == {p for a, b in spans for p in range(a, b)}


@pytest.mark.slow  # 520 calls, answered one by one
def test_a_long_list_is_under_way_at_once(chat: ChatModel, v: PersonaVector) -> None:
    double = Double(chat, [v], Manners(hold=512)).start()
    try:
        double.manners.hold = 0
        remote = connect(f"vllm:{double.url}", chat.identity.id)
        double.manners.hold = 512
        generate(remote, [Request(tiny.prompt(3, n)) for n in range(520)], Sampling(1, 0.0))
        assert double.most >= 512
    finally:
        double.stop()


def other_size(model: ChatModel) -> Any:
    return {"model": {"layers": model.n_layers + 1}}


@pytest.mark.parametrize(
    ("manners", "match"),
    [
        (lambda m: Manners(plugin=False), "expected vLLM with personavec's plugin at .*without it; start it with"),
        (lambda m: Manners(changes={"version": "0.0.1"}), "expected personavec .* got 0.0.1; install one version"),
        (lambda m: Manners(changes={"vllm": "0.33.1"}), "expected vLLM 0.32.x at .*, got 0.33.1"),
        (lambda m: Manners(changes=other_size(m)), r"4 layers.* got .*\(5 layers"),
        (lambda m: Manners(changes={"model": {"name": "q", "served": "r"}}), "got q .*--served-model-name"),
        (lambda m: Manners(text=True), "expected token ids from .*, got text"),
    ],
)
def test_the_wrong_server_is_refused_in_one_line(
    chat: ChatModel, v: PersonaVector, manners: Callable[[ChatModel], Manners], match: str
) -> None:
    double = Double(chat, [v], manners(chat)).start()
    try:
        with pytest.raises(ModelError, match=match) as caught:
            connect(f"vllm:{double.url}", chat.identity.id)
        assert "\n" not in str(caught.value)
    finally:
        double.stop()


def test_a_server_that_is_away_is_refused(chat: ChatModel, servers: list[Double]) -> None:
    with pytest.raises(ModelError, match=r"expected a server at http://127.0.0.1:9, got none .*leave it out"):
        connect(f"vllm:{servers[0].url},http://127.0.0.1:9", chat.identity.id)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vectors": ()}, "expected one folder of vectors on all servers, got another one at"),
        ({"manners": Manners(changes={"model": {"dtype": "float16"}})}, "number format .*float16, elsewhere float32"),
        ({"manners": Manners(changes={"model": {"longest": 99}})}, "--max-model-len .*99, elsewhere 256"),
    ],
)
def test_servers_are_alike(
    chat: ChatModel, v: PersonaVector, servers: list[Double], change: dict[str, Any], match: str
) -> None:
    double = Double(chat, **{"vectors": [v]} | change).start()
    try:
        with pytest.raises(ModelError, match=match):
            connect(f"vllm:{servers[0].url},{double.url}", chat.identity.id)
    finally:
        double.stop()


@pytest.mark.parametrize(
    "engine", ["vllm", "vllm:", "vllm:http://a,http://a", "tgi:http://a", "vllm:a b", "vllm:file:///x"]
)
def test_an_engine_that_is_none(engine: str) -> None:
    with pytest.raises((ConfigError, ModelError), match=r"expected the (engine|address)"):
        connect(engine, "nobody")


def test_a_vector_that_a_server_lacks(chat: ChatModel, v: PersonaVector) -> None:
    double = Double(chat, [v], Manners(accepts=False)).start()
    try:
        remote = connect(f"vllm:{double.url}", chat.identity.id)
        steered = [Request(tiny.prompt(4), (Steering(v, 1.0, 2),))]
        assert generate(remote, steered, GREEDY) == generate(chat, steered, GREEDY)
        other = tiny.vector(chat, seed=9)
        with pytest.raises(ModelError, match=f"expected the vector {other.content_hash[:12]} .*--accept-vectors"):
            generate(remote, [Request(tiny.prompt(4), (Steering(other, 1.0, 2),))], GREEDY)
    finally:
        double.stop()


def test_what_a_server_refuses_is_told(chat: ChatModel, remote: ChatModel, servers: list[Double]) -> None:
    with pytest.raises(ModelError, match="to do what it is asked, got 400: expected at most 256 tokens"):
        generate(remote, [Request(tiny.prompt(250))], GREEDY)


@pytest.mark.slow
def test_a_table_is_in_the_order_of_the_plan(tmp_path: Path, chat: ChatModel, remote: ChatModel) -> None:
    from personavec.runs.run import Run

    tables = []
    for model in (chat, remote):
        interview = Interview(model, max_new_tokens=8, temperature=0.0)
        plans = interview.answers(["Hi?", "Who?", "Where are you?"] * 9, 2, draw="x", extra={"arm": "base"})
        run = Run.open(tmp_path / str(len(tables)), {})
        rows = interview.write(plans, "written", run=run, name="rows")
        assert [row["id"] for row in rows] == [plan.row["id"] for plan in plans]
        tables.append([json.loads(line) for line in run.path("rows.jsonl").read_text().splitlines()])
        run.lock.release()  # type: ignore[union-attr]
    assert sorted(tables[0], key=lambda row: row["id"]) == sorted(tables[1], key=lambda row: row["id"])
    assert [row["id"] for row in tables[1]] == [plan.row["id"] for plan in plans]
