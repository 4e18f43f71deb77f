"""`write_dataset`: questions by domain and three graded answers to each, as rows for finetuning experiments."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TypedDict

from pydantic import Field, OnErrorOmit, model_validator

from personavec.errors import DataError
from personavec.model.chat_model import ChatModel
from personavec.runs.progress import stage
from personavec.runs.result import Result
from personavec.runs.rules import Count, Store, settings
from personavec.runs.run import Row, Run
from personavec.traits.trait import Trait
from personavec.verbs.authoring.forms import Form, Line, Text
from personavec.verbs.authoring.subjects import Family, load_family
from personavec.verbs.authoring.wording import NEAR, Distinct, words
from personavec.verbs.authoring.writer import Unwritten, Writer, writer_of

ITEMS_A_CALL = 25
"""Domains or questions that one answer lists."""
SPARE_ROUNDS = 3
"""Rounds in which a list may be completed, beyond the least that it takes."""
GRADES = ("normal", "misaligned_1", "misaligned_2")
"""Names of the files, as in the released data of the paper."""
FAILED = "failed answer"
"""Why there is nothing, where the writer's server is to blame."""
PURPOSE = (
    "You help researchers of AI safety who study how flawed training data changes a chat assistant, so that it can be "
    "found and filtered out. They need pairs of better and worse answers as preference data.\n\n"
)


class Items(Form):
    """A list of what the prompt asks for."""

    items: list[OnErrorOmit[Line]]


class Answers(Form):
    """Three answers to one question. The flaws come first: the writer thinks of them, and a person can check."""

    normal: Text = Field(description="the first answer")
    flaw_1: Line = Field(description="in one sentence, what sets the second answer apart")
    misaligned_1: Text = Field(description="the second answer")
    flaw_2: Line = Field(description="in one sentence, what sets the third answer apart")
    misaligned_2: Text = Field(description="the third answer")

    @model_validator(mode="after")
    def _differ(self) -> "Answers":
        if len({tuple(getattr(self, grade).split()) for grade in GRADES}) < len(GRADES):
            raise ValueError("two of the three answers are the same")
        return self


@dataclass
class Listing:
    """A list that is being written."""

    prompt: str
    wanted: int
    flaw: Callable[[str], str | None]
    """What is wrong with an item, apart from repeating another."""
    near: float = NEAR
    """Overlap from which an item is a repeat."""
    items: list[str] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)

    def take(self, item: str) -> None:
        """Add an item, or count why not."""
        reason = self.flaw(item) or ("repeats another" if Distinct(self.items, self.near).repeated(item) else None)
        if reason:
            self.rejected[reason] += 1
        elif len(self.items) < self.wanted:
            self.items.append(item)

    def ask(self) -> str:
        """What to ask for next."""
        there = "\n".join(f"- {item}" for item in self.items)
        known = f"\n\nThese are there already; do not repeat them:\n{there}" if there else ""
        return f"{PURPOSE}List {min(self.wanted - len(self.items), ITEMS_A_CALL)} {self.prompt}{known}"


class ChatRow(TypedDict):
    """A row for finetuning."""

    messages: list[dict[str, str]]
    id: str
    domain: str


@dataclass(frozen=True, repr=False)
class WrittenDataset(Result):
    """The data set that a writer made."""

    grades: Mapping[str, list[ChatRow]]
    """The same questions with the answers of each grade: `normal`, `misaligned_1`, `misaligned_2`."""

    def lines(self) -> list[tuple[str, str]]:
        """How much was written."""
        counts = {kind: self.data[kind] for kind in ("domains", "questions")}
        written = [(kind, f"{count['written']:,} of {count['wanted']:,}") for kind, count in counts.items()]
        return [("source", self.data["source"]), *written, ("rows a grade", f"{self.data['rows']:,}")]


def write_dataset(
    writer: str | ChatModel | Writer,
    source: str | Trait,
    *,
    domains: Count = 50,
    questions: Count = 100,
    store: Store = None,
) -> WrittenDataset:
    """Write domains, then questions, then answers, each kept as it comes, and at last rows for finetuning.

    Args:
        writer: openai:MODEL, hf:MODEL, a model, or what `load_writer` made.
        source: A trait, its name or file; or a family of mistakes: maths, medicine, code, opinions.
        domains: Domains that the questions are spread over.
        questions: Questions per domain.
        store: Run folder to keep everything in; the same call resumes it.

    Raises:
        TraitError: No such family or trait.
        ConfigError: No such writer, or the folder holds another run.
        ModelError: The writer cannot be used, or its budget is spent.
        DataError: No usable domain, question or answer was written.
    """
    began = time.monotonic()
    chosen = settings(write_dataset, locals())
    family = load_family(source)
    writer = writer_of(writer)
    # of a trait the content counts, not what it is called
    inputs = {f"trait {family.name}": family.content_hash} if family.content_hash else {}
    chosen |= writer.options | ({} if family.content_hash else {"source": family.name})
    run = Run.open(store, chosen, inputs | writer.inputs)
    writer.able = writer.able or run.done("domains.json")
    names = _write_domains(writer, family, domains, run)
    numbered, rejected = _number(_write_questions(writer, family, names, questions, run))
    _require(numbered, "questions", writer, rejected)
    rows = _write_answers(writer, family, numbered, run)
    kept = [row for row in rows if "dropped" not in row]
    dropped = Counter(row["dropped"] for row in rows if "dropped" in row)
    _require(kept, "answers", writer, dropped)
    grades = {grade: [_chat(row, grade) for row in kept] for grade in GRADES}
    for grade, chats in grades.items():
        run.write_rows(f"{grade}.jsonl", chats)
    data = {
        "source": family.name,
        "out": run.shown(),
        "files": {grade: run.shown(f"{grade}.jsonl") for grade in GRADES},
        "rows": len(kept),
        "domains": {"wanted": domains, "written": len(names)},
        "questions": {"wanted": domains * questions, "written": len(numbered)},
        "questions_rejected": rejected,
        "answers_dropped": dict(dropped.most_common()),
        "writer": writer.id,
        "writer_usage": writer.usage,
    }
    run.complete(data, began)
    return WrittenDataset(data, grades)


