"""Which replies to write for a trait, and writing them resumably."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from personavec.errors import ConfigError
from personavec.generate import Reply, Request, batches, generate
from personavec.model import ChatModel, Message
from personavec.options import Sampling, Writing
from personavec.progress import stage
from personavec.run import Run
from personavec.steer import Steering
from personavec.trait import Trait

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """One reply to write: what is known of it beforehand, and the request."""

    row: Row
    """Metadata with a unique `id`; ends up in the reply's JSONL row."""
    request: Request


def _seed(seed: int, *parts: str | int) -> tuple[int, ...]:
    """Random state of one reply: depends on what it answers, not on which batch or call it is part of."""
    return (seed, *(part if isinstance(part, int) else zlib.crc32(part.encode()) for part in parts))


def contrastive(model: ChatModel, trait: Trait, rollouts: int, seed: int) -> list[Plan]:
    """Replies to the extraction questions under every positive and negative instruction.

    Source: Persona Vectors (arXiv 2507.21509) section 2.2.
    """
    return [
        Plan(
            {
                "id": f"{side}-{pair}-{question_id}-{sample}",
                "side": side,
                "pair": pair,
                "question_id": question_id,
                "question": question,
                "sample": sample,
            },
            Request(
                model.render(
                    [
                        {"role": "system", "content": trait.system_prompt(pair, side)},
                        {"role": "user", "content": question},
                    ]
                ),
                seed=_seed(seed, trait.name, side, pair, question, sample),
            ),
        )
        for side in ("pos", "neg")
        for pair in range(len(trait.pairs))
        for question_id, question in enumerate(trait.extract)
        for sample in range(rollouts)
    ]


def answers(
    model: ChatModel,
    questions: Sequence[str],
    rollouts: int,
    seed: int,
    *,
    systems: Sequence[str],
    draw: str,
    extra: Row,
    steering: Sequence[Sequence[Steering]] = ((),),
    before: Sequence[Message] = (),
) -> list[Plan]:
    """Replies to questions without a trait instruction, steered or not.

    Args:
        model: Who answers.
        questions: What is asked.
        rollouts: Replies per question.
        seed: Of the run.
        systems: System prompt of each reply in turn, over and over: a policy of `ChatModel.render`, or a text.
        draw: Replies of the same draw, question and sample use the same random numbers, whatever the steering.
        extra: Metadata of these rows; its values make their ids unique.
        steering: What to do to each reply in turn, over and over: one entry steers all alike.
        before: Turns that come before every question.
    """
    prefix = "-".join(str(value) for value in extra.values())
    return [
        Plan(
            {"id": f"{prefix}-{question_id}-{sample}", **extra}
            | {"question_id": question_id, "question": question, "sample": sample},
            Request(
                model.render([*before, {"role": "user", "content": question}], systems[place % len(systems)]),
                tuple(steering[place % len(steering)]),
                _seed(seed, draw, question, sample),
            ),
        )
        for question_id, question in enumerate(questions)
        for sample in range(rollouts)
        for place in [question_id * rollouts + sample]
    ]


def write(model: ChatModel, run: Run, name: str, plans: Sequence[Plan], config: Writing, title: str) -> list[Row]:
    """Write the planned replies to a JSONL file of the run, skipping those that are there; returns all rows.

    A batch is the unit of resumption: its make-up depends on the plan alone, so a resumed run writes the same.
    """
    _check_context(model, plans, config)
    rows = {row["id"]: row for row in run.rows(name)}
    _check_prompts(run, name, plans, rows)
    requests = [plan.request for plan in plans]
    with stage(title, len(plans)) as advance:
        for batch in batches(requests, config.max_new_tokens, config.batch_tokens):
            if any(plans[index].row["id"] not in rows for index in batch):
                replies = generate(model, [requests[index] for index in batch], config)
                fresh = [
                    plans[index].row | _written(model, requests[index].prompt, reply, config.reasoning == "in")
                    for index, reply in zip(batch, replies, strict=True)
                    if plans[index].row["id"] not in rows
                ]
                run.append(name, fresh)
                rows |= {row["id"]: row for row in fresh}
            advance(len(batch))
    return [rows[plan.row["id"]] for plan in plans]


def _written(model: ChatModel, prompt: tuple[int, ...], reply: Reply, keep_reasoning: bool) -> Row:
    skipped = 0 if keep_reasoning else model.reasoning_tokens(prompt, reply.ids)
    return {
        "response": model.decode(reply.ids[skipped:]).strip(),
        "finish": reply.finish,
        "prompt_ids": list(prompt),
        "response_ids": list(reply.ids),
        "reasoning_tokens": skipped,
    }


def _check_prompts(run: Run, name: str, plans: Sequence[Plan], rows: dict[str, Row]) -> None:
    """A chat template may write today's date into the prompt: a run is not to mix two."""
    for plan in plans:
        found = rows.get(plan.row["id"], {}).get("prompt_ids", list(plan.request.prompt))
        if found != list(plan.request.prompt):
            raise ConfigError(
                f"expected the prompt of {plan.row['id']} in {run.path(name)} to be the one this run asks, got another "
                "(some chat templates contain the date); choose another --out"
            )


def _check_context(model: ChatModel, plans: Sequence[Plan], sampling: Sampling) -> None:
    longest = max(len(plan.request.prompt) for plan in plans)
    if longest + sampling.max_new_tokens > model.context:
        raise ConfigError(
            f"expected prompt and reply to fit into {model.context} tokens, got {longest} and --max-new-tokens "
            f"{sampling.max_new_tokens}; lower it"
        )
