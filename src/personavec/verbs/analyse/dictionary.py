"""Sparse dictionaries (SAEs) of a layer: their files, what they see, what a vector is to them, and steering by them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from personavec.errors import DataError
from personavec.judges.scoring import Judges, mean_difference, score
from personavec.runs.json_files import read_json
from personavec.runs.run import Row, Run
from personavec.stats.nulls import against, isotropic_directions, rounded
from personavec.steering.rollouts import Interview
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector
from personavec.traits.trait import Trait

BASE, RANDOM, VECTOR = "base", "random", "vector"
"""Arms of the causal rank."""
DRAWS = 1000
"""Random directions whose best cosine is the null of ours."""
NAMES = {
    "decoder": ("W_dec", "decoder.weight"),
    "encoder": ("W_enc", "encoder.weight"),
    "encoder bias": ("b_enc", "encoder.bias"),
    "decoder bias": ("b_dec", "bias"),
    "threshold": ("threshold",),
    "log threshold": ("log_threshold",),
    "k": ("k",),
}
"""Of tensors, as SAELens, sparsify and dictionary_learning write them."""


@dataclass(frozen=True)
class Dictionary:
    """Directions, and how much of each is in an activation."""

    decoder: Float[Tensor, "feature d_model"]
    encoder: Float[Tensor, "feature d_model"] | None
    bias: Float[Tensor, " feature"]
    centre: Float[Tensor, " d_model"]
    """Taken from activations first; zero where the file's configuration says not to."""
    threshold: Float[Tensor, " #feature"] | None
    k: int | None
    """Features that are left of a token."""
    layer: int | None
    """As its configuration names it."""
    file: Path

    def encode(self, activations: Float[Tensor, "row d_model"]) -> Float[Tensor, "row feature"]:
        """How much of each feature is in each activation: ReLU, above its threshold, the k largest.

        Raises:
            DataError: The file holds no encoder.
        """
        if self.encoder is None:
            raise DataError("expected an encoder in the dictionary, got a decoder alone; pass a file with both")
        strengths = ((activations - self.centre) @ self.encoder.T + self.bias).relu()
        if self.threshold is not None:
            strengths = strengths * (strengths > self.threshold)
        if self.k is not None and self.k < strengths.shape[1]:
            least = strengths.topk(self.k, dim=1).values[:, -1:]
            strengths = strengths * (strengths >= least)
        return strengths


def load_dictionary(path: str | Path, d_model: int) -> Dictionary:
    """Read a safetensors file of a dictionary, and the configuration next to it if there is one.

    Matrices may stand either way round: the side that is as long as the model is wide is found.

    Args:
        path: The file, or a folder that holds one.
        d_model: Width of the model.

    Raises:
        DataError: It cannot be read, or is of another width.
    """
    path = Path(path)
    file = next(iter(sorted(path.glob("*.safetensors"))), path) if path.is_dir() else path
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"expected a safetensors file of a dictionary, got {path} ({error}); correct the path"
        ) from error
    parts = {kind: tensors[name].float() for kind, names in NAMES.items() for name in names if name in tensors}
    if "decoder" not in parts:
        raise DataError(f"expected W_dec or decoder.weight in {file}, got {', '.join(sorted(tensors))}; convert it")
    config = _config(file.parent)
    decoder = _rows(parts["decoder"], d_model, file)
    encoder = _rows(parts["encoder"], d_model, file) if "encoder" in parts else None
    features = len(decoder)
    if encoder is not None and len(encoder) != features:
        raise DataError(
            f"expected as many features in encoder and decoder of {file}, got {len(encoder)} and {features}"
        )
    centre = parts.get("decoder bias", torch.zeros(d_model))
    if not config.get("apply_b_dec_to_input", True) or config.get("transcode"):
        centre = torch.zeros(d_model)
    threshold = parts["log threshold"].exp() if "log threshold" in parts else parts.get("threshold")
    k = int(parts["k"]) if "k" in parts else config.get("k")
    positive = threshold is not None and bool((threshold > 0).any())  # dictionary_learning writes −1 for none
    return Dictionary(
        decoder,
        encoder,
        parts.get("encoder bias", torch.zeros(features)),
        centre,
        threshold.reshape(-1) if positive and threshold is not None else None,
        None if positive else k,
        _layer(config),
        file,
    )


