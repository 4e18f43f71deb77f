"""The scripts under benchmarks that no figure here depends on, tried small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # vLLM's part aside it runs nothing that other tests do not
def test_what_is_measured_on_a_gpu_runs_anywhere_in_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--size", "tiny", "--parts", "loop", "reading", "--out", out]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = json.loads(out.read_text())
    assert [*found["loop"]] == ["4", "16"] and [*found["reading"]] == ["256", "1024"]
    speeds = [each[kind] for each in found["loop"].values() for kind in ("plain", "steered", "watched")]
    assert min(speeds) > 0 and found["machine"]["torch"]
