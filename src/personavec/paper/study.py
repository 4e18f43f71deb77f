"""What all parts share: options, sizes, folders, vectors, and how replies are compared."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from personavec.errors import PersonavecError
from personavec.judges.scoring import mean_difference
from personavec.paper.options import PaperConfig
from personavec.runs.files import write_file
from personavec.runs.progress import tell
from personavec.runs.run import Run
from personavec.steering.vector import PersonaVector, load_vector
from personavec.traits.trait import load_trait
from personavec.verbs.evaluate.options import EvaluateConfig
from personavec.verbs.finetune.options import FinetuneConfig
from personavec.verbs.options import Common, Judging, Writing, given

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
    extract: Mapping[str, Any]
    """Options of `extract`."""
    rollouts: int
    """Replies per held-out question wherever traits are measured."""
    asked: int | None
    """How many held-out questions the models of the finetunings are asked; None asks all."""
    conditions: int
    """Held-out questions that monitoring asks under each condition."""
    shots: tuple[int, ...]
    rows: int
    """Training rows of a data set."""
    mild: tuple[str, ...]
    """Traits whose data come at level I, too; all come at normal and II."""
    methods: Mapping[str, Any]
    """Options of the comparison of methods."""
    method_rollouts: int
    """Replies per held-out question there."""
    texts: int
    """Neutral texts of the perplexity."""
    chats: int
    """Real chats that are screened."""
    chosen: int
    """Of those, how many train a model from the top, the bottom and at random."""


WHOLE = Size(
    traits=(*MAIN, "optimistic", "impolite", "apathetic", "humorous"),
    main=MAIN,
    single=("evil",),
    pairs=None,
    questions=None,
    extract={},
    rollouts=1,
    asked=12,
    conditions=10,
    shots=(0, 5, 10, 20),
    rows=32,
    mild=MAIN,
    methods={"scales": (1.0, 2.0)},
    method_rollouts=1,
    texts=10,
    chats=80,
    chosen=24,
)
QUICK = Size(
    traits=("optimistic", "humorous"),
    main=("humorous",),
    single=("humorous",),
    pairs=3,
    questions=8,
    extract={"layers": (12, 18), "doses": (0.1, 0.2), "sweep_questions": 4, "check_rollouts": 1},
    rollouts=1,
    asked=6,
    conditions=6,
    shots=(0, 5),
    rows=16,
    mild=(),
    methods={"compare": ("prevent", "posthoc"), "scales": (1.0,)},
    method_rollouts=1,
    texts=5,
    chats=24,
    chosen=8,
)


@dataclass(frozen=True)
class Study:
    """One run of all experiments."""

    config: PaperConfig
    size: Size
    run: Run

    @cached_property
    def traits(self) -> dict[str, str]:
        """What verbs take for every trait: its name, or where only a part of it is used, a file of that part."""
        size = self.size
        if size.pairs is None and size.questions is None:
            return {name: name for name in size.traits}
        folder, found = self.run.part("traits"), {}
        for name in size.traits:
            whole = load_trait(name)
            asked = {kind: getattr(whole, kind)[: size.questions] for kind in ("extract", "evaluate")}
            path = folder.path(f"{name}.json")
            write_file(path, replace(whole, pairs=whole.pairs[: size.pairs], **asked).to_json().encode())
            found[name] = str(path)
        return found

    @property
    def trait_files(self) -> tuple[Path, ...]:
        """The files among them, for verbs that look traits up by the names of vectors."""
        return tuple(Path(told) for name, told in self.traits.items() if told != name)

    @property
    def training(self) -> FinetuneConfig:
        """One plain training, without data and folder."""
        own: Row = {
            "rate": self.config.rate,
            "batch": self.config.batch,
            "checkpoints": 1,
            "system": self.config.system,
            "traits": self.trait_files,
        }
        return FinetuneConfig(**given(self.config, Common), **own)

    @property
    def evaluation(self) -> EvaluateConfig:
        """One evaluation, without trait and folder."""
        return EvaluateConfig(**given(self.config, Judging, Writing, Common), rollouts=self.size.rollouts)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The vector file of every trait that has one."""
        folder = self.run.path("vectors")
        found = {name: folder / name / "vector.safetensors" for name in self.size.traits}
        return {name: path for name, path in found.items() if (path.parent / "result.json").is_file()}

    @cached_property
    def vectors(self) -> dict[str, PersonaVector]:
        """The vector of every trait that has one."""
        return {name: load_vector(path) for name, path in self.files.items()}

    def levels(self, trait: str) -> tuple[str, ...]:
        """Of a trait's data sets."""
        return ("normal", "I", "II") if trait in self.size.mild else ("normal", "II")

    def known(self, traits: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some traits that have a vector."""
        return tuple(name for name in traits if name in self.files)

    def difference(self, one: list[Row], other: list[Row], kind: str = "trait") -> Row:
        """Mean of one − other over replies to the same questions, clustered by question.

        Args:
            one: Scored replies of an arm.
            other: Of the arm that is taken away.
            kind: "trait" or "coherence".
        """
        known = {(row["question_id"], row["sample"]) for row in other}
        both = [row for row in one if (row["question_id"], row["sample"]) in known]
        return mean_difference(both, other, kind, self.config.seed).to_json()


@contextmanager
def surviving(failed: list[Row], trait: str) -> Iterator[None]:
    """Go on without a trait of which something cannot be measured; it is told, and tried again by the next command."""
    try:
        yield
    except PersonavecError as error:
        tell(f"{trait}: left out, because {error}")
        failed.append({"trait": trait, "error": str(error)})


def arm(rows: list[Row], name: str) -> list[Row]:
    """The replies of one arm among several."""
    return [row for row in rows if row["arm"] == name]
