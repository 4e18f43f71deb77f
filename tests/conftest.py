"""What all tests share: isolation from the user's files, one torch thread, tiny models built once."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from support import checked

# before anything of the package is imported: argument types and tensor shapes are checked while tests run
jaxtyping.jaxtyped = checked.jaxtyped
jaxtyping.install_import_hook("personavec", "support.checked.checked")

from support import served, serving, tiny, tiny_chat  # noqa: E402

from personavec.model.chat_model import ChatModel  # noqa: E402
from personavec.server.options import ServeConfig  # noqa: E402
from personavec.steering.vector import PersonaVector  # noqa: E402

# a thread for each worker of pytest-xdist and for the commands they start: more would wait for each other
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


LONGEST = ("test_extract_real.py", "test_front_door.py", "test_compare.py", "test_extract_elsewhere.py")
"""Files whose tests take more than half a minute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: where files are dealt out to several workers, all wait for one that begins last."""
    names = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: names.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def isolated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep tests away from the user's home and caches; those marked `real` need the cached model."""
    if request.node.get_closest_marker("real") is not None:
        return
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("PERSONAVEC_CACHE", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Arguments go unchecked, as in a user's process: for tests of what is said about bad ones."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], ChatModel]:
    """Tiny random model of a family; shared, so tests must leave it as they found it."""
    built: dict[str, ChatModel] = {}

    def get(family: str) -> ChatModel:
        if family not in built:
            built[family] = tiny.build(family)
        return built[family]

    return get


@pytest.fixture(scope="session")
def model(tiny_model: Callable[[str], ChatModel]) -> ChatModel:
    """The tiny Llama."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def v(model: ChatModel) -> PersonaVector:
    """A random vector for it."""
    return tiny.vector(model)


@pytest.fixture(params=list(tiny.FAMILIES), scope="session")
def any_model(request: pytest.FixtureRequest, tiny_model: Callable[[str], ChatModel]) -> ChatModel:
    """The tiny model of each family in turn."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder of the tiny chatting model, and a vector for it."""
    return tiny_chat.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trait file for the tiny chatting model."""
    path = tmp_path_factory.mktemp("trait") / "warm.json"
    path.write_text(json.dumps(tiny_chat.WARM))
    return path


@pytest.fixture
def judging() -> Iterator[served.Server]:
    """A server that answers judges' requests by the letters of the text."""
    started = served.Server(served.Planted()).start()
    yield started
    started.stop()


@pytest.fixture
def options(saved: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
    """Of a server of the tiny model, which is called by its folder."""
    model, vector = saved
    return {
        "model": str(model),
        "vectors": (vector,),
        "log": tmp_path / "turns.db",
        "max_tokens": 64,
        "rows_at_once": 4,
        "dtype": "float32",  # sums come out alike on every machine
    }


@pytest.fixture
def server(options: dict[str, Any]) -> Iterator[serving.Client]:
    with serving.client(ServeConfig(**options)) as made:
        yield made
