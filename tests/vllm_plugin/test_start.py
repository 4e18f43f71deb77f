"""How a server is started: its command line, what is refused in one line, and what the plugin needs."""

import ast
import json
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import fake_vllm

from personavec.steering.vector import PersonaVector
from personavec.vllm.__main__ import arguments, main
from personavec.vllm.asked import read
from personavec.vllm.selfcheck import tried
from personavec.vllm.settings import Refusal, check

SOURCE = Path(__file__).parents[2] / "src" / "personavec"
BROUGHT = {"torch", "numpy", "safetensors", "vllm"}
"""What an environment of vLLM has, and the plugin may import."""


def test_the_command_line_of_the_server(v: PersonaVector, tmp_path: Path) -> None:
    v.save(tmp_path / "a.safetensors")
    given = arguments(["--vectors", str(tmp_path), "--layers", "2", "1", "--model", "M", "--port", "1"])
    assert given[:4] == ["--model", "M", "--port", "1"]
    config = json.loads(given[-1].removeprefix("--additional-config="))["personavec"]
    assert config["layers"] == [1, 2] and config["hashes"] == [v.content_hash] and config["means"]
    for wrong in ("--worker-cls=x", "--edits=-1"):
        with pytest.raises(Refusal, match=wrong.split("=")[0]):
            arguments(["--vectors", str(tmp_path), wrong])


def test_a_server_without_vectors_takes_those_of_clients_and_checks_itself_with_a_random_one(tmp_path: Path) -> None:
    given = arguments(["--accept-vectors", str(tmp_path / "given"), "--model", "M"])
    config = json.loads(given[-1].removeprefix("--additional-config="))["personavec"]
    assert config["hashes"] == [] and config["given"] == str(tmp_path / "given")
    with fake_vllm.installed():
        settings, vectors = check(fake_vllm.config({"personavec": config}, 3, 8), "0.32.0")
        _, again = check(fake_vllm.config({"personavec": config}, 3, 8), "0.32.0")
    (name,) = vectors
    assert [*again] == [name] and again[name].direction.equal(vectors[name].direction)
    assert tried(vectors, settings) == (name, 1) and vectors[name].direction.shape == (3, 8)
    looked = read({"id": "selfcheck x", "watch": [{"vector": name, "layer": 1}]}, vectors, settings, 64)
    assert looked.looks == ((name, 1),), "or no such server would start"
    with pytest.raises(Refusal, match="got neither"):
        arguments(["--model", "M"])


def ended(given: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["personavec.vllm", *given])
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: expected") and text.count("\n") == 1
    return text


def test_a_server_that_cannot_start_says_why_in_one_line(
    v: PersonaVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--vectors", str(tmp_path), "--model", "M"]
    assert "put the vectors there" in ended(given, monkeypatch, capsys)
    v.save(tmp_path / "v.safetensors")
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "expected vLLM beside personavec" in ended(given, monkeypatch, capsys)
    with fake_vllm.installed("0.33.0"):
        assert "expected vLLM 0.32.x, got 0.33.0" in ended(given, monkeypatch, capsys)

    def serve(*_: Any, **__: Any) -> None:
        assert sys.argv[1:3] == ["--model", "M"]
        raise Refusal("expected vectors of a model, got others")

    monkeypatch.setattr(runpy, "run_module", serve)
    with fake_vllm.installed():
        assert "of a model" in ended(given, monkeypatch, capsys)


def roots(path: Path) -> set[str]:
    """The packages that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"personavec"}


def test_the_plugin_needs_what_vllm_brings_and_the_rest_does_not_need_vllm() -> None:
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "vllm":
            web = {"fastapi"} if path.name == "endpoint.py" else set()  # what vLLM hands to its endpoint plugins
            assert roots(path) <= BROUGHT | web, path
        else:
            assert "vllm" not in roots(path), path


def test_the_plugin_loads_without_the_rest_of_the_package() -> None:
    modules = [f"personavec.vllm.{name}" for name in ("__main__", "admission", "book", "rows", "selfcheck")]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"transformers", "scipy", "pyarrow", "tyro", "jaxtyping", "tokenizers"} & set(loaded)
    ours = {name for name in loaded if name.startswith("personavec.")}
    assert all(name.startswith("personavec.vllm") for name in ours), ours
