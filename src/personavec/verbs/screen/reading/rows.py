"""A row of a data set as token ids, or with the reason why it cannot be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from personavec.data.dataset import Bad
from personavec.data.sample import Sample
from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import response_of
from personavec.model.machine.limits import Limit
from personavec.model.template import POLICIES
from personavec.runs.run import Row
from personavec.steering.projection import Directions
from personavec.steering.rollouts import Reasoning

Cost = Literal["raw", "proxy", "gradient", "lift", "sampled", "full"]
OnError = Literal["stop", "skip"]
WITH_BASE = ("sampled", "full")
"""Costs at which base replies are written, and so must fit into the context."""
NO_BASE_REPLY = "expected words in the base reply"
"""How the errors begin of rows that cannot be faulted: their base reply is empty, or cut while still reasoning."""


@dataclass(frozen=True)
class RowReader:
    """How rows are read: by which model, along what, and what counts as a reply."""

    model: ChatModel
    directions: Directions
    cost: Cost = "proxy"
    on_error: OnError = "stop"
    max_new_tokens: int = 64
    """Of base replies, for which the context must have room."""
    read_tokens: int | None = None
    """In one forward pass; None for what the model's device bears."""
    reasoning: Reasoning = "out"
    system: str = "template"
    instructions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """System prompts that ask for each direction's trait, where the cost is lift."""

    @property
    def answered(self) -> bool:
        """Whether base replies are written to rows."""
        return self.cost in WITH_BASE

    @property
    def limit(self) -> Limit | None:
        """Tokens of a pass; None if the model runs elsewhere, where nobody here plans passes."""
        if self.model.engine is not None:
            return None
        return Limit(self.read_tokens) if self.read_tokens else self.model.limits.screened

    def reply_start(self, prompt: Sequence[int], reply: Sequence[int]) -> int:
        """How many of the first tokens of a reply do not count."""
        return 0 if self.reasoning == "in" else self.model.reasoning_tokens(prompt, reply)


def encode(reader: RowReader, sample: Sample | Bad) -> Row:
    """A row as token ids, or with the reason why it cannot be read."""
    model = reader.model
    conversation = sample.row if sample.conversation is None else sample.conversation
    row: Row = {"row": sample.row, "conversation": conversation, "where": sample.where, "error": ""}
    if isinstance(sample, Bad):
        return row | {"error": sample.reason}
    row |= {"id": sample.id, "source": sample.source, "kind": prompt_kind(sample.messages[-1]["content"])}
    row |= {"messages": sample.messages, "more_turns": sample.more_turns}
    own = "" if reader.system in POLICIES else reader.system
    try:
        prompt, ids = response_of(model, sample, reader.system)
        asked = model.render(sample.messages, reader.system, sample.tools) if reader.answered else ()
        instructed = {
            name: [response_of(model, sample.instructed(text, own), reader.system)[0] for text in texts]
            for name, texts in reader.instructions.items()
        }
    except ModelError as error:
        return row | {"error": str(error)}
    skipped = reader.reply_start(prompt, ids)
    row |= {"prompt_ids": prompt, "response_ids": ids, "reasoning_tokens": skipped, "asked_ids": asked}
    row["instructed_ids"] = instructed
    row |= {"prompt_tokens": len(prompt), "response_tokens": len(ids) - skipped}
    longest = max(map(len, [prompt, *(told for prompts in instructed.values() for told in prompts)])) + len(ids)
    longest = max(longest, len(asked) + reader.max_new_tokens if reader.answered else 0)
    if longest > model.context:
        what = "prompt, the trait's instruction and reply" if instructed else "prompt and reply"
        return row | {"error": f"expected {what} to fit into {model.context:,} tokens, got {longest:,}"}
    if len(ids) == skipped:
        return row | {"error": "expected a reply after the reasoning, got none"}
    return row


def prompt_kind(prompt: str) -> str:
    """What sort of prompt a text is, by its looks: what rows differ in besides the trait."""
    text = prompt.strip()
    foreign = sum(not character.isascii() for character in text) / len(text) if text else 0
    if "```" in text or any(mark in text for mark in ("def ", "import ", "#include", "</", "();", "SELECT ")):
        return "code"
    if foreign > 0.3:
        return "other script"
    if len(text) > 1000:
        return "long"
    return "question" if text.endswith("?") else "request"
