"""The objects of OpenAI's API that answers are made of, with `persona` in each."""

import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from personavec.model.chat_model import ChatModel
from personavec.model.spelling import Spelling
from personavec.server.api.logprobs import entries, old_form
from personavec.server.api.protocol import ChatBody
from personavec.server.api.tools import split
from personavec.server.exchange import Exchange
from personavec.server.refused import Refused
from personavec.server.reply import News

Json = dict[str, Any]


class Completion:
    """The answer to a request, whole or in chunks."""

    done = "data: [DONE]\n\n"
    """What a stream ends with."""

    def __init__(self, exchange: Exchange, model: ChatModel, spelling: Spelling) -> None:
        self.exchange, self.model, self.spelling = exchange, model, spelling
        self.chat = isinstance(exchange.body, ChatBody)
        self._begun: set[int] = set()
        self._sent = [0] * len(exchange.jobs)

    def whole(self, personas: list[Json]) -> Json:
        """A chat.completion or text_completion object."""
        choices = []
        for index, persona in enumerate(personas):
            reply = self.exchange.jobs[index].reply
            text, calls = self._split(reply.text)
            message: Json = {"role": "assistant", "content": text or None if calls else text}
            told = self._told_prompt(index) + text
            said = {"message": message | ({"tool_calls": calls} if calls else {})} if self.chat else {"text": told}
            logprobs = self._of_prompt(index, self._logprobs(index, reply.pieces))
            choices.append(self._choice(index, said, self._finish(index), logprobs) | {"persona": persona})
        return self._object("chat.completion" if self.chat else "text_completion", choices) | {
            "usage": self.usage(),
            "persona": self.exchange.shared(),
        }

    def chunks(self, index: int, news: News) -> Iterator[Json]:
        """What a reply has got; the first chunk has the role, or the prompt that is told, and no text of the reply."""
        values, keys = (
            [list(map(finite, row)) for row in news.read],
            [watched.key for watched in self.exchange.watched],
        )
        shared: Json = {}
        if values and index not in self._begun:
            self._begun.add(index)
            shared = {"persona": self.exchange.shared() | {"prompt_last": dict(zip(keys, values[0], strict=True))}}
            values = values[1:]
            if self.chat or self.exchange.echoes:
                persona = {"pieces": [], "tokens": {key: [] for key in keys}}
                yield self._object(self._chunk_kind, [self._opening(index) | {"persona": persona}]) | shared
                shared = {}
        if news.pieces or values or shared:
            text, calls = self._split("".join(news.pieces)) if news.over else ("".join(news.pieces), [])
            delta: Json = {} if calls and not text else {"content": text}
            if calls:
                delta["tool_calls"] = [{"index": number} | call for number, call in enumerate(calls)]
            said: Json = {"delta": delta} if self.chat else {"text": text}
            choice = self._choice(index, said, None, self._logprobs(index, news.pieces))
            tokens = {key: [row[place] for row in values] for place, key in enumerate(keys)}
            choice["persona"] = {"pieces": news.pieces, "tokens": tokens}
            yield self._object(self._chunk_kind, [choice]) | shared

    def ending(self, personas: list[Json]) -> Iterator[Json]:
        """The chunks that end the replies, and one that counts tokens if it was asked for."""
        for index, persona in enumerate(personas):
            said: Json = {"delta": {}} if self.chat else {"text": ""}
            finish = self._finish(index)
            kept = {name: persona[name] for name in ("projections", "alerts")}  # the pieces were all sent
            yield self._object(self._chunk_kind, [self._choice(index, said, finish, None) | {"persona": kept}])
        if self.exchange.body.wants_usage:
            yield self._object(self._chunk_kind, []) | {"usage": self.usage()}

    def failed(self, error: Refused) -> Json:
        """The chunk that ends a stream whose replies cannot be written."""
        return error.body

    def usage(self) -> Json:
        """Tokens that were read and written."""
        read, written = self.exchange.prompt_tokens, sum(len(job.reply.ids) for job in self.exchange.jobs)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": self.exchange.tokens_reused},
        }

    def _split(self, text: str) -> tuple[str, list[Json]]:
        """A text, or the end of one from before its first call on, and its calls, if tools were offered."""
        return split(text) if self.exchange.body.offered else (text, [])

    def _finish(self, index: int) -> str | None:
        reply = self.exchange.jobs[index].reply
        return "tool_calls" if reply.finish == "stop" and self._split(reply.text)[1] else reply.finish

    def _opening(self, index: int) -> Json:
        """What the first chunk says of a reply: the role, or the prompt that is told."""
        if self.chat:
            return self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None, None)
        told = {"text": self._told_prompt(index)}
        return self._choice(index, told, None, self._of_prompt(index, self._logprobs(index, [])))

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _object(self, kind: str, choices: list[Json]) -> Json:
        exchange = self.exchange
        return {
            "id": exchange.id,
            "object": kind,
            "created": exchange.created,
            "model": exchange.body.model or self.model.identity.id,
            "choices": choices,
        }

    @staticmethod
    def _choice(index: int, said: Json, finish: str | None, logprobs: Json | None) -> Json:
        return {"index": index} | said | {"finish_reason": finish, "logprobs": logprobs}

    def _logprobs(self, index: int, pieces: list[str]) -> Json | None:
        """Of the tokens of these pieces, which follow those that were sent before."""
        if self.exchange.body.top is None:
            return None
        begin = self._sent[index]
        self._sent[index] += len(pieces)
        tokens = self.exchange.jobs[index].reply.logprobs[begin : self._sent[index]]
        if self.chat:
            return {"content": entries(self.spelling, tokens, begin)}
        ends = accumulate(map(len, self.exchange.jobs[index].reply.pieces), initial=len(self._told_prompt(index)))
        return old_form(self.spelling, tokens, begin, list(ends)[begin : begin + len(tokens)])

    def _told_prompt(self, index: int) -> str:
        """What an answer begins with."""
        return self.exchange.echoes[self.exchange.prompt_of(index)].text if self.exchange.echoes else ""

    def _of_prompt(self, index: int, logprobs: Json | None) -> Json | None:
        """Log-probabilities with those of the prompt before them, if it is told."""
        if logprobs is None or not self.exchange.echoes:
            return logprobs
        prompt = self.exchange.prompt_of(index)
        scores, offsets = self.exchange.prompts[prompt][0].prompt_logprobs, self.exchange.echoes[prompt].offsets
        told = old_form(self.spelling, scores, 0, offsets)
        return {name: told[name] + logprobs[name] for name in told}


def finite(value: float) -> float | None:
    """A number, or null: JSON has no word for infinity."""
    return value if math.isfinite(value) else None
