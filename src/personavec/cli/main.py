"""The `personavec` command: one subcommand a verb. Verbs are imported when they run, so that help comes at once."""

import _thread
import atexit
import contextlib
import difflib
import errno
import gc
import inspect
import io
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

import tyro

from personavec import __version__
from personavec.cli.demo import DemoConfig
from personavec.cli.options import ChatConfig
from personavec.errors import ConfigError, PersonavecError
from personavec.paper.options import PaperConfig
from personavec.runs.gate import GateCondition, told, write_junit
from personavec.runs.run import Row
from personavec.server.options import ServeConfig
from personavec.verbs.analyse.options import DecomposeConfig, SpaceConfig
from personavec.verbs.authoring.options import WriteDatasetConfig, WriteTraitConfig
from personavec.verbs.evaluate.options import EvaluateConfig, VerifyConfig
from personavec.verbs.extract.options import ExtractConfig
from personavec.verbs.finetune.options import ReportConfig, ShiftConfig
from personavec.verbs.interop.options import InteropConfig
from personavec.verbs.monitor.options import MonitorConfig
from personavec.verbs.screen.options import ScreenConfig

SOON_SECONDS = 0.01
DONE, FAILED, BAD_INPUT, GATED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes."""

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EFBIG, errno.EPERM)
"""What a user can mend: no room, no permission, a name too long."""
TORCH_WRITERS = ("inline_container.cc", "basic_ios::clear: iostream error")
"""How torch's writers fail: they say neither file nor reason."""

WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
"""How torch's threads wait for each other. By default they spin, and so take the cores from whatever else is to run; a
user's own setting stands."""

VERBS: dict[str, tuple[type, str]] = {
    "demo": (DemoConfig, "summary_find"),
    "extract": (ExtractConfig, "summary_find"),
    "evaluate": (EvaluateConfig, "summary_find"),
    "chat": (ChatConfig, "summary_use"),
    "monitor": (MonitorConfig, "summary_use"),
    "screen": (ScreenConfig, "summary_train"),
    "finetune": (ReportConfig, "summary_train"),
    "shift": (ShiftConfig, "summary_train"),
    "serve": (ServeConfig, "summary_use"),
    "space": (SpaceConfig, "summary_use"),
    "decompose": (DecomposeConfig, "summary_use"),
    "interop": (InteropConfig, "summary_use"),
    "verify": (VerifyConfig, "summary_find"),
    "paper": (PaperConfig, "summary_use"),
    "write_trait": (WriteTraitConfig, "summary_use"),
    "write_dataset": (WriteDatasetConfig, "summary_use"),
}
"""Options of each verb, whose `run` does it, and the module with the function of its name that prints the result."""

DESCRIPTION = """\
Find the directions in a language model that carry character traits, prove them, steer and watch with them.

Start here:
  personavec demo               a whole run on a small model, in minutes
  personavec VERB --help        options and examples of one verb
  personavec --version

Exit codes: 0 done, 1 failed, 2 bad input, 3 a --fail-if holds, 130 interrupted. PERSONAVEC_DEBUG=1 shows tracebacks."""


@atexit.register
def let_go() -> None:
    """Leave what is left to go with the process: looking through all of it once more would take seconds.

    With triton it is looked through: what is not collected would be reported on stderr as leaked, twenty lines of it.
    """
    if "triton" not in sys.modules:
        gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if not WAITING & os.environ.keys():  # read once, when torch is loaded
        os.environ["GOMP_SPINCOUNT"] = "0"
    try:
        with _interrupts_arrive():
            code = _main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read has seen enough: personavec screen --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would complain
        return DONE


