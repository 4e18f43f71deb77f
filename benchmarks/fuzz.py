"""Fuzz what strangers write: files of data sets, and requests to a server.

    pip install atheris schemathesis
    python benchmarks/fuzz.py --part readers --minutes 15 --seed 0 --out failing
    python benchmarks/fuzz.py --part server --minutes 15 --seed 0 --out failing

What must hold of every file: each row is read as an independent parse reads it, or is refused by name; of one that was
not read whole nothing is taken. Of every request: an answer of OpenAI's form, no error of the server's, nothing of its
inside. Of both: within 10 seconds. Prints counts as one JSON object, keeps what failed in a folder, and ends with 1 if
anything did.
"""

import argparse
import contextlib
import hashlib
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

SLOWEST_SECONDS = 10.0
KEPT = 3
"""Failing inputs of a kind that are kept."""


TEXTS = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(
    ["Hi.", "", " ", "\n", "a\r\nb", "\0", "\u2028", "\ufeff", '"', "\ud83d\ude00", "\ud800", "[1]", "{}", "null"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**64, -(2**63) - 1, 10**400, 1e308])
ANY = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
"""Any value of JSON."""


def torn(data: bytes, rng: random.Random) -> bytes:
    """A file that something happened to."""
    how = rng.randrange(6)
    at = rng.randrange(len(data) + 1)
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5))) + data[at:]
    if how == 2:
        return data[:at] + bytes(rng.randrange(256) for _ in range(3)) + data[at + 3 :]
    if how == 3:
        return data[:at] + data[at:] * 2
    if how == 4:
        return data + data
    return data[:at] + rng.choice([b"\0", b'"', b"\n", b"\r", b"[", b"\xff\xfe", b"\xed\xa0\x80"]) + data[at:]


class Record:
    """Counts, and what failed."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.counts, self.failures = out, Counter[str](), Counter[str]()
        self.slowest, self.began = 0.0, time.monotonic()
        self.until = self.began + 60 * minutes

    @contextlib.contextmanager
    def watching(self, name: str, content: bytes) -> Iterator[None]:
        """Count an input; an error within is a failure, and so is one that takes too long."""
        began = time.monotonic()
        self.counts["inputs"] += 1
        try:
            yield
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            said = str(error).partition("\n")[0] if isinstance(error, AssertionError) else ""
            self.fail(f"{type(error).__name__} {said} {Path(frame.filename).name}:{frame.lineno}", name, content)
        taken = time.monotonic() - began
        self.slowest = max(self.slowest, taken)
        if taken > SLOWEST_SECONDS:
            self.fail("slow", name, content)

    def fail(self, what: str, name: str, content: bytes) -> None:
        self.failures[what] += 1
        if self.failures[what] <= KEPT:
            kind = hashlib.sha256(what.encode()).hexdigest()[:8]
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / f"{kind}-{self.failures[what]}-{name}").write_bytes(content)
            (self.out / f"{kind}.txt").write_text(what)
            print(f"failed: {what} ({kind}, {name})", file=sys.stderr, flush=True)

    @property
    def over(self) -> bool:
        return time.monotonic() > self.until

    def ending(self) -> int:
        shown = {"counts": dict(self.counts.most_common()), "failures": dict(self.failures)}
        print(json.dumps(shown | {"slowest_seconds": round(self.slowest, 2), **memory()}, indent=1), flush=True)
        return bool(self.failures)


def memory() -> dict[str, float]:
    import resource

    return {"peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("readers", "server"), required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("failing"))
    given = parser.parse_args()
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    record = Record(given.out.resolve(), given.minutes)
    if given.part == "readers":
        from fuzz_readers import fuzz
    else:
        from fuzz_server import fuzz
    run: Callable[[Record, int], Any] = fuzz
    run(record, given.seed)
    return record.ending()


if __name__ == "__main__":
    sys.exit(main())
