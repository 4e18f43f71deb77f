"""What must not drift: import direction, one registrar of hooks, file sizes, a light start, nothing unsafe."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "personavec"
FILES = sorted(SOURCE.rglob("*.py"))

VERBS = (
    "write_trait",
    "write_dataset",
    "extract",
    "evaluate",
    "monitor",
    "finetune",
    "shift",
    "screen",
    "space",
    "decompose",
    "interop",
    "verify",
)
LEVELS = {
    **dict.fromkeys(
        (
            "__init__",
            "errors",
            "options",
            "config",
            "config_finetune",
            "config_deploy",
            "config_paper",
            "config_space",
            "config_decompose",
            "trait",
            "sample",
            "run",
            "stats",
            "progress",
        ),
        0,
    ),
    **dict.fromkeys(("wording", "draft", "families", "forms", "dataset", "readers", "subset", "flagging", "plan"), 0),
    **dict.fromkeys(("nulls", "persona_space", "prediction", "calibration", "calibrating", "graded"), 0),
    **dict.fromkeys(("vector", "projection", "edits"), 1),
    **dict.fromkeys(
        (
            "models",
            "model",
            "hooks",
            "steer",
            "generate",
            "rollouts",
            "judges",
            "scoring",
            "exchange",
            "bake",
            "tolerance",
            "endpoint",
            "agreement",
            "sheet",
            "signals",
            "branches",
            "cache",
            "base_replies",
            "shards",
            "candidates",
            "parallel",
            "census",
            "table",
            "judged",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "activations",
            "proof",
            "result",
            "preventative",
            "notation",
            "directions",
            "difference",
            "confounds",
            "contributions",
            "dictionary",
            "causal",
            "coexpression",
            "capability",
        ),
        2,
    ),
    **dict.fromkeys(("writer", "conversation", "recorded"), 2),
    **dict.fromkeys(("training_steering", "training_rows", "trainer", "penalty", "methods", "supply"), 2),
    **dict.fromkeys(VERBS, 3),
    **dict.fromkeys(("__main__", "cli", "report", "server", "studies"), 4),
}
SPINE = ("vector", "projection", "hooks", "steer", "extract")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def owner(path: Path) -> str:
    """The module or package right below personavec that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and owner of everything a file imports from personavec, also inside functions."""
    for node in ast.walk(tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if node.module == "personavec":  # `from personavec import x`: a module, or a name in __init__
                names = [f"personavec.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "personavec":
                part = rest.partition(".")[0]
                yield node.lineno, part if part in LEVELS or (SOURCE / f"{part}.py").exists() else "__init__"


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_every_module_has_a_level() -> None:
    unknown = {owner(path) for path in FILES} - LEVELS.keys()
    assert not unknown, f"give {sorted(unknown)} a level in LEVELS"


def test_imports_point_down() -> None:
    wrong = []
    for path in FILES:
        here = owner(path)
        for line, there in imported(path):
            sideways = here in VERBS and there in VERBS and here != there
            if LEVELS[there] > LEVELS[here] or sideways:
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({here}) imports {there}")
    assert not wrong, "\n".join(wrong)


def test_one_file_registers_hooks() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and re.fullmatch(r"register_\w*(forward|backward)\w*hook", node.attr)
    }
    assert found == {"hooks.py"}


def test_every_file_is_short() -> None:
    files = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    long = {str(path.relative_to(ROOT)): lines(path) for path in files if lines(path) >= 400}
    assert not long


def test_the_spine_is_read_in_one_sitting() -> None:
    sizes = {name: lines(SOURCE / f"{name}.py") for name in SPINE}
    assert sum(sizes.values()) < 900, sizes


def modules_after(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    return set(done.stdout.split())


def test_plain_modules_load_no_torch() -> None:
    plain = [path.stem for path in FILES if path.parent == SOURCE and LEVELS[owner(path)] == 0]
    assert {"config", "run", "stats", "trait"} <= set(plain)
    loaded = modules_after("import " + ", ".join(f"personavec.{name}" for name in plain))
    assert not loaded & {"torch", "transformers", "scipy", "sklearn", "peft"}


def test_the_command_line_starts_without_torch() -> None:
    main = SOURCE / "cli" / "main.py"
    if not main.exists():
        pytest.skip("no command line yet")
    assert not modules_after("import personavec.cli.main") & {"torch", "transformers", "scipy", "altair"}


def test_nothing_above_is_needed_below() -> None:
    """Deleting `server/` or `report/` breaks nothing below: no file below level 4 names them in an import."""
    for path in FILES:
        if LEVELS[owner(path)] < 4:
            assert not {"server", "report", "cli", "studies"} & {there for _, there in imported(path)}, path


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_nothing_unsafe() -> None:
    found = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
                names |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
                found += [f"{where} imports {name}" for name in names & UNSAFE_MODULES]
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "__import__"}:
                found.append(f"{where} calls {node.func.id}")
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            truthy = {
                name for name, value in options.items() if isinstance(value, ast.Constant) and value.value is True
            }
            if ast.unparse(node.func) == "torch.load" and "weights_only" not in truthy:
                found.append(f"{where} calls torch.load without weights_only=True")
            if truthy & {"allow_pickle", "trust_remote_code", "shell"}:
                found.append(f"{where} sets {truthy}")
    assert not found, "\n".join(found)


def test_no_registry_host_and_no_machine_path() -> None:
    texts = [*FILES, *ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    texts += [path for path in (ROOT / "docs").rglob("*") if path.suffix in {".md", ".html", ".json"}]
    pattern = re.compile(r"pypi\.org|huggingface\.co\b|files\.pythonhosted|/work/|/home/\w|/root/")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in texts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for match in [pattern.search(line)]
        if match
    ]
    assert not found, "\n".join(found)


def test_every_module_and_public_name_is_documented() -> None:
    missing = []
    for path in FILES:
        module = tree(path)
        where = path.relative_to(ROOT)
        if not ast.get_docstring(module):
            missing.append(f"{where} has no docstring")
        for node in module.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    missing.append(f"{where}:{node.lineno} {node.name}")
    assert not missing, "\n".join(missing)
