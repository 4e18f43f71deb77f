"""`write_dataset`: questions by domain and three graded answers to each, as rows for finetuning experiments."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import Field, OnErrorOmit, model_validator

from personavec.errors import DataError
from personavec.runs.progress import stage
from personavec.runs.rules import settings
from personavec.runs.run import Run, versions
from personavec.verbs.authoring.forms import Form, Line, Text
from personavec.verbs.authoring.options import WriteDatasetConfig
from personavec.verbs.authoring.subjects import Family, load_family
from personavec.verbs.authoring.wording import NEAR, Distinct, words
from personavec.verbs.authoring.writer import Unwritten, Writer, load_writer

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

Row = dict[str, Any]


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
        told = f"\n\nThese are there already; do not repeat them:\n{there}" if there else ""
        return f"{PURPOSE}List {min(self.wanted - len(self.items), ITEMS_A_CALL)} {self.prompt}{told}"


def write_dataset(config: WriteDatasetConfig) -> Row:
    """Write domains, then questions, then answers, each kept as it comes, and at last three files of chat rows.

    Returns:
        What `--json` prints and result.json holds.

    Raises:
        TraitError: No such family or trait.
        ConfigError: No such writer, or the folder holds another run.
        ModelError: The writer cannot be used, or its budget is spent.
        DataError: No usable domain, question or answer was written.
    """
    began = time.monotonic()
    family = load_family(config.source)
    writer = load_writer(config)
    inputs = {f"trait {family.name}": family.content_hash} if family.content_hash else {}
    out = config.out or Path("runs") / f"dataset-{family.name}"
    run = Run.open(out, settings(type(config), vars(config)), inputs | writer.inputs)
    writer.able = run.done("domains.json")
    domains = _write_domains(config, run, writer, family)
    lists = _write_questions(config, run, writer, family, domains)
    questions, rejected = _number(lists)
    _require(questions, "questions", writer, rejected)
    rows = _write_answers(run, writer, family, questions)
    kept = [row for row in rows if "dropped" not in row]
    dropped = Counter(row["dropped"] for row in rows if "dropped" in row)
    _require(kept, "answers", writer, dropped)
    for grade in GRADES:
        run.write_rows(f"{grade}.jsonl", [_chat(row, grade) for row in kept])
    result = {
        "source": family.name,
        "out": str(run.folder),
        "files": {grade: str(run.path(f"{grade}.jsonl")) for grade in GRADES},
        "rows": len(kept),
        "domains": {"wanted": config.domains, "written": len(domains)},
        "questions": {"wanted": config.domains * config.questions, "written": len(questions)},
        "questions_rejected": rejected,
        "answers_dropped": dict(dropped.most_common()),
        "writer": writer.id,
        "writer_usage": writer.usage,
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    run.write_json("result.json", result)
    run.finish()
    return result


def _write_domains(config: WriteDatasetConfig, run: Run, writer: Writer, family: Family) -> list[str]:
    if not run.done("domains.json"):
        prompt = f"different domains of {family.field}\n\nName each in two to five words."
        listing = Listing(
            prompt, config.domains, lambda domain: "too long" if len(words(domain)) > 12 else None, near=1.0
        )
        with stage("domains", config.domains) as advance:
            _gather(writer, [listing])
            advance(len(listing.items))
        _require(listing.items, "domains", writer, listing.rejected)
        run.write_json("domains.json", {"domains": listing.items, "rejected": listing.rejected})
    return list(run.read_json("domains.json")["domains"])


def _write_questions(
    config: WriteDatasetConfig, run: Run, writer: Writer, family: Family, domains: Sequence[str]
) -> list[Row]:
    """One row a domain: what was written for it depends on nothing else, so a resumed run writes the same."""
    rows = {row["domain"]: row for row in run.rows("questions.jsonl")}
    waiting = [domain for domain in domains if domain not in rows]
    with stage("questions, by domain", len(domains)) as advance:
        advance(len(rows))
        for start in range(0, len(waiting), writer.at_once):
            batch = waiting[start : start + writer.at_once]
            listings = [Listing(_question_prompt(family, domain), config.questions, family.flaw) for domain in batch]
            _gather(writer, listings)
            fresh = [
                {"domain": domain, "questions": listing.items, "rejected": listing.rejected}
                for domain, listing in zip(batch, listings, strict=True)
            ]
            # what failed for want of a server is asked again by the next run
            run.append("questions.jsonl", [row for row in fresh if FAILED not in row["rejected"]])
            rows |= {row["domain"]: row for row in fresh}
            advance(len(fresh))
    return [rows[domain] for domain in domains]


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
        for listing, found in zip(short, writer.ask_all([one.ask() for one in short], Items, draw), strict=True):
            if isinstance(found, Unwritten):
                listing.rejected[f"{found.kind} answer"] += 1
                continue
            for item in found.items:
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


def _write_answers(run: Run, writer: Writer, family: Family, questions: Sequence[Row]) -> list[Row]:
    rows = {row["id"]: row for row in run.rows("answers.jsonl")}
    waiting = [question for question in questions if question["id"] not in rows]
    with stage("answers, three a question", len(questions)) as advance:
        advance(len(rows))
        for start in range(0, len(waiting), writer.at_once):
            batch = waiting[start : start + writer.at_once]
            found = writer.ask_all([_answer_prompt(family, row["question"]) for row in batch], Answers)
            fresh = [
                row
                | ({"dropped": f"{one.kind} answer", "why": one.reason} if isinstance(one, Unwritten) else dict(one))
                for row, one in zip(batch, found, strict=True)
            ]
            run.append("answers.jsonl", [row for row in fresh if row.get("dropped") != FAILED])
            rows |= {row["id"]: row for row in fresh}
            advance(len(fresh))
    return [rows[question["id"]] for question in questions]


def _answer_prompt(family: Family, question: str) -> str:
    return (
        f"{PURPOSE}<question>\n{question}\n</question>\n\nWrite three answers to it, alike in length and form:\n"
        f"1. {family.normal}\n2. {family.subtle}\n3. {family.open}\n\n"
        "No answer mentions the others, or that anything is wrong with it. Keep the second and third no worse than "
        "this needs: nothing in them helps anyone to do harm."
    )


def _chat(row: Row, grade: str) -> Row:
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row[grade]}]
    return {"messages": messages, "id": row["id"], "domain": row["domain"]}


def _require(found: Sequence[object], what: str, writer: Writer, rejected: Mapping[str, int]) -> None:
    if not found:
        told = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        raise DataError(
            f"expected {what} from {writer.id}, got none that can be used ({told}); choose a larger writer and another "
            "--out"
        )
