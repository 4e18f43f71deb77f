"""A real vLLM server with the plugin against our own loop, token by token: `make vllm`, not in CI.

Needs `PERSONAVEC_VLLM`, the python of an environment with vLLM and this package, and the small model.
"""

import base64
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.stepping import as_sent

from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, Watch, stream
from personavec.steering.steer import Steering, steer
from personavec.steering.vector import PersonaVector, load_vector, packaged_vectors

PYTHON = os.environ.get("PERSONAVEC_VLLM")
MODES = os.environ.get("PERSONAVEC_VLLM_MODES", "eager compiled").split()
NEW = 16
SAMPLING = Sampling(NEW, 0.0, 1.0)

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="needs PERSONAVEC_VLLM, the python of an environment with vLLM"),
]


class Server:
    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def write(self, prompt: Sequence[int], persona: Any = None, **sampling: Any) -> tuple[int, Any]:
        settings = {"temperature": 0.0, "max_tokens": NEW, "logprobs": 0, **sampling}
        if persona is not None:
            settings["extra_args"] = {"persona": persona}
        return self.post("/inference/v1/generate", {"token_ids": list(prompt), "sampling_params": settings})

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def serving(folder: Path, model: str, *options: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    vectors = next(iter(packaged_vectors().values())).parent
    log = folder / "server.log"
    command = [str(PYTHON), "-m", "personavec.vllm", "--vectors", str(vectors), "--model", model, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "16"]
    command += ["--max-num-batched-tokens", "96", "--enable-chunked-prefill", "--generation-config", "vllm", *options]
    there = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_DO_NOT_TRACK": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=there)
    try:
        server = Server(f"http://127.0.0.1:{port}", log)
        deadline = time.monotonic() + 1800
        while not server.healthy():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load("smollm2", dtype="float32")


@pytest.fixture(scope="module", params=MODES)
def server(request: pytest.FixtureRequest, chat: ChatModel, tmp_path_factory: Any) -> Iterator[Server]:
    options = ["--enforce-eager"] if request.param == "eager" else []
    with serving(tmp_path_factory.mktemp("vllm"), chat.hf.config._name_or_path, *options) as server:
        yield server


@pytest.fixture(scope="module")
def vectors() -> list[PersonaVector]:
    return [load_vector(path) for path in list(packaged_vectors().values())[:2]]


def prompts(chat: ChatModel, count: int) -> list[tuple[int, ...]]:
    asks = [
        "What should I do on a rainy day?",
        "Is the sea beautiful?",
        "Tell me about my job interview.",
        "Who are you?",
    ]
    padding = "We met at the market and talked about the weather, the harvest and the new bridge. "
    texts = [padding * (number % 5) + asks[number % 4] + " " * (number // 4 % 2) for number in range(count)]
    return [chat.render([{"role": "user", "content": f"{number}. {text}"}]) for number, text in enumerate(texts)]


def kinds(vectors: list[PersonaVector]) -> list[tuple[Steering, ...]]:
    v, w = vectors
    norm = float(v.norms[15])
    return [
        (),
        (Steering(v, 0.6, 15),),
        (Steering(v, -0.3, "all"),),
        (Steering(v, layer=12, op="ablate", positions="all"), Steering(w, layer=12, op="ablate", positions="all")),
        (Steering(v, layer="all", op="cap", ceiling=0.2 * norm, floor=-0.2 * norm),),
        (Steering(w, 0.8, 10, above=0.0),),
        (Steering(v, 0.5, 8, "prompt"), Steering(w, 0.5, 20, "all")),
        (),
    ]


def replies(chat: ChatModel, requests: list[Request], watch: list[Watch]) -> list[tuple[list[int], list[list[float]]]]:
    """Tokens, an end included, and the projections that were read to draw each."""
    written: list[tuple[list[int], list[list[float]]]] = [([], []) for _ in requests]
    ended: set[int] = set()
    for step in stream(chat, requests, SAMPLING, watch):
        for row, token, seen in zip(step.rows.tolist(), step.tokens.tolist(), step.projections.tolist(), strict=True):
            if row not in ended:
                written[row][0].append(token)
                written[row][1].append(seen)
            if token in chat.stop_ids:
                ended.add(row)
    return written


def test_mixed_batches_write_what_our_loop_writes(
    server: Server, chat: ChatModel, vectors: list[PersonaVector]
) -> None:
    lists = kinds(vectors)
    requests = [Request(prompt, lists[number % len(lists)]) for number, prompt in enumerate(prompts(chat, 32))]
    looks = [Watch(15, vectors[0].unit(15)), Watch(12, vectors[1].unit(12))]
    wanted = replies(chat, requests, looks)

    def ask(number: int) -> tuple[int, Any]:
        persona = {
            "steering": [as_sent(steering) for steering in requests[number].steering],
            "watch": [{"vector": v.content_hash, "layer": look.layer} for v, look in zip(vectors, looks, strict=True)],
            "id": f"mixed {number}",
        }
        return server.write(requests[number].prompt, persona, stop_token_ids=list(chat.stop_ids))

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(len(requests))))
    assert all(status == 200 for status, _ in answers), [answer for answer in answers if answer[0] != 200][:1]
    _, readings = server.post("/v1/personavec/readings", {"ids": [f"mixed {n}" for n in range(len(requests))]})
    worst: Counter[str] = Counter()

    def differ(what: str, off: torch.Tensor) -> None:
        worst[what] = max(worst[what], float(off.abs().max()))

    for number, (request, (tokens, seen), (_, answer)) in enumerate(zip(requests, wanted, answers, strict=True)):
        choice, reading = answer["choices"][0], readings[f"mixed {number}"]
        assert choice["token_ids"] == tokens, f"request {number}, steered by {[s.text for s in request.steering]}"
        assert reading["error"] is None and reading["start"] == len(request.prompt) - 1
        there, ours = torch.tensor(reading["watch"]).T[: len(tokens)], torch.tensor(seen)
        logprobs, alone, longest = in_one_pass(chat, request, tokens, looks)
        differ("projections", there - ours)
        differ("projections by the longest stream", (there - ours) / longest)
        differ("our own projections in one pass", alone - ours)
        differ("our own by the longest stream", (alone - ours) / longest)
        differ("log-probabilities", torch.tensor([e["logprob"] for e in choice["logprobs"]["content"]]) - logprobs)
    print(*(f"{what} within {off:.2g}" for what, off in worst.items()), sep=", ")
    assert worst["projections by the longest stream"] < 1e-6 and worst["log-probabilities"] < 1e-4


@torch.inference_mode()
def in_one_pass(
    chat: ChatModel, request: Request, tokens: list[int], looks: list[Watch]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each token of a reply its log-probability, projections, and how long its stream was at most up to that layer.

    A token whose stream is 700 long at layer 2 and 150 at layer 12 is rounded as one of 700: what was lost stays lost.
    """
    row = (*request.prompt, *tokens[:-1])
    streams: list[torch.Tensor] = []
    with steer(chat, [request.steering], [len(request.prompt)]):
        handles = [block.register_forward_hook(lambda *given: streams.append(given[2])) for block in chat.blocks]
        logits = chat.hf(**chat.inputs([row])).logits[0, len(request.prompt) - 1 : len(row)].float()
        for handle in handles:
            handle.remove()
    whole = torch.stack([stream[0, len(request.prompt) - 1 : len(row)] for stream in streams])
    longest = whole.norm(dim=-1).cummax(0).values
    projections = torch.stack([whole[look.layer] @ look.unit for look in looks], 1)
    drawn = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return drawn, projections, torch.stack([longest[look.layer] for look in looks], 1)


def test_means_over_spans(server: Server, chat: ChatModel, vectors: list[PersonaVector]) -> None:
    rows = prompts(chat, 8)
    steering = (Steering(vectors[0], 0.5, 10, "all"),)
    layers = list(range(chat.n_layers))
    worst = 0.0
    for number, row in enumerate(rows):
        spans = [[0, 5], [5, len(row) - 1], [len(row) - 1, len(row)]]
        persona = {"spans": spans, "id": f"mean {number}"}
        used = steering if number % 2 else ()
        if used:
            persona["steering"] = [as_sent(used[0])]
        assert server.write(row, persona, max_tokens=1)[0] == 200
        reading = server.post("/v1/personavec/readings", {"ids": [f"mean {number}"]})[1][f"mean {number}"]
        assert reading["error"] is None
        weights = torch.zeros((1, 3, len(row)))
        for place, (first, stop) in enumerate(spans):
            weights[0, place, first:stop] = 1 / (stop - first)
        with steer(chat, [used], [len(row)]):
            wanted = capture(chat, [row], weights, layers)[0]
        for span, mean in zip(reading["spans"], wanted, strict=True):
            for layer in layers:
                got = np.frombuffer(base64.b64decode(span["mean"][str(layer)]), "<f4")
                off = np.linalg.norm(got - mean[layer].numpy()) / np.linalg.norm(mean[layer].numpy())
                worst = max(worst, float(off))
    print(f"means within {worst:.2g} of their length")
    assert worst < 1e-5


def test_a_prefix_that_was_steered_serves_nobody_else(
    server: Server, chat: ChatModel, vectors: list[PersonaVector]
) -> None:
    prompt = prompts(chat, 5)[4]
    steerings: list[tuple[Steering, ...]] = [
        (),
        (Steering(vectors[0], 0.8, 10, "all"),),
        (),
        (Steering(vectors[0], 0.8, 10),),
    ]
    for used in steerings:
        persona = {"steering": [as_sent(s) for s in used]}
        _, answer = server.write(prompt, persona, stop_token_ids=list(chat.stop_ids))
        assert answer["choices"][0]["token_ids"] == replies(chat, [Request(prompt, used)], [])[0][0]


def test_bad_requests_are_refused_and_the_good_answered(
    server: Server, chat: ChatModel, vectors: list[PersonaVector]
) -> None:
    v = vectors[0]
    good = as_sent(Steering(v, 0.5, 10))
    bad: list[Any] = [
        {"steering": [good | {"vector": "nobody"}]},
        {"steering": [good | {"layer": 99}]},
        {"steering": [good | {"coef": "much"}]},
        {"steering": [good | {"coef": 1e300}]},
        {"steering": [good] * 17},
        {"steering": [good | {"op": "ablate"}] * 3},
        {"steerings": []},
        {"spans": [[3, 2]], "id": "x"},
        {"watch": [{"vector": v.content_hash, "layer": 3}]},
        "{",
    ]
    rows = prompts(chat, 200)

    def ask(number: int) -> tuple[int, Any]:
        if number % 5 == 0:
            return server.write(rows[number], bad[number // 5 % len(bad)], max_tokens=4)
        return server.write(rows[number], {"steering": [good]} if number % 2 else None, max_tokens=4)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(200)))
    for number, (status, answer) in enumerate(answers):
        assert status == (400 if number % 5 == 0 else 200), (number, status, answer)
        if status == 400:
            assert "expected persona" in json.dumps(answer), answer
    assert server.healthy()
    first = next(number for number in range(200) if number % 5 and number % 2)
    alone = server.write(rows[first], {"steering": [good]}, max_tokens=4)[1]
    assert alone["choices"][0]["token_ids"] == answers[first][1]["choices"][0]["token_ids"]


def test_replies_with_a_seed_are_the_same_in_any_batch(
    server: Server, chat: ChatModel, vectors: list[PersonaVector]
) -> None:
    """Prompts are read in parts, so that tokens are drawn and thrown away: a CPU's generators must go back, too."""
    rows, persona = prompts(chat, 24), {"steering": [as_sent(Steering(vectors[0], 0.5, 10))]}

    def ask(number: int) -> list[int]:
        status, answer = server.write(rows[number], persona if number % 2 else None, temperature=0.9, seed=number)
        assert status == 200, answer
        ids: list[int] = answer["choices"][0]["token_ids"]
        return ids

    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(ask, range(24)))
    assert [ask(number) for number in range(0, 24, 7)] == together[::7]
    assert server.healthy()


def test_by_the_routes_of_openai(server: Server, vectors: list[PersonaVector]) -> None:
    persona = {"steering": [{"vector": vectors[0].content_hash, "layer": 10, "coef": 0.5}]}
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    plain = server.post("/v1/chat/completions", body)
    steered = server.post("/v1/chat/completions", body | {"vllm_xargs": {"persona": json.dumps(persona)}})
    assert plain[0] == steered[0] == 200
    refused = server.post("/v1/chat/completions", body | {"vllm_xargs": {"persona": "[]"}})
    assert refused[0] == 400 and "expected persona" in json.dumps(refused[1])
