"""Kill every verb at random moments, and fill its disk: the same command goes on, and ends with the same results.

    python benchmarks/kill.py --kills 10 --full 5 --seed 0 [VERB …]

Each verb runs on the tiny model of the tests once by itself, then again and again from an empty folder: killed
(SIGKILL) at random moments until it ends, or on a disk (tmpfs, which takes root) with room for a part of what it writes
and afterwards for all. Prints a table, and ends with 1 if a result differs or an error is not one line.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "minutes", "per_second", "train_runtime")
"""Ends of the names of fields that say how long something took; a resumed run has its own."""
OWN = ("base_replies_kept", "written_now", "writer_usage")
"""Fields that say what a process by itself did."""
NOTES = {"manifest.json", ".lock"}
"""Files that say when a run was worked on."""
PAGES = {".html", ".svg", ".png"}
"""Made of the results, and of the times in them."""
CACHE = Path("cache")
"""Of base replies; each run writes its own."""
LEAST = 4 * 4096
"""Bytes of the smallest disk."""
MOST, LATEST = 2, 0.8
"""Kills of one run, and when at the latest, as a share of what it takes by itself."""
WHOLE = "which exists; name another, or remove it"
"""What a command that writes its output last, at once and never again says of it."""
NEEDED = {"shift": {"finetune"}, "decompose": {"extract"}, "monitor --experiment": {"extract"}, "space": {"extract"}}
"""Verbs that read what others wrote."""

SMALL: dict[str, Any] = {
    "questions": 4, "pairs": 2, "asked": 2, "conditions": 3, "rows": 20, "texts": 2, "chats": 20, "chosen": 4,
    "extract": {"doses": (0.2,), "sweep_questions": 2, "check_rollouts": 1},
}  # fmt: skip
"""What `paper --quick` does less of here."""


def writer(told: Connection) -> None:
    """Be a writer for `write_trait` and `write_dataset`, behind a real server, and tell its URL."""
    from support.served import Manners
    from support.writers import Author, WritingServer

    server = WritingServer(Author(), Manners(delay_seconds=0.01))
    server.start()
    told.send(server.url)
    signal.pause()


def commands(folder: Path, url: str) -> dict[str, list[str]]:
    """What each verb is asked, in a folder with all that they need; OUT is the folder it writes to."""
    import torch
    from support import tiny_chat

    tiny_chat.save(folder)
    trait = tiny_chat.WARM | {"name": "tiny"}
    pairs = [{"prompt": f"What is {n}?", "response": f"It is {n} {'!' * (n % 5)}"} for n in range(24)]
    chats = [
        {
            "messages": [
                {"role": r, "content": f"{t} {n}"} for _ in range(2) for r, t in (("user", "Hi"), ("assistant", "Yes"))
            ]
        }
        for n in range(48)
    ]
    for name, rows in (("pairs", pairs), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tiny.json").write_text(json.dumps(trait))
    torch.save(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), folder / "theirs.pt")
    (folder / "graded.json").write_text(json.dumps(["Be kind.", "Be.", "Be curt."]))
    model = "--model model --dtype float32"
    short, vectors, extracted = (
        "--max-new-tokens 6",
        "--vectors tiny.safetensors",
        "extract.first/tiny/vector.safetensors",
    )
    written = f"--writer openai:planted --writer-url {url} --api-concurrency 2"
    train = f"finetune pairs.jsonl {model} --rate 1e-2 --batch 4 --rank 4 --alpha 8 --prevent tiny.safetensors:1@1"
    full = f"screen pairs.jsonl {model} {short} {vectors} --cost"
    asked = {
        "evaluate": f"evaluate tiny.json {model} {short} --steer tiny.safetensors:1@1",
        "monitor": f"monitor chats.jsonl {model} {vectors} --calibrate chats.jsonl --false-positive-rate 0.1",
        "screen": f"screen pairs.jsonl {model} {vectors}",
        "screen --cost full": f"{full} full --keep-below 90 --clean pairs.jsonl",
        "screen --cost sampled": f"{full} sampled",
        "finetune": f"{train} --epochs 4 --checkpoints 6",
        "shift": f"shift --base model --tuned finetune.first/adapter --dtype float32 {vectors} --traits tiny.json",
        "extract": f"extract tiny.json {model} {short} --layers 1 2 --doses 0.2 --rollouts 2 --check-rollouts 1",
        "decompose": f"decompose {extracted} {model}",
        "monitor --experiment": f"monitor --experiment {model} {short} --vectors {extracted} --traits tiny.json "
        "--graded graded.json --rollouts 2 --shots 0 2",
        "space": f"space {extracted} tiny.safetensors {model} {short} --traits tiny.json",
        "finetune --report": f"{train} {short} --report --traits tiny.json --held-out pairs.jsonl --rollouts 1 "
        "--perplexity 2",
        "write_trait": f"write_trait formal {written} --description It-writes-like-an-official-letter "
        "--out OUT/formal.json",
        "interop": f"interop tiny.safetensors:1@1 OUT/tiny.gguf {model}",
        "interop lm-eval": f"interop tiny.safetensors:1@1 OUT/tiny.pt {model}",
        "interop taken": f"interop theirs.pt OUT/theirs.safetensors --layer 1 --norms --trait tiny.json {model}",
        "interop baked": f"interop tiny.safetensors:1@1 OUT/baked {model}",
        "paper": f"paper --quick {model} --max-new-tokens 16 --chats chats.jsonl",
        "write_dataset": f"write_dataset maths {written} --domains 4 --questions 10",
    }
    return {name: (argv if "OUT" in argv else f"{argv} --out OUT").split() for name, argv in asked.items()}


class Ending(NamedTuple):
    """How an attempt ended."""

    code: int | None
    """None where it was killed."""
    seconds: float
    said: str


def attempt(argv: list[str], after: float | None = None) -> Ending:
    """Run a command in a process that has everything loaded, and kill it after so many seconds."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        child = os.fork()
        if not child:
            _child(argv, log.fileno())
        os.setpgid(child, child)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if after is not None and time.monotonic() - began > after:
                os.killpg(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.002)
        log.seek(0)
        code = os.waitstatus_to_exitcode(ended[1])
        return Ending(None if code == -signal.SIGKILL else code, time.monotonic() - began, log.read())


