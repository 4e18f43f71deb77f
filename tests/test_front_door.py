"""`import personavec as pv`: light, typed, complete, and used as docs/api.md and the examples use it."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import letters, tiny_chat

import personavec as pv

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ORDER = ("extract_and_steer", "watch", "screen", "finetune_with_prevention", "serve_and_call")


def test_every_name_loads_and_is_listed() -> None:
    assert set(pv.__all__) <= set(dir(pv)) and 15 <= len(pv.__all__) <= 25
    for name in pv.__all__:
        assert getattr(pv, name).__module__.startswith("personavec.")
        assert (getattr(pv, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="module 'personavec' has no attribute 'nothing'"):
        _ = pv.nothing


def test_the_page_lists_every_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert not [name for name in pv.__all__ if f"`{name}`" not in page and f"pv.{name}" not in page]


def test_importing_it_loads_nothing() -> None:
    code = "import sys, personavec; print([name for name in ('torch', 'numpy', 'tyro', 'rich') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_it_takes_no_time() -> None:
    code = "import time; began = time.perf_counter(); import personavec; print(time.perf_counter() - began)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) for _ in range(3)
    ]
    assert min(taken) < 0.06


def test_no_verb_loads_a_command_line() -> None:
    code = (
        "import sys, personavec as pv\nfor verb in ('extract', 'evaluate', 'screen', 'monitor'):\n"
        "    assert callable(getattr(pv, verb)) and 'tyro' not in sys.modules, verb"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


TYPED = """
import personavec as pv

model = pv.ChatModel.load("smollm2")
extraction = pv.extract(model, "optimistic", rollouts=2)
reveal_type(extraction)
reveal_type(extraction.vector)
reveal_type(pv.extract(model, ["optimistic", "evil"]))
reveal_type(extraction.vector.at(dose=0.2))
reveal_type(model.chat("Hi?", steer=extraction.vector.at()))
reveal_type(pv.load_vector("x") * 2)
reveal_type(pv.evaluate(model, "optimistic"))
reveal_type(pv.screen(model, [{"prompt": "a", "response": "b"}], [extraction.vector]))
pv.extract(model, "optimistic", rolouts=2)
pv.extract(model, 3)
"""


@pytest.mark.slow  # scripts/check types the package itself
def test_types_are_seen_from_outside(tmp_path: Path) -> None:
    script = tmp_path / "outside.py"
    script.write_text(TYPED)
    # with the project's settings and cache, so that what `scripts/check` found out is not found out again
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, "--no-error-summary", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    revealed = re.findall(
        r'Revealed type is "personavec\.[\w.]*\.(\w+)"|Revealed type is "(?:builtins\.)?(str)"', done.stdout
    )
    assert ["".join(found) for found in revealed] == [
        "Extraction", "PersonaVector", "Extractions", "Steering", "str", "PersonaVector", "Evaluation", "Screening",
    ], done.stdout  # fmt: skip
    errors = re.findall(r"outside\.py:(\d+): error:", done.stdout)
    assert set(errors) == {"14", "15"}, done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the examples ran one after the other, and the tiny model they ran on."""
    folder = tmp_path_factory.mktemp("examples")
    tiny_chat.build(context=2048).hf.save_pretrained(folder / "model")
    tiny_chat.build(context=2048).tokenizer.save_pretrained(folder / "model")
    return folder


def run(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", [name, str(place / "model")])
    monkeypatch.setattr("personavec.judges.load.load_bench", lambda *_, **__: letters.bench())
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.slow  # the page and the notebook do the same
@pytest.mark.parametrize("name", ORDER)
def test_an_example_runs(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this order: the first one writes the vector that the others take."""
    run(name, place, monkeypatch)
    assert capsys.readouterr().out.strip()
    assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) <= 30


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.slow
def test_the_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of docs/api.md in turn, on a tiny model in place of the one it names."""
    assert len(blocks()) >= 8
    monkeypatch.chdir(place)
    monkeypatch.setattr("personavec.judges.load.load_bench", lambda *_, **__: letters.bench())
    model = tiny_chat.build(context=2048)
    monkeypatch.setattr(pv.ChatModel, "load", classmethod(lambda *_, **__: model))
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"docs/api.md, block {number}", "exec"), names)


SETUP = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from support import letters
import personavec.judges.load
personavec.judges.load.load_bench = lambda *_, **__: letters.bench()
"""


@pytest.mark.slow
def test_the_notebook_runs(place: Path) -> None:
    """Every cell, in a kernel, on the tiny model; its results show themselves as HTML."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", 4)
    kept = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in kept), "outputs of a real run are kept"
    for cell in notebook.cells:
        cell.source = cell.source.replace('"smollm2"', repr(str(place / "model")))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP.format(tests=str(ROOT / "tests"))))
    (place / "rows.jsonl").write_bytes((EXAMPLES / "rows.jsonl").read_bytes())
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    pages = [data["text/html"] for data in shown if "text/html" in data and "<progress" not in data["text/html"]]
    assert len(pages) >= 6 and any("<svg" in page for page in pages)
    assert any("background:rgba(" in page for page in pages), "a reply with shaded tokens"


def test_what_is_no_chat_model_is_refused() -> None:
    verbs = ["extract", "evaluate", "screen", "monitor", "finetune", "shift", "verify", "serve"]
    code = """
import sys
from inspect import signature
import personavec as pv

for verb in sys.argv[1:]:
    parameters = signature(getattr(pv, verb)).parameters.values()
    needed = [each for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    for other in ("smollm2", object(), None):
        try:
            getattr(pv, verb)(other, *[[] for _ in needed[1:]])
        except pv.PersonavecError as error:
            print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code, *verbs], capture_output=True, text=True, check=False)
    kinds = ["'smollm2'", "object", "NoneType"] * len(verbs)
    assert ran.stdout.splitlines() == [
        f"expected model to be a ChatModel, got {kind}; make a ChatModel of it" for kind in kinds
    ], ran.stderr
