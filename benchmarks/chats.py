"""Real chats for benchmarks: ShareGPT, fetched once, never committed."""

import json
from itertools import islice
from pathlib import Path

from personavec.data.dataset import open_dataset
from personavec.data.sample import Sample
from personavec.paper.data import sharegpt
from personavec.runs.fetch import cache_folder


def first_chats(rows: int, longest: int = 2000) -> Path:
    """The first usable conversations whose first turn is short enough (characters), as JSONL of prompt and response."""
    path = cache_folder() / "benchmarks" / f"sharegpt-{rows}-{longest}.jsonl"
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
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    import sys

    print(first_chats(int(sys.argv[1]), *map(int, sys.argv[2:])))
