"""The objects of OpenAI's API that answers are made of, with `persona` in each."""

from typing import Any

from personavec.model.chat_model import ChatModel
from personavec.server.protocol import ChatBody
from personavec.server.reply import News
from personavec.server.service import Exchange

Json = dict[str, Any]


class Completion:
    """The answer to a request, whole or in chunks."""

    def __init__(self, exchange: Exchange, model: ChatModel) -> None:
        self.exchange, self.model = exchange, model
        self.chat = isinstance(exchange.body, ChatBody)
        self._begun: set[int] = set()
        self._sent = [0] * len(exchange.jobs)

    def whole(self, personas: list[Json]) -> Json:
        """A chat.completion or text_completion object."""
        choices = []
        for index, persona in enumerate(personas):
            reply = self.exchange.jobs[index].reply
            said: Json = (
                {"message": {"role": "assistant", "content": reply.text}} if self.chat else {"text": reply.text}
            )
            logprobs = self._logprobs(index, reply.pieces)
            choices.append(self._choice(index, said, reply.finish, logprobs) | {"persona": persona})
        return self._object("chat.completion" if self.chat else "text_completion", choices) | {
            "usage": self.usage(),
            "persona": self._shared(),
        }

    def chunk(self, index: int, news: News) -> Json | None:
        """What a reply has got; None if that is nothing to send."""
        values = news.read
        first: Json = {}
        if values and index not in self._begun:
            self._begun.add(index)
            first = {
                "prompt_last": {watched.key: values[0][place] for place, watched in enumerate(self.exchange.watched)}
            }
            values = values[1:]
        if not (news.pieces or values or first):
            return None
        text = "".join(news.pieces)
        delta: Json = (
            {"delta": ({"role": "assistant"} if first else {}) | {"content": text}} if self.chat else {"text": text}
        )
        tokens = {watched.key: [row[place] for row in values] for place, watched in enumerate(self.exchange.watched)}
        choice = self._choice(index, delta, None, self._logprobs(index, news.pieces))
        choice["persona"] = {"pieces": news.pieces, "tokens": tokens}
        return self._object(self._chunk_kind, [choice]) | ({"persona": self._shared() | first} if first else {})

    def last(self, index: int, persona: Json) -> Json:
        """The chunk that ends a reply."""
        said: Json = {"delta": {}} if self.chat else {"text": ""}
        finish = self.exchange.jobs[index].reply.finish
        persona = {name: persona[name] for name in ("projections", "alerts")}  # the pieces were all sent
        return self._object(self._chunk_kind, [self._choice(index, said, finish, None) | {"persona": persona}])

    def counted(self) -> Json:
        """The chunk that counts tokens."""
        return self._object(self._chunk_kind, []) | {"usage": self.usage()}

    def usage(self) -> Json:
        """Tokens that were read and written."""
        jobs = self.exchange.jobs
        read, written = len(jobs[0].prompt), sum(len(job.reply.ids) for job in jobs)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _shared(self) -> Json:
        exchange = self.exchange
        return {
            "conversation": exchange.conversation,
            "turn": exchange.turn,
            "steering": exchange.applied.descriptions,
            "warnings": exchange.applied.warnings,
        }

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
            tops = ({"top_logprobs": [self._entry(*other) for other in token.top]} for token in tokens)
            entries = (self._entry(token.token, token.logprob) for token in tokens)
            return {"content": [entry | top for entry, top in zip(entries, tops, strict=True)]}
        return {
            "tokens": [self._text(token.token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(other): value for other, value in token.top} for token in tokens],
        }

    def _entry(self, token: int, value: float) -> Json:
        text = self._text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    def _text(self, token: int) -> str:
        return str(self.model.tokenizer.decode([token]))
