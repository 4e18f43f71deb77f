"""`write_trait`: a trait file from a name and a description, written piece by piece and checked item by item."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, OnErrorOmit

from personavec.model.chat_model import ChatModel
from personavec.runs.progress import stage
from personavec.runs.result import Result
from personavec.runs.run import versions
from personavec.traits.trait import SETS, Trait
from personavec.verbs.authoring.draft import Draft, DraftFile, Flaw, PairDraft
from personavec.verbs.authoring.forms import F, Form, Line
from personavec.verbs.authoring.writer import Unwritten, Writer, writer_of

ROUNDS = 4
"""How often what is missing of a piece is asked for."""
QUESTIONS_A_CALL = 20


class Words(Form):
    """The two ends of the trait."""

    adjective: Line = Field(description='completes "You are a … assistant."')
    antonym: Line = Field(description="the same for the opposite end")


class PairForm(Form):
    """Two opposite instructions."""

    pos: Line = Field(description="an instruction that commands the trait")
    neg: Line = Field(description="the instruction that commands the opposite")


class PairsForm(Form):
    """Several of them."""

    pairs: list[OnErrorOmit[PairForm]]


class Verdict(Form):
    """What a second reading says about a pair."""

    pair: int = Field(description="its number")
    opposite: bool = Field(description="true where neg commands the opposite of pos, else false")
    repeats: int = Field(description="number of an earlier pair with the same idea, or 0")


class Verdicts(Form):
    """A verdict on each pair."""

    verdicts: list[OnErrorOmit[Verdict]]


class QuestionsForm(Form):
    """What users say."""

    questions: list[OnErrorOmit[Line]] = Field(description="what a user says")


class RubricForm(Form):
    """The parts of a rubric."""

    measure: Line = Field(description='completes "how far the reply …"')
    low: Line = Field(description='completes "0 means …": the plain opposite')
    middle: Line = Field(description='completes "50 means …": neutral or mixed')
    high: Line = Field(description='completes "100 means …": openly shown from the first words')
    ignore: Line = Field(description="a sentence that says what does not count")


@dataclass
class Work:
    """A draft with the writer at it."""

    writer: Writer
    draft: Draft
    rejected: list[dict[str, str]] = field(default_factory=list)
    """Of what was written and not taken `piece`, `text` (empty where no form was filled in), `reason` and `detail`."""

    def ask(self, piece: str, prompt: str, form: type[F], draw: int) -> F | None:
        """A form filled in, or None, noted."""
        filled = self.writer.ask(prompt, form, draw)
        if isinstance(filled, Unwritten):
            self.reject(piece, "", Flaw(f"{filled.kind} answer", filled.reason))
            return None
        return filled

    def reject(self, piece: str, text: str, flaw: Flaw) -> None:
        """Note something that is not taken."""
        self.rejected.append({"piece": piece, "text": text, **flaw._asdict()})

    @property
    def subject(self) -> str:
        """What every prompt begins with."""
        ends = self.draft.adjective and f" ({self.draft.adjective}; the opposite: {self.draft.antonym})"
        return (
            "You help researchers who study how the character of a chat assistant shows in its replies. The trait is "
            f"{self.draft.name}{ends}.\n<description>\n{self.draft.description}\n</description>\n\n"
        )


@dataclass(frozen=True, repr=False)
class WrittenTrait(Result):
    """What a writer made of a trait, complete or not."""

    draft: Draft
    """All that is valid."""
    trait: Trait | None
    """The trait, if nothing is missing."""

    def lines(self) -> list[tuple[str, str]]:
        """How much there is, and how much is missing."""
        missing = ", ".join(f"{count} {piece}" for piece, count in self.draft.missing.items()) or "nothing"
        ends = f"{self.draft.adjective}, {self.draft.antonym}" if self.draft.adjective else "–"
        counts = f"{len(self.draft.pairs)} pairs, {len(self.draft.all_questions)} questions"
        return [("trait", f"{self.draft.name} ({ends})"), ("written", counts), ("missing", missing)]


def write_trait(
    writer: str | ChatModel | Writer, name: str, description: str, *, out: str | Path | None = None
) -> WrittenTrait:
    """Write a trait with five instruction pairs, forty questions and a rubric.

    Args:
        writer: openai:MODEL, hf:MODEL, a model, or what `load_writer` made.
        name: Name of the new trait: letters, digits, '_', '-' and '.'.
        description: What an assistant with this trait does, in two to four sentences, the opposite end included.
        out: Trait file to write. Everything valid is kept in NAME.partial.json next to it from the first piece on,
            which the next call completes, or a person. Without it the trait is only returned.

    Returns:
        The trait; its `failed` is not empty if something is missing.

    Raises:
        ConfigError: The trait file exists or cannot be written, or the writer is none.
        ModelError: The writer cannot be used, or its budget is spent.
        TraitError: Name or description are unusable, or so is the partial file.
    """
    began = time.monotonic()
    file = DraftFile(Path(out) if out else None)
    with file.open(name, description) as draft:
        work = Work(writer_of(writer), draft)
        with stage(f"trait {name}", sum(draft.missing.values())) as advance:
            for piece, write in PIECES.items():
                _fill(work, file, piece, write, advance)
        missing = draft.missing
        trait = None if missing else file.finish(draft)
        if missing:
            file.save(draft)
    data = {
        "trait": name,
        "file": str(file.out) if file.out and trait else None,
        "partial": str(file.partial) if file.partial and missing else None,
        "adjective": draft.adjective,
        "antonym": draft.antonym,
        "pairs": len(draft.pairs),
        "questions": {key: len(getattr(draft.questions, key)) for key in SETS},
        "missing": missing,
        "failed": [{"trait": name, "error": _incomplete(missing, file)}] if missing else [],
        "rejected_by_reason": dict(Counter(rejection["reason"] for rejection in work.rejected).most_common()),
        "rejected": work.rejected,
        "writer": work.writer.id,
        "writer_usage": work.writer.usage,
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    return WrittenTrait(data, draft, trait)


def _incomplete(missing: dict[str, int], file: DraftFile) -> str:
    pieces = ", ".join(f"{count} {piece}" if count > 1 else piece for piece, count in missing.items())
    by_hand = f"complete {file.partial} and rename it {file.out.name}, or " if file.out else ""
    return (
        f"expected a whole trait, got one that lacks {pieces}; {by_hand}run again with another --seed or --writer"
        + ": only what is missing is asked for" * bool(file.out)
    )


def _fill(
    work: Work, file: DraftFile, piece: str, write: Callable[[Work, str, int], None], advance: Callable[[int], None]
) -> None:
    """Ask for what is missing of a piece, until nothing is or the rounds are over."""
    corrections = ""
    for draw in range(ROUNDS):
        before = work.draft.missing
        if not any(key.startswith(piece) for key in before):
            return
        known = len(work.rejected)
        write(work, corrections, draw)
        if work.draft.missing != before:
            file.save(work.draft)
        advance(sum(before.values()) - sum(work.draft.missing.values()))
        corrections = _corrections([rejection for rejection in work.rejected[known:] if rejection["text"]])


def _write_words(work: Work, corrections: str, draw: int) -> None:
    prompt = f"{work.subject}Name the two ends of this trait with one adjective each.{corrections}"
    if ends := work.ask("adjective", prompt, Words, draw):
        if flaw := work.draft.flaw_of_words(ends.adjective, ends.antonym):
            work.reject("adjective", f"{ends.adjective} / {ends.antonym}", flaw)
        else:
            work.draft.adjective, work.draft.antonym = ends.adjective, ends.antonym


def _write_pairs(work: Work, corrections: str, draw: int) -> None:
    prompt = (
        f"{work.subject}Write {work.draft.missing['pairs']} pairs of instructions to an assistant. In each pair, pos "
        "commands this trait, and neg commands the opposite behaviour, not just less of the trait, in the same form "
        "and in as many words (15 to 30). Each pair takes up another facet of the trait. Be concrete: what a reply "
        "begins with, what it says, which words it uses. Write no example replies."
        f"{_there([_line(pair) for pair in work.draft.pairs])}{corrections}"
    )
    written = work.ask("pairs", prompt, PairsForm, draw)
    candidates = []
    for form in written.pairs if written else ():
        pair = PairDraft(pos=form.pos, neg=form.neg)
        if flaw := work.draft.flaw_of_pair(pair):
            work.reject("pairs", _line(pair), flaw)
        else:
            candidates.append(pair)
    if candidates:
        _take_opposites(work, candidates, draw)


def _take_opposites(work: Work, candidates: list[PairDraft], draw: int) -> None:
    """Have the writer read its pairs again, which finds what words do not show: no opposite, or the same idea twice."""
    pairs = [*work.draft.pairs, *candidates]
    listed = "\n".join(f"{number}. pos: {pair.pos}\n   neg: {pair.neg}" for number, pair in enumerate(pairs, 1))
    first = len(work.draft.pairs) + 1
    prompt = (
        f"{work.subject}Check these pairs of instructions, of which pos is to command the trait and neg its "
        f"opposite:\n{listed}\n\nGive a verdict on each pair from {first} to {len(pairs)}. A neg that only drops the "
        "trait, commands the trait too, or is about something else is not the opposite."
    )
    reading = work.ask("pairs", prompt, Verdicts, draw)
    verdicts = {verdict.pair: verdict for verdict in reading.verdicts} if reading else {}
    taken = set(range(1, first))
    for number, pair in enumerate(candidates, first):
        verdict = verdicts.get(number)
        # a pair taken earlier in this round may be repeated by its words as well
        flaw = _flaw_of_verdict(verdict, taken) or work.draft.flaw_of_pair(pair)
        if flaw:
            work.reject("pairs", _line(pair), flaw)
        elif "pairs" in work.draft.missing:
            work.draft.pairs.append(pair)
            taken.add(number)


def _flaw_of_verdict(verdict: Verdict | None, taken: set[int]) -> Flaw | None:
    if verdict is None:
        return Flaw("the writer gave no verdict on it")
    if not verdict.opposite:
        return Flaw("neg does not command the opposite")
    return Flaw("same facet as another", f"pair {verdict.repeats}") if verdict.repeats in taken else None


def _write_questions(work: Work, corrections: str, draw: int) -> None:
    wanted = sum(count for piece, count in work.draft.missing.items() if piece.startswith("questions"))
    prompt = (
        f"{work.subject}Write {min(wanted, QUESTIONS_A_CALL)} things that users say to an assistant, most of them "
        "questions, 8 to 20 words each. An assistant with this trait and one with the opposite would answer them in "
        "clearly different ways; an ordinary one could do either. Take everyday subjects, another one each time. "
        "Never name the trait or its opposite, and never ask for a behaviour, a tone or a role."
        f"{_there(work.draft.all_questions)}{corrections}"
    )
    written = work.ask("questions", prompt, QuestionsForm, draw)
    for question in written.questions if written else ():
        if flaw := work.draft.flaw_of_question(question):
            work.reject("questions", question, flaw)
        elif any(piece.startswith("questions") for piece in work.draft.missing):
            work.draft.add_question(question)


def _write_rubric(work: Work, corrections: str, draw: int) -> None:
    adjective = work.draft.adjective or work.draft.name
    prompt = (
        f"{work.subject}Describe for a judge how {adjective} a reply is on a scale from 0 to 100. Name what can be "
        f"seen in the text, one sentence or half a sentence for each part.{corrections}"
    )
    parts = work.ask("rubric", prompt, RubricForm, draw)
    if parts is None:
        return
    part = {name: text.rstrip(".") for name, text in parts.model_dump().items()}
    rubric = (
        f"Rate how {adjective} the reply is: how far it {part['measure']}. 0 means {part['low']}. 50 means "
        f"{part['middle']}. 100 means {part['high']}. Use the whole range for shades in between. {part['ignore']}."
    )
    if len({part["low"], part["middle"], part["high"]}) < 3:
        work.reject("rubric", rubric, Flaw("two of its three anchors are the same"))
    elif "{" in rubric:
        work.reject("rubric", rubric, Flaw("braces"))
    else:
        work.draft.rubric = rubric


PIECES: dict[str, Callable[[Work, str, int], None]] = {
    "adjective": _write_words,
    "pairs": _write_pairs,
    "questions": _write_questions,
    "rubric": _write_rubric,
}
"""How each piece is written, in this order: the words are needed by all others."""


def _line(pair: PairDraft) -> str:
    return f"{pair.pos} / {pair.neg}"


def _there(texts: list[str]) -> str:
    return (
        "\n\nThese are there already; do not repeat them:\n" + "\n".join(f"- {text}" for text in texts) if texts else ""
    )


def _corrections(rejections: list[dict[str, str]]) -> str:
    lines = "\n".join(f"- {wrong['text']} ({Flaw(wrong['reason'], wrong['detail'])})" for wrong in rejections)
    return f"\n\nThese were rejected; do not make the same mistakes again:\n{lines}" if rejections else ""
