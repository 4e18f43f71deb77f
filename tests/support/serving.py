"""A server of the tiny model, and how tests ask it."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
from starlette.testclient import TestClient

from personavec.server.app import build
from personavec.server.options import ServeConfig
from personavec.server.service import Service

ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hi there"}],
    "max_tokens": 8,
    "seed": 3,
}


class Client(TestClient):
    """Asks a server; leaves out what every request says alike."""

    service: Service

    def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> Any:
        return self.post(path, json=ASKED | {"model": self.service.model.identity.id} | fields)

    def persona(self, **persona: Any) -> Any:
        return self.ask(persona=persona)

    def events(self, **fields: Any) -> list[Any]:
        body = self.ask(stream=True, **fields).text
        events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]


def client(config: ServeConfig, reports: dict[str, Path] | None = None) -> Client:
    service = config.assemble()
    made = Client(build(service, reports or {}), base_url="http://127.0.0.1")
    made.service = service
    return made


def good(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def bad(answer: Any, status: int, match: str) -> None:
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert match in error["message"], error["message"]


class Process:
    """`personavec serve` as users start it."""

    def __init__(self, options: dict[str, Any], *more: str, descriptors: int | None = None) -> None:
        vectors = [str(path) for path in options["vectors"]]
        command = [
            "serve",
            "--model",
            options["model"],
            "--vectors",
            *vectors,
            "--log",
            str(options["log"]),
            "--port",
            "0",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "personavec", *command, "--json", *more],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=None
            if descriptors is None
            else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert "serving" in line, line + self.process.stderr.read()
        self.url = next(word for word in line.split() if word.startswith("http"))
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def stop(self, how: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err
