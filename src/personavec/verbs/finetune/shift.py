"""Finetuning shift: how far a finetuning moved a model along persona vectors, before anyone reads its replies."""

import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import ConfigError, ModelError
from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.runs.files import sha256
from personavec.runs.progress import stage
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.stats.intervals import clustered_mean
from personavec.stats.nulls import against
from personavec.steering.generate import Request, batches, generate
from personavec.steering.projection import Directions, directions, names_of
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.trait import Trait, trait_of
from personavec.verbs.finetune.options import ShiftConfig
from personavec.verbs.options import Writing, load_subject

TABLE = "tuned.jsonl"
TUNED = ("adapter_*", "config.json", "*.safetensors")
"""Files that say what a finetuned model is."""
LARGE = 2**28
ADVICE = "pass it with --traits, or questions of your own with --prompts"

Row = dict[str, Any]


def shift(config: ShiftConfig) -> Row:
    """Move along every vector at the last prompt token, and over replies, of one finetuned model or of several.

    `(mean_p a_tuned(p) − mean_p a_base(p)) · v̂`; the replies are the base model's greedy ones, read by both models, so
    that what differs is the weights alone.
    Source: Persona Vectors (arXiv 2507.21509) section 4.2.

    Returns:
        For each of `tuned`, by vector, the shift with its 95% interval (questions resampled), and the range of the same
        along random directions.

    Raises:
        PersonavecError: Bad input.
    """
    began = time.monotonic()
    if not config.tuned:
        raise ConfigError("expected --tuned, got none; pass adapter folders, models, or a folder of checkpoints")
    if not config.vectors:
        raise ConfigError("expected --vectors, got none; pass vector files")
    vectors = [load_vector(path) for path in config.vectors]
    read = directions(vectors, names_of(vectors), config.layers, config.seed)
    traits = [] if config.prompts else [trait_of(v.card.trait, config.traits, ADVICE) for v in vectors]
    asked = _questions(config, traits, read)
    tuned = list(dict.fromkeys(one for path in config.tuned for one in checkpoints(path)))
    model = load_subject(config)
    for vector in vectors:
        vector.check_model(model.identity)
    inputs = _inputs(config, model, vectors, traits, tuned)
    run = Run.open(config.out or _default_out(config), settings(type(config), vars(config)), inputs)
    found = {row["tuned"]: row for row in run.rows(TABLE)}
    missing = [name for name in tuned if name not in found]
    if missing:
        base = _base(config, model, read, asked)
        del model  # one set of weights in memory at a time
        for name in missing:
            found[name] = {"tuned": name} | _measured(config, name, base, read)
            run.append(TABLE, [found[name]])
    result = {
        "out": str(run.folder),
        "base": config.model,
        "layers": dict(zip(read.names, read.layers, strict=True)),
        "questions": {name: len(own) for name, own in asked.items()},
        "tuned": [found[name] for name in tuned],
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def checkpoints(path: str) -> list[str]:
    """The models in a place: what lies there itself, after the checkpoints in it, in the order of their steps."""
    folder = Path(path)
    steps = sorted(
        (int(match[1]), child)
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", child.name))
    )
    whole = any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))
    return [str(child) for _, child in steps] + [path] * (whole or not steps)


@dataclass(frozen=True)
class _Base:
    """What the base model said and how it was read; finetuned models are compared with it."""

    shape: tuple[int, int]
    asked: dict[str, tuple[str, ...]]
    questions: tuple[str, ...]
    """Each once; as many as rows."""
    rows: list[Row]
    values: Float[ndarray, "row span name"]
    random: Float[ndarray, "row span layer random"]


def _base(config: ShiftConfig, model: ChatModel, read: Directions, asked: dict[str, tuple[str, ...]]) -> _Base:
    questions = tuple(dict.fromkeys(question for own in asked.values() for question in own))
    rows = _rows(model, questions, config)
    values, random = _read(model, rows, read, "reading the base model")
    return _Base((model.n_layers, model.identity.d_model), asked, questions, rows, values, random)


def _measured(config: ShiftConfig, name: str, base: _Base, read: Directions) -> Row:
    """The shift of one finetuned model."""
    model = _load(config, name)
    if (got := (model.n_layers, model.identity.d_model)) != base.shape:
        raise ConfigError(
            f"expected {name} to have the base model's layers and width {base.shape}, got {got}; check it"
        )
    values, random = _read(model, base.rows, read, f"reading {Path(name).name}")
    return _shifts(values - base.values, random - base.random, read, base.asked, base.questions, config.seed)


def _load(config: ShiftConfig, tuned: str) -> ChatModel:
    """A finetuned model: an adapter on the base model, or a model of its own."""
    adapter = Path(tuned) if (Path(tuned) / "adapter_config.json").is_file() else None
    return load_subject(config, None if adapter else tuned, adapter=adapter)


