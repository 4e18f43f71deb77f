"""The chat template of a tokenizer: how turns are written, where a reply begins, and what of it is reasoning."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from jinja2 import TemplateError

from personavec.errors import ModelError
from personavec.model.spelling import ControlTokens, Encoded

Message = Mapping[str, Any]
"""A turn: `role` and `content`, and what the chat template is to show of an agent's besides."""
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'system': 'Instructions', 'user': 'Question', 'assistant': 'Answer'}[message['role']] }}: "
    "{{ message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""How a base model without a chat template is shown a conversation when it serves as a judge."""

ASKED, REPLIED = "Kalmarquestion", "Kalmaranswer"
"""Words by which a template shows where it puts turns."""
OPENING = 32
"""Last tokens of a prompt, among which a template opens a reasoning block."""

POLICIES = ("template", "none")
"""What is done where no turn is a system turn, besides a text that is put first; see `ChatModel.render`."""


class Reasoning(NamedTuple):
    """How a family of models marks reasoning."""

    opens: str
    closes: str
    before: str = ""
    """What stands before the mark that closes it, where the model writes it and the template does not."""


REASONING = (
    Reasoning("<think>", "</think>"),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<thought>", "</thought>"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("◁think▷", "◁/think▷"),
    Reasoning("<|START_THINKING|>", "<|END_THINKING|>"),
    Reasoning("<|inner_prefix|>", "<|inner_suffix|>"),
    Reasoning("<|channel>thought\n", "<channel|>"),
    Reasoning("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|><|start|>assistant"),
)
"""Marks that the published reasoning models use; those count that a tokenizer has as tokens or its template writes."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""What chat templates call the reasoning of a turn."""


