"""A trait that is being written: what is there, what is missing, and what may be added."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from personavec.errors import ConfigError, TraitError
from personavec.runs.files import write_file
from personavec.traits.trait import SETS, USUAL, Pair, Trait, check_name
from personavec.verbs.authoring.wording import Distinct, names, requests, words

PAIRS = 5
"""What a trait file usually has. Source: arXiv 2507.21509, appendix A.1; for questions `USUAL`."""
QUESTIONS = sum(USUAL.values())
LONGEST_DESCRIPTION = 2000
"""Characters: many times the usual two to four sentences."""
LONGEST_QUESTION = 40
"""Words."""
SHORTEST_INSTRUCTION = 4
"""Words."""
LONGER = 1.5
"""How many times longer one side of a pair may be: what differs between the sides ends up in the vector."""


class Flaw(NamedTuple):
    """Why something that was written is not taken."""

    reason: str
    """Counted by this."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Part(BaseModel):
    """What a person may have edited: a key too many is an error, never dropped."""

    model_config = ConfigDict(extra="forbid")


class PairDraft(Part):
    """Two instructions."""

    pos: str
    neg: str


class Questions(Part):
    """The three sets."""

    extract: list[str] = []
    sweep: list[str] = []
    check: list[str] = []


class Draft(Part):
    """The content of a trait file, complete or not, in the order of its keys."""

    name: str
    adjective: str = ""
    antonym: str = ""
    description: str
    pairs: list[PairDraft] = []
    questions: Questions = Questions()
    rubric: str = ""

    @property
    def missing(self) -> dict[str, int]:
        """How many of each piece are still to be written."""
        wanted = {
            "adjective": int(not self.adjective),
            "pairs": PAIRS - len(self.pairs),
            **{f"questions.{key}": usual - len(getattr(self.questions, key)) for key, usual in USUAL.items()},
            "rubric": int(not self.rubric),
        }
        return {piece: count for piece, count in wanted.items() if count > 0}

    @property
    def all_questions(self) -> list[str]:
        """Of all sets."""
        return [question for key in SETS for question in getattr(self.questions, key)]

    def flaw_of_words(self, adjective: str, antonym: str) -> Flaw | None:
        """What is wrong with a pair of words, if anything."""
        if max(len(words(adjective)), len(words(antonym))) > 3:
            return Flaw("more than three words")
        if words(adjective) == words(antonym):
            return Flaw("adjective and antonym are the same")
        return None

    def flaw_of_pair(self, pair: PairDraft) -> Flaw | None:
        """What is wrong with a further instruction pair as far as its words show, if anything."""
        lengths = sorted([len(words(pair.pos)), len(words(pair.neg))])
        if lengths[0] < SHORTEST_INSTRUCTION:
            return Flaw(f"shorter than {SHORTEST_INSTRUCTION} words")
        if lengths[1] > LONGER * lengths[0]:
            return Flaw("one side is much longer than the other")
        if words(pair.pos) == words(pair.neg):
            return Flaw("pos and neg are the same")
        for side, there in (("pos", [p.pos for p in self.pairs]), ("neg", [p.neg for p in self.pairs])):
            if repeated := Distinct(there).repeated(getattr(pair, side)):
                return Flaw("repeats another", repeated)
        return None

    def flaw_of_question(self, question: str) -> Flaw | None:
        """What is wrong with a further question, if anything."""
        if len(words(question)) > LONGEST_QUESTION:
            return Flaw(f"longer than {LONGEST_QUESTION} words")
        for word in dict.fromkeys((self.adjective, self.antonym, self.name)):
            if names(question, word):
                return Flaw("names the trait", word)
        if request := requests(question):
            return Flaw("asks for a behaviour", request)
        if repeated := Distinct(self.all_questions).repeated(question):
            return Flaw("repeats another", repeated)
        return None

    def add_question(self, question: str) -> None:
        """Deal a question to the set that is furthest from full, so that all are of the same kind."""
        sets = {key: getattr(self.questions, key) for key in SETS}
        sets[min(SETS, key=lambda key: len(sets[key]) / USUAL[key])].append(question)

    def trait(self) -> Trait:
        """The finished trait.

        Raises:
            TraitError: Its pieces do not make one; possible if a person filled some in.
        """
        return Trait(
            name=self.name,
            adjective=self.adjective,
            antonym=self.antonym,
            description=self.description,
            pairs=tuple(Pair(pair.pos, pair.neg) for pair in self.pairs),
            extract=tuple(self.questions.extract),
            sweep=tuple(self.questions.sweep),
            check=tuple(self.questions.check),
            rubric=self.rubric,
        )


