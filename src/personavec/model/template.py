"""The chat template of a tokenizer: how turns are written, where a reply begins, and what of it is reasoning."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from jinja2 import TemplateError

from personavec.errors import ModelError
from personavec.model.control import ControlTokens, Encoded

Message = Mapping[str, str]

ASKED, REPLIED = "Kalmarquestion", "Kalmaranswer"
"""Words by which a template shows where it puts turns."""
OPENING = 32
"""Last tokens of a prompt, among which a template opens a reasoning block."""


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


class ChatTemplate:
    """How one model's turns become text, and that text token ids.

    Attributes:
        source: What the tokenizer holds as its chat template.
        head: Where a finished reply begins, the text before it: after a question, without an open reasoning block.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """Take a tokenizer's chat template, and try it.

        Raises:
            ModelError: It does not render, or leaves out what a turn says, or does not open replies.
        """
        self.tokenizer, self.name, self.source = tokenizer, name, tokenizer.chat_template
        chosen = self.source
        if isinstance(chosen, Mapping):
            if "default" not in chosen:
                names = ", ".join(map(str, chosen)) or "none"
                raise ModelError(
                    f"expected one chat template or one named default, got {names} in the tokenizer of {name}; "
                    "set tokenizer.chat_template to one of them"
                )
            chosen = chosen["default"]
        marked = "\n".join([str(chosen), *(mark for marks in REASONING for mark in marks)])
        self.control = ControlTokens(tokenizer, marked, name)
        vocabulary = tokenizer.get_vocab()
        self.reasoning = tuple(
            marks
            for marks in REASONING
            if any(mark in vocabulary or mark in str(chosen) for mark in (marks.opens, marks.closes))
            or (marks.before and all(mark in vocabulary for mark in re.findall(r"<\|\w+\|>", marks.opens)))
        )
        self._marks: dict[str, tuple[int, ...]] = {}
        self._in_parts = False
        self.head = ""
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
        self.head = finished[: finished.index(REPLIED)]
        header = self.head.removeprefix(opened).strip()
        reasons = any(header.startswith((marks.opens.strip(), marks.closes.strip())) for marks in self.reasoning)
        if opened == closed and self.head.startswith(opened) and header and not reasons:
            raise ModelError(
                f"expected a chat template that opens the reply where add_generation_prompt is set, got "
                f"{self.name}'s, which writes {header!r} with the reply alone; correct the template"
            )

    def inert(self, messages: Sequence[Message], system: str = "template") -> tuple[list[Message], str]:
        """Turns whose texts the template cannot take for its own, and the system-prompt policy that goes with them.

        What marks reasoning at the beginning of a reply stays as it is.
        """
        turns = list(messages)
        if turns[0]["role"] != "system" and system not in ("template", "none"):
            turns, system = [{"role": "system", "content": system}, *turns], "template"
        return [{"role": turn["role"], "content": self._inert(turn)} for turn in turns], system

    def _inert(self, turn: Message) -> str:
        content = turn["content"]
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

    def text(self, messages: Sequence[Message], system: str = "template", *, open_reply: bool = True) -> str:
        """A conversation as the template writes it; see `ChatModel.text`."""
        if messages[0]["role"] == "system" or system == "template":
            return self._apply(messages, open_reply)
        if system != "none":
            return self._apply([{"role": "system", "content": system}, *messages], open_reply)
        bare = self._apply(messages, open_reply)
        empty = self._apply([{"role": "system", "content": ""}, *messages], open_reply)
        return min(bare, empty, key=len)

    def reply_start(self, messages: Sequence[Message], system: str, finished: str) -> int:
        """Where in a finished conversation the last reply begins, if the template opens replies in another way.

        Raises:
            ModelError: The template leaves replies out.
        """
        other = self.text([*messages, {"role": "assistant", "content": REPLIED}], system, open_reply=False)
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

    def _apply(self, messages: Sequence[Message], open_reply: bool) -> str:
        instructed = messages[0]["role"] == "system" and len(messages) > 1
        try:
            rendered = self._render(messages, open_reply)
            if not (instructed and messages[0]["content"] and rendered == self._render(messages[1:], open_reply)):
                self._check(messages, rendered, open_reply)
                return rendered
        except TemplateError as error:
            if not instructed:
                reason = f"{self.name}'s chat template refused this conversation ({error})"
                raise ModelError(f"expected turns that alternate and end with the user, got: {reason}") from error
        # some families (Gemma) have no system role, or pass over it: the instruction then leads the first user turn
        system, first, *rest = messages
        led = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
        return self._apply([led, *rest], open_reply)

    def _check(self, messages: Sequence[Message], rendered: str, open_reply: bool) -> None:
        """Raise ModelError if the text of a turn was left out; a template may write it in another form."""
        for place, turn in enumerate(messages):
            if turn["content"].strip() not in rendered:
                role = turn["role"]
                others = [*messages[:place], {"role": role, "content": ASKED}, *messages[place + 1 :]]
                if ASKED not in self._render(others, open_reply):
                    raise self._silent(role)

    def _render(self, messages: Sequence[Message], open_reply: bool) -> str:
        """What the tokenizer makes of turns.

        Raises:
            TemplateError: The template refuses them.
            ModelError: It fails.
        """
        turns: list[Any] = [*messages]
        if self._in_parts:
            turns = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in map(dict, turns)]
        try:
            return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=open_reply, tokenize=False))
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
    places = range(len(ids) - len(part), -1, -1)
    return next((place for place in places if tuple(ids[place : place + len(part)]) == tuple(part)), -1)
