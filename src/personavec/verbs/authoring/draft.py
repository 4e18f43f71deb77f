"""A trait that is being written: what is there, what is missing, and what may be added."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from personavec.errors import ConfigError, TraitError
from personavec.runs.files import write_file
from personavec.traits.trait import Pair, Trait
from personavec.verbs.authoring.wording import Distinct, names, requests, words

PAIRS, QUESTIONS = 5, 40
"""What a trait file usually has. Source: arXiv 2507.21509, appendix A.1."""
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
    """What a person may have edited: a key too many is told, never dropped."""

    model_config = ConfigDict(extra="forbid")


class PairDraft(Part):
    """Two instructions."""

    pos: str
    neg: str


class Questions(Part):
    """The two sets."""

    extract: list[str] = []
    evaluate: list[str] = []


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
            "questions.extract": QUESTIONS // 2 - len(self.questions.extract),
            "questions.evaluate": QUESTIONS // 2 - len(self.questions.evaluate),
            "rubric": int(not self.rubric),
        }
        return {piece: count for piece, count in wanted.items() if count > 0}

    @property
    def all_questions(self) -> list[str]:
        """Both sets."""
        return [*self.questions.extract, *self.questions.evaluate]

    def flaw_of_words(self, adjective: str, antonym: str) -> Flaw | None:
        """What is wrong with a pair of words, if anything."""
        if max(len(words(adjective)), len(words(antonym))) > 3:
            return Flaw("more than three words")
        if words(adjective) == words(antonym):
            return Flaw("adjective and antonym are the same")
        return None

    def flaw_of_pair(self, pair: PairDraft) -> Flaw | None:
        """What is wrong with a further instruction pair as far as its words tell, if anything."""
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
        if asked := requests(question):
            return Flaw("asks for a behaviour", asked)
        if repeated := Distinct(self.all_questions).repeated(question):
            return Flaw("repeats another", repeated)
        return None

    def add_question(self, question: str) -> None:
        """Deal a question to the smaller set, so that both are of one kind."""
        sets = self.questions
        min((sets.extract, sets.evaluate), key=len).append(question)

    def trait(self) -> Trait:
        """The finished trait.

        Raises:
            TraitError: Its pieces do not make one; possible where a person filled some in.
        """
        return Trait(
            name=self.name,
            adjective=self.adjective,
            antonym=self.antonym,
            description=self.description,
            pairs=tuple(Pair(pair.pos, pair.neg) for pair in self.pairs),
            extract=tuple(self.questions.extract),
            evaluate=tuple(self.questions.evaluate),
            rubric=self.rubric,
        )


class DraftFile:
    """Where a draft is kept: NAME.partial.json beside the trait file that it is to become."""

    def __init__(self, out: Path) -> None:
        self.out, self.partial = out, out.with_name(f"{out.stem}.partial.json")
        self._lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)

    def open(self, name: str, description: str) -> Draft:
        """The draft so far, or a new one.

        Raises:
            ConfigError: The trait file exists, cannot be written, or the draft is of another trait.
            TraitError: The draft cannot be read.
        """
        try:
            return self._open(name, description)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, description: str) -> Draft:
        folder = self.out.parent
        try:
            if self.out.exists():
                raise self._exists()
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            if not self.partial.exists():
                return Draft(name=name, description=description)
            draft = Draft.model_validate_json(self.partial.read_text("utf-8-sig"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise TraitError(
                f"{self.partial}: expected the beginnings of a trait file, got {where and f'{where}: '}{first['msg']}; "
                "correct it there, or remove the file"
            ) from error
        except UnicodeDecodeError as error:
            raise TraitError(f"{self.partial}: expected UTF-8 text, got {error}; save it as UTF-8") from error
        except Timeout as error:
            raise ConfigError(
                f"expected {self.out} to be free, got one that another process writes; wait for it, or choose another "
                "--out"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"expected a folder that can be written, got {folder} ({error.strerror}); choose another --out"
            ) from error
        if (draft.name, draft.description) != (name, description):
            key: Literal["name", "description"] = "name" if draft.name != name else "description"
            raise ConfigError(
                f"expected the {key} in {self.partial} to be the one given, got another; give that one, or remove the "
                "file to start afresh"
            )
        return draft

    def save(self, draft: Draft) -> None:
        """Keep what is there."""
        write_file(self.partial, (draft.model_dump_json(indent=2) + "\n").encode())

    def finish(self, draft: Draft) -> None:
        """Write the trait file, and remove the partial one.

        Raises:
            TraitError: The pieces do not make a trait.
        """
        try:
            text = draft.trait().to_json()
        except TraitError as error:
            raise TraitError(f"{self.partial}: {error}") from error
        write_file(self.partial, text.encode())
        try:
            os.link(self.partial, self.out)  # fails where there is a file by now, as a rename would not
        except FileExistsError as error:
            raise self._exists() from error
        except OSError:  # a file system without links
            os.replace(self.partial, self.out)
        self.partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write it."""
        if self._lock.is_locked:
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def _exists(self) -> ConfigError:
        return ConfigError(f"expected a new file, got {self.out}, which exists; choose another --out or remove it")
