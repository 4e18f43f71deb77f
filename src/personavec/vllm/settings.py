"""What the operator of a server says once, and the vectors of the folder that it names."""

import hashlib
import json
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
    version: str = personavec.__version__

    def config(self) -> dict[str, Any]:
        """For `--additional-config`."""
        return {KEY: asdict(self)}


def make_settings(folder: str | Path, **options: Any) -> Settings:
    """Settings for a folder of vectors as it is now; the rest as the fields of `Settings`.

    Raises:
        ValueError: It holds no vectors, or files that are none.
    """
    return Settings(str(Path(folder).resolve()), tuple(sorted(read_folder(folder))), **options)


def settings_of(config: Any) -> Settings | None:
    """Those of a vLLM configuration, None if it has none.

    Raises:
        ValueError: They are of another version of the plugin.
    """
    given = config.additional_config if isinstance(config.additional_config, Mapping) else {}
    if KEY not in given:
        return None
    fields = dict(given[KEY])
    if fields.get("version") != personavec.__version__:
        raise ValueError(
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
        return self.direction[layer] / self.direction[layer].norm().clamp(min=torch.finfo(torch.float32).tiny)


def read_folder(folder: str | Path) -> dict[str, StoredVector]:
    """The vectors of a folder by content hash.

    Raises:
        ValueError: It holds none, or a file that is none, or of another model than the rest.
    """
    vectors: dict[str, StoredVector] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                card = json.loads((file.metadata() or {})["card"])
                direction = file.get_tensor("direction").float()
            content_hash = card.pop("content_hash")
            text = json.dumps(card, sort_keys=True).encode()
            if hashlib.sha256(text + direction.numpy().tobytes()).hexdigest() != content_hash:
                raise ValueError("its numbers are not those it was saved with")
            absent = frozenset(card["details"].get("absent_layers", ()))
            vectors[content_hash] = StoredVector(card["trait"], direction, card["layer"], absent)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"expected persona vectors in {folder}, got {path.name} ({str(error)[:200] or type(error).__name__}); "
                "copy it again, or take it away"
            ) from error
    if not vectors:
        raise ValueError(f"expected persona vectors (*.safetensors) in {folder}, got none; put the vectors there")
    shapes = {tuple(vector.direction.shape) for vector in vectors.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"expected vectors of one model in {folder}, got shapes {sorted(shapes)}; keep a folder for each model"
        )
    return vectors


def load(settings: Settings) -> dict[str, StoredVector]:
    """The vectors that settings name.

    Raises:
        ValueError: The folder does not hold all of them.
    """
    there = read_folder(settings.folder)
    if missing := set(settings.hashes) - there.keys():
        raise ValueError(
            f"expected the vectors {', '.join(sorted(missing))} in {settings.folder}, got none of that content; every "
            "machine needs the folder as it was when the server was started"
        )
    return {content_hash: there[content_hash] for content_hash in settings.hashes}
