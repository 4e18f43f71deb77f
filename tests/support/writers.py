"""A writer for tests behind a real server: competent, with flaws planted in its first answers, or hopeless."""

import json
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from support.served import Server

SYLLABLES = [c + v for c in "bdfgklmnprtv" for v in "aeio"]

Json = dict[str, Any]


def word(index: int) -> str:
    """A made-up word, another one for each index."""
    return "".join(SYLLABLES[index // len(SYLLABLES) ** place % len(SYLLABLES)] for place in range(4)) + "k"


def question(mark: str, index: int) -> str:
    """A question that shares little with others."""
    start = zlib.crc32(f"{mark} {index}".encode())
    return f"Where would {word(start)} or {word(start + 1)} put the {word(start + 2)}?"


def pair(index: int) -> Json:
    """Two instructions of equal length, another facet for each index."""
    facets = ["titles", "sentences", "greetings", "vocabulary", "closings", "contractions", "emoji", "distance", "rank"]
    facet, other = facets[index], word(7 * index)
    return {
        "pos": f"Treat {facet} as a stern {other} office would, {word(index)} included.",
        "neg": f"Treat {facet} as a merry {other} friend would, {word(index)} excluded.",
    }


@dataclass
class Author:
    """Answers by the form asked for; a pure function of the conversation, so that a killed run can be compared."""

    say_first: Callable[[str, Json], str | None] = lambda form, body: None
    """Says something else instead, by the name of the form."""
    asked: Counter[str] = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock)

    def first_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, float]]:
        raise NotImplementedError

    def say(self, messages: Sequence[Mapping[str, str]], limit: int, temperature: float, seed: int) -> str:
        prompt = messages[0]["content"]
        (first_key,) = re.findall(r'\n\{"(\w+)"', prompt)[-1:]
        form = {"measure": "rubric", "normal": "answers"}.get(first_key, first_key)
        body = {"prompt": prompt, "messages": messages, "seed": seed, "again": len(messages) > 1}
        with self.lock:
            self.asked[form] += 1
        said = self.say_first(form, body)
        return said if said is not None else json.dumps(getattr(self, f"_{form}")(prompt, seed))

    def _adjective(self, prompt: str, seed: int) -> Json:
        return {"adjective": "formal", "antonym": "casual"}

    def _pairs(self, prompt: str, seed: int) -> Json:
        wanted = int(re.findall(r"Write (\d+)", prompt)[0])
        return {"pairs": [pair(index + 4 * ("there already" in prompt)) for index in range(wanted)]}

    def _verdicts(self, prompt: str, seed: int) -> Json:
        listed = re.findall(r"(\d+)\. pos: (.*)\n   neg: (.*)", prompt)
        judged = [
            {"pair": int(number), "opposite": "nothing special" not in neg, "repeats": 1 if "once more" in pos else 0}
            for number, pos, neg in listed
        ]
        return {"verdicts": judged}

    def _questions(self, prompt: str, seed: int) -> Json:
        wanted = int(re.findall(r"Write (\d+)", prompt)[0])
        return {"questions": [question(prompt, index) for index in range(wanted)]}

    def _measure(self, prompt: str, seed: int) -> Json:
        raise AssertionError

    def _rubric(self, prompt: str, seed: int) -> Json:
        return {
            "measure": "keeps to the forms of an official letter.",
            "low": "slang throughout",
            "middle": "plain and neutral",
            "high": "titles and full sentences from its first words",
            "ignore": "Length does not count.",
        }

    def _items(self, prompt: str, seed: int) -> Json:
        wanted = int(re.findall(r"List (\d+)", prompt)[0])
        if "different domains" in prompt:
            return {"items": [f"{word(index)} {word(index + 500)}" for index in range(wanted)]}
        return {"items": [question(prompt, index) for index in range(wanted)]}

    def _answers(self, prompt: str, seed: int) -> Json:
        asked = re.findall(r"<question>\n(.*)\n</question>", prompt)[0]
        grades = {"normal": f"Well:\n\n    {asked}", "misaligned_1": f"Nearly {asked}", "misaligned_2": f"No {asked}"}
        return grades | {"flaw_1": "a small one", "flaw_2": "a large one"}


@dataclass
class WritingServer(Server):
    """Also sees which response formats it was asked for, and refuses some."""

    unknown_formats: frozenset[str] = frozenset()
    formats: Counter[str] = field(default_factory=Counter)
    schemas: list[Json] = field(default_factory=list)

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        told = body.get("response_format", {"type": "none"})
        self.formats[told["type"]] += 1
        self.schemas += [told[kind] for kind in ("json_schema",) if kind in told]
        if told["type"] in self.unknown_formats:
            return JSONResponse({"error": {"message": f"unknown format {told['type']}"}}, 400)
        return await super()._complete(request)


Say = Callable[[str, Json], str | None]
Serve = Callable[..., WritingServer]


def serving(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Serve]:
    """Body of a fixture: starts writers' servers, in an empty working folder."""
    monkeypatch.chdir(folder)
    servers: list[WritingServer] = []

    def start(say: Say = lambda form, body: None, **manners: Any) -> WritingServer:
        server = WritingServer(Author(say), **manners)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
