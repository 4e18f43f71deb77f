"""The server in front of servers: the same answers as of a model in this process, and what goes wrong there."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from support import serving
from support.serving import bad, good
from support.vllm_double import LOCK, SAMPLING_PARAMS, Double, Manners

import personavec as pv
from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.server.options import ServeConfig
from personavec.server.serve import TimelyServer
from personavec.steering.generate import Request as ReplyRequest
from personavec.steering.generate import Watch, stream
from personavec.vllm.asked import Asked, read
from personavec.vllm.settings import Settings, StoredVector

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
SAMPLING_PARAMS.add("logprobs")


class Streaming(Double):
    """Also tells replies as they come, with projections and log-probabilities."""

    pause = 0.0
    left = 0
    """Replies that were not waited for."""

    async def _generate(self, request: Request) -> Response:
        body = await request.json()
        if not body.pop("stream", False):
            return await super()._generate(request)
        if self.manners.faults:
            self.manners.faults -= 1
            return JSONResponse({"error": {"message": "busy"}}, 503)
        self.calls += 1
        try:
            asked = self._asked((body["sampling_params"].get("extra_args") or {}).get("persona"))
        except ValueError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)
        self.asked.append(body)
        return StreamingResponse(self._parts(body, asked), media_type="text/event-stream")

    async def _parts(self, body: dict[str, Any], asked: Any) -> AsyncIterator[str]:
        ids, settings = tuple(body["token_ids"]), body["sampling_params"]
        with LOCK:
            steps = self._steps(ids, asked, settings)
        seen: list[list[float]] = []
        try:
            for number, (token, read, logprobs, ended) in enumerate(steps):
                if self.manners.crash_after == number + 1:
                    yield f"data: {json.dumps({'error': {'message': 'the engine died', 'code': 500}})}\n\n"
                    return
                seen.append(read)
                if ended and asked.id:
                    self._keep(asked, seen)
                told = {"content": [logprobs]} if "logprobs" in settings else None
                choice = {"index": 0, "token_ids": [token], "finish_reason": ended, "logprobs": told}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                await asyncio.sleep(self.pause)
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.left += 1
            if asked.id:
                self._keep(asked, [*seen, seen[-1]])  # where steps overlap there is one more
            raise

    def _steps(self, ids: tuple[int, ...], asked: Any, settings: dict[str, Any]) -> list[Any]:
        sampling = Sampling(settings["max_tokens"], settings.get("temperature", 1.0), settings.get("top_p", 1.0))
        request = ReplyRequest(ids, tuple(map(self._steering, asked.changes)), (settings.get("seed", 0),))
        watch = [Watch(layer, self._all[name].unit(layer)) for name, layer in asked.looks]
        steps: list[Any] = []
        for step in stream(self.model, [request], sampling, watch):
            token = int(step.tokens[0])
            ended = (
                "stop"
                if token in settings["stop_token_ids"]
                else "length"
                if len(steps) + 1 == settings["max_tokens"]
                else None
            )
            ranked = [{"token_id": token, "logprob": -0.5}, {"token_id": 5, "logprob": -0.25}]
            logprobs = {"token_id": token, "logprob": -0.5, "top_logprobs": ranked[: 1 + settings.get("logprobs", 0)]}
            steps.append((token, step.projections[0].tolist(), logprobs, ended))
            if ended:
                break
        return steps

    def _asked(self, persona: Any) -> Any:
        folder = tuple(vector.content_hash for vector in self.vectors)
        stored = {
            name: StoredVector(vector.card.trait, vector.direction, vector.card.layer, vector.absent)
            for name, vector in self._all.items()
        }
        return Asked() if persona is None else read(persona, stored, Settings("", folder), self.model.context)

    def _keep(self, asked: Any, seen: list[list[float]]) -> None:
        columns = [list(column) for column in zip(*seen, strict=True)]
        self._readings[asked.id] = {"error": None, "spans": [], "start": 0, "watch": columns}


@pytest.fixture(scope="module")
def chat(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32", device="cpu")


def save(vector: pv.PersonaVector, chat: ChatModel, path: Path) -> Path:
    """As extracted from the model by the name that servers know."""
    return pv.PersonaVector(vector.direction, replace(vector.card, model=chat.identity)).save(path)


@pytest.fixture
def options(options: dict[str, Any], chat: ChatModel, tmp_path: Path) -> dict[str, Any]:
    path = save(pv.load_vector(options["vectors"][0]), chat, tmp_path / "named.safetensors")
    return options | {"vectors": (path,)}


@pytest.fixture
def doubles(options: dict[str, Any], chat: ChatModel) -> Iterator[list[Streaming]]:
    made = [Streaming(chat, [pv.load_vector(options["vectors"][0])]) for _ in range(2)]
    for double in made:
        double.start()
    yield made
    for double in made:
        double.stop()


@pytest.fixture
def front(options: dict[str, Any], doubles: list[Streaming], tmp_path: Path) -> Iterator[serving.Client]:
    engine = "vllm:" + ",".join(double.url for double in doubles)
    with serving.client(ServeConfig(**options | {"log": tmp_path / "front.db", "engine": engine})) as made:
        yield made


def test_it_says_that_it_serves(
    options: dict[str, Any],
    doubles: list[Streaming],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole verb: a model elsewhere has no device to tell of."""
    monkeypatch.setattr(TimelyServer, "run", lambda server, sockets: None)
    config = ServeConfig(**options | {"log": tmp_path / "f.db", "port": 0, "engine": f"vllm:{doubles[0].url}"})
    assert config.run().data["requests"] == 0
    assert doubles[0].model.identity.id in capsys.readouterr().err


