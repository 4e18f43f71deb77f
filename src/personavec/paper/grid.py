"""Many small finetunings on one machine: does what is known beforehand predict the trait score afterwards?"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from safetensors.numpy import load_file, save

from personavec.errors import ConfigError, VectorError
from personavec.judges.load import Bench, bench_of
from personavec.judges.scoring import ScoredRow
from personavec.model.activations import read_rows
from personavec.model.chat_model import ChatModel
from personavec.paper.prediction import Finetunings, measure_prediction
from personavec.runs.files import sha256, write_file
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.runs.rules import Count, Free, OptionalCount, Seed, Store, settings
from personavec.runs.run import Run, versions
from personavec.runs.show import interval
from personavec.stats.intervals import or_nan
from personavec.steering.projection import Vectors, load_vectors
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.steering.vector import PersonaVector
from personavec.traits.load import trait_of
from personavec.traits.trait import Trait
from personavec.verbs.evaluate.evaluate import Evaluation, evaluate
from personavec.verbs.extract.difference import response_tokens
from personavec.verbs.finetune.comparing import evaluate_on_card
from personavec.verbs.finetune.finetune import Data, finetune
from personavec.verbs.finetune.trainer import Training, TrainingOptions
from personavec.verbs.screen.screen import screen

Row = dict[str, Any]
Activations = dict[str, Float[ndarray, "..."]]


@dataclass(frozen=True, repr=False)
class Grid(Result):
    """What many finetunings did to traits, and how well it was predicted."""

    replies: dict[str, dict[str, list[ScoredRow]]]
    """Scored replies by data set (or "base") and trait."""

    page = "grid"

    def lines(self) -> list[tuple[str, str]]:
        """R of the shift, trait by trait, and what it is worth."""
        return [(name, trait["verdict"]) for name, trait in self.data["traits"].items()] + [
            (f"base, {name}", interval(score)) for name, score in self.data["base"].items()
        ]


@dataclass(frozen=True)
class Gridding:
    """A grid under way: who is asked and trained, and by whom it is scored."""

    interview: Interview
    bench: Bench
    run: Run
    subjects: dict[str, tuple[Trait, PersonaVector]]
    """By name of the trait."""
    files: tuple[Path, ...]
    """Of the vectors."""
    questions: int | None
    rollouts: int
    training: TrainingOptions
    writing: ReplyOptions

    @property
    def at(self) -> dict[str, int]:
        """Each trait's layer."""
        return {name: int(vector.card.layer or 0) for name, (_, vector) in self.subjects.items()}

    @property
    def layers(self) -> list[int]:
        """Those layers, each once."""
        return sorted(set(self.at.values()))

    def evaluated(self, model: ChatModel, name: str, trait: str, judge_file: Path) -> Evaluation:
        """The trait score of a model; the base model's scale and replies serve all."""
        options: Row = {"questions": self.questions, "rollouts": self.rollouts, "judge": self.bench}
        options |= {"store": self.run.path(f"{name}-{trait}"), "seed": self.interview.seed, **self.writing}
        subject = self.subjects[trait][0]
        if name == "base":
            return evaluate_on_card(model, subject, judge_file, **options)
        return evaluate(model, subject, judge_file=judge_file, **options)

    def read(self, model: ChatModel, name: str, mark: str = "") -> Activations:
        """Of each trait the mean activation at the last token of its held-out questions, at its layer; every prompt's.

        The prompts of `every TRAIT` are all questions of all traits; `replies TRAIT` are the base model's to those held
        out, averaged over their tokens.
        """
        path = self.run.path(f"{name}{mark}.safetensors")
        if path.is_file():
            return load_file(path)
        traits = {name: trait for name, (trait, _) in self.subjects.items()}
        questions = list(
            dict.fromkeys(question for trait in traits.values() for question in (*trait.check, *trait.extract))
        )
        system = self.interview.system
        prompts = [model.render([{"role": "user", "content": question}], system) for question in questions]
        rows = [{"prompt_ids": prompt, "response_ids": ()} for prompt in prompts]
        activations = read_rows(model, rows, "prompt last", self.layers, f"{name}: reading prompts")
        columns = {trait: np.take(activations, self.layers.index(layer), axis=1) for trait, layer in self.at.items()}
        places = {name: [questions.index(question) for question in trait.check] for name, trait in traits.items()}
        kept = {trait: column[places[trait]].mean(axis=0) for trait, column in columns.items()}
        kept |= {f"every {trait}": column for trait, column in columns.items()}
        if name == "base":
            replies = [row for trait in traits for row in Run(self.run.path(f"base-{trait}")).rows("base.jsonl")]
            spoken = [row for row in replies if response_tokens(row)]
            activations = read_rows(model, spoken, "response avg", self.layers, f"{name}: reading replies")
            kept |= {
                f"replies {trait}": np.take(activations, self.layers.index(layer), axis=1)
                for trait, layer in self.at.items()
            }
        write_file(path, save(kept))
        return load_file(path)

    def predicted(self, name: str, data: Data) -> Float[ndarray, "layer d_model"]:
        """How far the rows of a data set lie from the base model's replies, known before training."""
        screened = screen(
            self.interview.model,
            data,
            self.files,
            turn="last",
            cost="full",
            system=self.interview.system,
            on_error=self.training.get("on_error", "stop"),
            seed=self.interview.seed,
            store=self.run.path(f"{name}-screen"),
        )
        return screened.table.mean_move()


