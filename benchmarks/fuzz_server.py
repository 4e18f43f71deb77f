"""The part of `fuzz.py` that asks a server of the tiny model: mutated requests, and those of its own OpenAPI page."""

import contextlib
import json
import logging
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import quote

import schemathesis
from fuzz import ANY, TEXTS, torn
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from support import serving, tiny_chat

from personavec.server.options import ServeConfig

CHAT, LEGACY, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PATHS = ("/v1/models", "/v1/vectors", "/v1/status", "/v1/conversations", "/v1/reports", "/health", "/ready", "/metrics")
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
STEERING = {"vector": "tiny", "coef": 0.5, "layer": 2, "positions": "response", "op": "add", "above": 0.0}
VALID: list[tuple[str, dict[str, Any]]] = [
    (RESPONSES, {"input": "Hi", "max_output_tokens": 2, "temperature": 0.5, "stream": True}),
    (
        RESPONSES,
        {
            "input": [{"role": "user", "content": "Hi"}],
            "instructions": "Be kind.",
            "max_output_tokens": 2,
            "store": False,
        },
    ),
    (CHAT, {"messages": TURNS, "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "n": 2, "seed": 5, "stop": ["\n"]}),
    (CHAT, {"messages": TURNS[1:], "max_completion_tokens": 2, "logprobs": True, "top_logprobs": 2, "stream": True}),
    (CHAT, {"messages": TURNS, "max_tokens": 2, "persona": {"steering": [STEERING], "watch": ["tiny"]}}),
    (
        CHAT,
        {
            "messages": TURNS,
            "max_tokens": 2,
            "persona": {"conversation": "a", "watch": [{"vector": "tiny", "layer": 1}]},
        },
    ),
    (CHAT, {"messages": TURNS, "max_tokens": 2, "tools": [], "user": "u", "stream_options": {"include_usage": True}}),
    (LEGACY, {"prompt": ["Once", "Twice"], "max_tokens": 2, "logprobs": 2, "echo": False, "best_of": 1}),
    (LEGACY, {"prompt": [5, 6, 7], "max_tokens": 2, "stream": True, "presence_penalty": 0}),
    (LEGACY, {"prompt": [[5, 6, 7], [8]], "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}),
]
FIELDS = sorted(
    {name for _, body in VALID for name in body} | {"role", "content", "type", "text", "vector", "dose", "op"}
)
NUMBERS = st.sampled_from(
    [0, -1, 1e-39, 5e-324, 1e39, 1e308, 2**31, 2**63, 2**70, 10**400, float("nan"), float("inf"), True]
)
INSIDE = re.compile(
    r'Traceback|File "|site-packages|/src/personavec|personavec\.\w+\.\w+|function-|pydantic|ValidationError|'
    r"object at 0x|<class|\b(?:[A-Z][a-z]+(?:Body|Spec|Turn|Part|Options|Config|Error))\b"
)
"""What no answer may show."""
HEADERS = st.fixed_dictionaries(
    {
        "content-type": st.sampled_from(
            ["application/json"] * 12 + ["application/json; charset=utf-16", "text/plain", "", "é"]
        )
    },
    optional={
        "content-encoding": st.sampled_from(["identity", "gzip", "br, gzip", ""]),
        "authorization": st.sampled_from(["Bearer x", "bearer", "Basic eA==", "Bearer \u00e9"]),
        "host": st.sampled_from(["127.0.0.1", "localhost:1", "[::1]", "evil.example", "[::1].evil.example", ""]),
        "content-length": st.sampled_from(["0", "-1", "9" * 30, "x", "\u00b2"]),
    },
)


def scored(told: Any) -> Any:
    """An answer without what is null at the first token of a prompt: so OpenAI tells it, whose types have no null."""
    for choice in told["choices"]:
        for name in ("token_logprobs", "top_logprobs"):
            values = (choice["logprobs"] or {}).get(name)
            if values and values[0] is None:
                del values[0]
    return told


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all that is in a value, itself included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield from places(held, (*path, key))


@st.composite
def mutated(draw: Any) -> tuple[str, bytes]:
    """A path and a body: of a valid request, of which something is another thing."""
    path, body = draw(st.sampled_from(VALID))
    whole: list[Any] = [deepcopy(body)]
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from([*places(whole)][1:]))
        holder: Any = whole
        for step in way:
            holder = holder[step]
        how = draw(st.sampled_from(["replace", "number", "delete", "wrap", "add"]))
        if how == "delete" and way:
            del holder[last]
        elif how == "wrap":
            holder[last] = [holder[last]]
        elif how == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(FIELDS) | TEXTS)] = draw(ANY | NUMBERS | st.just(body).map(deepcopy))
        else:
            holder[last] = draw(NUMBERS if how == "number" else ANY)
    content = json.dumps(whole[0], ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    chance = random.Random(draw(st.integers(0, 2**32)))
    return path, torn(content, chance) if chance.random() < 0.15 else content


class Asker:
    """Sends requests, and looks at what comes back."""

    def __init__(self, record: Any, client: Any, folder: Path) -> None:
        self.record, self.client, self.folder = record, client, str(folder)

    def send(self, method: str, path: str, **options: Any) -> None:
        """A request, whose answer must be in order."""
        with self.record.watching(f"{method}.txt", f"{method} {path!r}\n{options!r}".encode("utf-8", "replace")):
            answer = self.client.request(method, path, follow_redirects=False, **options)
            self.record.counts[f"answered {answer.status_code}"] += 1
            assert answer.status_code < 500 or path == "/ready", f"status {answer.status_code}"
            text = answer.content.decode("utf-8")
            found = (
                INSIDE.search(text)
                if not path.startswith(("/openapi", "/static", "/?", "/#")) and path != "/"
                else None
            )
            assert found is None and self.folder not in text, f"an answer shows the inside: {found and found[0]}"
            if answer.status_code >= 400 and method != "HEAD":
                self._wrong(answer)
            elif method == "POST":
                self._good(path, answer)

    def _wrong(self, answer: Any) -> None:
        error = answer.json()
        assert set(error) == {"error"} and set(error["error"]) == {"message", "type", "param", "code"}, (
            "no error of OpenAI's"
        )
        told = error["error"]
        assert told["message"] and "\n" not in told["message"] and len(told["message"]) < 1000, (
            "a message of several lines"
        )
        assert all(value is None or isinstance(value, str) for value in told.values()), "an error of other types"

    def _good(self, path: str, answer: Any) -> None:
        streamed = answer.headers["content-type"].startswith("text/event-stream")
        if path == RESPONSES:
            whole = (
                answer.json() if not streamed else json.loads(answer.text.rstrip().rpartition("data: ")[2])["response"]
            )
            assert not streamed or whole["status"] in ("completed", "incomplete"), "a stream without an end"
            Response.model_validate(whole)
            return
        if streamed:
            *events, end, rest = answer.text.split("\n\n")
            assert (end, rest) == ("data: [DONE]", ""), "a stream without an end"
            for event in events:
                chunk = json.loads(event.removeprefix("data: "))
                assert "error" not in chunk, f"an error within a stream: {chunk['error']['message'][:60]}"
                if path == LEGACY:  # the client's type knows no null, which the API has in all chunks but the last
                    chunk["choices"] = [
                        choice | {"finish_reason": choice["finish_reason"] or "stop"} for choice in chunk["choices"]
                    ]
                (Completion if path == LEGACY else ChatCompletionChunk).model_validate(scored(chunk))
            return
        (Completion if path == LEGACY else ChatCompletion).model_validate(scored(answer.json()))


def fuzz(record: Any, begin: int) -> None:
    """Ask until the time is over: for half of it by mutations, for half by the page."""
    logging.getLogger("personavec.server").setLevel(logging.CRITICAL)  # each 500 is a failure by itself
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    _, vector = tiny_chat.save(folder)
    os.chdir(folder)  # the model is called by what the server was given: no path is in its name
    config = ServeConfig(model="model", vectors=(vector,), log=folder / "turns.db", max_tokens=8, dtype="float32")
    with serving.client(config) as client:
        client.raise_server_exceptions = False  # type: ignore[attr-defined]
        asker = Asker(record, client, folder)
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        operations = [operation.ok() for operation in schema.get_all_operations()]

        def by_mutation() -> Any:
            @given(
                mutated(),
                HEADERS,
                st.sampled_from(["POST"] * 20 + ["GET", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH"]),
            )
            def ask(request: tuple[str, bytes], headers: dict[str, str], method: str) -> None:
                path, body = request
                spelt = {name: value.encode("latin-1") for name, value in headers.items() if len(headers) < 3}
                asker.send(method, path, content=body, headers={"content-type": "application/json"} | spelt)

            return ask

        def by_path() -> Any:
            @given(
                st.sampled_from(PATHS),
                TEXTS,
                st.sampled_from(["", "/", "?limit=", "?alerts=", "?", "/%2e%2e/", "/%00"]),
            )
            def ask(path: str, text: str, between: str) -> None:
                asker.send("GET", path + between + quote(text, errors="replace", safe="/?&=%"))

            return ask

        def by_page(operation: Any) -> Any:
            @given(operation.as_strategy())
            def ask(case: Any) -> None:
                sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
                kept = {name: sent[name] for name in ("params", "json", "data", "headers", "cookies") if sent.get(name)}
                if isinstance(kept.get("data"), bytes):
                    kept["content"] = kept.pop("data")
                asker.send(sent["method"], sent["url"].removeprefix("http://127.0.0.1"), **kept)

            return ask

        rounds = 0
        while not record.over:
            for test in (*(by_mutation() for _ in range(8)), by_path(), *map(by_page, operations)):
                if not record.over:
                    rounds += 1
                    limits = settings(
                        max_examples=60,
                        deadline=None,
                        database=None,
                        phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck),
                    )
                    with contextlib.suppress(schemathesis.errors.SchemathesisError):
                        seed(1000 * begin + rounds)(limits(test))()
        record.counts["rounds"] = rounds
        record.counts["operations of the page"] = len(operations)
    sys.stderr.flush()
