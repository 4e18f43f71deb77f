"""Space: how persona vectors lie to each other and to many personas, and what steering along one does to the others."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Unpack

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from safetensors.numpy import load_file, save

from personavec.errors import ConfigError, DataError, VectorError
from personavec.judges.load import Bench, bench_of
from personavec.judges.scoring import Judges, scaled
from personavec.model.activations import read_rows
from personavec.model.chat_model import ChatModel
from personavec.runs.files import write_file
from personavec.runs.progress import stage
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, Seed, Store, at_least, settings
from personavec.runs.run import Row, Run
from personavec.runs.show import interval
from personavec.stats.intervals import or_nan
from personavec.stats.nulls import against, rounded, units
from personavec.steering.projection import Vectors, vectors_of
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.steering.vector import PersonaVector
from personavec.traits.load import trait_of
from personavec.traits.trait import Trait
from personavec.verbs.analyse import geometry
from personavec.verbs.analyse.coexpression import Expressed, coexpressed
from personavec.verbs.analyse.geometry import Personas

Read = Float[ndarray, "persona question layer d_model"]


@dataclasses.dataclass(frozen=True, repr=False)
class Space(Result):
    """How vectors lie to each other and to many personas; `to_dict()` is what `--json` prints."""

    page = "space"

    @property
    def cosines(self) -> dict[str, dict[str, float]]:
        """Cosines of the vectors at the layer of the map, by name."""
        names, table = self.data["vectors"], self.data["cosines"][self.data["layer"]]["cosine"]
        return {name: dict(zip(names, row, strict=True)) for name, row in zip(names, table, strict=True)}

    @property
    def axes(self) -> list[Row]:
        """The first axes of persona space: share of the variance, who lies at their ends, cosine of every vector."""
        return list(self.data["axes"]["axes"])

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        data = self.data
        rank = data["ranks"][data["layer"]]["effective_rank"]
        shown = [
            ("model", f"{data['model']}, layer {data['layer']}"),
            ("effective rank", f"{interval(rank)} of {data['personas']} personas"),
            ("of the vectors", f"{data['vector_rank']:.1f} of {len(data['vectors'])}"),
        ]
        for number, axis in enumerate(self.axes, 1):
            ends = " ↔ ".join(", ".join(axis[side][:2]) for side in ("low", "high"))
            shown.append((f"axis {number}", f"{axis['share']:.0%} of the variance: {ends}"))
        if co := data["coexpression"]:
            r = "too few for a correlation" if co["r"] is None else f"r {co['r']:.2f}, p {co['null']['p']:.3f}"
            shown.append(("cosine and co-expression", f"{r} over {co['pairs']} pairs"))
        return shown


def space(
    model: ChatModel,
    vectors: Vectors,
    *,
    coexpress: Free[bool] = False,
    rollouts: Count = 1,
    axes: Annotated[int, at_least(2)] = 4,
    layer: int | None = None,
    traits: Free[Sequence[str | Path | Trait]] = (),
    judge: Free[str | Bench] = "panel",
    seed: Seed = 0,
    store: Store = None,
    **writing: Unpack[ReplyOptions],
) -> Space:
    """The geometry of vectors and personas, and with `coexpress` what it predicts.

    Every persona's system prompt is put before every question, and the default assistant's; the replies are read once,
    at all layers.

    Args:
        model: Who is asked.
        vectors: Persona vectors of the model, or their files.
        coexpress: Also steer along every vector and judge every trait, and measure how each answers to the dose.
        rollouts: With `coexpress`, replies per held-out question.
        axes: How many to name.
        layer: Of the map and its axes; default the middle one of those that the cards recommend.
        traits: With `coexpress`, traits of vectors whose trait is not built in, or their files.
        judge: With `coexpress`, who scores replies: a spec as for `--judge`, or what `load_bench` made.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it.
        writing: How replies are written: fields of `Interview`.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.
    """
    began = time.monotonic()
    chosen = settings(space, locals())
    named = with_coefs(vectors)
    personas = geometry.built_in_personas()
    for vector in named.values():
        vector.check_model(model.identity)
    if layer is not None and not 0 <= layer < model.n_layers:
        raise ConfigError(f"expected a layer from 0 to {model.n_layers - 1}, got {layer}; correct it")
    interview = Interview(model, seed=seed, **writing)
    prompts = dict(zip(personas.names, personas.prompts, strict=True)) | {"": " ".join(personas.questions)}
    inputs = {"model": model.identity.revision, "numbers": model.numbers, "personas": Run.digest(prompts)}
    inputs |= {f"vector {name}": vector.content_hash for name, vector in named.items()}
    bench = bench_of(judge, interview) if coexpress else None
    known, judges = {}, {}
    for name, vector in named.items() if bench else ():
        known[name] = trait_of(vector.card.trait, traits)
        scoring = Judges(bench.trait(known[name]), bench.coherence, known[name].content_hash)  # type: ignore[union-attr]
        judges[name] = scaled(scoring, bench.spec, vector.card, name)  # type: ignore[union-attr]
    run = Run.open(store, chosen | interview.options, inputs)

    read, dropped = _read(interview, run, personas)
    every, assistant = read[:-1], read[-1]
    layers = sorted({int(vector.card.layer or 0) for vector in named.values()})
    at = layer if layer is not None else layers[len(layers) // 2]
    stacked = np.stack([vector.direction.numpy() for vector in named.values()]).astype(float)
    halves = np.array([vector.card.reliability or [np.nan] * model.n_layers for vector in named.values()])
    rng = np.random.default_rng(seed)
    ranks, tables = [], []
    with stage("components, layer by layer", model.n_layers) as advance:
        for block in range(model.n_layers):
            means = every[:, :, block].astype(float)
            ranks.append({"layer": block} | geometry.rank_of(means, rng))
            rows = means.reshape(-1, means.shape[2])
            tables.append({"layer": block} | geometry.cosines(stacked[:, block], halves[:, block], rows, rng))
            advance(1)
    directions = units(stacked[:, at])
    result: Row = {
        "out": run.shown(),
        "model": model.identity.id,
        "vectors": list(named),
        "layers": {name: vector.card.layer for name, vector in named.items()},
        "personas": len(personas.names),
        "questions": len(personas.questions),
        "empty_replies": dropped,
        "cosines": tables,
        "ranks": ranks,
        "layer": at,
        "vector_rank": rounded(geometry.effective_rank(np.linalg.eigvalsh(directions @ directions.T))),
        "axes": geometry.axes_of(
            every[:, :, at].astype(float),
            personas.names,
            assistant[:, at].astype(float),
            stacked[:, at],
            axes,
            rng,
        ),
        "coexpression": None,
    }
    if bench is not None:
        judged = {"judge": bench.fingerprint} | {name: trait.content_hash for name, trait in known.items()}
        part = run.part(f"coexpression-{Run.digest(judged)}")
        subjects = [Expressed(name, named[name], known[name], judges[name]) for name in named]
        effects = coexpressed(interview, part, subjects, rollouts)
        result["coexpression"] = effects | _predicted(effects, named, tables, rng)
        result["judge_usage"] = bench.usage
    run.complete(result, began)
    return Space(result)


def with_coefs(vectors: Vectors) -> dict[str, PersonaVector]:
    """Vectors by name, each of all layers and with a layer and coefficient to steer with.

    Raises:
        ConfigError: There are none, or one is there twice.
        VectorError: A card recommends nothing, layers are missing, or a file cannot be read.
    """
    named = vectors_of(vectors)
    if missing := [name for name, vector in named.items() if vector.card.layer is None or vector.card.coef is None]:
        raise VectorError(f"expected a recommended layer and coef for {missing[0]}, got none; extract it again")
    if absent := [name for name, vector in named.items() if vector.absent]:
        raise VectorError(f"expected all layers of {absent[0]}, got a file without some; extract it from the model")
    return named


def _read(interview: Interview, run: Run, personas: Personas) -> tuple[Read, int]:
    """Response avg of every persona's reply to every question, the assistant's last; and how many replies were empty.

    An empty reply is read as that persona's mean over the other questions.
    """
    model = interview.model
    speakers = [*zip(personas.names, personas.prompts, strict=True), ("", interview.system)]
    plans = [
        plan
        for name, prompt in speakers
        for plan in interview.answers(
            personas.questions, 1, draw="personas", extra={"persona": name}, systems=(prompt,)
        )
    ]
    rows = interview.write(plans, "personas reply", run=run, name="personas")
    shape = (len(speakers), len(personas.questions), model.n_layers, model.identity.d_model)
    path = run.path("personas.safetensors")
    if not path.is_file():
        spoken = [index for index, row in enumerate(rows) if row["response_ids"]]
        read = np.full((len(rows), *shape[2:]), np.nan, np.float32)
        replies = [rows[index] for index in spoken]
        read[spoken] = read_rows(model, replies, "response avg", None, "reading personas")
        write_file(path, save({"read": read}))
    read = load_file(path)["read"].reshape(shape)
    silent = np.asarray(np.isnan(read).any(axis=(2, 3)))
    if silent.all(axis=1).any():
        raise DataError(
            "expected a reply of every persona, got one without any; raise --max-new-tokens in another --out"
        )
    means = np.nanmean(read, axis=1, keepdims=True)
    return np.where(silent[:, :, None, None], means, read), int(silent.sum())


def _predicted(effects: Row, vectors: Mapping[str, PersonaVector], tables: Sequence[Row], rng: Any) -> Row:
    """How the effect of vector i on trait j correlates with their cosine at the layer of i, off the diagonal."""
    names = list(vectors)
    changes = np.array([[or_nan(effects["effects"][i][j]["mean"]) for j in names] for i in names])
    layers = [int(vector.card.layer or 0) for vector in vectors.values()]
    along = np.array([tables[layer]["cosine"][row] for row, layer in enumerate(layers)], dtype=float)
    r, shuffled = geometry.mantel(along, changes, rng)
    null = against(r, shuffled)
    return {"cosine": along.round(4).tolist(), "r": rounded(r), "pairs": len(names) * (len(names) - 1), "null": null}
