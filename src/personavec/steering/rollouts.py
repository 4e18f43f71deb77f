"""How a model is asked: which replies to write, and writing them, resumably where they are kept."""

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from itertools import product
from typing import Any, Literal, NotRequired, TypedDict, cast

from personavec.errors import ConfigError
from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling, Writing
from personavec.model.template import Message
from personavec.runs.progress import stage
from personavec.runs.rules import Seed, check
from personavec.runs.run import Row, Run
from personavec.steering.generate import Reply, Request, batches, elsewhere, generate
from personavec.steering.steer import Steering
from personavec.traits.trait import Trait

Reasoning = Literal["out", "in"]


class PlannedRow(TypedDict):
    """What is known of a reply before it is written: what was asked, of which arm, under what."""

    id: str
    """Unique in its table."""
    question_id: int
    question: str
    sample: int
    side: NotRequired[Literal["pos", "neg"]]
    """Of the instruction, for contrastive rollouts; `pair` is its number."""
    pair: NotRequired[int]
    arm: NotRequired[str]
    """What was done to the model; arms are compared with each other."""
    writer: NotRequired[str]
    """Persona whose instruction it was written under."""
    trait_name: NotRequired[str]
    asked_for: NotRequired[str]
    """Which of a trait's sets of questions it answers."""
    layer: NotRequired[int]
    coef: NotRequired[float]
    dose: NotRequired[float]
    kind: NotRequired[str]
    """Of the condition, in the monitoring experiment; `level` is its place."""
    level: NotRequired[int | str]


class ReplyRow(PlannedRow):
    """A reply as every table holds it, from rollouts to scores, vectors and reports."""

    response: str
    """Without reasoning, unless that counts."""
    finish: Literal["stop", "length"]
    prompt_ids: list[int]
    response_ids: list[int]
    reasoning_tokens: int
    """How many of the first response tokens do not count."""


@dataclass(frozen=True)
class Plan:
    """One reply to write: what is known of it beforehand, and the request."""

    row: PlannedRow
    request: Request