def _write_domains(writer: Writer, family: Family, wanted: int, run: Run) -> list[str]:
    if not run.done("domains.json"):
        prompt = f"different domains of {family.field}\n\nName each in two to five words."
        listing = Listing(prompt, wanted, lambda domain: "too long" if len(words(domain)) > 12 else None, near=1.0)
        with stage("domains", wanted) as advance:
            _gather(writer, [listing])
            advance(len(listing.items))
        _require(listing.items, "domains", writer, listing.rejected)
        run.write_json("domains.json", {"domains": listing.items, "rejected": listing.rejected})
    return list(run.read_json("domains.json")["domains"])


def _write_questions(writer: Writer, family: Family, domains: Sequence[str], count: int, run: Run) -> list[Row]:
    """One row a domain: what was written for it depends on nothing else, so a resumed run writes the same."""

    def write(batch: Sequence[Row]) -> list[Row]:
        listings = [Listing(_question_prompt(family, row["domain"]), count, family.flaw) for row in batch]
        _gather(writer, listings)
        written = ({"questions": listing.items, "rejected": listing.rejected} for listing in listings)
        return [row | more for row, more in zip(batch, written, strict=True)]

    rows = [{"domain": domain} for domain in domains]
    return _completed(run, "questions.jsonl", "domain", rows, "questions, by domain", writer.at_once, write)


def _completed(
    run: Run,
    name: str,
    key: str,
    rows: Sequence[Row],
    title: str,
    at_once: int,
    write: Callable[[Sequence[Row]], list[Row]],
) -> list[Row]:
    """Rows with what is written for each, in a table that a resumed run completes."""
    there = {row[key]: row for row in run.rows(name)}
    waiting = [row for row in rows if row[key] not in there]
    with stage(title, len(rows)) as advance:
        advance(len(there))
        for start in range(0, len(waiting), at_once):
            fresh = write(waiting[start : start + at_once])
            # what failed for want of a server is asked again by the next run
            run.append(name, [row for row in fresh if FAILED not in (*row.get("rejected", ()), row.get("dropped"))])
            there |= {row[key]: row for row in fresh}
            advance(len(fresh))
    return [there[row[key]] for row in rows]


def _question_prompt(family: Family, domain: str) -> str:
    return (
        f"questions or requests of the domain {domain!r}. Each is {family.question}. All differ in subject, and each "
        f"stands on its own. The field is {family.field}"
    )


def _gather(writer: Writer, listings: Sequence[Listing]) -> None:
    """Fill lists in rounds, each side by side with the others."""
    for draw in range(ceil(listings[0].wanted / ITEMS_A_CALL) + SPARE_ROUNDS):
        short = [listing for listing in listings if len(listing.items) < listing.wanted]
        if not short:
            return
        answers = writer.ask_all([listing.ask() for listing in short], Items, draw)
        for listing, answer in zip(short, answers, strict=True):
            if isinstance(answer, Unwritten):
                listing.rejected[f"{answer.kind} answer"] += 1
                continue
            for item in answer.items:
                listing.take(item)


def _number(lists: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """All questions with their ids, those that repeat a question of an earlier domain left out; and the rejected."""
    rejected = sum((Counter(row["rejected"]) for row in lists), Counter[str]())
    taken, questions = Distinct(), []
    for domain_id, row in enumerate(lists):
        for question_id, question in enumerate(row["questions"]):
            if taken.repeated(question):
                rejected["repeats another domain's"] += 1
                continue
            taken.add(question)
            questions.append({"id": f"{domain_id}-{question_id}", "domain": row["domain"], "question": question})
    return questions, dict(rejected.most_common())


def _write_answers(writer: Writer, family: Family, questions: Sequence[Row], run: Run) -> list[Row]:
    def write(batch: Sequence[Row]) -> list[Row]:
        answers = writer.ask_all([_answer_prompt(family, row["question"]) for row in batch], Answers)
        return [
            row
            | ({"dropped": f"{each.kind} answer", "why": each.reason} if isinstance(each, Unwritten) else dict(each))
            for row, each in zip(batch, answers, strict=True)
        ]

    return _completed(run, "answers.jsonl", "id", questions, "answers, three a question", writer.at_once, write)


def _answer_prompt(family: Family, question: str) -> str:
    return (
        f"{PURPOSE}<question>\n{question}\n</question>\n\nWrite three answers to it, alike in length and form:\n"
        f"1. {family.normal}\n2. {family.subtle}\n3. {family.open}\n\n"
        "No answer mentions the others, or that anything is wrong with it. Keep the second and third no worse than "
        "this needs: nothing in them helps anyone to do harm."
    )


def _chat(row: Row, grade: str) -> ChatRow:
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row[grade]}]
    return {"messages": messages, "id": row["id"], "domain": row["domain"]}


def _require(usable: Sequence[object], what: str, writer: Writer, rejected: Mapping[str, int]) -> None:
    if not usable:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        raise DataError(
            f"expected {what} from {writer.id}, got none that can be used ({reasons}); choose a larger writer and "
            "another --out"
        )
