"""The command line: help at once, one line for bad input, exit codes, and one JSON object."""

import errno
import gc
import io
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import rich.console
import torch
from safetensors import SafetensorError
from support.tiny_chat import said

from personavec.cli import lines
from personavec.cli import summary_find as summary
from personavec.cli.main import VERBS, let_go, main, parse
from personavec.runs.result import Result
from personavec.verbs.evaluate.options import EvaluateConfig
from personavec.verbs.extract.options import ExtractConfig

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "altair", "rich", "numpy", "peft", "personavec.model.chat_model")
ESTIMATE = {"mean": 50.0, "ci": [40.0, 60.0], "n": 20, "dropped": 0}


def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths} | env
    )


# Help


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = f"import sys; from personavec.cli.main import main; main({args}); print(set({HEAVY}) & set(sys.modules))"
    done = python("-c", code)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "set()", done


def test_help_comes_at_once() -> None:
    """In processor time, which other processes of the machine do not lengthen."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert python("-m", "personavec", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"personavec --help: {min(seconds):.2f} s")
    assert min(seconds) < 1.0


def test_overview_has_one_line_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb, (config, _) in VERBS.items():
        summary_line = str(config.__doc__).splitlines()[0]
        (line,) = [line for line in text.splitlines() if f"• {verb} " in line]
        assert summary_line in line
    assert main([]) == 0 and capsys.readouterr().out == text
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("personavec 0.")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_teaches(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    examples = [line.strip() for line in text.splitlines() if f"personavec {verb}" in line and "usage" not in line]
    assert 2 <= len(examples) <= 4 and f"docs/{verb}.md" in text and "(default: " in text
    for example in examples:
        command = example.split("|")[-1].split(">")[0]
        assert parse(shlex.split(command)[1:])[0] == verb


def test_cli_page_equals_help() -> None:
    done = python(str(ROOT / "scripts" / "docs"), "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    other = python(str(ROOT / "scripts" / "docs"), "--check", COLUMNS="40", TERM="xterm", FORCE_COLOR="1", LC_ALL="C")
    assert other.returncode == 0


# Bad input


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(args) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1, said
    assert "Traceback" not in said.err and "│" not in said.err
    return said.err.removeprefix("personavec: ").strip()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("extarct optimistic", "did you mean extract?"),
        ("frobnicate", "expected a verb (demo, extract"),
        ("--nosuch", "see personavec --help"),
        ("extract optimistic --modle x", "did you mean --model?"),
        ("extract optimistic --layers high", "error parsing --layers"),
        ("extract optimistic --dtype int8", "'bfloat16'"),
        ("chat --steer", "missing value"),
        ("verify --vectro x", "did you mean --vector?"),
        ("evaluate evil --rolouts 3", "did you mean --rollouts?"),
        ("demo --trai evil", "did you mean --trait?"),
        ("extract", "expected one or more different traits"),
        ("extract optimisti", "did you mean optimistic"),
        ("extract nosuch.json", "expected a trait file"),
        ("evaluate optimisti", "did you mean optimistic"),
        ("demo --trait optimisti", "did you mean optimistic"),
        ("evaluate evil --model TINY --steer vector", "expected VEC:COEF[@LAYER], got vector"),
        ("evaluate evil --model TINY --steer nosuch.safetensors:1", "no file at nosuch.safetensors"),
        ("chat --steer vector:much", "expected VEC:COEF[@LAYER], got vector:much"),
        ("chat --steer nosuch.safetensors:1", "no file at nosuch.safetensors"),
        ("chat --watch nosuch.safetensors", "no file at nosuch.safetensors"),
        ("verify --vector nosuch.safetensors", "no file at nosuch.safetensors"),
        ("chat --model /nosuch/model", "no folder at /nosuch/model"),
        ("verify --device nosuch", "expected a usable device, got nosuch"),
    ],
)
def test_bad_input_is_one_line_and_2(
    args: str, told: str, saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(args.replace("TINY", str(saved[0])).split(), capsys)


def test_layers_out_of_range(saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, vector = map(str, saved)
    assert "layer" in refused(["extract", "optimistic", "--model", model, "--layers", "1", "4"], capsys)
    assert "from 0 to 3, got 4" in refused(["chat", "--model", model, "--steer", f"{vector}:1@4"], capsys)


def test_box_without_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    done = python("-m", "personavec", "extract", "--modle", "x", PYTHON_TYRO_UTF8_BOXES="False")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "personavec: unrecognized options: --modle, x; did you mean --model?\n"


def test_options_of_another_verb_are_told_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(["screen", "pairs.jsonl", "--vector", "devout"], capsys)
    assert "--vector" in told and "did you mean --vectors?" in told
    assert "applied to" not in told and "ordering" not in told


# Other endings


DEBUG = "run with PERSONAVEC_DEBUG=1 for the traceback"
ROOM = "make room or choose another place, then the same command goes on"


def full_disk() -> BaseException:
    """As torch tells it: in its words, and the system's are behind them."""
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0")  # noqa: B904
    except RuntimeError as error:
        return error


