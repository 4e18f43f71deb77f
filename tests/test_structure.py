"""What must not drift: one order of rooms, one registrar of hooks, small files, a light start, nothing unsafe."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "personavec"
FILES = sorted(SOURCE.rglob("*.py"))

ROOMS = "errors stats runs traits data model steering judges verbs report server paper cli".split()
"""In order: a room imports only rooms before it."""
KNOWS = {"report": {"errors", "runs", "report"}, "vllm": {"vllm"}}
"""Rooms that know less than that."""
VERBS_KNOW = {"finetune": {"screen", "evaluate", "extract"}, "analyse": {"extract"}}
"""A verb imports its own room and `verbs/options.py`; these import other verbs as well."""
LOOKED_UP = {
    "runs/result.py": {"report"},
    "model/chat_model.py": {"steering"},
    "__init__.py": {*ROOMS},
    "cli/main.py": {*ROOMS},
}
"""Files that look a module of a later room up by name, when a user asks for it, and which rooms those are in."""
LIGHT = {"errors", "stats", "runs", "traits", "data"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def room(path: Path) -> str:
    """The room that a file belongs to; of files at the root their own name."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    return ".".join(("personavec", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of everything a file imports from personavec, also inside functions."""
    for node in ast.walk(tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            base = node.module or ""
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        for name in names:
            if name.split(".")[0] == "personavec":
                yield node.lineno, name


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_the_root_holds_the_rooms() -> None:
    there = {path.name for path in SOURCE.iterdir()} - {"__pycache__"}
    rooms = {name for name in [*ROOMS, *KNOWS] if name != "errors" and (SOURCE / name).is_dir()}
    assert there == rooms | {"errors.py", "__init__.py", "__main__.py", "py.typed"}


def test_a_room_imports_only_rooms_before_it() -> None:
    wrong = []
    for path in FILES:
        here = room(path)
        if here in ("__init__", "__main__"):
            continue
        known = KNOWS.get(here) or set(ROOMS[: ROOMS.index(here) + 1])
        for line, name in imported(path):
            there = MODULES[name]
            ok = room(there) in known or room(there) == "__init__"  # the version
            if here == "verbs" == room(there):
                mine, other = (p.relative_to(SOURCE).parts[1] for p in (path, there))
                ok = other in {mine, "options.py", *VERBS_KNOW.get(mine, ())}
            if not ok:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_modules_that_are_looked_up_by_name_are_few() -> None:
    wrong = []
    for path in FILES:
        known = LOOKED_UP.get(path.relative_to(SOURCE).as_posix(), set())
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                text = ast.unparse(node.args[0])
                there = re.search(r"personavec\.(\w+)", text)
                if "personavec" in text and not (known and (there is None or there[1] in known)):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} looks up {text}")
    assert not wrong, "\n".join(wrong)


def test_a_room_says_what_it_is_and_is_small() -> None:
    for init in SOURCE.rglob("*/__init__.py"):
        body = tree(init).body
        assert ast.get_docstring(tree(init)) and len(body) == 1, f"{init} defines something, or has no docstring"
        count = len(list(init.parent.glob("*.py"))) - 1
        assert count <= 13, f"{init.parent.relative_to(ROOT)} has {count} modules"


def test_a_small_module_has_two_users() -> None:
    users = Counter(name for path in FILES for name in {name for _, name in imported(path)})
    small = [
        f"{path.relative_to(ROOT)}: {lines(path)} lines, {users[module(path)]} users"
        for path in FILES
        if lines(path) < 40
        and path.name not in ("__init__.py", "__main__.py", "options.py")
        and users[module(path)] < 2
    ]
    assert not small, "\n".join(small)


def test_a_public_class_has_a_name_of_its_own() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_tests_mirror_the_rooms() -> None:
    folders = {path.relative_to(ROOT / "tests").parent.as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    rooms = {path.parent.relative_to(SOURCE).as_posix() for path in FILES} | {"."}
    folders = {"vllm" if folder == "vllm_plugin" else folder for folder in folders}  # a folder vllm could be imported
    assert folders <= rooms, folders - rooms


def test_below_the_verbs_nothing_knows_an_option() -> None:
    for path in FILES:
        if room(path) in ROOMS[: ROOMS.index("verbs")]:
            assert "tyro" not in path.read_text("utf-8"), path


def test_one_file_registers_hooks() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and re.fullmatch(r"register_\w*(forward|backward)\w*hook", node.attr)
    }
    assert found == {"model/hooks.py"}


def test_every_file_is_short() -> None:
    files = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    long = {str(path.relative_to(ROOT)): lines(path) for path in files if lines(path) >= 400}
    assert not long


def modules_after(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    return set(done.stdout.split())


def test_light_rooms_and_options_load_no_torch() -> None:
    plain = [module(path) for path in FILES if room(path) in LIGHT or path.name == "options.py"]
    assert len(plain) > 20
    loaded = modules_after("import " + ", ".join(plain))
    assert not loaded & {"torch", "transformers", "scipy", "sklearn", "peft"}


def test_the_command_line_starts_without_torch() -> None:
    assert not modules_after("import personavec.cli.main") & {"torch", "transformers", "scipy", "altair"}


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
                overload = any(ast.unparse(d) == "overload" for d in node.decorator_list)
                if not ast.get_docstring(node) and not overload:
                    missing.append(f"{where}:{node.lineno} {node.name}")
    assert not missing, "\n".join(missing)
