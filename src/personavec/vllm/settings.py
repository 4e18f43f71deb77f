"""What the operator of a server says once, the vectors of the folder that it names, and what no server does."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import personavec

KEY = "personavec"
"""Where vLLM's `additional_config` has the settings."""
NAME = re.compile("[0-9a-f]{64}")
"""A content hash."""
VERSIONS = ("0.32.",)
"""Beginnings of the versions of vLLM that the plugin was written and tried with."""


class Refusal(ValueError):
    """A server is not started, and why, in one line."""


@dataclass(frozen=True)
class Settings:
    """Of the plugin; all of it enters vLLM's hash of the configuration, so compiled code is that of these settings."""

    folder: str
    """Where every machine has the vectors."""
    hashes: tuple[str, ...]
    """Content hashes of its vectors, sorted."""
    layers: tuple[int, ...] | None = None
    """Layers that can be steered and read; None for all."""
    edits: int = 2
    """Most ablated, capped or gated directions in a layer of one request."""
    means: bool = True
    """Whether means over spans can be asked for; their sums take memory."""
    given: str | None = None
    """Folder that every machine sees, where clients may put vectors; None: they may not."""
    version: str = personavec.__version__

    def config(self) -> dict[str, Any]:
        """For `--additional-config`."""
        return {KEY: asdict(self)}


def make_settings(folder: str | Path | None, **options: Any) -> Settings:
    """Settings for a folder of vectors as it is now; the rest as the fields of `Settings`.

    Without a folder all vectors are those that clients give.

    Raises:
        Refusal: It holds no vectors, or files that are none; or there is no folder, and none are taken.
    """
    if folder is None:
        if options.get("given") is None:
            raise Refusal("expected --vectors DIR or --accept-vectors DIR, got neither; what shall steer?")
        return Settings(options["given"], (), **options)
    return Settings(str(Path(folder).resolve()), tuple(sorted(read_folder(folder))), **options)


def settings_of(config: Any) -> Settings | None:
    """Those of a vLLM configuration, None if it has none.

    Raises:
        Refusal: They are of another version of the plugin.
    """
    given = config.additional_config if isinstance(config.additional_config, Mapping) else {}
    if KEY not in given:
        return None
    fields = dict(given[KEY])
    if fields.get("version") != personavec.__version__:
        raise Refusal(
            f"expected settings of personavec {personavec.__version__}, got {fields.get('version')}; start the server "
            "with `python -m personavec.vllm` of one version on all machines"
        )
    layers = fields["layers"]
    fields |= {"hashes": tuple(fields["hashes"]), "layers": None if layers is None else tuple(layers)}
    return Settings(**fields)


@dataclass(frozen=True, eq=False)
class StoredVector:
    """One persona vector of the folder."""

    trait: str
    direction: Tensor
    """[layer, d_model], float32."""
    layer: int | None
    """The layer that its card recommends."""
    absent: frozenset[int]
    """Layers that it does not have."""

    def at(self, layer: int) -> Tensor:
        """What coef 1 adds at one layer alone."""
        return self.direction[layer]

    def increment(self, layer: int) -> Tensor:
        """What coef 1 adds at a layer where all are steered: the running sum of these is the direction."""
        return self.direction[layer] - self.direction[layer - 1] if layer else self.direction[0]

    def unit(self, layer: int) -> Tensor:
        """The direction at a layer scaled to length 1; zeros stay zeros."""
        length: Tensor = self.direction[layer].norm().clamp(min=torch.finfo(torch.float32).tiny)
        return self.direction[layer] / length


def read_file(path: Path) -> tuple[str, StoredVector]:
    """The content hash of a vector, and the vector.

    Raises:
        Refusal: The file holds none.
    """
    try:
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            direction = file.get_tensor("direction").float()
        content_hash = card.pop("content_hash")
        text = json.dumps(card, sort_keys=True).encode()
        if hashlib.sha256(text + direction.numpy().tobytes()).hexdigest() != content_hash:
            raise ValueError("its numbers are not those it was saved with")
        absent = frozenset(card["details"].get("absent_layers", ()))
        return content_hash, StoredVector(card["trait"], direction, card["layer"], absent)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise Refusal(
            f"expected persona vectors in {path.parent}, got {path.name} ({str(error)[:200] or type(error).__name__}); "
            "copy it again, or take it away"
        ) from error


