"""A chat in the terminal, steered and watched; takes its questions from stdin when that is no terminal."""

import contextlib
import math
import shlex
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personavec.errors import ConfigError, PersonavecError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.runs.result import Result
from personavec.steering.generate import Request, Watch, stream
from personavec.steering.notation import Steers, in_order
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector, load_vector

HELP = """\
/steer VEC:COEF[@LAYER] …  steer from here on; /steer off stops; /steer alone shows
/system TEXT               another system prompt (or template, none)
/reset                     forget the conversation
/quit                      leave; so does Ctrl-D. Ctrl-C stops a reply."""

PLAIN = ("How was your day?", "What is a good way to spend a Sunday?", "How do boats float?", "What should I cook?")
"""Answered unsteered before the chat begins, to know what the watched projections usually are."""
PLAIN_TOKENS = 24

PALETTE = (32, 74, 110, 153, None, 224, 217, 210, 203)
"""Xterm colours from least to most of the trait, blue to red; a token near the usual median stays as it is."""


@dataclass(frozen=True)
class Watched:
    """A vector that is read at every token."""

    path: str
    vector: PersonaVector
    title: str
    watch: Watch
    usual: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """5th, 50th and 95th percentile of projections over unsteered replies to plain questions."""

    def style(self, projection: float) -> str:
        """Colour of a token: none near the usual median, full at one usual range (5th to 95th percentile) from it."""
        low, middle, high = self.usual
        share = max(-1.0, min(1.0, (projection - middle) / max(high - low, 1e-9)))
        colour = PALETTE[round((1 + share) * (len(PALETTE) // 2))]
        return "" if colour is None else f"color(16) on color({colour})"


@dataclass
class Chat:
    """A conversation under way. Replies go to stdout, everything else to stderr."""

    model: ChatModel
    sampling: Sampling
    seed: int
    steering: tuple[Steering, ...]
    watched: list[Watched]
    system: str
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    out: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    notes: Console = field(
        default_factory=lambda: Console(stderr=True, highlight=False, markup=False, soft_wrap=True, style="dim")
    )

    def ask(self, question: str) -> None:
        """Answer a question; one that gets no reply leaves no trace in the conversation."""
        self.messages.append({"role": "user", "content": question})
        turn: dict[str, Any] = {"question": question, "reply": "", "finish": "interrupted", "projections": {}}
        read: list[list[float]] = []
        try:
            # closed at once, so that no hook outlives an interrupted reply
            with contextlib.closing(self._reply(turn, read)) as pieces:
                for text, style in pieces:
                    turn["reply"] += text
                    self.out.print(Text(text, style), end="")
        except KeyboardInterrupt:
            self.notes.print(" (stopped)", end="")
        except PersonavecError as error:
            turn |= {"finish": "error", "error": str(error)}
        self.out.print()
        if turn["finish"] != "error" and turn["reply"].strip():
            self.messages.append({"role": "assistant", "content": turn["reply"].strip()})
        else:
            self.messages.pop()
            if "error" in turn:
                self.fail(question, turn["error"])
            else:
                self.notes.print("(empty reply)", style="red")
        if turn["finish"] == "length":
            self.notes.print(f"(cut at {turn['response_tokens']} tokens, as --max-new-tokens says)")
        if self.watched and read:
            self._read_out(turn, torch.tensor(read).T)
        self.turns.append(turn)

    def _reply(self, turn: dict[str, Any], read: list[list[float]]) -> Generator[tuple[str, str]]:
        """Pieces of the reply and their colours; notes on the turn, and every token's projections in `read`.

        A step has the projections of the token before that which it drew, so a watched token is shown a step late.
        """
        prompt = self._prompt()
        request = Request(prompt, self.steering, seed=(self.seed, len(self.turns)))
        ids: list[int] = []
        said, late, finish = 0, "", "length"
        for step in stream(self.model, [request], self.sampling, [watched.watch for watched in self.watched]):
            read.append(step.projections[0].tolist())
            if self.watched and len(read) == 1:
                first = zip(self.watched, read[0], strict=True)
                values = "; ".join(f"{w.title} {value:+.1f}, usually {w.usual[1]:+.1f}" for w, value in first)
                self.notes.print(f"[last prompt token: {values}]")
            if late:
                yield late, self.watched[0].style(read[-1][0])
                late = ""
            token = int(step.tokens[0])
            if token in self.model.stop_ids:
                finish = "stop"
                continue
            ids.append(token)
            text = self.model.decode(ids)
            if not text.endswith("\ufffd"):  # the rest of a character may still come
                late, said = text[said:], len(text)
                if not self.watched:
                    yield late, ""
                    late = ""
        turn |= {"finish": finish, "prompt_tokens": len(prompt), "response_tokens": len(ids)}
        yield late + self.model.decode(ids)[said:], ""

    def _prompt(self) -> tuple[int, ...]:
        """The rendered conversation, without its oldest turns if the model's context is too short for them."""
        limit, longest = self.model.context, self.sampling.max_new_tokens
        messages, dropped = self.messages, 0
        while len(prompt := self.model.render(messages, self.system)) + longest > limit:
            if len(messages) == 1:
                raise ConfigError(
                    f"expected prompt and reply to fit into {limit} tokens, got {len(prompt)} and --max-new-tokens "
                    f"{longest}; ask something shorter, or lower --max-new-tokens"
                )
            messages = messages[2:]
            dropped += 1
        if dropped:
            self.messages = messages
            self.notes.print(f"(dropped {dropped} of the oldest turns: the context holds {limit} tokens)")
        return prompt

    def _read_out(self, turn: dict[str, Any], read: torch.Tensor) -> None:
        """Note and show the projections at the last prompt token and over the reply."""
        table = Table("projection", "last prompt token", "reply mean", "lowest", "highest", "usually", box=None)
        for watched, column in zip(self.watched, read, strict=True):
            reply = column[1:]
            figures = [float(f) for f in (reply.mean(), reply.min(), reply.max())] if len(reply) else []
            turn["projections"][watched.path] = {
                "layer": watched.watch.layer,
                # a steering that is far too large makes them infinite, for which JSON has no word
                "prompt_last": float(column[0]) if column[0].isfinite() else None,
                "response_avg": figures[0] if figures and math.isfinite(figures[0]) else None,
                "usual": watched.usual,
            }
            shown = [f"{figure:+.1f}" for figure in (float(column[0]), *figures)] + ["–"] * (3 - len(figures))
            table.add_row(watched.title, *shown, f"{watched.usual[0]:+.1f} … {watched.usual[2]:+.1f}")
        self.notes.print(table)

    def obey(self, line: str) -> None:
        """Follow a command."""
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/reset":
            self.messages.clear()
            self.notes.print("(forgotten)")
        elif command == "/system" and rest:
            self.system = rest
            self.notes.print(f"system prompt: {rest}")
        elif command == "/steer":
            if rest:
                texts = [] if rest == "off" else shlex.split(rest)
                self.steering = in_order(texts, self.model.identity)
            self.notes.print(_described(self.steering))
        else:
            self.notes.print(HELP)
            if command != "/help":
                self.fail(line, f"expected one of these commands, got {line}")

    def fail(self, line: str, error: str) -> None:
        """Show and note a line that cannot be done; the chat goes on."""
        self.notes.print(error, style="red")
        self.failed.append({"line": line, "error": error})


class Conversation(Result):
    """A chat that is over."""

    @property
    def turns(self) -> list[dict[str, Any]]:
        """Question, reply and projections of every turn."""
        return list(self.data["turns"])


def chat(
    model: ChatModel,
    *,
    steer: Steers = (),
    watch: Sequence[str | Path | PersonaVector] = (),
    system: str = "template",
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
) -> Conversation:
    """Chat in the terminal until the user leaves or stdin ends; `model.chat` answers a single question.

    Args:
        model: Who answers.
        steer: What steers every reply: `vector.at(…)`, VEC:COEF[@LAYER], or several of either.
        watch: Vectors; every token is coloured by its projection on the first.
        system: System prompt: template (what the chat template does by itself), none, or a text.
        max_new_tokens: Longest reply, in tokens.
        temperature: Of sampling; 0 is greedy.
        top_p: Sample from the smallest set of tokens that holds this probability.
        seed: Of sampling.

    Returns:
        The turns, and of a script (stdin is no terminal) the lines that `failed`, with why.

    Raises:
        PersonavecError: A vector cannot be used. Later mistakes do not end the chat.
    """
    sampling = Sampling(max_new_tokens, temperature, top_p)
    watched = [read_watched(vector) for vector in watch]
    for each in watched:
        each.vector.check_model(model.identity)
    steering = in_order(steer, model.identity)
    session = Chat(model, sampling, seed, steering, _usual(model, watched, system), system)
    adapted = f" with {model.adapter}" if model.adapter else ""
    session.notes.print(f"{model.identity.id}{adapted} on {model.device}; {_described(steering)}; /help for commands")
    for line in _lines():
        try:
            if line == "/quit":
                break
            if line:
                (session.obey if line.startswith("/") else session.ask)(line)
        except (PersonavecError, ValueError) as error:  # ValueError: quotes that do not close
            session.fail(line, str(error))
    return Conversation(
        {
            "model": model.identity.id,
            "adapter": str(model.adapter) if model.adapter else None,
            "turns": session.turns,
            "failed": [] if sys.stdin.isatty() else session.failed,
        }
    )


def _lines() -> Iterator[str]:
    """Lines from a terminal, at a prompt, else from stdin; each is one turn."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and editing
    while True:
        try:
            if sys.stdout.isatty():
                yield input("\n> ").strip()
            else:  # input() would write its prompt among the replies
                print("\n> ", end="", file=sys.stderr, flush=True)
                yield input().strip()
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return


def read_watched(source: str | Path | PersonaVector) -> Watched:
    """A vector to watch, at the layer that its card recommends.

    Raises:
        VectorError: It cannot be read, or recommends none.
    """
    vector = source if isinstance(source, PersonaVector) else load_vector(source)
    layer, name = vector.card.layer, vector.card.trait if isinstance(source, PersonaVector) else str(source)
    if layer is None:
        raise VectorError(f"expected a recommended layer in {name}, got none; watch a vector that extract has proved")
    return Watched(name, vector, f"{vector.card.trait}@{layer}", Watch(layer, vector.unit(layer)))


def _usual(model: ChatModel, watched: list[Watched], system: str) -> list[Watched]:
    """The watched vectors with their usual projections."""
    if not watched:
        return []
    prompts = [model.render([{"role": "user", "content": question}], system) for question in PLAIN]
    requests = [Request(prompt, seed=(0, index)) for index, prompt in enumerate(prompts)]
    steps = list(stream(model, requests, Sampling(PLAIN_TOKENS, 0.7), [each.watch for each in watched]))
    read = torch.cat([step.projections for step in steps[1:] or steps])  # the first step reads the prompts
    percentiles = read.quantile(torch.tensor([0.05, 0.5, 0.95], device=read.device), dim=0).T.tolist()
    return [replace(each, usual=tuple(usual)) for each, usual in zip(watched, percentiles, strict=True)]


def _described(steering: tuple[Steering, ...]) -> str:
    """What a list of steerings does, in words."""
    parts = []
    for applied in steering:
        card, where = applied.vector.card, "all layers" if applied.layer == "all" else f"layer {applied.layer}"
        if (layer := applied.single_layer) is not None and card.activation_norms:
            where += f" (dose {applied.vector.dose(layer, applied.coef):.2g})"
        parts.append(f"{applied.coef:+.3g} {card.trait} at {where}")
    return "steered " + ", ".join(parts) if parts else "not steered"