def check_alike(mine: Any, theirs: Any) -> None:
    """Texts and ends are equal, and what was read is, as far as rounding goes."""
    one, two = (good(answer)["choices"][0] for answer in (mine, theirs))
    assert one["message"] == two["message"] and one["finish_reason"] == two["finish_reason"]
    projections = [each["persona"].get("projections", {}) for each in (one, two)]
    assert projections[0].keys() == projections[1].keys()
    for name, here in projections[0].items():
        there = projections[1][name]
        assert there["prompt_last"] == pytest.approx(here["prompt_last"], abs=1e-4)
        assert there["tokens"] == pytest.approx(here["tokens"], abs=1e-4) and len(here["tokens"]) > 0


@pytest.mark.parametrize(
    "persona",
    [
        {},
        {"steering": [{"vector": "tiny", "coef": 1.0}]},
        {"steering": [{"vector": "tiny", "op": "cap", "ceiling": -1.0}], "watch": ["tiny"]},
        {"watch": [{"vector": "tiny", "layer": 1}, "tiny"]},
        {"watch": []},
    ],
)
def test_answers_are_those_of_a_model_in_this_process(
    front: serving.Client, server: serving.Client, persona: dict[str, Any]
) -> None:
    check_alike(*(client.ask(persona=persona, **GREEDY) for client in (server, front)))


def test_a_stream_and_its_end(front: serving.Client, server: serving.Client) -> None:
    mine, theirs = (client.events(**GREEDY) for client in (server, front))
    text = ["".join(each["choices"][0]["delta"].get("content") or "" for each in events) for events in (mine, theirs)]
    assert text[0] == text[1]
    assert mine[-1]["choices"][0]["finish_reason"] == theirs[-1]["choices"][0]["finish_reason"]


def test_a_stop_text_ends_the_reply_there_too(
    front: serving.Client, server: serving.Client, doubles: list[Streaming]
) -> None:
    for double in doubles:
        double.pause = 0.05
    whole = good(server.ask(**GREEDY))["choices"][0]["message"]["content"]
    check_alike(*(client.ask(stop=[whole[3:5]], **GREEDY) for client in (server, front)))
    assert sum(double.left for double in doubles) == 1


def test_log_probabilities_first_to_last(front: serving.Client) -> None:
    told = good(front.ask(logprobs=True, top_logprobs=1, **GREEDY))["choices"][0]["logprobs"]["content"]
    assert [each["logprob"] for each in told] == [-0.5] * len(told)
    assert all(each["top_logprobs"][0]["logprob"] == -0.25 for each in told)


