"""The routes of the plugin, and a server that checks itself before it serves."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from support import tiny
from support.stepping import Stepper, stored

import personavec
from personavec.model.chat_model import ChatModel
from personavec.steering.vector import PersonaVector
from personavec.vllm.asked import FIELD, read
from personavec.vllm.book import StepPart
from personavec.vllm.endpoint import PersonaEndpoint, fetch
from personavec.vllm.selfcheck import PROMPT_TOKENS, REPLY_TOKENS, check_server
from personavec.vllm.settings import Refusal, Settings, StoredVectors


class Workers:
    """An engine of a pipeline: each worker has read a part of the layers."""

    def __init__(self, v: PersonaVector, **options: Any) -> None:
        settings = Settings("", (v.content_hash,), **options)
        vectors = StoredVectors(stored(v), settings.given)
        self.input_processor = SimpleNamespace(
            persona_vectors=vectors, persona_settings=settings, persona_version="0.32.0"
        )
        text = SimpleNamespace(num_hidden_layers=4, hidden_size=tiny.D_MODEL, vocab_size=99)
        model = SimpleNamespace(
            model="folder/m",
            served_model_name=["m"],
            hf_config=SimpleNamespace(_commit_hash="abc"),
            hf_text_config=text,
            dtype=torch.bfloat16,
            max_model_len=512,
        )
        self.vllm_config = SimpleNamespace(model_config=model)

    async def collective_rpc(self, method: str, args: tuple[list[str]]) -> list[dict[str, Any]]:
        assert method == "persona_readings"
        first = {"start": 3, "watch": [[0.5, float("inf")], None], "error": None}
        second = {"start": 3, "watch": [None, [1.5, 2.5]], "error": None}
        for part, layer in ((first, "0"), (second, "1")):
            part["spans"] = [{"tokens": 2, "mean": {layer: f"mean of {layer}"}, "norm": {layer: 1.0}}]
        return [{name: part for name in args[0] if name == "x"} for part in (first, second)]


@pytest.fixture
def client(v: PersonaVector) -> TestClient:
    app = FastAPI()
    PersonaEndpoint().attach_router(app)
    app.state.persona_engine = Workers(v, layers=(1, 2))
    return TestClient(app)


def test_vectors_and_what_can_be_asked_for(client: TestClient, v: PersonaVector) -> None:
    told = client.get("/v1/personavec/vectors").json()
    wanted = {"hash": v.content_hash, "trait": "tiny", "layer": None, "absent": [], "given": False}
    assert told["vectors"] == [wanted]
    assert (told["layers"], told["edits"], told["means"]) == ([1, 2], 2, True)
    assert (told["accepts"], told["vllm"], told["version"]) == (False, "0.32.0", personavec.__version__)
    assert told["model"] == {
        "name": "folder/m",
        "served": "m",
        "revision": "abc",
        "layers": 4,
        "d_model": tiny.D_MODEL,
        "vocabulary": 99,
        "dtype": "bfloat16",
        "longest": 512,
    }


def test_a_vector_is_given_and_steers_in_every_process(model: ChatModel, v: PersonaVector, tmp_path: Path) -> None:
    app = FastAPI()
    PersonaEndpoint().attach_router(app)
    app.state.persona_engine = Workers(v, given=str(tmp_path / "given"))
    client = TestClient(app)
    other = tiny.vector(model, seed=5)
    settings = app.state.persona_engine.input_processor.persona_settings
    elsewhere = StoredVectors(stored(v), settings.given)
    sent = {"steering": [{"vector": other.content_hash, "layer": 2}]}
    with pytest.raises(ValueError, match="content hash of a vector of this server"):
        read(sent, elsewhere, settings, 100)
    assert client.post("/v1/personavec/vectors", content=other.to_bytes()).json() == {"hash": other.content_hash}
    assert read(sent, elsewhere, settings, 100).changes[0].vector == other.content_hash
    assert torch.equal(elsewhere[other.content_hash].direction, other.direction)
    listed = {each["hash"]: each["given"] for each in client.get("/v1/personavec/vectors").json()["vectors"]}
    assert listed == {v.content_hash: False, other.content_hash: True}
    with pytest.raises(ValueError, match="of this server's folder, got one that a client gave"):
        read({"watch": [{"vector": other.content_hash, "layer": 2}], "id": "x"}, elsewhere, settings, 100)


def test_a_file_that_is_no_vector_of_this_model_is_refused(
    client: TestClient, v: PersonaVector, tiny_model: Any, tmp_path: Path
) -> None:
    def answer(content: bytes) -> tuple[int, str]:
        said = client.post("/v1/personavec/vectors", content=content)
        return said.status_code, said.json()["error"]["message"]

    assert answer(v.to_bytes()) == (
        403,
        "expected no vector, got one; this server was started without --accept-vectors",
    )
    client.app.state.persona_engine = Workers(v, given=str(tmp_path))  # type: ignore[attr-defined]
    assert answer(b"?")[0] == 400 and "expected persona vectors" in answer(b"?")[1]
    assert answer(b"0" * 2**23)[0] == 413
    large = tiny.vector(tiny.build("llama", num_hidden_layers=5))
    assert answer(large.to_bytes())[0] == 400 and "of another shape" in answer(large.to_bytes())[1]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "nothing half-written stays"


def test_readings_of_all_workers_are_joined(client: TestClient) -> None:
    told = client.post("/v1/personavec/readings", json={"ids": ["x", "y"]}).json()
    spans = [{"tokens": 2, "mean": {"0": "mean of 0", "1": "mean of 1"}, "norm": {"0": 1.0, "1": 1.0}}]
    assert told == {"x": {"start": 3, "watch": [[0.5, None], [1.5, 2.5]], "spans": spans, "error": None}}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"ids": "x"}', b'{"ids": [1]}', b"\xff"])
def test_a_wrong_question_for_readings_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/personavec/readings", content=body)
    assert answer.status_code == 400 and "expected" in answer.json()["error"]["message"]


class Engine:
    """Runs each request in one step, on a stream that is the same for all."""

    def __init__(self, model: ChatModel, v: PersonaVector) -> None:
        self.stepper = Stepper(stored(v))
        generator = torch.Generator().manual_seed(0)
        tokens = PROMPT_TOKENS + REPLY_TOKENS - 1
        self.stream = torch.randn((model.n_layers, tokens, tiny.D_MODEL), generator=generator)
        config = SimpleNamespace(get_vocab_size=lambda: 100, dtype=torch.float32)
        self.vllm_config = SimpleNamespace(model_config=config)

    async def generate(self, prompt: dict[str, list[int]], sampling: Any, name: str) -> AsyncIterator[Any]:
        asked = (sampling.extra_args or {}).get(FIELD)
        self.stepper.streams[name] = self.stream
        self.stepper.step([StepPart(name, 0, self.stream.shape[1], len(prompt["prompt_token_ids"]), asked)], [name])
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1, 2, 3, 4])])

    async def collective_rpc(self, method: str, args: tuple[list[str]]) -> list[dict[str, Any]]:
        return [self.stepper.book.fetch(*args)]


def checked(engine: Engine, v: PersonaVector, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm.sampling_params")
    module.SamplingParams = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module)
    asyncio.run(check_server(engine, stored(v), Settings("", (v.content_hash,)), fetch))


def test_a_server_that_steers_as_asked_serves(
    model: ChatModel, v: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked(Engine(model, v), v, monkeypatch)


def test_a_server_that_does_not_steer_does_not_serve(
    model: ChatModel, v: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, v)
    engine.stepper.tables.add = engine.stepper.tables.add.clone()  # no block looks into it
    with pytest.raises(Refusal, match=r"expected add to change layer \d as by hand, .*so it does not serve"):
        checked(engine, v, monkeypatch)


def test_a_server_that_reads_nothing_does_not_serve(
    model: ChatModel, v: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, v)
    engine.stepper.book.collect = lambda: None  # type: ignore[method-assign]
    with pytest.raises(Refusal, match="expected readings of a request"):
        checked(engine, v, monkeypatch)
