"""Space: how persona vectors lie to each other and to many personas, and what steering along one does to the others."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from safetensors.numpy import load_file, save

from personavec.errors import ConfigError, DataError, VectorError
from personavec.judges.scoring import Judges, scaled
from personavec.model.activations import read_rows
from personavec.model.chat_model import ChatModel
from personavec.runs.files import write_file
from personavec.runs.progress import stage
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import or_nan
from personavec.stats.nulls import against, rounded
from personavec.steering.projection import names_of
from personavec.steering.rollouts import Plan, answers, write
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.trait import trait_of
from personavec.verbs.analyse.coexpression import coexpressed
from personavec.verbs.analyse.geometry import (
    Personas,
    axes_of,
    built_in_personas,
    cosines,
    effective_rank,
    mantel,
    rank_of,
)
from personavec.verbs.analyse.options import SpaceConfig
from personavec.verbs.options import bench_for, how, load_subject

Row = dict[str, Any]
Read = Float[ndarray, "persona question layer d_model"]


def space(config: SpaceConfig) -> Row:
    """The geometry of vectors and personas, and with `coexpress` what it foretells.

    Every persona's system prompt is put before every question, and the default assistant's; the replies are read once,
    at all layers.

    Returns:
        By layer the `cosines` (persona_space.cosines) and the `ranks` of persona space (persona_space.rank_of); at the
        map's layer the `axes` (persona_space.axes_of); `vector_rank`: the effective rank of the vectors themselves;
        with `coexpress` the `coexpression`, and how it goes along with the `cosine`.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the run folder.
    """
    began = time.monotonic()
    vectors = _vectors(config)
    personas = built_in_personas()
    model = load_subject(config)
    for vector in vectors.values():
        vector.check_model(model.identity)
    if config.layer is not None and not 0 <= config.layer < model.n_layers:
        raise ConfigError(f"expected a layer from 0 to {model.n_layers - 1}, got {config.layer}; correct it")
    inputs = {"model": model.identity.revision, "numbers": model.numbers, "personas": _hash(personas)}
    inputs |= {f"vector {name}": vector.content_hash for name, vector in vectors.items()}
    bench, judges = None, {}
    traits = (
        {name: trait_of(vector.card.trait, config.traits) for name, vector in vectors.items()}
        if config.coexpress
        else {}
    )
    if config.coexpress:
        bench = bench_for(config, model)
        for name, vector in vectors.items():
            judging = Judges(bench.trait(traits[name]), bench.coherence, traits[name].content_hash)
            judges[name] = scaled(judging, config.judge, vector.card, name)
    out = config.out or Path("runs") / f"space-{'-'.join(vectors)}"
    run = Run.open(out, settings(type(config), vars(config)) | {"coexpress": None}, inputs)

    read, dropped = _read(config, run, model, personas)
    every, assistant = read[:-1], read[-1]
    layers = sorted({int(vector.card.layer or 0) for vector in vectors.values()})
    at = config.layer if config.layer is not None else layers[len(layers) // 2]
    stacked = np.stack([vector.direction.numpy() for vector in vectors.values()]).astype(float)
    halves = np.array([vector.card.reliability or [np.nan] * model.n_layers for vector in vectors.values()])
    rng = np.random.default_rng(config.seed)
    ranks, tables = [], []
    with stage("components, layer by layer", model.n_layers) as advance:
        for layer in range(model.n_layers):
            own = every[:, :, layer].astype(float)
            ranks.append({"layer": layer} | rank_of(own, rng))
            rows = own.reshape(-1, own.shape[2])
            tables.append({"layer": layer} | cosines(stacked[:, layer], halves[:, layer], rows, rng))
            advance(1)
    result: Row = {
        "out": str(out),
        "model": config.model,
        "vectors": list(vectors),
        "layers": {name: vector.card.layer for name, vector in vectors.items()},
        "personas": len(personas.names),
        "questions": len(personas.questions),
        "empty_replies": dropped,
        "cosines": tables,
        "ranks": ranks,
        "layer": at,
        "vector_rank": rounded(effective_rank(np.linalg.eigvalsh(_gram(stacked[:, at])))),
        "axes": axes_of(
            every[:, :, at].astype(float),
            personas.names,
            assistant[:, at].astype(float),
            stacked[:, at],
            config.axes,
            rng,
        ),
        "coexpression": None,
    }
    if bench is not None:
        judged = {"judge": bench.fingerprint} | {name: trait.content_hash for name, trait in traits.items()}
        found = coexpressed(config, run.part(f"coexpression-{Run.digest(judged)}"), model, vectors, traits, judges)
        result["coexpression"] = found | _foretold(found, vectors, tables, rng)
        result["judge_usage"] = bench.usage
    result |= {"versions": versions(), "seconds": round(time.monotonic() - began, 1)}
    run.write_json("result.json", result)
    run.finish()
    return result


def _vectors(config: SpaceConfig) -> dict[str, PersonaVector]:
    """The vectors by name."""
    if not config.vectors:
        raise ConfigError(
            "expected vector files, got none; for example: personavec space runs/two/*/vector.safetensors"
        )
    loaded = [load_vector(path) for path in config.vectors]
    found = dict(zip(names_of(loaded), loaded, strict=True))
    if missing := [name for name, one in found.items() if one.card.layer is None or one.card.coef is None]:
        raise VectorError(f"expected a recommended layer and coef for {missing[0]}, got none; extract it again")
    if absent := [name for name, one in found.items() if one.absent]:
        raise VectorError(f"expected all layers of {absent[0]}, got a file without some; extract it from the model")
    return found


def _hash(personas: Personas) -> str:
    """Names a set of personas."""
    return Run.digest(dict(zip(personas.names, personas.prompts, strict=True)) | {"": " ".join(personas.questions)})


def _read(config: SpaceConfig, run: Run, model: ChatModel, personas: Personas) -> tuple[Read, int]:
    """Response avg of every persona's reply to every question, the assistant's last; and how many replies were empty.

    An empty reply is read as that persona's mean over the other questions.
    """
    asked = [(name, prompt) for name, prompt in zip(personas.names, personas.prompts, strict=True)]
    plans = [
        plan for name, prompt in [*asked, ("", config.system)] for plan in _plans(config, model, personas, name, prompt)
    ]
    rows = write(model, run, "personas.jsonl", plans, config, **how(config), title="personas reply")
    shape = (len(asked) + 1, len(personas.questions), model.n_layers, model.identity.d_model)
    said = [index for index, row in enumerate(rows) if row["response_ids"]]
    path = run.path("personas.safetensors")
    if not path.is_file():
        found = np.full((len(rows), *shape[2:]), np.nan, np.float32)
        spoken = [rows[index] for index in said]
        found[said] = read_rows(model, spoken, "response avg", range(model.n_layers), "reading personas")
        write_file(path, save({"read": found}))
    read = load_file(path)["read"].reshape(shape)
    silent = np.isnan(read).any(axis=(2, 3))
    if silent.all(axis=1).any():
        raise DataError(
            "expected a reply of every persona, got one without any; raise --max-new-tokens in another --out"
        )
    means = np.nanmean(read, axis=1, keepdims=True)
    return np.where(silent[:, :, None, None], means, read), int(silent.sum())


def _plans(config: SpaceConfig, model: ChatModel, personas: Personas, name: str, system: str) -> list[Plan]:
    options: Row = {"systems": (system,), "draw": "personas", "extra": {"persona": name}}
    return answers(model, personas.questions, 1, config.seed, **options)


def _gram(vectors: Float[ndarray, "vector d_model"]) -> Float[ndarray, "vector vector"]:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(units @ units.T)


def _foretold(found: Row, vectors: dict[str, PersonaVector], tables: Sequence[Row], rng: Any) -> Row:
    """How the effect of vector i on trait j goes along with their cosine at the layer of i, off the diagonal."""
    names = list(vectors)
    effects = np.array([[or_nan(found["effects"][one][other]["mean"]) for other in names] for one in names])
    layers = [int(vectors[name].card.layer or 0) for name in names]
    along = np.array([tables[layer]["cosine"][row] for row, layer in enumerate(layers)], dtype=float)
    r, shuffled = mantel(along, effects, rng)
    null = against(r, shuffled)
    return {"cosine": along.round(4).tolist(), "r": rounded(r), "pairs": len(names) * (len(names) - 1), "null": null}
