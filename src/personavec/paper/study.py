"""What all parts share: the model, who judges, sizes, folders, vectors, and how replies are compared."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from personavec.data.dataset import Dataset
from personavec.errors import DataError, PersonavecError
from personavec.judges.load import Bench
from personavec.judges.scoring import ScoredRow, mean_difference
from personavec.model.chat_model import ChatModel
from personavec.runs.files import write_file
from personavec.runs.progress import tell
from personavec.runs.result import Result
from personavec.runs.run import Run
from personavec.steering.rollouts import Interview, ReplyOptions
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.load import load_trait
from personavec.traits.trait import Trait
from personavec.verbs.finetune.trainer import TrainingOptions
from personavec.verbs.screen.table import Table

Row = dict[str, Any]

MAIN = ("evil", "sycophantic", "hallucinating")
"""The traits of the paper's main text."""


@dataclass(frozen=True)
class Size:
    """How much of everything. One object for the whole, one for --quick."""

    traits: tuple[str, ...]
    main: tuple[str, ...]
    """Traits whose token positions are compared."""
    single: tuple[str, ...]
    """Trait of what costs most: a second judge, every method, and training on harmless, filtered and real chats."""
    pairs: int | None
    """How many of each trait's instruction pairs are used; None takes all."""
    questions: int | None
    """How many of each trait's questions are used, of either kind; None takes all."""
    depths: tuple[float, ...]
    """Where the sweep steers, as shares of the model's depth; empty leaves it to the sweep."""
    extract: Mapping[str, Any]
    """Further options of `extract`."""
    rollouts: int
    """Replies per held-out question wherever traits are measured."""
    asked: int | None
    """How many held-out questions the models of the finetunings are asked; None asks all."""
    conditions: int
    """Held-out questions that monitoring asks under each condition."""
    condition_rollouts: int
    """Replies to each of them: with few, noise between them hides every r within a condition."""
    shots: tuple[int, ...]
    rows: int
    """Training rows of a data set."""
    mild: tuple[str, ...]
    """Traits whose data come at level I, too; all come at normal and II."""
    methods: Mapping[str, Any]
    """Options of the comparison of methods."""
    tasks: bool
    """Whether methods are compared by a task, too."""
    method_rollouts: int
    """Replies per held-out question there."""
    texts: int
    """Neutral texts of the perplexity."""
    chats: int
    """Real chats that are screened."""
    chosen: int
    """Of those, how many train a model from the top, the bottom and at random."""
    coexpress: bool
    """Whether it is measured what steering along each vector does to the other traits."""


WHOLE = Size(
    traits=(*MAIN, "optimistic", "impolite", "apathetic", "humorous"),
    main=MAIN,
    single=("evil",),
    pairs=None,
    questions=None,
    depths=(),
    extract={},
    rollouts=1,
    asked=12,
    conditions=10,
    condition_rollouts=10,
    shots=(0, 5, 10, 20),
    rows=32,
    mild=MAIN,
    methods={
        "arms": ("prevent", "random", "posthoc", "ablate", "penalty", "inoculate", "negative-prompt"),
        "scales": (1.0, 2.0),
    },
    tasks=True,
    method_rollouts=1,
    texts=10,
    chats=80,
    chosen=24,
    coexpress=True,
)
QUICK = Size(
    traits=("optimistic", "humorous"),
    main=("humorous",),
    single=("humorous",),
    pairs=3,
    questions=8,
    depths=(0.4, 0.6),
    extract={"doses": (0.1, 0.2), "sweep_questions": 4, "check_rollouts": 1},
    rollouts=1,
    asked=6,
    conditions=6,
    condition_rollouts=1,
    shots=(0, 5),
    rows=16,
    mild=(),
    methods={"arms": ("prevent", "random", "posthoc"), "scales": (1.0,)},
    tasks=False,
    method_rollouts=1,
    texts=5,
    chats=24,
    chosen=8,
    coexpress=False,
)