class ReplyOptions(TypedDict, total=False):
    """How replies are written: fields of an `Interview`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    system: str
    reasoning: Reasoning
    batch_tokens: int


@dataclass(frozen=True)
class Interview(Writing):
    """A model and how it is asked: what all replies of a study have in common."""

    model: ChatModel
    _: KW_ONLY
    seed: Seed = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        check(type(self), vars(self))

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p)

    @property
    def options(self) -> dict[str, Any]:
        """What a resumed run must have the same."""
        names = {field.name for field in fields(self)} - {"model", "batch_tokens"}
        return {name: getattr(self, name) for name in sorted(names)}

    def contrastive(self, trait: Trait, rollouts: int) -> list[Plan]:
        """Replies to the extraction questions under every positive and negative instruction.

        Source: Persona Vectors (arXiv 2507.21509) section 2.2.
        """
        plans = []
        pairs, questions = product(SIDES, range(len(trait.pairs))), enumerate(trait.extract)
        for (side, pair), (question_id, question), sample in product(pairs, questions, range(rollouts)):
            system = trait.system_prompt(pair, side)
            row: PlannedRow = {
                "id": f"{side}-{pair}-{question_id}-{sample}",
                "side": side,
                "pair": pair,
                "question_id": question_id,
                "question": question,
                "sample": sample,
            }
            prompt = self.model.render([{"role": "system", "content": system}, {"role": "user", "content": question}])
            seed = _seed(self.seed, trait.name, side, pair, question, sample)
            plans.append(Plan(row, Request(prompt, seed=seed)))
        return plans

    def answers(
        self,
        questions: Sequence[str],
        rollouts: int,
        *,
        draw: str,
        extra: dict[str, Any],
        systems: Sequence[str] = (),
        steering: Sequence[Sequence[Steering]] = ((),),
        before: Sequence[Message] = (),
    ) -> list[Plan]:
        """Replies to questions without a trait instruction, steered or not.

        Args:
            questions: What is asked.
            rollouts: Replies per question.
            draw: Replies of the same draw, question and sample use the same random numbers, whatever the steering.
            extra: Metadata of these rows; its values make their ids unique.
            systems: System prompt of each reply in turn, over and over: a policy of `ChatModel.render`, or a text;
                default the interview's.
            steering: What to do to each reply in turn, over and over: one entry steers all alike.
            before: Turns that come before every question.
        """
        systems = systems or (self.system,)
        prefix = "-".join(str(value) for value in extra.values())
        plans = []
        for place, ((question_id, question), sample) in enumerate(product(enumerate(questions), range(rollouts))):
            row = {"id": f"{prefix}-{question_id}-{sample}", **extra}
            row |= {"question_id": question_id, "question": question, "sample": sample}
            turns = [*before, {"role": "user", "content": question}]
            prompt = self.model.render(turns, systems[place % len(systems)])
            applied = tuple(steering[place % len(steering)])
            request = Request(prompt, applied, _seed(self.seed, draw, question, sample))
            plans.append(Plan(cast(PlannedRow, row), request))
        return plans

    def write(self, plans: Sequence[Plan], title: str, *, run: Run | None = None, name: str = "") -> list[ReplyRow]:
        """Write the planned replies; with a run into its NAME.jsonl, where those that are there are not written again.

        In this process a batch is the unit of resumption: its make-up depends on the plan alone, so a resumed run
        writes the same. Elsewhere it is a reply; a table that is whole is put into the order of the plan.

        Raises:
            ConfigError: A prompt leaves no room for a reply, or is not the one that the run has asked before.
        """
        longest = max(len(plan.request.prompt) for plan in plans)
        if longest + self.max_new_tokens > self.model.context:
            raise ConfigError(
                f"expected prompt and reply to fit into {self.model.context} tokens, got {longest} and "
                f"--max-new-tokens {self.max_new_tokens}; lower it"
            )
        file = f"{name}.jsonl"
        rows: dict[str, ReplyRow] = {row["id"]: cast(ReplyRow, row) for row in run.rows(file, _wrong)} if run else {}
        if run:
            _check_prompts(str(run.path(file)), plans, rows)
        missing = {place for place, plan in enumerate(plans) if plan.row["id"] not in rows}
        with stage(title, len(plans)) as advance:
            advance(len(plans) - len(missing))
            for group in self._replies([plan.request for plan in plans], missing):
                fresh = [self._row(plans[place], reply) for place, reply in group]
                if run:
                    run.append(file, fresh)
                rows |= {row["id"]: row for row in fresh}
                advance(len(fresh))
        if run and self.model.engine is not None:  # which came in any order
            ordered = {plan.row["id"]: rows[plan.row["id"]] for plan in plans} | rows
            if [*ordered] != [*rows]:
                run.write_rows(file, [*ordered.values()])
        return [rows[plan.row["id"]] for plan in plans]

    def _replies(self, requests: Sequence[Request], missing: Collection[int]) -> Iterator[list[tuple[int, Reply]]]:
        """The replies that are missing, as they come, with the places of their requests."""
        if self.model.engine is not None:
            places = sorted(missing)
            for group in elsewhere(self.model.engine, [requests[place] for place in places], self.sampling):
                yield [(places[number], reply) for number, reply in group]
            return
        for batch in batches(requests, self.max_new_tokens, self.batch_tokens):
            if any(place in missing for place in batch):
                replies = generate(self.model, [requests[place] for place in batch], self.sampling)
                yield [pair for pair in zip(batch, replies, strict=True) if pair[0] in missing]

    def _row(self, plan: Plan, reply: Reply) -> ReplyRow:
        prompt = plan.request.prompt
        skipped = 0 if self.reasoning == "in" else self.model.reasoning_tokens(prompt, reply.ids)
        written = {
            "response": self.model.decode(reply.ids[skipped:]).strip(),
            "finish": reply.finish,
            "prompt_ids": list(prompt),
            "response_ids": list(reply.ids),
            "reasoning_tokens": skipped,
        }
        return cast(ReplyRow, {**plan.row, **written})


SIDES: tuple[Literal["pos", "neg"], ...] = ("pos", "neg")


def _seed(seed: int, *parts: str | int) -> tuple[int, ...]:
    """Random state of one reply: depends on what it answers, not on which batch or call it is part of."""
    return (seed, *(part if isinstance(part, int) else zlib.crc32(part.encode()) for part in parts))


def _wrong(row: Row) -> str:
    """The first field of a reply in a table that is not what a reply has there, with its value; empty if none."""

    def ids(value: Any) -> bool:
        return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)

    fine = {name: isinstance(row.get(name), str) for name in ("id", "question", "response")}
    fine |= {name: type(row.get(name)) is int for name in ("question_id", "sample", "reasoning_tokens")}
    fine |= {name: ids(row.get(name)) for name in ("prompt_ids", "response_ids")}
    fine["finish"] = row.get("finish") in ("stop", "length")
    if all(fine.values()):
        fine["reasoning_tokens"] = 0 <= row["reasoning_tokens"] <= len(row["response_ids"])
    return next((f"{name} {repr(row.get(name))[:60]}" for name, good in fine.items() if not good), "")


def _check_prompts(place: str, plans: Sequence[Plan], rows: dict[str, ReplyRow]) -> None:
    """A chat template may write today's date into the prompt: a run is not to mix two."""
    for plan in plans:
        there = rows.get(plan.row["id"])
        if there is not None and there["prompt_ids"] != list(plan.request.prompt):
            raise ConfigError(
                f"expected the prompt of {plan.row['id']} in {place} to be the one this run asks, got another "
                "(some chat templates contain the date); choose another --out"
            )
