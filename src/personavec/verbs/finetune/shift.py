"""Finetuning shift: how far a finetuning moved a model along persona vectors, before anyone reads its replies."""

import filecmp
import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from peft import PeftModel
from transformers import PreTrainedModel

from personavec.errors import ConfigError, ModelError
from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.runs.files import contents, sha256
from personavec.runs.progress import stage, tell
from personavec.runs.result import Result
from personavec.runs.rules import EACH_ONCE, Count, Free, Seed, Store, settings
from personavec.runs.run import Row, Run
from personavec.runs.show import interval
from personavec.stats.intervals import clustered_mean
from personavec.stats.nulls import against, covariance_directions
from personavec.steering.generate import Request, batches, generate
from personavec.steering.projection import RANDOM, Directions, Vectors, directions, load_vectors, names_of
from personavec.steering.rollouts import Interview
from personavec.steering.vector import PersonaVector
from personavec.traits.load import trait_of
from personavec.traits.trait import Trait

TABLE = "tuned.jsonl"
TUNED = ("adapter_*", "config.json", "*.safetensors")
"""Files that say what a finetuned model is."""
ADVICE = "pass it with --traits, or questions of your own with --prompts"


Tuned = str | Path | ChatModel | PreTrainedModel | PeftModel


@dataclass(frozen=True, repr=False)
class Shift(Result):
    """How far one finetuned model or several moved along persona vectors."""

    @property
    def tuned(self) -> list[Row]:
        """Of each model `shift`, `response_shift` and `random_control`, by vector."""
        return list(self.data["tuned"])

    def lines(self) -> list[tuple[str, str]]:
        """A line for every model and vector."""
        return [
            (f"{row['tuned']} along {name}", f"{interval(moved, 2)}{', within random' * (not random['beyond'])}")
            for row in self.tuned
            for name, moved in row["shift"].items()
            for random in [row["random_control"][name]]
        ]


class Asking(NamedTuple):
    """Along what a model is read, and what it is asked for each name."""

    along: Directions
    traits: list[Trait]
    questions: dict[str, tuple[str, ...]]


def shift(
    model: ChatModel,
    tuned: Tuned | Iterable[Tuned],
    vectors: Vectors,
    *,
    layers: Annotated[Sequence[int], EACH_ONCE] = (),
    prompts: str | Path | Sequence[str] | None = None,
    traits: Sequence[str | Path | Trait] = (),
    max_new_tokens: Count = 32,
    system: str = "template",
    trust_remote_code: Free[bool] = False,
    seed: Seed = 0,
    store: Store = None,
) -> Shift:
    """Move along every vector at the last prompt token, and over replies, of one finetuned model or of several.

    `(mean_p a_tuned(p) − mean_p a_base(p)) · v̂`; the replies are the base model's greedy ones, read by both models, so
    that what differs is the weights alone.
    Source: Persona Vectors (arXiv 2507.21509) section 4.2.

    Args:
        model: The model before; an adapter on it is left aside.
        tuned: After: a PEFT adapter's folder, a model's name, a model object (under PEFT or whole), a folder of
            checkpoints, or several of these. Adapters in folders share the model's weights.
        vectors: Persona vectors or their files.
        layers: Layers to read every vector at; default the one that its card recommends.
        prompts: Questions, or a text file of them, one a line; default the held-out ones of each vector's trait.
        traits: Traits of vectors whose trait is not built in.
        max_new_tokens: Longest reply of the base model.
        system: System prompt: template, none, or a text.
        trust_remote_code: For models that are loaded by name.
        seed: Of the random directions.
        store: Run folder to keep everything in; the same call resumes it.

    Raises:
        PersonavecError: Bad input.
    """
    began = time.monotonic()
    chosen = settings(shift, locals())
    named = load_vectors(vectors)
    reading = asking(list(named.values()), layers, prompts, traits, seed)
    models = _named(model, tuned)
    for vector in named.values():
        vector.check_model(model.identity)
    inputs = {"model": model.identity.revision, "numbers": model.numbers}
    inputs |= {f"vector {name}": vector.content_hash for name, vector in named.items()}
    inputs |= {f"trait {trait.name}": trait.content_hash for trait in reading.traits}
    if isinstance(prompts, str | Path):
        inputs["prompts"] = sha256(Path(prompts))
    run = Run.open(store, chosen, inputs | (_contents(models) if store is not None else {}))
    rows: dict[str, Row] = {row["tuned"]: row for row in run.rows(TABLE)}
    missing = [name for name in models if name not in rows]
    _check_places([name for name in missing if models[name] is None], trust_remote_code)
    if missing:
        every_question = tuple(dict.fromkeys(each for several in reading.questions.values() for each in several))
        with model.without_adapter():
            replies = _rows(model, every_question, system, max_new_tokens)
            before = _read(model, replies, reading.along, "reading the base model")
        for name in missing:
            after = models[name] or _load(model, name, trust_remote_code)
            shape, got = ((each.n_layers, each.identity.d_model) for each in (model, after))
            if got != shape:
                raise ConfigError(
                    f"expected {name} to have the base model's layers and width {shape}, got {got}; check it"
                )
            read = _read(after, replies, reading.along, f"reading {Path(name).name}")
            values, moved = (now - then for now, then in zip(read, before, strict=True))
            if not (values.any() or moved.any()):
                tell(f"{name} reads as the base model does, at every layer asked for: nothing was trained")
            rows[name] = {"tuned": name} | _shifts(values, moved, before[1], reading, every_question)
            run.append(TABLE, [rows[name]])
            del after  # one finetuned model in memory at a time
    result = {
        "out": run.shown(),
        "base": model.identity.id,
        "layers": dict(zip(reading.along.names, reading.along.layers, strict=True)),
        "questions": {name: len(questions) for name, questions in reading.questions.items()},
        "tuned": [rows[name] for name in models],
    }
    run.complete(result, began)
    return Shift(result)


