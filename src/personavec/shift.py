"""Finetuning shift: how far a finetuning moved a model along persona vectors, before anyone reads its replies."""

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.activations import activations
from personavec.config import ShiftConfig
from personavec.directions import Directions, directions, names_of, random_control
from personavec.errors import ConfigError
from personavec.generate import Request, batches, generate
from personavec.model import ChatModel
from personavec.options import Sampling, Writing
from personavec.progress import stage
from personavec.run import Run, versions
from personavec.stats import clustered_mean
from personavec.trait import trait_of
from personavec.vector import PersonaVector, load_vector

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
    asked = _questions(config, vectors, read)
    tuned = [one for path in config.tuned for one in checkpoints(path)]
    inputs = {f"vector {path}": v.content_hash for path, v in zip(config.vectors, vectors, strict=True)}

    model = ChatModel.from_config(config)
    for vector in vectors:
        vector.check_model(model.identity)
    shape = model.n_layers, model.identity.d_model
    run = Run.open(config.out or Path("runs") / "shift", dataclasses.asdict(config), inputs)
    questions = list(dict.fromkeys(question for own in asked.values() for question in own))
    rows = _rows(model, questions, config)
    base, base_random = _read(model, rows, read, "reading the base model")
    found = []
    for name in dict.fromkeys(tuned):
        del model  # one set of weights in memory at a time
        model = _load(config, name)
        if (got := (model.n_layers, model.identity.d_model)) != shape:
            raise ConfigError(f"expected {name} to have the base model's layers and width {shape}, got {got}; check it")
        own, random = _read(model, rows, read, f"reading {Path(name).name}")
        found.append({"tuned": name} | _shifts(own - base, random - base_random, read, asked, questions, config.seed))
    result = {
        "out": str(run.folder),
        "base": config.model,
        "layers": dict(zip(read.names, read.layers, strict=True)),
        "questions": {name: len(own) for name, own in asked.items()},
        "tuned": found,
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


def _load(config: ShiftConfig, tuned: str) -> ChatModel:
    """A finetuned model: an adapter on the base model, or a model of its own."""
    adapter = Path(tuned) if (Path(tuned) / "adapter_config.json").is_file() else None
    return ChatModel.from_config(config, None if adapter else tuned, adapter=adapter)


def _questions(config: ShiftConfig, vectors: Sequence[PersonaVector], read: Directions) -> dict[str, tuple[str, ...]]:
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
    traits = [trait_of(vector.card.trait, config.traits) for vector in vectors]
    per_vector = len(read.names) // len(vectors)  # a name for every layer of each
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
    """Projections at the last prompt token and over the reply."""
    found: list[Any] = [None] * len(rows)
    random: list[Any] = [None] * len(rows)
    with stage(title, len(rows)) as advance:
        for batch, own in activations(model, rows, ("prompt last", "response avg"), read.read_layers):
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
        found["random_control"][name] = random_control(last_prompt.mean, means)
    return found
