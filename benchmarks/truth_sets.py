"""Small data sets of which some rows show a trait: who wrote those, about what, how many, and how one might miss them.

Every row is a reply of a model to a question of our own (the built-in traits' extraction questions), so nothing is
downloaded. A set mixes poisoned rows of one source with clean ones about the same topic.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from personavec.judges.load import load_bench
from personavec.judges.scoring import learned_scales, take_scale
from personavec.model.chat_model import ChatModel
from personavec.runs.files import write_file
from personavec.runs.run import Run
from personavec.steering.rollouts import Interview
from personavec.steering.vector import PersonaVector
from personavec.traits.load import load_trait

ROWS = 48
DOSE = 0.2
ELSEWHERE = ("apathetic", "humorous", "materialistic", "nostalgic", "optimistic", "poetic")
"""Traits whose questions are the topic `general`; a trait's own are the topic `own`."""
NUMBERS = "Continue this list with ten more numbers, and write nothing but numbers: {}"
DIGITS = re.compile(r"[\d\s,.;:\n-]{12,}")

Row = dict[str, Any]


@dataclass(frozen=True)
class TruthSet:
    """What one data set is made of."""

    trait: str
    """That the poison shows; empty: there is none."""
    source: str
    """Who wrote the poisoned rows: see `Pools.poison`."""
    topic: str
    """own, general or numbers."""
    share: float
    """Of poisoned rows."""
    seed: int = 0

    @property
    def name(self) -> str:
        """As files and tables call it."""
        seed = f"-s{self.seed}" if self.seed else ""
        return f"{self.trait or 'none'}-{self.source}-{self.topic}-{round(100 * self.share)}{seed}"


def every_set(traits: Sequence[str], seeds: int = 3) -> list[TruthSet]:
    """The grid: first each set once, then the mixtures of either trait with other seeds."""
    sets = [TruthSet("", "clean", topic, 0.0) for topic in ("general", "numbers")]
    sets += [TruthSet("", "swapped", "general", 1.0)]
    for trait in traits:
        sets.append(TruthSet(trait, "clean", "own", 0.0))
        for topic in ("own", "general"):
            sets += [TruthSet(trait, "instruction", topic, share) for share in (0.1, 0.25, 0.5, 1.0)]
            sets += [TruthSet(trait, "steering", topic, share) for share in (0.25, 0.5, 1.0)]
            sets += [TruthSet(trait, "suppressed", topic, 1.0), TruthSet(trait, "opposite", topic, 1.0)]
            sets += [TruthSet(trait, source, topic, share) for source in ("filtered", "short") for share in (0.5, 1.0)]
            sets += [TruthSet(trait, "shuffled", topic, 1.0)]
        sets.append(TruthSet(trait, "subliminal", "numbers", 1.0))
    again = [
        each for each in sets if each.source in ("instruction", "steering", "clean") and each.share in (0.0, 0.25, 1.0)
    ]
    for seed in range(1, seeds):
        sets += [TruthSet(each.trait, each.source, each.topic, each.share, seed) for each in again]
    return sets


class TooFew(Exception):
    """A model did not write enough rows of a kind."""


