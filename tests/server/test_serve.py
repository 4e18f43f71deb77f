"""The server as a process: the official client, signals, kills, clients that leave."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from support import tiny
from support.serving import ASKED, Process

from personavec.errors import ConfigError, PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.server.app import build
from personavec.server.log import Log
from personavec.server.options import ServeConfig
from personavec.server.serve import listen, serve
from personavec.steering.vector import PersonaVector, load_vector


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
    assert (code, told["turns"], told["requests"]) == (0, 3, 5), (err, out)
    assert "Traceback" not in err


@pytest.mark.slow
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


def test_objects_are_served_until_a_signal(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """The model and the vector in memory, as a researcher holds them."""
    model, vector = ChatModel.load(str(saved[0]), dtype="float32"), load_vector(saved[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers: list[Any] = []

    def ask() -> None:
        asking = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20)
        try:
            messages: Any = [{"role": "user", "content": "Hi"}]
            answers.append(asking.chat.completions.create(model=model.identity.id, messages=messages, max_tokens=3))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    served = serve(
        model,
        vectors=[vector],
        steer=vector.at(dose=0.2),
        log=tmp_path / "turns.db",
        port=port,
        max_tokens=16,
        queue=4,
    )
    thread.join()
    assert answers[0].persona["steering"][0]["dose"] == pytest.approx(0.2)
    assert list(answers[0].choices[0].persona["projections"]) == ["tiny"]
    assert (served.data["turns"], served.data["requests"], served.data["model"]) == (1, 1, model.identity.id)
    assert "turns: 1" in repr(served) and tiny.hooks(model) == 0
    twice = PersonaVector(vector.direction * 2, vector.card)
    stranger = tiny.vector(tiny.build("llama", hidden_size=48))
    for options, told in (
        ({"vectors": [vector, twice]}, "expected one vector a trait, got another tiny in memory"),
        ({"vectors": [stranger]}, "expected a vector for"),
        ({"steer": [vector.at(coef=1.0, layer=1), "x"]}, "expected VEC:COEF"),
        ({"max_dose": -1.0}, "expected max_dose above 0"),
        ({"host": "0.0.0.0"}, "expected a key with --host"),
        ({"reports": [tmp_path]}, "expected report.html"),
    ):
        with pytest.raises(PersonavecError, match=told) as error:
            serve(model, **{"log": tmp_path / "other.db", "port": 0} | options)
        assert "\n" not in str(error.value)


def test_a_taken_port_is_told_before_the_model_is_loaded(options: dict[str, Any]) -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"expected a free address, got 127.0.0.1:{port}"):
            ServeConfig(**options | {"model": "/nosuch/model"}, port=port).run()


def test_small_answers_do_not_wait_for_an_acknowledgement() -> None:
    """asyncio turns Nagle's algorithm off only for sockets that name TCP: it held every answer back by 40 ms."""
    seen: list[int] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def ask() -> None:
        with listen("127.0.0.1", 0) as listening:
            server = await asyncio.start_server(answer, sock=listening)
            reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            await reader.read()
            writer.close()
            server.close()

    asyncio.run(ask())
    assert seen and all(seen)


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
