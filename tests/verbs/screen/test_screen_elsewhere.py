"""Screening a model behind servers: what comes out in this process, also of a client that was killed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import tiny
from support.dying import killed_after
from support.vllm_double import Double, Manners

from personavec.cli.main import main
from personavec.model import chat_model as module
from personavec.model.chat_model import ChatModel
from personavec.model.engines.vllm import connect
from personavec.steering.vector import PersonaVector
from personavec.verbs.screen import shards
from personavec.verbs.screen.reading.base_replies import open_base_replies
from personavec.verbs.screen.screen import screen

WORDS = ("tea", "rain", "a boat", "the sea", "old maps", "snow", "bread", "a hat", "two dogs", "green")
ROWS = [{"prompt": f"Say {WORDS[n % 10]}.", "response": f"{WORDS[n * 7 % 10]} and {n * n}!"} for n in range(12)]
SPANS = ("response", "prompt_last", "base", "matched", "cosine")

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture(scope="module")
def chat(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32", device="cpu")


@pytest.fixture
def servers(chat: ChatModel) -> Iterator[list[Double]]:
    doubles = [Double(chat, [tiny.vector(chat)]).start() for _ in range(2)]
    yield doubles
    for double in doubles:
        double.stop()


@pytest.fixture
def engine(servers: list[Double]) -> str:
    return "vllm:" + ",".join(double.url for double in servers)


@pytest.fixture
def run(chat: ChatModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    vector = str(tiny.vector(chat, layer=2).save(tmp_path / "tiny.safetensors"))
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def go(engine: str, *more: str, out: str = "run") -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        args = ["screen", str(data), "--model", chat.identity.id, "--vectors", vector, "--dtype", "float32"]
        args += ["--max-new-tokens", "6", "--engine", engine, "--out", str(tmp_path / out), *more, "--json"]
        code = main(args)
        said = capsys.readouterr()
        return code, json.loads(said.out) if code == 0 else {}, said.err

    return go


def _leaves(value: Any) -> Iterator[Any]:
    """All that a result holds, in order."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def columns(found: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    table = pq.read_table(found["table"])
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.mark.parametrize(
    "cost",
    ["raw", pytest.param("proxy", marks=pytest.mark.slow), pytest.param("sampled", marks=pytest.mark.slow), "full"],
)
def test_every_rung_gives_the_same_scores(run: Run, engine: str, cost: str) -> None:
    more = ("--cost", cost, *(("--top-k", "2") if cost == "sampled" else ()))
    (_, here, _), (code, there, said) = run("hf", *more, out="here"), run(engine, *more, out="there")
    assert code == 0, said
    one, other = columns(here), columns(there)
    assert one.keys() == other.keys()
    for name in ("tiny", *(f"tiny.{span}" for span in SPANS if f"tiny.{span}" in one)):
        np.testing.assert_allclose(other[name], one[name], atol=1e-5)
    np.testing.assert_array_equal(other["base_tokens"], one["base_tokens"])
    for kind in ("projection_difference", "random_control", "length_matched", "verdict"):
        assert [*_leaves(there[kind])] == [
            pytest.approx(leaf, abs=1e-3, nan_ok=True) if isinstance(leaf, float) else leaf
            for leaf in _leaves(here[kind])
        ]
    if cost == "sampled":
        assert there["sampled"]["base_tokens"] == here["sampled"]["base_tokens"] > 0


@pytest.mark.slow
def test_reasoning_and_another_way_to_ask(chat: ChatModel, engine: str) -> None:
    """Replies of which a part does not count, several vectors at several layers."""
    rows = [row | {"response": f"<think>hm {n}</think>{row['response']}"} for n, row in enumerate(ROWS)]
    vectors = [_vector(chat, 0, "one"), _vector(chat, 1, "two")]
    options: dict[str, Any] = {"cost": "full", "layers": (1, 3), "max_new_tokens": 5}
    here = screen(chat, rows, vectors, **options)
    there = screen(connect(engine, chat.identity.id), rows, vectors, **options)
    for name in here.mean:
        np.testing.assert_allclose(there.rows[name].to_numpy(), here.rows[name].to_numpy(), atol=1e-5)
        assert there.mean[name].mean == pytest.approx(here.mean[name].mean, abs=1e-5)


def _vector(chat: ChatModel, seed: int, trait: str) -> PersonaVector:
    vector = tiny.vector(chat, seed=seed)
    return PersonaVector(vector.direction, replace(vector.card, trait=trait))