def asking(
    vectors: Sequence[PersonaVector],
    layers: Sequence[int],
    prompts: str | Path | Sequence[str] | None,
    traits: Sequence[str | Path | Trait],
    seed: int,
) -> Asking:
    """What is read and asked: the given prompts, or the held-out questions of each vector's trait.

    Raises:
        PersonavecError: No vectors, no such layer or trait, or too few questions.
    """
    along = directions(vectors, names_of(vectors), layers, seed)
    if prompts is not None:
        return Asking(along, [], dict.fromkeys(along.names, _questions(prompts)))
    loaded = [trait_of(vector.card.trait, traits, ADVICE) for vector in vectors]
    per_vector = len(along.names) // len(loaded)  # a name for every layer of each
    return Asking(along, loaded, {name: loaded[place // per_vector].check for place, name in enumerate(along.names)})


def _questions(prompts: str | Path | Sequence[str]) -> tuple[str, ...]:
    where = str(prompts) if isinstance(prompts, str | Path) else "prompts"
    lines: Sequence[str]
    if isinstance(prompts, str | Path):
        try:
            lines = Path(prompts).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"expected a text file of questions, got {prompts} ({error})") from error
    else:
        lines = prompts
    questions = tuple(dict.fromkeys(line for text in lines if (line := str(text).strip())))
    if len(questions) < 2:
        raise ConfigError(f"expected two questions or more in {where}, got {len(questions)}; one a line")
    return questions


def _named(model: ChatModel, tuned: Tuned | Iterable[Tuned]) -> dict[str, ChatModel | None]:
    """The finetuned models by name; of those that are on disk the name alone."""
    several = list(tuned) if isinstance(tuned, Iterable) and not isinstance(tuned, str) else [tuned]
    models: dict[str, ChatModel | None] = {}
    for each in several:
        if isinstance(each, str | Path):
            models |= dict.fromkeys(checkpoints(str(each)))
        elif isinstance(each, ChatModel | PreTrainedModel | PeftModel):
            after = each if isinstance(each, ChatModel) else ChatModel(each, model.tokenizer)
            name = str(after.adapter or ("PEFT adapter" if after.adapted else after.identity.id))
            same = sum(other == name or other.startswith(f"{name}-") for other in models)
            models[f"{name}-{same + 1}" if same else name] = after
        else:
            raise ConfigError(f"expected finetuned models or their folders, got {each!r:.100}; pass one or more")
    if not models:
        raise ConfigError(
            "expected a finetuned model, got none; pass adapter folders, models, or a folder of checkpoints"
        )
    return models


def _check_places(names: Sequence[str], trust_remote_code: bool) -> None:
    """Say which of the finetuned models cannot be loaded before the base model is read."""
    for name in names:
        if Path(name).is_file() or (Path(name) / "adapter_config.json").is_file():
            continue
        try:
            ChatModel.load(name, device="cpu", weights=False, trust_remote_code=trust_remote_code)
        except ModelError as error:
            raise ModelError(
                f"expected an adapter or a model for --tuned, got {name}, of which it is said: {error}"
            ) from error


def checkpoints(path: str) -> list[str]:
    """The models in a place: what lies there itself, after the checkpoints in it, in the order of their steps.

    Of the run folder of a finetuning those are in its `adapter`. A last checkpoint that is the finished model is left
    out.
    """
    if not _holds_model(Path(path)) and _holds_model(Path(path) / "adapter"):
        path = str(Path(path) / "adapter")
    folder = Path(path)
    steps = sorted(
        (int(match[1]), child)
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", child.name))
    )
    whole = _holds_model(folder)
    if whole and steps and _same_weights(steps[-1][1], folder):
        steps.pop()
    return [str(child) for _, child in steps] + [path] * (whole or not steps)


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))


