"""The worker between vLLM and the book: both model runners, preemption, what is refused before the engine starts."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import fake_vllm, tiny
from support.stepping import apart, as_sent, by_hooks

from personavec.model.chat_model import ChatModel
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.vllm.settings import Refusal, check, make_settings

PROMPT, TOKENS = 5, 9


@pytest.fixture(autouse=True)
def vllm() -> Iterator[None]:
    with fake_vllm.installed():
        yield


@pytest.fixture
def folder(v: PersonaVector, tmp_path: Path) -> Path:
    v.save(tmp_path / "v.safetensors")
    return tmp_path


def configured(folder: Path, model: ChatModel, **options: Any) -> Any:
    return fake_vllm.config(make_settings(folder, **options).config(), model.n_layers, tiny.D_MODEL)


def sampling(persona: Any) -> Any:
    return SimpleNamespace(extra_args=None if persona is None else {"persona": persona}, n=1)


@pytest.mark.parametrize("kind", [fake_vllm.RunnerV1, fake_vllm.RunnerV2])
@pytest.mark.parametrize("hit", [0, 4], ids=["from the start", "from a prefix hit"])
def test_a_preempted_request_is_steered_and_read_as_if_it_was_not(
    kind: type[Any], hit: int, model: ChatModel, v: PersonaVector, folder: Path
) -> None:
    worker = importlib.import_module("personavec.vllm.worker")
    steering = Steering(v, 1.5, 1)
    watch = [{"vector": v.content_hash, "layer": layer} for layer in (1, 3)]
    asked = {"steering": [as_sent(steering)], "watch": watch, "id": "x"}
    requests = {"a": (PROMPT, sampling(asked)), "b": (3, sampling(None))}
    at_work = worker.PersonaWorker(configured(folder, model), kind(fake_vllm.Model(model.n_layers)))
    at_work.load_model()
    generator = torch.Generator().manual_seed(0)
    streams = {name: torch.randn((model.n_layers, TOKENS, tiny.D_MODEL), generator=generator) for name in requests}
    edited = {name: stream.clone() for name, stream in streams.items()}

    def step(*parts: tuple[str, int, int], **told: Any) -> None:
        fake_vllm.step(at_work.model_runner, parts, requests, **told)
        for layer, block in enumerate(at_work.model_runner.get_model().layers):
            whole = torch.cat([streams[name][layer, start : start + count] for name, start, count in parts])
            hidden, residual = block(*apart(whole))
            rows = (hidden + residual).split([count for _, _, count in parts])
            for (name, start, count), mine in zip(parts, rows, strict=True):
                edited[name][layer, start : start + count] = mine

    step(("a", 0, 3), new=["a"])
    step(("b", 0, 3), ("a", 3, 2), new=["b"])
    step(("a", 5, 1), ("b", 3, 1))
    step(("b", 4, 1), preempted=["a"])
    step(("a", hit, 6 - hit), ("b", 5, 1), new=["a"])
    step(("b", 6, 1), ("a", 6, 3))
    step(("b", 7, 1), over=["a"])
    wanted = by_hooks(model, streams["a"], [steering], PROMPT)
    torch.testing.assert_close(edited["a"], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(edited["b"], streams["b"])
    readings = at_work.persona_readings(["x"])["x"]
    assert readings["error"] is None and readings["start"] == PROMPT - 1
    for layer, look in zip((1, 3), readings["watch"], strict=True):
        torch.testing.assert_close(
            torch.tensor(look), wanted[layer, PROMPT - 1 :] @ v.unit(layer), rtol=1e-4, atol=1e-5
        )


def test_runners_and_blocks_keep_their_names(model: ChatModel, folder: Path) -> None:
    worker = importlib.import_module("personavec.vllm.worker")
    runner = fake_vllm.RunnerV2(fake_vllm.Model(model.n_layers))
    worker.PersonaWorker(configured(folder, model, layers=(1, 2)), runner).load_model()
    assert [type(thing).__name__ for thing in (runner, runner.model_state)] == ["RunnerV2", "StateV2"]
    assert {type(block).__name__ for block in runner.model.layers} == {"Block"}
    assert [hasattr(block, "persona_edit") for block in runner.model.layers] == [False, True, True, False]
    assert not runner.model.state_dict()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"speculative_config": object()}, "without speculative decoding"),
        ({"parallel_config": {"data_parallel_size": 2}}, "start one server for each replica"),
        ({"parallel_config": {"prefill_context_parallel_size": 2}}, "without context parallelism"),
        ({"parallel_config": {"use_ubatching": True}}, "without micro-batches"),
        (
            {"model": (5, tiny.D_MODEL)},
            r"with 5 layers, 32 wide, got some with 4 layers, 32 wide in .*; give the folder",
        ),
        ({"layers": (2, 4)}, "--layers from 0 to 3, got 4"),
        ({"additional_config": {}}, "expected settings of personavec, got none"),
        ({"additional_config": {"personavec": {"version": "0"}}}, "got 0; start the server"),
    ],
)
def test_a_server_that_cannot_work_is_refused_in_one_line(
    change: dict[str, Any], text: str, model: ChatModel, folder: Path
) -> None:
    options = {"layers": change["layers"]} if "layers" in change else {}
    settings = make_settings(folder, **options).config()
    config = fake_vllm.config(
        settings, *change.get("model", (model.n_layers, tiny.D_MODEL)), **change.get("parallel_config", {})
    )
    vars(config).update({name: change[name] for name in ("speculative_config", "additional_config") if name in change})
    with pytest.raises(Refusal, match=text) as caught:
        check(config, "0.32.1")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0", "dev", "0.320.1"])
def test_another_vllm_is_refused_by_its_version(version: str, model: ChatModel, folder: Path) -> None:
    with pytest.raises(Refusal, match=rf"expected vLLM 0\.32\.x, got {version}; "):
        check(configured(folder, model), version)


def test_a_model_whose_blocks_are_not_found_is_refused(model: ChatModel, folder: Path) -> None:
    worker = importlib.import_module("personavec.vllm.worker")
    config = configured(folder, model)
    twice = fake_vllm.Model(model.n_layers)
    twice.more = fake_vllm.Model(model.n_layers)
    for wrong, text in ((fake_vllm.Model(3), "got none"), (twice, "got layers, more.layers")):
        with pytest.raises(Refusal, match=text):
            worker.PersonaWorker(config, fake_vllm.RunnerV1(wrong)).load_model()


def test_requests_are_checked_where_they_come_in(model: ChatModel, v: PersonaVector, folder: Path) -> None:
    admission = importlib.import_module("personavec.vllm.admission")
    admission.register()
    admission.register()
    processor = importlib.import_module("vllm.v1.engine.input_processor").InputProcessor(configured(folder, model))
    good = {"steering": [as_sent(Steering(v, 1.0, 1))]}

    def sent(persona: Any, **params: Any) -> Any:
        given = sampling(persona)
        vars(given).update(params)
        return processor.process_inputs("r", [1, 2, 3], given)

    with pytest.raises(fake_vllm.VLLMValidationError, match="before this server has checked itself"):
        sent(good)
    processor.persona_checked = True
    assert sent(None).cache_salt is None and sent({}).cache_salt is None
    assert sent(good).cache_salt == sent(good).cache_salt != sent(good | {"steering": []}).cache_salt
    with pytest.raises(
        fake_vllm.VLLMValidationError, match=r"persona\.steering\.0\.vector.*got 'nobody'; /v1"
    ) as caught:
        sent({"steering": [{"vector": "nobody"}]})
    assert caught.value.parameter == "persona" and "\n" not in str(caught.value)
    with pytest.raises(fake_vllm.VLLMValidationError, match="n=1"):
        sent({"watch": [{"vector": v.content_hash, "layer": 1}], "id": "x"}, n=2)
    assert sent({"spans": [[0, 2]], "id": "x"}).sampling_params.skip_reading_prefix_cache


def test_a_server_of_another_model_does_not_begin(model: ChatModel, folder: Path) -> None:
    importlib.import_module("personavec.vllm.admission").register()
    made = importlib.import_module("vllm.v1.engine.input_processor").InputProcessor
    with pytest.raises(Refusal, match="give the folder of this model's vectors"):
        made(fake_vllm.config(make_settings(folder).config(), 5, tiny.D_MODEL))
    plain = made(fake_vllm.config({}, 5, tiny.D_MODEL))
    assert plain.process_inputs("r", [1], sampling(None)).cache_salt is None
    with pytest.raises(fake_vllm.VLLMValidationError, match="this server does not steer"):
        plain.process_inputs("r", [1], sampling({}))