class ChatTemplate:
    """How one model's turns become text, and that text token ids.

    Attributes:
        source: What the tokenizer holds as its chat template.
        head: Where a finished reply begins, the text before it: after a question, without an open reasoning block.
        tail: What follows a finished reply, if the reply's text stands where the template opens replies; else None.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Take a tokenizer's chat template, and try it.

        Raises:
            ModelError: It does not render, or leaves out what a turn says, or does not open replies.
        """
        self.tokenizer, self.name, self.source = tokenizer, name, tokenizer.chat_template
        written = str(self.source)
        if isinstance(self.source, Mapping):
            if "default" not in self.source:
                names = ", ".join(map(str, self.source)) or "none"
                raise ModelError(
                    f"expected one chat template or one named default, got {names} in the tokenizer of {name}; "
                    "set tokenizer.chat_template to one of them"
                )
            written = "\n".join(map(str, self.source.values()))
        marked = "\n".join([written, *(mark for marks in REASONING for mark in marks)])
        self.control = ControlTokens(tokenizer, marked, name)
        vocabulary = tokenizer.get_vocab()
        self.reasoning = tuple(
            marks
            for marks in REASONING
            if any(mark in vocabulary or mark in written for mark in (marks.opens, marks.closes))
            or (marks.before and all(mark in vocabulary for mark in re.findall(r"<\|\w+\|>", marks.opens)))
        )
        self._marks: dict[str, tuple[int, ...]] = {}
        self._in_parts = False
        self.head = ""
        self.tail: str | None = None
        self._try()

    def _try(self) -> None:
        asked = [{"role": "user", "content": ASKED}]
        done = [*asked, {"role": "assistant", "content": REPLIED}]
        try:
            if ASKED not in self._render(asked, True):
                self._in_parts = True
            opened, closed, finished = self._render(asked, True), self._render(asked, False), self._render(done, False)
        except TemplateError:  # it wants other turns than these, and says so when it gets them
            return
        for word, role, text in ((ASKED, "user", opened), (REPLIED, "assistant", finished)):
            if word not in text:
                raise self._silent(role)
        self.head, tail = finished.split(REPLIED, 1)
        self.tail = tail if self.head == opened else None
        header = self.head.removeprefix(opened).strip()
        reasons = any(header.startswith((marks.opens.strip(), marks.closes.strip())) for marks in self.reasoning)
        if opened == closed and self.head.startswith(opened) and header and not reasons:
            raise ModelError(
                f"expected a chat template that opens the reply where add_generation_prompt is set, got "
                f"{self.name}'s, which writes {header!r} with the reply alone; correct the template"
            )

    def inert(
        self, messages: Sequence[Message], system: str = "template", tools: Sequence[Any] = ()
    ) -> tuple[list[Message], str, list[Any]]:
        """Turns and tools whose texts the template cannot take for its own, and the policy that goes with such turns.

        What marks reasoning at the beginning of a reply stays as it is.

        Raises:
            ModelError: The template has no word for something that the turns hold, see `shown_turns`.
        """
        turns = list(messages)
        if tools or any(len(turn) > 2 or turn["role"] == "tool" for turn in turns):
            turns = shown_turns(turns, tools, self.tokenizer.get_chat_template(tools=[*tools] or None), self.name)
        if turns[0]["role"] != "system" and system not in POLICIES:
            turns, system = [{"role": "system", "content": system}, *turns], "template"
        return [self._inert_turn(turn) for turn in turns], system, [self._inert_value(tool) for tool in tools]

    def _inert_turn(self, turn: Message) -> Message:
        made = {"role": turn["role"], "content": self._inert(turn)}
        return made if len(turn) == 2 else {key: made.get(key) or self._inert_value(turn[key]) for key in turn}

    def _inert_value(self, value: Any) -> Any:
        """What JSON can hold, every text in it inert."""
        if isinstance(value, str):
            return self.control.inert(value)
        if isinstance(value, Mapping):
            return {self._inert_value(key): self._inert_value(each) for key, each in value.items()}
        return [*map(self._inert_value, value)] if isinstance(value, list | tuple) else value

    def as_it_is(self, reply: str) -> bool:
        """Whether a finished reply is written as it is, between the text that opens it and `tail`."""
        if self.tail is None or reply != reply.strip() or self.control.inert(reply) is not reply:
            return False
        return not any(mark in reply for marks in self.reasoning for mark in (marks.opens, marks.closes))

    def _inert(self, turn: Message) -> str:
        content: str = turn["content"]
        if turn["role"] == "assistant" and self.control.spelled(content):
            for marks in self.reasoning:
                said = content.lstrip()
                opened = len(content) - len(said) + len(marks.opens) if said.startswith(marks.opens) else 0
                end = content.find(marks.closes, opened)
                if end < 0 or not (opened or self._opens(marks)):
                    if opened:
                        return content[:opened] + self.control.inert(content[opened:])
                    continue
                begin = end - len(marks.before) if content[:end].endswith(marks.before) else end
                rest = end + len(marks.closes)
                thought, reply = self.control.inert(content[opened:begin]), self.control.inert(content[rest:])
                return content[:opened] + thought + content[begin:rest] + reply
        return self.control.inert(content)

    def _opens(self, marks: Reasoning) -> bool:
        """Whether the prompt opens the block, so that a reply need not."""
        text = self._render([{"role": "user", "content": ASKED}], True)
        return text.rfind(marks.opens) > max(text.rfind(marks.closes), text.find(ASKED))

    def text(
        self,
        messages: Sequence[Message],
        system: str = "template",
        *,
        open_reply: bool = True,
        tools: Sequence[Any] = (),
    ) -> str:
        """A conversation as the template writes it; see `ChatModel.text`."""
        if messages[0]["role"] == "system" or system == "template":
            return self._apply(messages, open_reply, tools)
        if system != "none":
            return self._apply([{"role": "system", "content": system}, *messages], open_reply, tools)
        bare = self._apply(messages, open_reply, tools)
        empty = self._apply([{"role": "system", "content": ""}, *messages], open_reply, tools)
        return min(bare, empty, key=len)

    def reply_start(self, messages: Sequence[Message], system: str, finished: str, tools: Sequence[Any] = ()) -> int:
        """Where in a finished conversation the last reply begins, if the template opens replies in another way.

        Raises:
            ModelError: The template leaves replies out.
        """
        turns = [*messages, {"role": "assistant", "content": REPLIED}]
        other = self.text(turns, system, open_reply=False, tools=tools)
        if (place := other.rfind(REPLIED)) < 0:
            raise self._silent("assistant")
        pairs = zip(other[:place], finished, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def encode(self, text: str, cuts: Sequence[int] = ()) -> Encoded:
        """Token ids of a rendered text; see `ControlTokens.encode`."""
        return self.control.encode(text, cuts)

    def reply_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text where a reply stands, no control token in it."""
        whole = self.encode(self.head + self.control.inert(text), [len(self.head)])
        return whole.ids[whole.places[0] :]

    def reasoning_tokens(self, prompt: Sequence[int], reply: Sequence[int]) -> int:
        """How many tokens of a reply are reasoning: up to the last mark that closes it, or all where none does."""
        return max((self._reasoned(marks, prompt, reply) for marks in self.reasoning), default=0)

    def _reasoned(self, marks: Reasoning, prompt: Sequence[int], reply: Sequence[int]) -> int:
        opens, closes = self._mark_ids(marks.opens), self._mark_ids(marks.closes)
        if not opens or not closes:
            return self._reasoned_in_text(marks, prompt, reply)
        if (place := _last(reply, closes)) >= 0:
            return place + len(closes)
        both = [*prompt, *reply]
        return len(reply) if _last(both, opens) > _last(both, closes) else 0

    def _reasoned_in_text(self, marks: Reasoning, prompt: Sequence[int], reply: Sequence[int]) -> int:
        """The same for marks that are ordinary text, which joins with the text around it into tokens."""

        def text(ids: Sequence[int]) -> str:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

        said = text(reply)
        if marks.closes in said:
            end = said.rindex(marks.closes) + len(marks.closes)
            return bisect_left(range(len(reply)), end, key=lambda count: len(text(reply[:count])))
        both = text(prompt[-OPENING:]) + said
        return len(reply) if both.rfind(marks.opens) > both.rfind(marks.closes) else 0

    def _mark_ids(self, mark: str) -> tuple[int, ...]:
        """The token ids of a mark that begins and ends with tokens of its own; else none."""
        if mark not in self._marks:
            ids = self.encode(mark).ids
            added = self.tokenizer.added_tokens_decoder
            self._marks[mark] = ids if ids and ids[0] in added and ids[-1] in added else ()
        return self._marks[mark]

    def _apply(self, messages: Sequence[Message], open_reply: bool, tools: Sequence[Any]) -> str:
        instructed = messages[0]["role"] == "system" and len(messages) > 1
        try:
            rendered = self._render(messages, open_reply, tools)
            led = instructed and messages[0]["content"] and rendered == self._render(messages[1:], open_reply, tools)
            if not led:
                self._check(messages, rendered, open_reply, tools)
                return rendered
        except TemplateError as error:
            if not instructed:
                reason = f"{self.name}'s chat template refused this conversation ({error})"
                raise ModelError(f"expected turns that alternate and end with the user, got: {reason}") from error
        # some families (Gemma) have no system role, or pass over it: the instruction then leads the first user turn
        system, first, *rest = messages
        asked = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
        return self._apply([asked, *rest], open_reply, tools)

    def _check(self, messages: Sequence[Message], rendered: str, open_reply: bool, tools: Sequence[Any]) -> None:
        """Raise ModelError if the text of a turn was left out; a template may write it in another form."""
        for place, turn in enumerate(messages):
            if turn["content"].strip() not in rendered:
                role = turn["role"]
                others = [*messages[:place], {**turn, "content": ASKED}, *messages[place + 1 :]]
                if ASKED not in self._render(others, open_reply, tools):
                    raise self._silent(role)

    def _render(self, messages: Sequence[Message], open_reply: bool, tools: Sequence[Any] = ()) -> str:
        """What the tokenizer makes of turns.

        Raises:
            TemplateError: The template refuses them.
            ModelError: It fails.
        """
        turns: list[Any] = [*messages]
        if self._in_parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        try:
            apply, shown = self.tokenizer.apply_chat_template, {"tools": [*tools]} if tools else {}
            return str(apply(turns, add_generation_prompt=open_reply, tokenize=False, **shown))
        except Exception as error:  # whatever a template's code may raise
            if type(error) is TemplateError:  # raise_exception, by which a template refuses turns
                raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise ModelError(
                f"expected a chat template that renders, got {self.name}'s, which fails ({reason}); correct it, or set "
                "tokenizer.chat_template"
            ) from error

    def _silent(self, role: str) -> ModelError:
        return ModelError(
            f"expected a chat template that writes what each turn says, got {self.name}'s, which leaves out turns of "
            f"the {role}; correct it, or set tokenizer.chat_template"
        )


def _last(ids: Sequence[int], part: Sequence[int]) -> int:
    """Where a part stands for the last time among ids, -1 if it does not."""
    if part[0] not in ids:
        return -1
    places = range(len(ids) - len(part), -1, -1)
    return next((place for place in places if tuple(ids[place : place + len(part)]) == tuple(part)), -1)


def shown_turns(messages: Sequence[Message], tools: Sequence[Any], template: str, model: str) -> list[Message]:
    """Agents' turns under the names that a chat template has for what they hold.

    Args:
        messages: Turns with `role`, `content`, perhaps `name`, `tool_calls`, `tool_call_id` and `reasoning_content`.
        tools: What the model could call.
        template: The chat template's source.
        model: Whose it is, for people.

    Raises:
        ModelError: The template has no word for the tools, the role tool, calls or reasoning.
    """
    words = _words(template)
    needed = {"tools"} if tools else set()
    needed |= {"the role tool" for turn in messages if turn["role"] == "tool"}
    needed |= {name for turn in messages for name in ("tool_calls", "reasoning_content") if turn.get(name)}
    reasoning = next((name for name in REASONING_FIELDS if name in words), None)
    known = words | ({"reasoning_content"} if reasoning else set())
    known |= {"the role tool"} if re.search(r"""["']tool["']""", template) else set()
    if unknown := sorted(needed - known):
        raise ModelError(
            f"expected turns that {model}'s chat template shows whole, got {' and '.join(unknown)}, which it does not "
            "know; choose a model that was made for them, or drop those rows"
        )
    if reasoning in (None, "reasoning_content"):
        return [*messages]
    return [{reasoning if key == "reasoning_content" else key: turn[key] for key in turn} for turn in messages]


@lru_cache(maxsize=16)
def _words(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", template))