def _same_weights(one: Path, other: Path) -> bool:
    files = [sorted(folder.glob("*.safetensors")) for folder in (one, other)]
    names = [[file.name for file in own] for own in files]
    return bool(names[0]) and names[0] == names[1] and all(map(partial(filecmp.cmp, shallow=False), *files))


def _load(model: ChatModel, name: str, trust_remote_code: bool) -> ChatModel:
    """A finetuned model from disk: an adapter on the base model, or a whole one."""
    if (Path(name) / "adapter_config.json").is_file():
        return model.with_adapter(name)
    dtype, device = str(model.dtype).removeprefix("torch."), model.placement
    return ChatModel.load(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def _contents(models: Mapping[str, ChatModel | None]) -> dict[str, str]:
    """What identifies the finetuned models: their files, or of those in memory their weights."""
    folders = [Path(name) for name, model in models.items() if model is None]
    files = {path for folder in folders for kind in TUNED for path in folder.glob(kind)}
    files |= {path for path in folders if path.is_file()}
    held = {f"tuned {name}": _weights(model) for name, model in models.items() if model is not None}
    return held | {f"tuned {path}": contents(path) for path in sorted(files)}


def _weights(model: ChatModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.hf.named_parameters()):
        digest.update(name.encode() + weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _rows(model: ChatModel, questions: Sequence[str], system: str, max_new_tokens: int) -> list[Row]:
    """Prompts, and the base model's greedy replies; of an empty one its prompt alone is read."""
    requests = [Request(model.render([{"role": "user", "content": question}], system)) for question in questions]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0)
    rows: list[Row] = [{} for _ in requests]
    with stage("base replies", len(requests)) as advance:
        for batch in batches(requests, max_new_tokens, Interview.batch_tokens):
            for index, reply in zip(batch, generate(model, [requests[i] for i in batch], sampling), strict=True):
                prompt = requests[index].prompt
                skipped = model.reasoning_tokens(prompt, reply.ids)
                rows[index] = {"prompt_ids": prompt, "response_ids": reply.ids, "reasoning_tokens": skipped}
                if skipped == len(reply.ids):
                    rows[index] |= {"response_ids": reply.ids or (model.pad_id,), "reasoning_tokens": 0, "empty": True}
            advance(len(batch))
    return rows


def _read(
    model: ChatModel, rows: Sequence[Row], along: Directions, title: str
) -> tuple[Float[ndarray, "row span name"], Float[ndarray, "row layer d_model"]]:
    """Projections at the last prompt token and over the reply, and the activations at the former.

    Raises:
        ModelError: Activations are not finite.
    """
    values: list[Any] = [None] * len(rows)
    read: list[Any] = [None] * len(rows)
    with stage(title, len(rows)) as advance:
        for batch, means in activations(model, rows, ("prompt last", "response avg"), along.read_layers):
            if not means.isfinite().all():
                raise ModelError(
                    f"expected finite activations, got inf or nan while {title} ({model.numbers}); pass --dtype "
                    "float32, or check that its training did not diverge"
                )
            for index, projections, last in zip(batch, along.project(means), means[:, 0].numpy(), strict=True):
                values[index], read[index] = projections.copy(), last.copy()
                if rows[index].get("empty"):
                    values[index][1] = np.nan
            advance(len(batch))
    return np.stack(values), np.stack(read)


def _shifts(
    moved: Float[ndarray, "row span name"],
    read: Float[ndarray, "row layer d_model"],
    base: Float[ndarray, "row layer d_model"],
    asking: Asking,
    questions: Sequence[str],
) -> Row:
    """The mean over each vector's questions; and along random directions, drawn as the base's activations lie.

    Args:
        moved: Projections on every direction, after − before.
        read: Activations at the last prompt token, likewise.
        base: The same of the model before.
        asking: What was read and asked.
        questions: Of the rows.
    """
    along, shifts = asking.along, Row(shift={}, response_shift={}, random_control={})
    drawn = covariance_directions(RANDOM, base.swapaxes(0, 1), np.random.default_rng(along.seed))
    for column, (name, layer) in enumerate(zip(along.names, along.layers, strict=True)):
        places = np.array([questions.index(question) for question in asking.questions[name]])
        spans = moved[places, :, column].astype(float)
        last_prompt, reply = (clustered_mean(spans[:, span], places) for span in (0, 1))
        shifts["shift"][name], shifts["response_shift"][name] = last_prompt.to_json(), reply.to_json()
        at = along.read_layers.index(layer)
        shifts["random_control"][name] = against(last_prompt.mean, drawn[at] @ read[places, at].mean(axis=0))
    return shifts