class StoredVectors(dict[str, StoredVector]):
    """The vectors of the operator, by content hash, and those that clients gave, which are read when they are named."""

    def __init__(self, vectors: Mapping[str, StoredVector], given: str | None) -> None:
        super().__init__(vectors)
        self.read = frozenset(vectors)
        """Those that workers read along: the operator's, or the random one."""
        self._given = given
        self._shape = next(iter(vectors.values())).direction.shape

    def __missing__(self, name: str) -> StoredVector:
        """One that was given since, also by way of another process.

        Raises:
            KeyError: None was.
        """
        if self._given is None or not NAME.fullmatch(name):
            raise KeyError(name)
        try:
            content_hash, vector = read_file(Path(self._given) / f"{name}.safetensors")
        except Refusal as error:
            raise KeyError(name) from error
        if content_hash != name or vector.direction.shape != self._shape:
            raise KeyError(name)
        self[name] = vector
        return vector


def read_folder(folder: str | Path) -> dict[str, StoredVector]:
    """The vectors of a folder by content hash.

    Raises:
        Refusal: It holds none, or a file that is none, or of another model than the rest.
    """
    vectors = dict(read_file(path) for path in sorted(Path(folder).glob("*.safetensors")))
    if not vectors:
        raise Refusal(f"expected persona vectors (*.safetensors) in {folder}, got none; put the vectors there")
    shapes = {tuple(vector.direction.shape) for vector in vectors.values()}
    if len(shapes) > 1:
        raise Refusal(
            f"expected vectors of one model in {folder}, got shapes {sorted(shapes)}; keep a folder for each model"
        )
    return vectors


def load(settings: Settings, shape: tuple[int, int]) -> StoredVectors:
    """The vectors that settings name; if there are none, a random one to check the server with.

    Args:
        settings: Of the server.
        shape: Layers of the model, and its width.

    Raises:
        Refusal: The folder does not hold all of them.
    """
    there = read_folder(settings.folder) if settings.hashes else {}
    if missing := set(settings.hashes) - there.keys():
        raise Refusal(
            f"expected the vectors {', '.join(sorted(missing))} in {settings.folder}, got none of that content; every "
            "machine needs the folder as it was when the server was started"
        )
    chosen = {content_hash: there[content_hash] for content_hash in settings.hashes}
    return StoredVectors(chosen or _random(shape), settings.given)


def _random(shape: tuple[int, int]) -> dict[str, StoredVector]:
    """The same in every process."""
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    name = hashlib.sha256(direction.numpy().tobytes()).hexdigest()
    return {name: StoredVector("self-check", direction, None, frozenset())}


def check_version(version: str) -> None:
    """Refuse a vLLM that the plugin was not tried with.

    Raises:
        Refusal: This one.
    """
    if not version.startswith(VERSIONS):
        raise Refusal(
            f"expected vLLM {' or '.join(f'{known}x' for known in VERSIONS)}, got {version}; the plugin reaches into "
            "parts of vLLM that change, so install a version that it was tried with"
        )


def check(config: Any, version: str) -> tuple[Settings, StoredVectors]:
    """The settings and vectors of a configuration that the plugin can work in.

    Args:
        config: Of vLLM.
        version: Of vLLM.

    Raises:
        Refusal: It cannot: another version of vLLM, vectors of another model, or what changes what a step is.
    """
    check_version(version)
    settings = settings_of(config)
    if settings is None:
        raise Refusal("expected settings of personavec, got none; start with `python -m personavec.vllm`")
    parallel = config.parallel_config
    unknown = {
        "speculative decoding": config.speculative_config is not None,
        "data parallelism inside it (start one server for each replica)": parallel.data_parallel_size > 1,
        "context parallelism": parallel.prefill_context_parallel_size > 1,
        "micro-batches": parallel.use_ubatching,
    }
    if used := [name for name, there in unknown.items() if there]:
        raise Refusal(f"expected a server without {used[0]}, got one with it; leave it out")
    text = config.model_config.hf_text_config
    vectors = load(settings, (text.num_hidden_layers, text.hidden_size))
    n_layers, width = next(iter(vectors.values())).direction.shape
    if (n_layers, width) != (text.num_hidden_layers, text.hidden_size):
        raise Refusal(
            f"expected vectors of a model with {text.num_hidden_layers} layers, {text.hidden_size} wide, got some with "
            f"{n_layers} layers, {width} wide in {settings.folder}; give the folder of this model's vectors"
        )
    if wrong := [layer for layer in settings.layers or () if not 0 <= layer < n_layers]:
        raise Refusal(f"expected --layers from 0 to {n_layers - 1}, got {wrong[0]}; leave it out")
    return settings, vectors
