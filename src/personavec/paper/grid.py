"""Many small finetunings on one machine: does what is known beforehand foretell the trait score afterwards?"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from safetensors.numpy import load_file, save

from personavec.errors import ConfigError, VectorError
from personavec.model.activations import read_rows
from personavec.paper.prediction import Finetunings, measure_prediction
from personavec.report.finetune import write_grid
from personavec.runs.files import sha256, write_file
from personavec.runs.progress import tell
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.steering.vector import load_vector
from personavec.traits.trait import trait_of
from personavec.verbs.evaluate.options import EvaluateConfig
from personavec.verbs.extract.difference import response_tokens
from personavec.verbs.finetune.compare import evaluate_on_card, screened, trait_file
from personavec.verbs.finetune.finetune import finetune
from personavec.verbs.finetune.options import FinetuneConfig
from personavec.verbs.options import Common, given, load_subject
from personavec.verbs.screen.table import Table

Row = dict[str, Any]
Activations = dict[str, Float[ndarray, "..."]]


def finetuning_grid(
    datasets: Mapping[str, str],
    vectors: Sequence[Path],
    out: Path,
    training: FinetuneConfig,
    evaluation: EvaluateConfig,
) -> Row:
    """Finetune on every data set, measure every trait, and correlate that with the shift and the data's projections.

    Every training, evaluation and screening is a run folder of its own: a killed grid goes on where it stopped, and
    more data sets can be added later.

    Args:
        datasets: What is trained on, by the name that the model gets in charts.
        vectors: Of each trait that is measured; they are read at the layer that each card recommends.
        out: Folder of the grid.
        training: Everything but data and folder.
        evaluation: Everything but trait, adapter, folder and scale; its model, seed and number format are those of
            `training`, the scale is that of each vector's card, or is learned.

    Returns:
        What `prediction.measure_prediction` found, the scores, and the path of the `report`.

    Raises:
        PersonavecError: Bad input; what was done so far stays.

    Source: Persona Vectors (arXiv 2507.21509) sections 4.2 and 6.1.
    """
    began = time.monotonic()
    if not datasets or not vectors:
        raise ConfigError("expected data sets and vectors, got none; pass at least one of each")
    read_in = [load_vector(path) for path in vectors]
    loaded = {vector.card.trait: vector for vector in read_in}
    if len(loaded) < len(vectors):
        raise ConfigError("expected one vector a trait, got two of one; pass one of them")
    if bad := [name for name in datasets if not re.fullmatch(r"[\w.%+, -]+", name) or name == "base"]:
        raise ConfigError(f"expected names of letters, digits and ' .%+,-_' other than base, got {bad[0]}; rename it")
    if training.full or training.chosen != "plain":
        raise ConfigError("expected plain training of adapters, got another kind; leave --full and --method out")
    if missing := [name for name, vector in loaded.items() if vector.card.layer is None]:
        raise VectorError(f"expected a recommended layer for {missing[0]}, got none; extract it again")
    evaluation = replace(evaluation, **given(training, Common))
    options = {
        f"{kind} {name}": value
        for kind, config in (("training", training), ("evaluation", evaluation))
        for name, value in settings(type(config), vars(config)).items()
    }
    run = Run.open(out, options, {f"vector {name}": vector.content_hash for name, vector in loaded.items()})

    cards = dict(zip(loaded, vectors, strict=True))
    base = {trait: _evaluated(run, trait, training, evaluation, card=card) for trait, card in cards.items()}
    at = {trait: int(vector.card.layer or 0) for trait, vector in loaded.items()}
    layers = sorted(set(at.values()))
    read = {"base": _read(run, "base", training, at)}
    scores: dict[str, dict[str, Row]] = {}
    predicted: dict[str, Float[ndarray, "layer d_model"]] = {}
    for name, data in datasets.items():
        tell(f"data set {name}")
        tuned = Path(finetune(replace(training, data=data, out=run.path(f"{name}-trained")))["tuned"])
        scores[name] = {trait: _evaluated(run, trait, training, evaluation, name, tuned) for trait in loaded}
        screened(training, data, tuple(vectors), run.path(f"{name}-screen"))
        predicted[name] = Table(run.path(f"{name}-screen") / "table", tuple(loaded)).mean_move()
        read[name] = _read(run, name, training, at, tuned)
    grid = Finetunings(
        models=tuple(datasets),
        moved={t: np.stack([read[name][t] - read["base"][t] for name in datasets]) for t in loaded},
        directions={t: vector.direction[vector.card.layer].numpy() for t, vector in loaded.items()},
        scores={t: _means([scores[name][t]["trait_score"] for name in datasets]) for t in loaded},
        activations={t: read["base"][f"every {t}"] for t in loaded},
        predicted={t: np.stack([predicted[name][layers.index(at[t])] for name in datasets]) for t in loaded},
        reply_activations={t: read["base"][f"replies {t}"] for t in loaded},
    )
    result = measure_prediction(grid, seed=training.seed) | {
        "out": str(out),
        "model": training.model,
        "base": {trait: own["trait_score"] for trait, own in base.items()},
        "scores": {name: {trait: row["trait_score"] for trait, row in own.items()} for name, own in scores.items()},
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return write_grid(result)


def _evaluated(
    run: Run,
    trait: str,
    training: FinetuneConfig,
    evaluation: EvaluateConfig,
    name: str = "base",
    adapter: Path | None = None,
    card: Path | None = None,
) -> Row:
    """The trait score of a model; the base model's scale and replies serve all."""
    judge = run.path(f"base-{trait}") / "judge.json" if adapter else None
    own: Row = {"trait": trait_file(trait, training), "out": run.path(f"{name}-{trait}")}
    return evaluate_on_card(replace(evaluation, adapter=adapter, judge_file=judge, **own), card)