def finetuning_grid(
    model: ChatModel,
    datasets: Mapping[str, Data],
    vectors: Vectors,
    *,
    training: TrainingOptions | None = None,
    judge: Free[str | Bench] = "panel",
    questions: OptionalCount = None,
    rollouts: Count = 3,
    traits: Free[Sequence[str | Path | Trait]] = (),
    seed: Seed = 0,
    store: Store = None,
    **writing: Unpack[ReplyOptions],
) -> Grid:
    """Finetune on every data set, measure every trait, and correlate that with the shift and the data's projections.

    Every training, evaluation and screening is a run folder of its own inside: a killed grid goes on where it stopped,
    and more data sets can be added later.

    Args:
        model: Trained from, and measured as base; it stays as it is.
        datasets: What is trained on, by the name that the model gets in charts.
        vectors: Of each trait that is measured, or their files; they are read at the layer that each card recommends.
        training: How: fields of `Training`.
        judge: Who scores replies; the scale is that of each vector's card, or is learned.
        questions: Ask only the first so many of the held-out questions.
        rollouts: Replies per held-out question.
        traits: Traits that are not built in, or their files.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it.
        writing: How replies are written: fields of `Interview`; its `system` is that of training, too.

    Returns:
        What `prediction.measure_prediction` gives, and the scores.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.

    Source: Persona Vectors (arXiv 2507.21509) sections 4.2 and 6.1.
    """
    began = time.monotonic()
    chosen = settings(finetuning_grid, locals())
    named = load_vectors(vectors)
    if not datasets or not named:
        raise ConfigError("expected data sets and vectors, got none; pass at least one of each")
    by_trait = {vector.card.trait: vector for vector in named.values()}
    if len(by_trait) < len(named):
        raise ConfigError("expected one vector a trait, got two of one; pass one of them")
    if bad := [name for name in datasets if not re.fullmatch(r"[\w.%+, -]+", name) or name == "base"]:
        raise ConfigError(f"expected names of letters, digits and ' .%+,-_' other than base, got {bad[0]}; rename it")
    if training and training.get("full"):
        raise ConfigError("expected plain training of adapters, got all weights; leave full out")
    for name, vector in by_trait.items():
        vector.check_model(model.identity)
        if vector.card.layer is None:
            raise VectorError(f"expected a recommended layer for {name}, got none; extract it again")
    interview = Interview(model, seed=seed, **writing)
    bench = bench_of(judge, interview)
    how: TrainingOptions = {"system": interview.system, **(training or {})}
    trained = settings(Training, how) | {"model": model.identity.id, "seed": seed}
    options = {f"training {name}": value for name, value in trained.items()}
    measured = chosen | interview.options | {"judge": bench.spec}
    options |= {f"evaluation {name}": value for name, value in measured.items()}
    run = Run.open(store, options, {f"vector {name}": vector.content_hash for name, vector in by_trait.items()})
    files = tuple(
        Path(name) if Path(name).is_file() else vector.save(run.path(f"vector-{vector.card.trait}.safetensors"))
        for name, vector in named.items()
    )
    subjects = {name: (trait_of(name, traits), vector) for name, vector in by_trait.items()}
    study = Gridding(interview, bench, run, subjects, files, questions, rollouts, how, writing)

    scored = {
        "base": {name: study.evaluated(model, "base", name, file) for name, file in zip(subjects, files, strict=True)}
    }
    read = {"base": study.read(model, "base")}
    predicted: dict[str, Float[ndarray, "layer d_model"]] = {}
    for name, data in datasets.items():
        tell(f"data set {name}")
        tuned = finetune(model, data, traits=traits, seed=seed, store=run.path(f"{name}-trained"), **how)
        scored[name] = {
            trait: study.evaluated(tuned.model, name, trait, run.path(f"base-{trait}") / "judge.json")
            for trait in subjects
        }
        predicted[name] = study.predicted(name, data)
        mark = "-" + sha256(run.path(f"{name}-trained") / "adapter" / "adapter_model.safetensors")[:8]
        read[name] = study.read(tuned.model, name, mark)
    scores = {
        name: {trait: each.data["trait_score"] for trait, each in evaluations.items()}
        for name, evaluations in scored.items()
    }
    grid = Finetunings(
        models=tuple(datasets),
        moved={t: np.stack([read[name][t] - read["base"][t] for name in datasets]) for t in subjects},
        directions={t: vector.direction[study.at[t]].numpy() for t, vector in by_trait.items()},
        scores={t: np.array([or_nan(scores[name][t]["mean"]) for name in datasets], dtype=float) for t in subjects},
        activations={t: read["base"][f"every {t}"] for t in subjects},
        predicted={
            t: np.stack([predicted[name][study.layers.index(study.at[t])] for name in datasets]) for t in subjects
        },
        reply_activations={t: read["base"][f"replies {t}"] for t in subjects},
    )
    result = measure_prediction(grid, seed=seed) | {
        "out": run.shown(),
        "model": model.identity.id,
        "base": scores.pop("base"),
        "scores": scores,
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    replies = {
        name: {trait: each.replies["base" if name == "base" else "changed"] for trait, each in evaluations.items()}
        for name, evaluations in scored.items()
    }
    return Grid(result, replies)