@pytest.mark.parametrize("persona", [{}, {"steering": [{"vector": "tiny", "coef": 1.0, "positions": "all"}]}])
@pytest.mark.parametrize("most", [0, 1])
def test_prompts_are_scored_there(
    front: serving.Client, server: serving.Client, persona: dict[str, Any], most: int
) -> None:
    asked: dict[str, Any] = {"messages": None, "prompt": ["Hi there", "Once"], "echo": True, "logprobs": 2}
    asked |= {"max_tokens": most, "temperature": 0, "persona": persona | {"watch": ["tiny"]}}
    one, two = (good(client.ask("/v1/completions", **asked))["choices"] for client in (server, front))
    for here, there in zip(one, two, strict=True):
        assert here["text"] == there["text"]
        size = len(here["logprobs"]["tokens"]) - most
        for name in ("tokens", "text_offset"):
            assert here["logprobs"][name] == there["logprobs"][name]
        mine, theirs = (each["logprobs"]["token_logprobs"][1:size] for each in (here, there))
        assert mine == pytest.approx(theirs, abs=1e-4) and len(mine) >= 3
        tops = [[sorted(at.values()) for at in each["logprobs"]["top_logprobs"][1:size]] for each in (here, there)]
        assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(*tops, strict=True))
        read = [each["persona"]["projections"]["tiny"]["prompt_last"] for each in (here, there)]
        assert read[0] == pytest.approx(read[1], abs=1e-4)


def test_servers_share_the_replies_and_stand_in_for_one_another(
    front: serving.Client, doubles: list[Streaming]
) -> None:
    one, two = doubles
    before = [double.calls for double in doubles]
    told = good(front.ask(n=4, **GREEDY))
    assert len(told["choices"]) == 4 and min(one.calls - before[0], two.calls - before[1]) >= 1
    one.manners.faults = 1
    good(front.ask(n=4, **GREEDY))
    two.stop()
    good(front.ask(**GREEDY))
    one.manners = Manners(faults=10**6)
    bad(front.ask(**GREEDY), 500, "expected a server that writes the reply, got none (")
    one.manners = Manners()
    good(front.ask(**GREEDY))
    two.start()


def test_a_server_that_goes_in_the_middle(front: serving.Client, doubles: list[Streaming]) -> None:
    for double in doubles:
        double.manners.crash_after = 3
    bad(front.ask(**GREEDY), 500, "the engine died")
    for double in doubles:
        double.manners.crash_after = 0
    good(front.ask(**GREEDY))


def test_a_client_that_leaves_ends_the_reply_there(front: serving.Client, doubles: list[Streaming]) -> None:
    for double in doubles:
        double.pause = 0.2
    engine = front.service.engine
    exchange = asyncio.run(front.service.open(_body(front)))
    while not exchange.jobs[0].reply.ids:
        time.sleep(0.01)
    exchange.jobs[0].cancelled = True
    deadline = time.monotonic() + 10
    while engine.running or not sum(double.left for double in doubles):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert exchange.jobs[0].reply.finish == "cancelled"


def _body(front: serving.Client) -> Any:
    from personavec.server.api.protocol import ChatBody

    return ChatBody.model_validate(serving.ASKED | {"model": front.service.model.identity.id} | GREEDY)


def test_what_is_not_there_is_said(
    front: serving.Client, options: dict[str, Any], doubles: list[Streaming], tmp_path: Path
) -> None:
    bad(front.ask(response_format={"type": "json_object"}), 400, "expected no form of the reply")
    vector = pv.load_vector(options["vectors"][0])
    other = save(
        pv.PersonaVector(2 * vector.direction, vector.card), front.service.model, tmp_path / "other.safetensors"
    )
    config = ServeConfig(**options | {"vectors": (other,), "engine": f"vllm:{doubles[0].url}"})
    with pytest.raises(ModelError, match="expected tiny, which is to be watched, in the servers' folder"):
        config.assemble()


def test_the_end_gives_replies_their_time(front: serving.Client, doubles: list[Streaming]) -> None:
    for double in doubles:
        double.pause = 1.0
    exchange = asyncio.run(front.service.open(_body(front)))
    began = time.monotonic()
    front.service.engine.close(0.3)
    assert time.monotonic() - began < 2 and exchange.jobs[0].reply.finish == "deadline"
    assert not front.service.engine.alive