@pytest.fixture
def fake_verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Let `extract` print, and return or raise what is given; its report is not drawn."""

    def put(outcome: Any) -> None:
        def run(_: Any) -> Any:
            print("noise of a library")
            if isinstance(outcome, BaseException):
                raise outcome
            return Result(outcome)

        monkeypatch.setattr(ExtractConfig, "run", run)

    return put


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            RuntimeError("two\nlines"),
            1,
            f"got what was not foreseen: two lines; {DEBUG}",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            1,
            "out of memory; lower --batch-tokens, now 12288, or choose a smaller --model",
        ),
        (
            KeyError(),
            1,
            f"got what was not foreseen: an error that says nothing; {DEBUG}",
        ),
        (full_disk(), 2, f"expected to write a file, got: {os.strerror(errno.ENOSPC)}; {ROOM}"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            2,
            f"expected to write a file, got: {os.strerror(errno.ENOSPC)}; {ROOM}",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            2,
            f"expected to write a file, got: no room to write on, as far as torch says; {ROOM}",
        ),
        (
            RuntimeError("basic_ios::clear: iostream error"),
            2,
            f"expected to write a file, got: no room to write on, as far as torch says; {ROOM}",
        ),
        (MemoryError(), 1, "out of memory; lower --batch-tokens, now 12288, or choose a smaller --model"),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes"),
    ],
)
def test_other_endings(
    error: BaseException, code: int, told: str, fake_verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_verb(error)
    assert main(["extract", "evil", "--json"]) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"noise of a library\npersonavec: {told}\n")


def test_an_interrupt_is_not_lost_in_the_deletion_of_an_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deleted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def run(_: Any) -> Any:
        del_me = Deleted()
        del del_me
        until = time.monotonic() + 60
        while time.monotonic() < until:  # the work goes on, and Python looks for interrupts
            pass
        return Result({})

    monkeypatch.setattr(ExtractConfig, "run", run)
    hook = sys.unraisablehook
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert main(["extract", "evil", "--json"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "personavec: interrupted; the same command resumes\n"
    assert sys.unraisablehook is hook


def test_a_trait_that_failed_beside_others_is_bad_input(fake_verb: Any) -> None:
    fake_verb({"traits": [], "failed": [{"trait": "evil", "error": "no replies"}]})
    assert main(["extract", "evil", "humorous", "--json"]) == 2


def test_debug_shows_the_traceback(fake_verb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_verb(RuntimeError("two"))
    monkeypatch.setenv("PERSONAVEC_DEBUG", "1")
    with pytest.raises(RuntimeError, match="two"):
        main(["extract", "evil"])


def test_json_is_all_there_is_on_stdout(fake_verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fake_verb({"vector": Path("a/b"), "traits": [], "text": "ü"})
    assert main(["extract", "evil", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"vector": "a/b", "traits": [], "text": "ü"} and said.out.count("\n") == 1
    assert "noise" in said.err


def test_summary_of_extract(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = [{"text": "It is good.", "holds": True}, {"text": "It is bad.", "holds": False, "moot": False}]
    arms = dict.fromkeys(("base", "steered", "suppressed"), ESTIMATE)
    trait = {"trait": "evil", "proven": False, "vector": "runs/a long/vector.safetensors", "layer": 9, "coef": 1.5}
    trait |= {
        "verdict": verdict,
        "verdict_word": "not proven",
        "deciding": "It is bad.",
        "independent_check": None,
        "judge_aucs": {"opposite": ESTIMATE},
        "dose": 0.4,
        "above_floor": False,
        "largest_dose": True,
        "n_pos": 80,
        "n_neg": 90,
        "trait_score": arms,
        "coherence": arms,
        "unscored": {"half_steered": {"trait": {"empty": 0, "refused": 2}, "coherence": {"empty": 0}}},
    }
    trait |= {"random_control": ESTIMATE | {"mean": None}, "judge_auc": ESTIMATE, "report": "r.html", "sheet": "s.html"}
    console = rich.console.Console(file=io.StringIO(), width=60, highlight=False)
    for module in (lines, summary):
        monkeypatch.setattr(module, "console", console)
    summary.extract(
        ExtractConfig(model="a/b"),
        {"traits": [trait], "failed": [{"trait": "odd", "error": "no replies"}], "report": "r.html", "seconds": 61.2}
        | {"judge_by_trait": {"above": {"evil": {"largest": "impolite", "difference": ESTIMATE}}}}
        | {"judge_usage": {"calls": 1200, "retries": 3, "failed": 1, "cached": 7, "tokens": 5000}},
    )
    text = said(console)
    assert "larger --doses" not in text, "nothing stayed coherent"
    assert "half steered: no trait score for 2 refused" in text and "for blind readers: s.html" in text
    assert "1,200 calls (3 of them retries, 1 failed), 5,000 tokens; 7 answers from the cache" in text
    assert "against it: It is bad." in text and "good" not in text
    assert "judge of evil: its own replies score 50.0 [40.0, 60.0] above those of impolite" in text
    assert "not proven" in text and "50.0 [40.0, 60.0]" in text and "–" in text and "80 + 90 replies" in text
    assert "--model a/b --steer 'runs/a long/vector.safetensors:1.5@9'" in text and "61 seconds" in text


def test_summary_of_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"trait": ESTIMATE, "coherence": ESTIMATE | {"mean": 90.0}}
    result = {"trait": "evil", "trait_score": ESTIMATE, "coherence": ESTIMATE, "base": both, "difference": both}
    result |= {
        "random_control": None,
        "judge": "panel:x",
        "judge_auc": None,
        "weak_judge": True,
        "replies": 60,
        "unscored": {"base": {"trait": {"empty": 1, "refused": 0}, "coherence": {"empty": 1}}},
        "judge_usage": None,
    }
    console = rich.console.Console(file=io.StringIO(), width=60, highlight=False)
    for module in (lines, summary):
        monkeypatch.setattr(module, "console", console)
    summary.evaluate(EvaluateConfig(steer=("v:2",)), {**result, "table": "t.jsonl", "seconds": 3.0})
    text = said(console)
    assert "evil on smollm2 with v:2" in text and "difference" in text and "90.0 [40.0, 60.0]" in text
    assert "a weak judge" in text and "60 replies: t.jsonl" in text and "base: no trait score for 1 empty" in text


# verify


def test_verify_command(
    saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, vector = map(str, saved)
    args = ["verify", "--model", model, "--vector", vector]
    assert main([*args, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] and result["vector"] == "tiny" and len(result["checks"]) == 10
    assert main(args) == 0 and "all checks passed" in capsys.readouterr().out
    monkeypatch.setattr("personavec.steering.steer.Steered.change", lambda self, layer, stream: stream)
    assert main(args) == 1 and "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_runs_and_prints(verb: str) -> None:
    options, summary = VERBS[verb]
    assert callable(options.run)
    assert callable(getattr(import_module(f"personavec.cli.{summary}"), verb))


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m personavec screen --help | head -2"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(("loaded", "frozen"), [({}, True), ({"triton": None}, False)])
def test_at_the_end_nothing_is_looked_through_unless_somebody_reports_it(
    loaded: dict[str, Any], frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    for name, module in loaded.items():
        monkeypatch.setitem(sys.modules, name, module)
    gc.unfreeze()
    try:
        let_go()
        assert (gc.get_freeze_count() > 0) is frozen
    finally:
        gc.unfreeze()