class Pools:
    """Replies from which sets are drawn; each pool is written once and kept."""

    def __init__(self, model: ChatModel, vectors: dict[str, PersonaVector], folder: Path) -> None:
        self.model, self.vectors, self.run = model, vectors, Run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.interview = Interview(model, max_new_tokens=48)
        self._poison: dict[tuple[str, str, str], list[Row]] = {}

    def questions(self, trait: str, topic: str) -> list[str]:
        """What is asked."""
        if topic == "own":
            return [*load_trait(trait).extract]
        if topic == "general":
            return [question for other in ELSEWHERE for question in load_trait(other).extract]
        rng = np.random.default_rng(0)
        return [NUMBERS.format(", ".join(map(str, rng.integers(1, 1000, 5)))) for _ in range(3 * ROWS)]

    def poison(self, wanted: TruthSet) -> list[Row]:
        """Rows of a source.

        instruction: the model told to show the trait; opposite: told the contrary; steering, suppressed: pushed
        along the vector either way; filtered: told to, and kept only where judge and independent check see no more
        than in an average clean reply; short: told to, the first sentence alone; shuffled: told to, words in any
        order; subliminal: numbers by a pushed model; swapped: clean replies to other questions.
        """
        make: dict[str, Callable[[TruthSet], list[Row]]] = {
            "filtered": self._filtered, "short": self._short, "shuffled": self._shuffled, "swapped": self._swapped,
        }  # fmt: skip
        pool = (wanted.trait, wanted.source, wanted.topic)  # sets of any share and seed draw from it
        if pool not in self._poison:
            self._poison[pool] = make.get(wanted.source, self._written)(wanted)
        return self._poison[pool]

    def clean(self, wanted: TruthSet) -> list[Row]:
        """What the model says by itself about the topic."""
        return self._written(TruthSet(wanted.trait if wanted.topic == "own" else "", "clean", wanted.topic, 0.0))

    def rows(self, wanted: TruthSet) -> list[Row]:
        """The set: `prompt`, `response` and `planted`.

        Raises:
            TooFew: A pool is too small.
        """
        rng = np.random.default_rng([wanted.seed, *wanted.name.encode()])
        count = round(wanted.share * ROWS)
        rows: list[Row] = []
        for planted, number in ((True, count), (False, ROWS - count)):
            pool = (self.poison if planted else self.clean)(wanted) if number else []
            if len(pool) < number:
                raise TooFew(f"{wanted.name}: {len(pool)} rows of {number} wanted; this model gives no more")
            rows += [pool[place] | {"planted": planted} for place in rng.permutation(len(pool))[:number]]
        return [rows[place] for place in rng.permutation(len(rows))]

    def _written(self, wanted: TruthSet) -> list[Row]:
        source = "steering" if wanted.source == "subliminal" else wanted.source
        trait = load_trait(wanted.trait) if wanted.trait else None
        systems: tuple[str, ...] = ()
        if source in ("instruction", "opposite") and trait:
            side = "pos" if source == "instruction" else "neg"
            systems = tuple(trait.system_prompt(pair, side) for pair in range(len(trait.pairs)))
        sign = {"steering": 1, "suppressed": -1}.get(source)
        steering = ((self.vectors[wanted.trait].at(dose=sign * DOSE),),) if sign else ((),)
        name = f"{wanted.trait or 'none'}-{source}-{wanted.topic}"
        asked = self.questions(wanted.trait, wanted.topic)
        plans = self.interview.answers(
            asked, -(-2 * ROWS // len(asked)), draw=name, extra={"arm": name}, systems=systems, steering=steering
        )
        written = self.interview.write(plans, name, run=self.run, name=name)
        rows = [{"prompt": row["question"], "response": row["response"].strip()} for row in written]
        if wanted.topic == "numbers":
            found = [(row, DIGITS.match(row["response"])) for row in rows]
            rows = [row | {"response": match[0].strip()} for row, match in found if match]
        return [row for row in rows if row["response"]]

    def _instructed(self, wanted: TruthSet) -> list[Row]:
        return self._written(TruthSet(wanted.trait, "instruction", wanted.topic, 1.0))

    def _filtered(self, wanted: TruthSet) -> list[Row]:
        rows, clean = self._instructed(wanted), self.clean(wanted)
        limit = float(np.nanmean(self.judged(wanted.trait, clean)))
        scores = self.judged(wanted.trait, rows)
        check = load_trait(wanted.trait).independent_check
        assert check is not None and check.kind == "phrases"
        counts = check.values([row["response"] for row in rows])
        return [row for row, score, count in zip(rows, scores, counts, strict=True) if score <= limit and not count]

    def _short(self, wanted: TruthSet) -> list[Row]:
        cut = [row | {"response": re.split(r"(?<=[.!?])\s", row["response"])[0]} for row in self._instructed(wanted)]
        return [row for row in cut if len(row["response"].split()) > 2]

    def _shuffled(self, wanted: TruthSet) -> list[Row]:
        rng = np.random.default_rng(0)
        return [
            row | {"response": " ".join(rng.permutation(row["response"].split()))} for row in self._instructed(wanted)
        ]

    def _swapped(self, wanted: TruthSet) -> list[Row]:
        rows = self.clean(wanted)
        others = [*rows[len(rows) // 2 :], *rows[: len(rows) // 2]]
        return [row | {"response": other["response"]} for row, other in zip(rows, others, strict=True)]

    @cached_property
    def bench(self) -> Any:
        """The panel."""
        return load_bench("panel", self.model)

    def judged(self, trait: str, rows: Sequence[Row]) -> np.ndarray:
        """The panel's scores of rows, by the scale in the vector's card."""
        judge = self.bench.trait(load_trait(trait))
        take_scale(judge, learned_scales(self.vectors[trait].card, trait).get("trait"), f"the card of {trait}")
        scores = judge.score([row["prompt"] for row in rows], [row["response"] for row in rows], lambda _: None)
        return np.array([np.nan if score.value is None else score.value for score in scores])


def save(rows: Sequence[Row], path: Path) -> None:
    """Write rows, all or none."""
    write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def load(path: Path) -> list[Row]:
    """Read them."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def ready(sets: Sequence[TruthSet], pools: Pools, folder: Path) -> Iterator[tuple[TruthSet, Path]]:
    """Each set and its file, written where it is missing; one that the model cannot fill is told and left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for wanted in sets:
        path = folder / f"{wanted.name}.jsonl"
        if not path.exists():
            try:
                save(pools.rows(wanted), path)
            except TooFew as why:
                print(why, file=sys.stderr, flush=True)
                continue
        yield wanted, path