@contextlib.contextmanager
def _interrupts_arrive() -> Iterator[None]:
    """Interrupt again where Python drops an interrupt: one that comes while an object is being deleted."""
    before = sys.unraisablehook
    waiting: list[threading.Timer] = []

    def again(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            waiting.append(threading.Timer(SOON_SECONDS, _thread.interrupt_main))  # in here it would be dropped, too
            waiting[-1].start()
        else:
            before(dropped)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in waiting:  # nothing is left to be interrupted
            timer.cancel()


def _main(argv: Sequence[str] | None) -> int:
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if args == ["--version"]:
        print(f"personavec {__version__}")
        return DONE
    debug = bool(os.environ.get("PERSONAVEC_DEBUG"))
    options: Any = None
    try:
        name, options = parse(args)
        return run(name, options)
    except SystemExit as ended:  # help was printed
        return int(ended.code or DONE)
    except KeyboardInterrupt:
        return _tell("interrupted" + "; the same command resumes" * hasattr(options, "out"), INTERRUPTED)
    except BrokenPipeError:
        raise
    except PersonavecError as error:
        if debug:
            raise
        return _tell(str(error), BAD_INPUT)
    except Exception as error:
        if debug:
            raise
        if reason := _unwritable(error):
            place = getattr(error, "filename", None) or "a file"
            advice = "make room or choose another place, then the same command goes on"
            return _tell(f"expected to write {place}, got: {reason}; {advice}", BAD_INPUT)
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
            batch = getattr(options, "batch_tokens", None)
            advice = f"lower --batch-tokens, now {batch}, or " * bool(batch) + "choose a smaller --model"
            return _tell(f"out of memory; {advice}", FAILED)
        said = str(error).strip() or "an error that says nothing"
        return _tell(f"got what was not foreseen: {said}; run with PERSONAVEC_DEBUG=1 for the traceback", FAILED)


def run(name: str, options: Any) -> int:
    """Run a verb and print what it found; with --json nothing else reaches stdout."""
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        outcome = options.run()
        if int(os.environ.get("RANK", 0)):  # of several processes of accelerate launch the first one speaks
            return DONE
        result = outcome.published()
        gates = _gates(name, options, result)
    if options.json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False, default=str), flush=True)
    else:
        getattr(import_module(f"personavec.cli.{VERBS[name][1]}"), name)(options, result)
    for gate in gates:
        if gate["failed"] is not False:
            _tell(told(gate), GATED)
    for failure in result.get("failed", ()):
        _tell(": ".join(failure.values()), BAD_INPUT)
    if result.get("failed"):
        return BAD_INPUT
    if any(gate["failed"] is None for gate in gates):
        return BAD_INPUT
    if not result.get("passed", True):
        return FAILED
    return GATED if any(gate["failed"] for gate in gates) else DONE


def _gates(name: str, options: Any, result: dict[str, Any]) -> list[Row]:
    """What became of every --fail-if; part of the result, and a file for --junit."""
    conditions = getattr(options, "fail_if", ())
    gates = [GateCondition.parse(text).of(result) for text in conditions]
    if gates:
        result["fail_if"] = gates
        if options.junit:
            write_junit(options.junit, name, gates, float(result.get("seconds") or 0))
    return gates


def parse(args: Sequence[str]) -> tuple[str, Any]:
    """The verb and its options.

    Raises:
        ConfigError: The options are wrong; one line, in place of tyro's box.
        SystemExit: Help was printed.
    """
    chosen = args[0]
    if chosen not in VERBS and not chosen.startswith("-"):
        near = difflib.get_close_matches(chosen, VERBS, n=1)
        advice = f"did you mean {near[0]}?" if near else "see personavec --help"
        raise ConfigError(f"expected a verb ({', '.join(VERBS)}), got {chosen}; {advice}")
    verbs: list[Any] = []
    for name, (options, _) in VERBS.items():
        teaching = inspect.getdoc(options) or ""
        # the overview has one line a verb, the verb's own help has its examples
        shown = teaching if name == chosen else teaching.splitlines()[0]
        verbs.append(Annotated[options, tyro.conf.subcommand(name, description=shown)])
    choice: Any = reduce(or_, verbs)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(
                choice,
                prog="personavec",
                description=DESCRIPTION,
                args=args,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        raise ConfigError(_in_a_line(said.getvalue(), chosen)) from None
    return chosen, parsed


def _in_a_line(box: str, chosen: str) -> str:
    """What tyro says in a box of several sections: the first one, and the nearest option it knows."""
    lines = (line.strip(" │") for line in box.splitlines()[1:-1])
    rules = itertools.groupby(lines, key=lambda line: bool(line) and set(line) <= set("─-"))
    sections = [section for rule, group in rules if not rule and any(section := list(group))]
    text = " ".join(" ".join(sections[0]).split())
    text = re.sub(r" \(applied to [^)]*\)| Arguments are applied to the directly preceding.*", "", text).rstrip(".")
    near = next((section[1].split()[0] for section in sections if section[0].startswith("Perhaps you meant")), None)
    advice = f"did you mean {near}?" if near else "see " + " ".join(["personavec", *{chosen} & VERBS.keys(), "--help"])
    return f"{text[:1].lower()}{text[1:]}; {advice}"


def _unwritable(error: BaseException | None) -> str:
    """Why a file could not be written, as far as an error or one behind it says; libraries wrap these in theirs."""
    torch = any(words in str(error) for words in TORCH_WRITERS)
    while error is not None:
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return error.strerror or os.strerror(error.errno)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if os.strerror(number) in str(error) or f"os error {number}" in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return "no room to write on, as far as torch says" if torch else ""


def _tell(text: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):  # nobody reads it
        print(f"personavec: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code