@dataclass(frozen=True)
class Study:
    """One run of all experiments: a model, how it is asked, and who scores it."""

    interview: Interview
    writing: ReplyOptions
    """The interview's options, as they were given."""
    bench: Bench
    size: Size
    run: Run
    chats: Dataset | None
    """Real conversations; without any, ShareGPT's are fetched."""
    training: TrainingOptions
    """Of every finetuning."""

    @property
    def model(self) -> ChatModel:
        """The subject of all experiments."""
        return self.interview.model

    @property
    def seed(self) -> int:
        """Of everything random."""
        return self.interview.seed

    @property
    def layers(self) -> tuple[int, ...]:
        """That the sweep steers at; empty leaves the choice to it."""
        return tuple(sorted({int(depth * self.model.n_layers) for depth in self.size.depths}))

    @property
    def asking(self) -> dict[str, Any]:
        """Options of every verb that writes replies and scores them."""
        return {"judge": self.bench, "seed": self.seed, **self.writing}

    @cached_property
    def traits(self) -> dict[str, Trait]:
        """Every trait, or the part of it that is used."""
        size = self.size
        whole = {name: load_trait(name) for name in size.traits}
        if size.pairs is None and size.questions is None:
            return whole
        return {
            name: replace(
                trait,
                pairs=trait.pairs[: size.pairs],
                extract=trait.extract[: size.questions],
                sweep=trait.sweep[: size.questions],
                check=trait.check[: size.questions],
            )
            for name, trait in whole.items()
        }

    @cached_property
    def trait_files(self) -> tuple[Path, ...]:
        """Files of the traits of which a part is used, for verbs that look traits up by the names of vectors."""
        if self.size.pairs is None and self.size.questions is None:
            return ()
        folder = self.run.part("traits")
        for name, trait in self.traits.items():
            write_file(folder.path(f"{name}.json"), trait.to_json().encode())
        return tuple(folder.path(f"{name}.json") for name in self.traits)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The vector file of every trait that has one."""
        folder = self.run.path("vectors")
        files = {name: folder / name / "vector.safetensors" for name in self.size.traits}
        return {name: path for name, path in files.items() if (path.parent / "result.json").is_file()}

    @cached_property
    def vectors(self) -> dict[str, PersonaVector]:
        """The vector of every trait that has one."""
        return {name: load_vector(path) for name, path in self.files.items()}

    def measured(self, part: str) -> Row:
        """What an earlier part measured.

        Raises:
            DataError: It was left out.
        """
        if not self.run.done(f"{part}.json"):
            raise DataError(
                f"expected the part {part} to be measured before, got none, since it was left out; its own line says "
                "why: run the same command again once that is mended"
            )
        measured: Row = self.run.read_json(f"{part}.json")
        return measured

    def levels(self, trait: str) -> tuple[str, ...]:
        """Of a trait's data sets."""
        return ("normal", "I", "II") if trait in self.size.mild else ("normal", "II")

    def known(self, traits: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some traits that have a vector."""
        return tuple(name for name in traits if name in self.files)

    def table(self, place: str, trait: str) -> Table:
        """The table of a screening along a trait's vector."""
        return Table(self.run.path(place) / "table", (trait,))

    def page(self, result: Result) -> str | None:
        """Write the page of what a verb measured; its path, if the run is kept."""
        return str(result.report()) if self.run.kept else None

    def difference(self, rows: Sequence[ScoredRow], other: Sequence[ScoredRow], kind: str = "trait") -> Row:
        """Mean of an arm less another over replies to the same questions, clustered by question.

        Args:
            rows: Scored replies of an arm.
            other: Of the arm that is taken away.
            kind: "trait" or "coherence".
        """
        known = {(row["question_id"], row["sample"]) for row in other}
        both = [row for row in rows if (row["question_id"], row["sample"]) in known]
        return mean_difference(both, other, kind).to_json()


@contextmanager
def surviving(failed: list[Row], trait: str) -> Iterator[None]:
    """Go on without a trait of which something cannot be measured; it is reported, and the next call tries it again."""
    try:
        yield
    except PersonavecError as error:
        tell(f"{trait}: left out, because {error}")
        failed.append({"trait": trait, "error": str(error)})


def arm(rows: Sequence[ScoredRow], name: str) -> list[ScoredRow]:
    """The replies of one arm among several."""
    return [row for row in rows if row["arm"] == name]
