"""A run is a folder: configuration, manifest, tables; killed at any moment, the same command resumes it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from personavec.errors import ConfigError, DataError
from personavec.runs.files import sha256, write_file
from personavec.runs.json_files import parse_json, read_json
from personavec.runs.progress import tell

Row = dict[str, Any]
"""A row of a table, or a part of a result: what JSON can hold."""

PACKAGES = ("personavec", "torch", "transformers", "peft", "numpy", "scipy", "scikit-learn")
REPORT = {"report.html", "index.html", "sheet.html", "charts"}
"""Made from the results by whoever shows them, and so not among a run's outputs."""

FILLED_IN = {"sheet.csv"}
"""Made to be changed by people."""

MOST_SHOWN = 4
"""Differences that are told of another run's options."""
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/")
"""How a URL begins, also one that became a path."""
LOCK = ".lock"
"""Held while a process works in the folder."""


class Run:
    """Handle of a run folder. Writes are atomic (temporary file, then rename) or appends of whole lines."""

    lock: FileLock | None = None
    """Of the whole run, not of its parts; the operating system frees it when the process ends, however it ends."""

    _scratch: "tempfile.TemporaryDirectory[str] | None" = None
    """The folder of a run that is not kept, removed with its last handle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(
        cls, folder: str | Path | None, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None
    ) -> "Run":
        """Create a run folder, or resume the run in it.

        Args:
            folder: Where the run lives; None makes one for this process alone, which goes with the handle.
            settings: What a resumed run must have the same, as `rules.settings` picks it.
            inputs: Sha256 of what the run reads, by name.

        Raises:
            ConfigError: The folder holds another run, or something else, or cannot be written.
        """
        scratch = tempfile.TemporaryDirectory(prefix="personavec-") if folder is None else None
        folder = Path(folder or scratch.name)  # type: ignore[union-attr]
        if ADDRESS.match(str(folder)):
            raise ConfigError(f"expected a folder of this machine, got {folder}; choose another --out")
        run = cls(folder)
        run._scratch = scratch
        options: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str)) | {"inputs": dict(inputs or {})}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = {path.name for path in folder.iterdir()} - {"config.json.tmp", LOCK}
            if others and not run.done("config.json"):
                raise ConfigError(
                    f"expected an empty folder or a run to resume, got other files in {folder}; choose another --out"
                )
            run.lock = FileLock(folder / LOCK, timeout=0, is_singleton=True)
            run.lock.acquire()
            try:
                if run.done("config.json"):
                    run._check(options)
                else:
                    run.write_json("config.json", options)
            except ConfigError:
                if others - {"config.json", "manifest.json"}:
                    raise
                # the other run ended before it wrote anything, for its options or its data
                run.path("manifest.json").unlink(missing_ok=True)
                run.write_json("config.json", options)
        except Timeout as error:
            raise ConfigError(
                f"expected {folder} to be free, got one that another process works in; wait for it, or choose "
                "another --out"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"expected a folder that can be written, got {folder} ({error.strerror}); choose another --out"
            ) from error
        manifest = run._manifest()
        if manifest["sessions"] and manifest.get("finished", "") >= manifest["sessions"][-1]["started"]:
            run._make_whole(manifest.get("outputs", {}))
        session = {"started": _now(), "command": sys.argv[1:], "versions": versions(), "commit": commit()}
        run.write_json("manifest.json", manifest | {"sessions": [*manifest["sessions"], session]})
        return run

    def _check(self, options: Mapping[str, Any]) -> None:
        config = self.read_json("config.json")
        if not isinstance(config, dict) or not isinstance(config.get("inputs", {}), dict):
            raise self._damaged("config.json", "the options of a run", "something else")
        there, here = _flat(config), _flat(options)
        # options that this version does not ask for are no matter: older ones wrote all of them
        compared = {key for key in {*there, *here} if key in here or key.startswith("input ")}
        differing = sorted(key for key in compared if there.get(key) != here.get(key))
        if differing:
            shown = differing[:MOST_SHOWN]
            texts = "; ".join(f"{key}: {_short(there.get(key))} there, {_short(here.get(key))} here" for key in shown)
            texts += f"; and {len(differing) - len(shown)} more" * (len(differing) > len(shown))
            raise ConfigError(
                f"expected the run in {self.folder} to have the same options, got another run ({texts}); "
                "choose another --out, or delete that folder"
            )

    def _make_whole(self, outputs: Mapping[str, str]) -> None:
        """Take away what is not as a finished run wrote it, and the results above it, so that they are made again."""
        named = {
            name: self.path(name)
            for name in outputs
            if Path(name).name != "config.json"
            and ".." not in Path(name).parts
            and self.path(name).is_relative_to(self.folder)
        }
        damaged = [name for name, path in named.items() if not (path.is_file() and sha256(path) == outputs[name])]
        for name in damaged:
            named[name].unlink(missing_ok=True)
            for folder in named[name].parents:
                if folder.is_relative_to(self.folder):
                    (folder / "result.json").unlink(missing_ok=True)
        if damaged:
            shown = ", ".join(damaged[:MOST_SHOWN]) + f" and {len(damaged) - MOST_SHOWN} more" * (
                len(damaged) > MOST_SHOWN
            )
            tell(f"{self.folder}: {shown}: gone or changed since the run ended, so it is made again")

    @staticmethod
    def digest(what: Mapping[str, str]) -> str:
        """A short name for a set of inputs."""
        return hashlib.sha256(json.dumps(dict(what), sort_keys=True).encode()).hexdigest()[:8]

    def path(self, name: str) -> Path:
        """Where a file of the run lies."""
        return self.folder / name

    @property
    def kept(self) -> bool:
        """Whether the folder stays when the process ends."""
        return self._scratch is None

    def shown(self, name: str = "") -> str | None:
        """Path of a file (or of the folder) as results name it; None where it does not stay."""
        return str(self.folder / name if name else self.folder) if self.kept else None

    def part(self, name: str) -> "Run":
        """A folder of its own inside the run."""
        self.path(name).mkdir(exist_ok=True)
        part = Run(self.path(name))
        part._scratch = self._scratch
        return part

    def done(self, name: str) -> bool:
        """Whether a file was written; atomic writes make that mean complete."""
        return self.path(name).is_file()

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, atomically."""
        write_file(self.path(name), (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run."""
        try:
            return read_json(self.path(name), strict=False)
        except ValueError as error:
            raise self._damaged(name, "JSON", str(error)) from error

    def _damaged(self, name: str, expected: str, got: str) -> DataError:
        advice = "choose another --out" if name == "config.json" else "delete that file and run again"
        return DataError(f"expected {expected} in {self.path(name)}, got {got}; {advice}")

    def _manifest(self) -> dict[str, Any]:
        """The manifest, once it was written."""
        name = "manifest.json"
        manifest = self.read_json(name) if self.done(name) else {"sessions": []}
        if not isinstance(manifest, dict):
            raise self._damaged(name, "an object", type(manifest).__name__)
        sessions, outputs = manifest.get("sessions"), manifest.get("outputs", {})
        if not isinstance(sessions, list) or not all(
            isinstance(each, dict) and isinstance(each.get("started"), str) for each in sessions
        ):
            raise self._damaged(name, "sessions, each with the time it started,", "something else")
        if not isinstance(outputs, dict) or not all(isinstance(digest, str) for digest in outputs.values()):
            raise self._damaged(name, "outputs, each with its sha256,", "something else")
        if not isinstance(manifest.get("finished", ""), str):
            raise self._damaged(name, "the time it finished", repr(manifest["finished"])[:60])
        return manifest

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a whole JSONL table, atomically."""
        write_file(self.path(name), "".join(_line(row) for row in rows).encode())

    def append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to a JSONL table and make sure they are on the disk."""
        with self.path(name).open("a", encoding="utf-8") as file:
            file.write("".join(_line(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def rows(self, name: str, wrong: Callable[[Row], str] | None = None) -> Iterator[Row]:
        """Rows of a JSONL table; a line torn by a kill is cut off, so that appending can go on.

        Args:
            name: Of the file.
            wrong: The first field of a row that is not what it has to be, with its value; empty if there is none.

        Raises:
            DataError: A line in the middle is not JSON, no object, or has a wrong field.
        """
        path = self.path(name)
        if not path.is_file():
            return
        with path.open("rb+") as file:
            start = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    file.truncate(start)
                    return
                start += len(line)
                try:
                    row = parse_json(line, strict=False)
                    got = type(row).__name__ if not isinstance(row, dict) else wrong(row) if wrong else ""
                except ValueError as error:
                    row, got = None, str(error)
                if got:
                    raise self._damaged(f"{name} line {number}", "a row of JSON as a run writes it", got)
                yield row

    def complete(self, result: dict[str, Any], began: float, name: str = "result.json") -> None:
        """Add versions and the seconds since `began` (of `time.monotonic`) to a result, write it, and finish."""
        result |= {"versions": versions(), "seconds": round(time.monotonic() - began, 1)}
        self.write_json(name, result)
        self.finish()

    def finish(self) -> None:
        """Note the end of the run and the sha256 of everything it wrote, reports aside."""
        files = {path.relative_to(self.folder): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        outputs = {
            str(name): sha256(path)
            for name, path in files.items()
            if not REPORT & set(name.parts) and name.name not in {"manifest.json", LOCK, *FILLED_IN}
        }
        self.write_json("manifest.json", self._manifest() | {"finished": _now(), "outputs": outputs})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change results."""
    numbers = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers


def commit() -> str | None:
    """Commit of the source tree, when personavec runs from a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options and inputs side by side, so that an error names the one that differs."""
    inputs = {f"input {name}": value for name, value in config.get("inputs", {}).items()}
    return {**config, "inputs": None, **inputs}


def _short(value: object) -> str:
    """A value as an error shows it: of a sha256, enough to tell it from another."""
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