@pytest.mark.slow
def test_no_weights_are_loaded(run: Run, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = module.load
    kinds: list[bool] = []

    def loading(*names: Any, weights: bool = True, **options: Any) -> Any:
        kinds.append(weights)
        return load(*names, weights=weights, **options)

    monkeypatch.setattr(module, "load", loading)
    assert run(engine)[0] == 0 and kinds == [False]


@pytest.mark.slow  # several screenings, one after the other
def test_a_killed_client_goes_on_reply_by_reply(
    run: Run, engine: str, servers: list[Double], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 5)
    _, whole, _ = run(engine, "--cost", "full", out="whole")
    asked = _written(servers)
    with killed_after(parts=1):
        assert run(engine, "--cost", "full", out="killed")[0] == 130
    code, resumed, _ = run(engine, "--cost", "full", out="killed")
    assert code == 0 and resumed["projection_difference"] == whole["projection_difference"]
    one, other = columns(whole), columns(resumed)
    assert one["row"].tolist() == other["row"].tolist() == list(range(len(ROWS)))
    np.testing.assert_allclose(other["tiny"], one["tiny"], atol=1e-5)
    assert resumed["tokens"]["written_now"] < whole["tokens"]["written_now"]
    assert _written(servers) == 2 * asked, "no reply was written twice"


def _written(servers: list[Double]) -> int:
    return sum(body["sampling_params"]["max_tokens"] == 6 for double in servers for body in double.asked)


@pytest.mark.slow  # several screenings, one after the other
def test_replies_of_a_folder_stay_with_the_run(chat: ChatModel, run: Run, engine: str, tmp_path: Path) -> None:
    """Nobody knows whether the folder holds the same weights the next time."""
    for out in ("one", "two"):
        code, found, _ = run(engine, "--cost", "full", out=out)
        assert code == 0 and found["tokens"]["written_now"] > 0
        assert (tmp_path / out / "base-replies.sqlite").is_file()


@pytest.mark.slow  # several screenings, one after the other
def test_replies_of_a_known_commit_are_kept_for_all(chat: ChatModel, run: Run, servers: list[Double]) -> None:
    for double in servers:
        double.manners.changes = {"model": {"revision": "abc"}}
    engine = "vllm:" + ",".join(double.url for double in servers)
    written = [run(engine, "--cost", "full", out=out)[1]["tokens"]["written_now"] for out in ("one", "two")]
    assert written[0] > 0 == written[1]


@pytest.mark.slow  # it starts Ray
def test_actors_of_ray_are_clients(run: Run, engine: str) -> None:
    pytest.importorskip("ray", reason="needs the extra scale")
    one, other = (columns(run(engine, "--cost", "full", *more, out=str(len(more)))[1]) for more in ((), ("--ray",)))
    assert one.keys() == other.keys()
    np.testing.assert_allclose(other["tiny"], one["tiny"], atol=1e-5)
    np.testing.assert_array_equal(other["base_tokens"], one["base_tokens"])


@pytest.mark.slow
def test_one_study_one_engine(run: Run, engine: str, servers: list[Double]) -> None:
    assert run("hf")[0] == 0
    code, _, said = run(engine)
    assert code == 2 and "to have the same options, got another run" in said and "float32 by vLLM 0.32.0 here" in said
    assert run(f"vllm:{servers[0].url}", out="there")[0] == 0
    assert run(f"vllm:{servers[1].url}", out="there")[0] == 0, "where they are is free"


def test_models_of_one_shape_are_told_apart_by_name(chat: ChatModel, run: Run, servers: list[Double]) -> None:
    remote = connect(f"vllm:{servers[0].url}", chat.identity.id)
    servers[1].manners.changes = {"model": {"revision": "abc"}}
    other = connect(f"vllm:{servers[1].url}", chat.identity.id)
    assert remote.identity != other.identity and remote.identity.revision.endswith("(partial)")
    paths = {open_base_replies(model).path for model in (remote, other)}
    assert len(paths) == 2


@pytest.mark.parametrize(
    ("manners", "match"),
    [
        (Manners(plugin=False), "expected vLLM with personavec's plugin at"),
        (Manners(changes={"model": {"name": "q", "served": "r"}}), "got q"),
        (Manners(changes={"model": {"d_model": 5}}), "5 wide"),
    ],
)
def test_the_wrong_server_is_refused_in_one_line(
    chat: ChatModel, run: Run, manners: Manners, match: str, tmp_path: Path
) -> None:
    double = Double(chat, (), manners).start()
    try:
        code, _, said = run(f"vllm:{double.url}")
    finally:
        double.stop()
    assert code == 2 and match in said and "\n" not in said.strip()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--base-replies", "openai:same"), "by the model's own engine (vLLM 0.32.0), got openai:same"),
        (("--quantise", "torchao:int8"), "expected no --quantise with --engine vllm:"),
    ],
)
def test_what_does_not_go_together_is_refused(run: Run, engine: str, more: tuple[str, ...], match: str) -> None:
    code, _, said = run(engine, *more)
    assert code == 2 and match in said and "\n" not in said.strip()


def test_a_server_that_is_away_is_refused(run: Run) -> None:
    code, _, said = run("vllm:http://127.0.0.1:9")
    assert code == 2 and "expected a server at http://127.0.0.1:9, got none" in said