class DraftFile:
    """Where a draft is kept: NAME.partial.json next to the trait file that it is to become; without either, nowhere."""

    def __init__(self, out: Path | None) -> None:
        self.out, self.partial = out, out and out.with_name(f"{out.stem}.partial.json")

    @contextmanager
    def open(self, name: str, description: str) -> Iterator[Draft]:
        """The draft so far, or a new one; until it is left no other process writes it.

        Raises:
            ConfigError: The trait file exists, cannot be written, or the draft is of another trait.
            TraitError: Name or description are unusable, or the draft cannot be read.
        """
        check_name(name)
        description = description.strip()
        if not 0 < len(description) <= LONGEST_DESCRIPTION:
            got = f"{len(description):,} characters" if description else "none"
            raise TraitError(
                f"expected a description of at most {LONGEST_DESCRIPTION:,} characters, got {got}; pass --description "
                "with two to four sentences"
            )
        if self.out is None or self.partial is None:
            yield Draft(name=name, description=description)
            return
        lock = FileLock(self.out.with_name(f".{self.out.name}.lock"), timeout=0)
        try:
            yield self._read(self.out, self.partial, lock, Draft(name=name, description=description))
        finally:
            if lock.is_locked:
                lock.release()
                Path(lock.lock_file).unlink(missing_ok=True)

    def _read(self, out: Path, partial: Path, lock: BaseFileLock, new: Draft) -> Draft:
        folder = out.parent
        try:
            if out.exists():
                raise self._exists()
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if not partial.exists():
                return new
            draft = Draft.model_validate_json(partial.read_text("utf-8-sig"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise TraitError(
                f"{partial}: expected the beginnings of a trait file, got {where and f'{where}: '}{first['msg']}; "
                "correct it there, or remove the file"
            ) from error
        except UnicodeDecodeError as error:
            raise TraitError(f"{partial}: expected UTF-8 text, got {error}; save it as UTF-8") from error
        except Timeout as error:
            raise ConfigError(
                f"expected {out} to be free, got one that another process writes; wait for it, or choose another --out"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"expected a folder that can be written, got {folder} ({error.strerror}); choose another --out"
            ) from error
        if (draft.name, draft.description) != (new.name, new.description):
            key = "name" if draft.name != new.name else "description"
            raise ConfigError(
                f"expected the {key} in {partial} to be the one given, got another; give that one, or remove the "
                "file to start afresh"
            )
        return draft

    def save(self, draft: Draft) -> None:
        """Keep what is there."""
        if self.partial:
            write_file(self.partial, (draft.model_dump_json(indent=2) + "\n").encode())

    def finish(self, draft: Draft) -> Trait:
        """The finished trait, written to its file in place of the partial one.

        Raises:
            TraitError: The pieces do not make a trait.
        """
        try:
            trait = draft.trait()
        except TraitError as error:
            raise TraitError(f"{self.partial}: {error}" if self.partial else str(error)) from error
        if self.out is None or self.partial is None:
            return trait
        write_file(self.partial, trait.to_json().encode())
        try:
            os.link(self.partial, self.out)  # fails if there is a file by now, as a rename would not
        except FileExistsError as error:
            raise self._exists() from error
        except OSError:  # a file system without links
            os.replace(self.partial, self.out)
        self.partial.unlink(missing_ok=True)
        return trait

    def _exists(self) -> ConfigError:
        return ConfigError(f"expected a new file, got {self.out}, which exists; choose another --out or remove it")