def nearest(dictionary: Dictionary, unit: Float[Tensor, " d_model"], top: int, seed: int) -> Row:
    """The features whose directions are most like a vector, and how like random directions are to the best for each.

    Returns:
        `features`: place and `cosine`, the largest first; `null`: of the largest cosine, see `nulls.against`;
        `explained`: share of the vector's length that the first features hold together.
    """
    rows = dictionary.decoder / dictionary.decoder.norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosines = rows @ unit
    drawn = isotropic_directions(DRAWS, len(unit), np.random.default_rng(seed))
    random = torch.tensor(drawn, dtype=torch.float32)
    best = torch.stack([(rows @ direction).max() for direction in random]).numpy()
    order: Int[Tensor, " top"] = cosines.argsort(descending=True)[:top]
    basis, _ = torch.linalg.qr(rows[order].T)
    return {
        "size": len(rows),
        "features": [{"feature": int(at), "cosine": rounded(float(cosines[at]))} for at in order],
        "null": against(float(cosines.max()), best),
        "explained": rounded(float((unit @ basis).norm())),
    }


def _rows(matrix: Tensor, d_model: int, file: Path) -> Float[Tensor, "feature d_model"]:
    """Features in rows."""
    if matrix.ndim != 2 or d_model not in matrix.shape:
        raise DataError(
            f"expected matrices with a side of {d_model}, as wide as the model, in {file}, got {tuple(matrix.shape)}; "
            "pass a dictionary of this model"
        )
    return (matrix if matrix.shape[1] == d_model else matrix.T).contiguous()


def _config(folder: Path) -> Row:
    """The configuration next to the file: SAELens and sparsify call it cfg.json, dictionary_learning config.json."""
    for name in ("cfg.json", "config.json"):
        if (folder / name).is_file():
            try:
                config = read_json(folder / name, strict=False)
            except ValueError as error:
                raise DataError(
                    f"expected JSON in {folder / name}, got something else ({error}); correct it"
                ) from error
            config = config.get("trainer", config) if isinstance(config, dict) else {}
            return config if isinstance(config, dict) else {}
    return {}


def _layer(config: Row) -> int | None:
    """The block whose output it was trained on; `hook_resid_pre` N is the output of block N − 1."""
    about = config.get("metadata")
    hook = config.get("hook_name") or (about.get("hook_name") if isinstance(about, dict) else "")
    if site := re.search(r"blocks\.(\d+)\.hook_resid_(pre|post)", str(hook)):
        return int(site[1]) - (site[2] == "pre")
    return config["layer"] if isinstance(config.get("layer"), int) else None


def causal_rank(
    interview: Interview,
    run: Run,
    vector: PersonaVector,
    layer: int,
    trait: Trait,
    judges: Judges,
    features: tuple[Dictionary, Sequence[int]],
) -> Row:
    """What steering along single features does to the trait, next to the vector itself and random features.

    The vector is added with the dose that its card recommends, and each feature's decoder direction as long as that.
    The held-out questions are answered with the same random numbers in every arm; the random arm takes another feature
    for every reply.

    Args:
        interview: Who is asked, and how.
        run: Keeps the replies.
        vector: What the features belong to.
        layer: Where to steer.
        trait: What is judged.
        judges: Who judges it.
        features: A dictionary, and the places of some of its features.

    Returns:
        `vector` and `random`: mean change of the trait score with its 95% interval; `features`: the same of each, by
        its place in the dictionary.

    Source: Persona Vectors (arXiv 2507.21509) appendix M.
    """
    (dictionary, places), seed, card = features, interview.seed, vector.card
    at_card = layer if card.layer is None else card.layer
    coef = vector.coef(layer, vector.dose(at_card, card.coef or 1.0))
    length = float(vector.norms[layer])

    def along(direction: Float[Tensor, " d_model"]) -> tuple[Steering, ...]:
        rows = torch.zeros_like(vector.direction)
        rows[layer] = direction / direction.norm() * length
        return (Steering(PersonaVector(rows, vector.card), coef, layer),)

    drawn = np.random.default_rng(seed).integers(0, len(dictionary.decoder), len(trait.check))
    arms: dict[str, list[tuple[Steering, ...]]] = {
        BASE: [()],
        VECTOR: [(Steering(vector, coef, layer),)],
        RANDOM: [along(dictionary.decoder[int(at)]) for at in drawn],
        **{str(at): [along(dictionary.decoder[at])] for at in places},
    }
    plans = [
        plan
        for name, steering in arms.items()
        for plan in interview.answers(trait.check, 1, draw="causal", extra={"arm": name}, steering=steering)
    ]
    replies = interview.write(plans, "features steer", run=run, name="causal")
    rows = score(replies, judges, "judging them", run=run, name="causal")
    by_arm = {name: [row for row in rows if row["arm"] == name] for name in arms}
    moved = {
        name: mean_difference(steered, by_arm[BASE], "trait").to_json()
        for name, steered in by_arm.items()
        if name != BASE
    }
    known = [at for at in places if moved[str(at)]["mean"] is not None]
    ranked = sorted(known, key=lambda at: -moved[str(at)]["mean"]) + [at for at in places if at not in known]
    return {VECTOR: moved[VECTOR], RANDOM: moved[RANDOM], "features": {at: moved[str(at)] for at in ranked}}
