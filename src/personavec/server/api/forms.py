"""Replies of a given form: JSON, by a schema. Needs the package of the extra `structured`."""

import json
from collections import OrderedDict
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from personavec.model.chat_model import ChatModel
from personavec.model.spelling import Spelling
from personavec.server.refused import Refused

try:
    import xgrammar
except ImportError:
    xgrammar = None

LONGEST, MOST, DEEPEST = 2**14, 100, 32
"""Bytes of a schema, objects in it, and objects inside each other: the time that a grammar takes grows with them."""
KEPT = 32
"""Schemas that are remembered."""
NOTES = frozenset({"title", "description", "default", "examples", "$schema", "$id", "$comment"})
OBEYED = {
    "type": str | list,
    "properties": dict,
    "required": list,
    "additionalProperties": bool | dict,
    "items": bool | dict,
    "minItems": int,
    "maxItems": int,
    "minLength": int,
    "maxLength": int,
    "enum": list,
    "const": object,
    "anyOf": list,
    "$ref": str,
    "$defs": dict,
    "definitions": dict,
}
"""Keywords of a schema that replies are held to, and what their values are; others are refused, but for notes."""
ALONE = {"$ref": {"$defs", "definitions"}, "anyOf": {"$defs", "definitions"}, "enum": {"type"}, "const": {"type"}}
"""Keywords beside which others are not obeyed, and what may stand there all the same."""


class JsonForm:
    """What one reply may still say."""

    def __init__(self, grammar: Any) -> None:
        self._matcher = xgrammar.GrammarMatcher(grammar)
        self._size = grammar.tokenizer_info.vocab_size
        self._bits = xgrammar.allocate_token_bitmask(1, self._size)

    def allowed(self, vocab: int) -> Bool[Tensor, " vocab"]:
        """The tokens that may come next, of as many as there are logits."""
        self._matcher.fill_next_token_bitmask(self._bits)
        known = ((self._bits[0, :, None] >> torch.arange(32)) & 1).flatten()[: min(vocab, self._size)].bool()
        return torch.cat([known, known.new_zeros(vocab - len(known))])

    def take(self, token: int) -> bool:
        """Go on behind a token; whether it is allowed."""
        return bool(self._matcher.accept_token(token))


class JsonForms:
    """Schemas as grammars over the tokens of a model."""

    def __init__(self, model: ChatModel, spelling: Spelling) -> None:
        self.model, self.spelling = model, spelling
        self._compiler: Any = None
        self._grammars: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()

    def grammar(self, schema: Any, param: str) -> Any:
        """What `JsonForm` takes; slow the first time.

        Raises:
            Refused: The package is not there, or the schema is none that replies can be held to.
        """
        if xgrammar is None:
            problem = "one that cannot be obeyed here without pip install -e '.[structured]' in a clone; leave it out"
            raise Refused(400, f"expected no {param.partition('.')[0]}, got {problem}", param=param.partition(".")[0])
        check(schema, param)
        text = json.dumps(schema)
        if len(text) > LONGEST or text.count("{") > MOST:
            got = f"{len(text):,} and {text.count('{'):,}"
            raise Refused(
                400, f"expected a schema of at most {LONGEST:,} bytes and {MOST} objects, got {got}", param=param
            )
        with self._lock:
            if text not in self._grammars:
                self._grammars[text] = self._compile(text, param)
            self._grammars.move_to_end(text)
            while len(self._grammars) > KEPT:
                self._grammars.popitem(last=False)
            return self._grammars[text]

    def _compile(self, text: str, param: str) -> Any:
        if self._compiler is None:
            size = self.model.hf.get_input_embeddings().weight.shape[0]
            spelled = [self.spelling.spell(token, False).bytes or b"" for token in range(len(self.model.tokenizer))]
            # between the words of JSON none is written, and in its strings none is allowed, though a grammar lets it in
            words = [word if min(word, default=0) >= 32 else b"" for word in spelled]
            stops = list(self.model.stop_ids)
            info = xgrammar.TokenizerInfo(words, xgrammar.VocabType.RAW, vocab_size=size, stop_token_ids=stops)
            self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        try:
            return self._compiler.compile_json_schema(text, any_whitespace=False, strict_mode=False)
        except RuntimeError as error:
            reason = str(error).strip().rpartition("] ")[2].partition(": ")[2] or "a schema that means nothing"
            raise Refused(400, f"expected a JSON schema, got one that is not: {reason[:200]}", param=param) from None


def check(schema: Any, where: str, depth: int = 0) -> None:
    """Refuse what a schema asks and replies would not be held to.

    Raises:
        Refused: A keyword that is not obeyed, or whose value is of another kind.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise Refused(400, f"expected {where} to be an object, got another value", param=where)
    if depth > DEEPEST:
        raise Refused(400, f"expected at most {DEEPEST} schemas inside each other, got more", param=where[:200])
    properties = schema.get("properties")
    named = properties.keys() if isinstance(properties, dict) else ()
    beside = {name: schema.keys() - NOTES - ALONE[name] - {name} for name in schema.keys() & ALONE.keys()}
    for name, value in schema.items():
        place = f"{where}.{name}"[:200]
        if name not in OBEYED and name not in NOTES:
            raise Refused(
                400, f"expected no {place}, got one that replies cannot be held to; leave it out", param=place
            )
        wanted: Any = OBEYED.get(name, object)
        if name in ("type", "anyOf", "enum") and value == []:
            raise Refused(400, f"expected one or more in {place}, got none", param=place)
        if not isinstance(value, wanted) or (wanted is int and (isinstance(value, bool) or value < 0)):
            raise Refused(400, f"expected another value of {place}, got {json.dumps(value)[:60]}", param=place)
        if name == "required" and not all(one in named for one in map(str, value)):
            raise Refused(400, f"expected {place} to be names of properties, got others", param=place)
        if beside.get(name) or (name == "$ref" and value[:1] != "#"):
            problem = f"beside {', '.join(sorted(beside[name]))}" if beside[name] else "of another document"
            raise Refused(400, f"expected {place} by itself, and of this schema, got one {problem}", param=place)
        if name in ("properties", "$defs", "definitions"):
            for key, inner in value.items():
                check(inner, f"{place}.{key}", depth + 1)
        elif name in ("items", "additionalProperties"):
            check(value, place, depth + 1)
        elif name == "anyOf":
            for number, inner in enumerate(value):
                check(inner, f"{place}.{number}", depth + 1)
