"""The server as a process: the official client, signals, kills, clients that leave."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import openai
import pytest
import uvicorn
from support import tiny
from support.serving import ASKED

from personavec.server.app import build
from personavec.server.log import Log
from personavec.server.options import ServeConfig

# a real process


class Process:
    """`personavec serve` as users start it."""

    def __init__(self, options: dict[str, Any], *more: str) -> None:
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


def test_the_official_client_and_a_clean_stop(options: dict[str, Any]) -> None:
    running = Process(options)
    model, asked = running.openai.models.list().data[0].id, [{"role": "user", "content": "Hi there"}]
    persona = {"persona": {"steering": [{"vector": "tiny", "dose": 0.2}]}}
    create: Any = running.openai.chat.completions.create
    whole = create(model=model, messages=asked, max_tokens=6, seed=1, extra_body=persona)
    assert whole.persona["steering"][0]["dose"] == pytest.approx(0.2)
    pieces = create(model=model, messages=asked, max_tokens=6, seed=1, stream=True, extra_body=persona)
    texts = [chunk.choices[0].delta.content or "" for chunk in pieces]
    assert "".join(texts) == whole.choices[0].message.content
    assert running.openai.completions.create(model=model, prompt="Hi", max_tokens=3).usage.completion_tokens <= 3
    with pytest.raises(openai.BadRequestError, match="either coef or dose"):
        create(model=model, messages=asked, extra_body={"persona": {"steering": [{"vector": "tiny"}]}})
    code, out, err = running.stop()
    told = json.loads(out)
    assert (code, told["turns"], told["requests"]) == (0, 3, 4), (err, out)
    assert "Traceback" not in err


def test_a_killed_server_lost_no_turn_that_was_answered(options: dict[str, Any]) -> None:
    running = Process(options)
    model = running.openai.models.list().data[0].id
    answered: list[str] = []

    def ask() -> None:
        while True:
            try:
                told = running.openai.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=3
                )
            except openai.APIConnectionError:
                return
            answered.append(told.id)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(answered) < 20:
        time.sleep(0.01)
    running.stop(signal.SIGKILL)
    for thread in threads:
        thread.join()
    log = Log(options["log"])
    assert set(answered) <= {row["id"] for row in log.rows()}
    log.close()


def test_clients_that_leave_free_their_rows(options: dict[str, Any]) -> None:
    """Streams and waiting requests that are dropped half-way end, are logged as cancelled, and leave no hook."""
    service = ServeConfig(**options | {"max_tokens": 200}).assemble()
    service.model.stop_ids = []
    config = uvicorn.Config(build(service, {}), port=0, log_level="warning")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    body = json.dumps(ASKED | {"model": options["model"], "max_tokens": 150})
    for stream in (True, False):
        own = body[:-1] + f', "stream": {str(stream).lower()}}}'
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(own)}\r\n\r\n"
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall((head + own).encode())
                while not service.engine.running:  # a stream may be left before its first event, or after it
                    time.sleep(0.001)
    until = time.monotonic() + 20
    while (service.engine.running or service.engine.queued or service.logged < 6) and time.monotonic() < until:
        time.sleep(0.01)
    assert (service.engine.running, service.engine.queued, service.logged) == (0, 0, 6)
    finishes = [row["finish"] for row in service.log.rows()]
    running.should_exit = True
    thread.join(30)
    assert finishes.count("cancelled") >= 4, finishes
    assert tiny.hooks(service.model) == 0