def _read(
    run: Run, name: str, training: FinetuneConfig, at: Mapping[str, int], adapter: Path | None = None
) -> Activations:
    """Of each trait the mean activation at the last token of its held-out questions, `at` its layer; `every` prompt's.

    The prompts of `every TRAIT` are all questions of all traits; `replies TRAIT` are the base model's to those held
    out, averaged over their tokens.
    """
    mark = "-" + sha256(adapter / "adapter_model.safetensors")[:8] if adapter else ""
    path = run.path(f"{name}{mark}.safetensors")
    if not path.is_file():
        traits = {trait: trait_of(trait, training.traits) for trait in at}
        questions = list(dict.fromkeys(one for own in traits.values() for one in (*own.evaluate, *own.extract)))
        model = load_subject(training, adapter=adapter)
        asked = [model.render([{"role": "user", "content": question}], training.system) for question in questions]
        layers = sorted(set(at.values()))
        rows = [{"prompt_ids": prompt, "response_ids": ()} for prompt in asked]
        found = read_rows(model, rows, "prompt last", layers, f"{name}: reading prompts")
        columns = {trait: np.take(found, layers.index(layer), axis=1) for trait, layer in at.items()}
        places = {trait: [questions.index(one) for one in own.evaluate] for trait, own in traits.items()}
        kept = {trait: column[places[trait]].mean(axis=0) for trait, column in columns.items()}
        kept |= {f"every {trait}": column for trait, column in columns.items()}
        if adapter is None:
            replies = [row for trait in at for row in Run(run.path(f"base-{trait}")).rows("base.jsonl")]
            said = [row for row in replies if response_tokens(row)]
            found = read_rows(model, said, "response avg", layers, f"{name}: reading replies")
            kept |= {f"replies {trait}": np.take(found, layers.index(own), axis=1) for trait, own in at.items()}
        write_file(path, save(kept))
    return load_file(path)


def _means(found: Sequence[Row]) -> Float[ndarray, " model"]:
    """Means; nan where there was too little to tell."""
    return np.array([np.nan if own["mean"] is None else own["mean"] for own in found], dtype=float)
