"""Files out of packages."""

import tarfile
from pathlib import Path

import pytest

from personavec.errors import ModelError
from personavec.runs.fetch import fetch_wheels

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
    with pytest.raises(ModelError, match=r"expected pip to download harmful==1\.0"):
        fetch_wheels(["harmful==1.0"], tmp_path / "to")
    assert not mark.exists()
