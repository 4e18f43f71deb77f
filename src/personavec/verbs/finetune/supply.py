"""How much of a trait a data set supplies: the dose that prevention should supply in its place."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from personavec.data.dataset import open_dataset
from personavec.data.sample import Sample
from personavec.errors import DataError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import stage, tell
from personavec.stats.intervals import clustered_mean
from personavec.steering.projection import directions
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.extract.sweep import swept_layers
from personavec.verbs.finetune.options import FinetuneConfig
from personavec.verbs.screen.base_replies import open_base_replies
from personavec.verbs.screen.shards import RowReader, screen_shard

ROWS = 64
"""Random rows that are answered by the base model to find the dose."""
AUTO = re.compile(r"(?P<file>.+):auto(?:@(?P<layer>all|\d+))?")
"""`VEC:auto[@LAYER]`."""

Row = dict[str, Any]


def supplied(model: ChatModel, config: FinetuneConfig, vector: PersonaVector, layers: Sequence[int]) -> list[Row]:
    """What the data supplies at some layers, in natural differences: mean projection difference / ‖v‖ over a sample.

    Returns:
        For every layer `coef` with its 95% interval, and its `effect`: the mean in standard deviations of the rows.

    Raises:
        DataError: No row can be read.
    """
    samples = [one for one in open_dataset(config.data).samples("last") if isinstance(one, Sample)]
    if len(samples) > ROWS:
        chosen = np.random.default_rng(config.seed).choice(len(samples), ROWS, replace=False)
        samples = [samples[place] for place in sorted(chosen)]
    read = directions([vector], [vector.card.trait], layers, config.seed)
    reader = RowReader(model, read, cost="full", on_error="skip", system=config.system)
    with stage("what the data supplies", 2 * len(samples)) as advance:
        table = screen_shard(reader, samples, open_base_replies(model, system=config.system), advance)
    found = []
    for name, layer in zip(read.names, read.layers, strict=True):
        moved = np.array(table[name].to_pylist(), dtype=float) / float(vector.norms[layer])
        mean = clustered_mean(moved, np.arange(len(moved)), config.seed)
        if not mean.n:
            raise DataError(
                f"expected rows to find the dose from, got none of {len(moved)} that can be read; check them"
            )
        spread = float(np.nanstd(moved))
        effect = round(mean.mean / spread, 3) if spread else 0.0
        found.append({"layer": layer, "coef": mean.to_json(), "effect": effect})
    return found


def automatic(text: str, model: ChatModel, config: FinetuneConfig) -> tuple[str, Row | None]:
    """`VEC:auto[@LAYER]` with the coefficient that the data supplies in place of `auto`; anything else as it is.

    Without a layer it is the one where the data's move is largest against its own spread, among those that a sweep
    looks at and the one that the card recommends. Data that moves away from the trait supplies none: coef 0.
    """
    match = AUTO.fullmatch(text)
    if match is None:
        return text, None
    vector = load_vector(Path(match["file"]))
    vector.check_model(model.identity)
    card = () if vector.card.layer is None else (vector.card.layer,)
    named = (int(match["layer"]),) if match["layer"] not in (None, "all") else ()
    found = supplied(model, config, vector, named or sorted({*swept_layers((), model.n_layers), *card}))
    best = max(found, key=lambda row: row["effect"])
    coef = max(0.0, best["coef"]["mean"])
    layer = "all" if match["layer"] == "all" else best["layer"]
    if not coef:
        tell(f"{config.data} supplies nothing along {match['file']}: nothing is added along it in training")
    return f"{match['file']}:{coef:.4f}@{layer}", {
        "vector": match["file"],
        "layer": layer,
        "coef": coef,
        "by_layer": found,
    }
