"""Studies of a model behind servers: what comes out in this process, also of a client that was killed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.vllm_double import Double

import personavec as pv
from personavec.cli.main import main
from personavec.model.chat_model import ChatModel
from personavec.model.engines.vllm import connect

OPTIONS: dict[str, Any] = {
    "temperature": 0.0,  # each engine has random numbers of its own
    "max_new_tokens": 16,
    "layers": (1, 2),
    "doses": (0.2,),
    "check_rollouts": 1,
}
COMMAND = "--temperature 0 --max-new-tokens 16 --layers 1 2 --doses 0.2 --check-rollouts 1".split()


@pytest.fixture(scope="module")
def chat(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def here(chat: ChatModel, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "run"
    pv.extract(chat, str(warm), store=folder, **OPTIONS)
    return folder


@pytest.fixture
def servers(chat: ChatModel, saved: tuple[Path, Path]) -> Iterator[list[Double]]:
    folder = [pv.load_vector(saved[1])]
    doubles = [Double(chat, folder).start() for _ in range(2)]
    yield doubles
    for double in doubles:
        double.stop()


def engine(servers: list[Double]) -> str:
    return "vllm:" + ",".join(double.url for double in servers)


def same(there: Path, here: Path) -> None:
    """The same replies, scores and vector, but for rounding."""
    names = {path.relative_to(here) for path in here.rglob("*.jsonl")}
    assert {path.relative_to(there) for path in there.rglob("*.jsonl")} == names
    for name in sorted(names):
        if "scores" not in name.name:
            rows = [sorted(map(alike, (each / name).read_text().splitlines())) for each in (there, here)]
            assert rows[0] == rows[1], name
    for name in ("vector", "prompt_avg", "prompt_last", "shuffled"):
        a, b = (pv.load_vector(each / "warm" / f"{name}.safetensors") for each in (there, here))
        assert (torch.cosine_similarity(a.direction, b.direction, dim=-1) > 0.999).all()
        assert a.card.layer == b.card.layer and a.card.model.id == b.card.model.id
        torch.testing.assert_close(a.direction, b.direction, rtol=1e-3, atol=1e-4)
    results = [json.loads((each / "warm" / "result.json").read_text()) for each in (there, here)]
    for one, other in zip(*(result["check"] for result in results), strict=True):
        assert one["arm"] == other["arm"]
        assert one["trait"]["mean"] == pytest.approx(other["trait"]["mean"], abs=0.1)


def alike(line: str) -> str:
    """A row without its coefficient, which follows from norms, rounded one way or another."""
    return json.dumps({key: value for key, value in json.loads(line).items() if key not in ("id", "coef")})


def id_of(row: Any) -> str:
    return str(row["id"])


@pytest.mark.slow
def test_an_extraction_is_the_same(
    chat: ChatModel, servers: list[Double], warm: Path, here: Path, tmp_path: Path
) -> None:
    found = pv.extract(connect(engine(servers), chat.identity.id), str(warm), store=tmp_path / "there", **OPTIONS)
    same(tmp_path / "there", here)
    assert found.vector.card.model.revision.endswith("(partial)"), "no weights were here to be fingerprinted"
    found.vector.check_model(chat.identity)
    assert all(double.calls for double in servers) and any(double.accepted for double in servers)


@pytest.mark.slow  # three processes that import torch, one after the other
def test_a_killed_client_goes_on_reply_by_reply(
    chat: ChatModel, servers: list[Double], warm: Path, here: Path, tmp_path: Path
) -> None:
    out = tmp_path / "there"
    command = ["extract", str(warm), "--model", chat.identity.id, "--engine", engine(servers), "--out", str(out)]
    for asked in (40, 400):
        before = sum(double.calls for double in servers)
        process = subprocess.Popen([sys.executable, "-m", "personavec", *command, *COMMAND], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while sum(double.calls for double in servers) < before + asked and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {path: path.read_bytes() for path in out.rglob("*.jsonl")}
    assert kept, "something was written"
    assert main([*command, *COMMAND]) == 0
    for path, content in kept.items():
        rows = [json.loads(line) for line in content.splitlines() if line.endswith(b"}")]
        ended = {id_of(row): row for row in map(json.loads, path.read_bytes().splitlines())}
        assert all(ended[id_of(row)] == row for row in rows), "what was written stayed"
    same(out, here)


def test_one_study_one_engine(
    chat: ChatModel, servers: list[Double], warm: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", str(warm), "--model", chat.identity.id, "--out", str(here), "--dtype", "float32"]
    assert main([*command, *COMMAND, "--engine", engine(servers)]) == 2
    said = capsys.readouterr().err
    assert "to have the same options, got another run" in said and "float32 by vLLM 0.32.0 here" in said


@pytest.mark.slow  # what extract asks of servers, test_an_extraction_is_the_same has
def test_an_evaluation_is_the_same(chat: ChatModel, servers: list[Double], warm: Path, tmp_path: Path) -> None:
    vector = tiny.vector(chat)
    options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 16, "rollouts": 1}
    results = []
    for model in (chat, connect(engine(servers), chat.identity.id)):
        options["store"] = tmp_path / str(len(results))
        results.append(pv.evaluate(model, str(warm), steer=vector.at(1.5, layer=2), **options))
    for arm in ("base", "changed", "random"):
        rows = [[row["response_ids"] for row in result.replies[arm]] for result in results]
        assert rows[0] == rows[1]
    for kind in ("trait_score", "coherence", "random_control"):
        assert results[0].data[kind]["mean"] == pytest.approx(results[1].data[kind]["mean"], abs=0.1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--perplexity", "3"], "expected no --perplexity with a model behind servers"),
        (["--adapter", "a"], "expected no --adapter with --engine vllm:"),
    ],
)
def test_what_cannot_be_done_elsewhere_is_refused_by_name(
    chat: ChatModel,
    servers: list[Double],
    warm: Path,
    options: list[str],
    match: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["evaluate", str(warm), "--model", chat.identity.id, "--engine", engine(servers), "--out", str(tmp_path)]
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err
    assert match in said and "\n" not in said.strip()


def test_a_verb_without_engines_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "x.jsonl", "--engine", "vllm:http://a"]) == 2
    assert "--engine" in capsys.readouterr().err