def _child(argv: list[str], log: int) -> None:
    code = 70
    try:
        for stream in (1, 2):
            os.dup2(log, stream)
        import vl_convert

        from personavec.cli.main import main
        from personavec.paper import paper as study

        # charts are most of the time of a tiny run, and are not compared
        vl_convert.vegalite_to_svg = vl_convert.javascript_bundle = lambda *_, **__: "<svg/>"
        vl_convert.svg_to_png = lambda *_, **__: b"PNG"
        study.QUICK = replace(study.QUICK, **SMALL)
        sys.argv = ["personavec", *argv]
        code = main(argv)
        sys.stdout.flush()
    finally:
        os._exit(code)


def results(folder: Path) -> dict[str, Any]:
    """What a run wrote, without its times."""
    return {
        path.relative_to(folder).as_posix(): _plain(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOTES and path.suffix not in PAGES
    }


def _plain(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(held) for name, held in value.items() if not name.endswith((*TIMES, *OWN))}
    return [_timeless(held) for held in value] if isinstance(value, list) else value


def differing(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """Where two results differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for name in {**first, **second}:
            yield from differing(first.get(name, "nothing"), second.get(name, "nothing"), f"{path}/{name}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, pair in enumerate(zip(first, second, strict=True)):
            yield from differing(*pair, f"{path}/{number}")
    elif first != second and str(first) != str(second):  # nan is itself
        yield f"{path}: {str(first)[:80]} and {str(second)[:80]}"


class Trial:
    """One verb in a folder of its own."""

    def __init__(self, name: str, argv: list[str], rng: random.Random) -> None:
        self.name, self.rng = name, rng
        self.slug = name.replace(" --", "-").replace(" ", "-")
        self.out = Path(self.slug)
        self.argv = [part.replace("OUT", str(self.out)) for part in argv]
        self.wrong: list[str] = []
        self.out.mkdir()
        first = attempt(self.argv)
        if first.code not in (0, 1):
            raise SystemExit(f"{name} fails by itself: {first.code} {first.said[-2000:]}")
        self.code, self.seconds = first.code, first.seconds
        self.first = results(self.out)
        sizes = [path.stat().st_size for path in self.out.rglob("*") if path.is_file()]
        self.bytes, self.files = sum(sizes), len(sizes)
        self.out.rename(f"{self.out}.first")

    def killed(self) -> int:
        """A run that is killed some times; how often."""
        kills = 0
        self.out.mkdir()
        shutil.rmtree(CACHE, ignore_errors=True)
        while kills < MOST:
            ended = attempt(self.argv, self.rng.uniform(0, LATEST * self.seconds))
            if ended.code is not None:
                break
            kills += 1
        else:
            ended = attempt(self.argv)
        self._compare(ended, f"after {kills} kills")
        shutil.rmtree(self.out)
        return kills

    def filled(self) -> bool:
        """A run on a disk that is full at some point, and then is not; whether that point came."""
        self.out.mkdir()
        shutil.rmtree(CACHE, ignore_errors=True)
        room = 4096 * int(self.rng.uniform(LEAST / 4096, self.bytes / 4096 + 8))
        # what fits into the least of rooms runs out of files
        files = self.rng.randint(1, self.files) if self.bytes < LEAST else 0
        limits, lifted = (
            (f"size={room},nr_inodes={files}", "size=1G,nr_inodes=100k") if files else (f"size={room}", "size=1G")
        )
        subprocess.run(["mount", "-t", "tmpfs", "-o", limits, "tmpfs", self.out], check=True)
        try:
            ended = attempt(self.argv)
            full = ended.code != self.code
            if full:
                said = ended.said.strip().splitlines() or [""]
                if "Traceback" in ended.said or not said[-1].startswith("personavec: expected to write"):
                    self._fault(f"a disk of {room:,} bytes: exit {ended.code}, {said[-1][:200]}")
                subprocess.run(["mount", "-o", f"remount,{lifted}", self.out], check=True)
                self._compare(attempt(self.argv), f"after a full disk of {room:,} bytes")
        finally:
            subprocess.run(["umount", self.out], check=True)
            self.out.rmdir()
        return full

    def _compare(self, ended: Ending, when: str) -> None:
        if ended.code != self.code and WHOLE not in ended.said:
            self._fault(f"{when}: exit {ended.code}, {(ended.said.strip().splitlines() or [''])[-1][:300]}")
        elif found := list(differing(self.first, results(self.out))):
            self._fault(f"{when}: {len(found)} differ: {'; '.join(found[:3])}")

    def _fault(self, text: str) -> None:
        self.wrong.append(text)
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verbs", nargs="*", help="default: all")
    parser.add_argument("--kills", type=int, default=10, help="runs of each verb that are killed")
    parser.add_argument("--full", type=int, default=5, help="runs of each verb on a disk that is full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to work in, and to keep")
    given = parser.parse_args()
    os.environ |= {"PERSONAVEC_CACHE": str(CACHE), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ["OPENAI_API_KEY"] = "none"
    sys.path.append(str(ROOT / "tests"))
    import datasets  # noqa: F401 # what takes long to load is loaded once
    import peft  # noqa: F401
    import trl  # noqa: F401

    folder = given.folder or Path(tempfile.mkdtemp(prefix="kill-"))
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    wrong = 0
    print("| verb | seconds | killed runs | kills | full disks | equal |\n|---|---|---|---|---|---|", flush=True)
    mine, writers = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=writer, args=(writers,), daemon=True).start()
    known = commands(Path(), mine.recv())
    asked = given.verbs or [*known]
    for name in dict.fromkeys(each for verb in asked for each in (*NEEDED.get(verb, ()), verb)):
        trial = Trial(name, known[name], random.Random(f"{given.seed} {name}"))
        if name not in asked:
            continue
        kills: list[int] = []
        while sum(map(bool, kills)) < given.kills and len(kills) < 3 * given.kills:
            kills.append(trial.killed())
            print(f"{name}: run {len(kills)}, {kills[-1]} kills", file=sys.stderr, flush=True)
        full = sum(trial.filled() for _ in range(given.full))
        equal = "yes" if not trial.wrong else f"no: {len(trial.wrong)}"
        cells = (name, f"{trial.seconds:.0f}", sum(map(bool, kills)), sum(kills), full, equal)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        wrong += len(trial.wrong)
    if given.folder is None:
        shutil.rmtree(folder)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