def _default_out(config: ShiftConfig) -> Path:
    """A folder of its own for these models and vectors, so that one run does not meet another's."""
    what = " ".join([*config.tuned, "along", *map(str, config.vectors)])
    return Path("runs") / f"shift-{Path(config.tuned[0]).resolve().name}-{zlib.crc32(what.encode()):08x}"


def _inputs(
    config: ShiftConfig,
    model: ChatModel,
    vectors: Sequence[PersonaVector],
    traits: Sequence[Trait],
    tuned: Sequence[str],
) -> dict[str, str]:
    inputs = {"model": model.identity.revision, "numbers": model.numbers}
    inputs |= {f"vector {path}": v.content_hash for path, v in zip(config.vectors, vectors, strict=True)}
    inputs |= {f"trait {trait.name}": trait.content_hash for trait in traits}
    if config.prompts is not None:
        inputs["prompts"] = sha256(config.prompts)
    folders = [Path(name) for name in tuned]
    files = {path for folder in folders for kind in TUNED for path in folder.glob(kind)}
    files |= {path for path in folders if path.is_file()}
    return inputs | {f"tuned {path}": _content(path) for path in sorted(files)}


def _content(path: Path) -> str:
    """The hash of a file; of a large one its size and time, as hashing would take as long as loading it."""
    about = path.stat()
    return sha256(path) if about.st_size < LARGE else f"{about.st_size} bytes of {about.st_mtime_ns}"


def _questions(config: ShiftConfig, traits: Sequence[Trait], read: Directions) -> dict[str, tuple[str, ...]]:
    """What is asked for each name: the given prompts, or the held-out questions of the vector's trait."""
    if config.prompts is not None:
        try:
            lines = [line.strip() for line in config.prompts.read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"expected a text file of questions, got {config.prompts} ({error})") from error
        prompts = tuple(dict.fromkeys(line for line in lines if line))
        if len(prompts) < 2:
            raise ConfigError(f"expected two questions or more in {config.prompts}, got {len(prompts)}; one a line")
        return dict.fromkeys(read.names, prompts)
    per_vector = len(read.names) // len(traits)  # a name for every layer of each
    return {name: traits[place // per_vector].evaluate for place, name in enumerate(read.names)}


def _rows(model: ChatModel, questions: Sequence[str], config: ShiftConfig) -> list[Row]:
    """Prompts, and the base model's greedy replies; of an empty one its prompt alone is read."""
    requests = [Request(model.render([{"role": "user", "content": question}], config.system)) for question in questions]
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=0)
    rows: list[Row] = [{} for _ in requests]
    with stage("base replies", len(requests)) as advance:
        for batch in batches(requests, config.max_new_tokens, Writing.batch_tokens):
            for index, reply in zip(batch, generate(model, [requests[i] for i in batch], sampling), strict=True):
                prompt = requests[index].prompt
                skipped = model.reasoning_tokens(prompt, reply.ids)
                rows[index] = {"prompt_ids": prompt, "response_ids": reply.ids, "reasoning_tokens": skipped}
                if skipped == len(reply.ids):
                    rows[index] |= {"response_ids": reply.ids or (model.pad_id,), "reasoning_tokens": 0, "empty": True}
            advance(len(batch))
    return rows


def _read(
    model: ChatModel, rows: Sequence[Row], read: Directions, title: str
) -> tuple[Float[ndarray, "row span name"], Float[ndarray, "row span layer random"]]:
    """Projections at the last prompt token and over the reply.

    Raises:
        ModelError: Activations are not finite.
    """
    found: list[Any] = [None] * len(rows)
    random: list[Any] = [None] * len(rows)
    with stage(title, len(rows)) as advance:
        for batch, own in activations(model, rows, ("prompt last", "response avg"), read.read_layers):
            if not own.isfinite().all():
                raise ModelError(
                    f"expected finite activations, got inf or nan while {title} ({model.numbers}); pass --dtype "
                    "float32, or check that its training did not diverge"
                )
            for index, values, other in zip(batch, read.project(own), read.project_random(own), strict=True):
                found[index], random[index] = values.copy(), other
                if rows[index].get("empty"):
                    found[index][1] = np.nan
            advance(len(batch))
    return np.stack(found), np.stack(random)


def _shifts(
    moved: Float[ndarray, "row span name"],
    random: Float[ndarray, "row span layer random"],
    read: Directions,
    asked: dict[str, tuple[str, ...]],
    questions: Sequence[str],
    seed: int,
) -> Row:
    """The mean over each vector's own questions."""
    found: Row = {"shift": {}, "response_shift": {}, "random_control": {}}
    for column, (name, layer) in enumerate(zip(read.names, read.layers, strict=True)):
        places = np.array([questions.index(question) for question in asked[name]])
        own = moved[places, :, column].astype(float)
        last_prompt, reply = (clustered_mean(own[:, span], places, seed) for span in (0, 1))
        found["shift"][name], found["response_shift"][name] = last_prompt.to_json(), reply.to_json()
        means = random[places, 0, read.read_layers.index(layer)].mean(axis=0)
        found["random_control"][name] = against(last_prompt.mean, means)
    return found
