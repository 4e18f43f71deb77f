"""Servers that are busy, go away and come back, and a client that is killed."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from support.vllm_double import LOCK, Double, Manners

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.engines import servers as module
from personavec.model.engines.vllm import connect
from personavec.model.logits import reply_logprobs
from personavec.model.sampling import Sampling
from personavec.steering.generate import Reply, Request, generate
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

SAMPLING = Sampling(6, 0.0)


@pytest.fixture(scope="module")
def chat(saved: tuple[Path, Path]) -> ChatModel:
    return ChatModel.load(str(saved[0]), dtype="float32", device="cpu")


@pytest.fixture
def v(chat: ChatModel) -> PersonaVector:
    return tiny.vector(chat)


@pytest.fixture
def double(chat: ChatModel, v: PersonaVector) -> Iterator[Double]:
    double = Double(chat, [v]).start()
    yield double
    double.stop()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.05, 0.1))


def requests(v: PersonaVector, count: int = 24) -> list[Request]:
    return [Request(tiny.prompt(3 + n % 4, n), (Steering(v, 1.0, 2),) if n % 2 else ()) for n in range(count)]


def ours(chat: ChatModel, requests: list[Request]) -> list[Reply]:
    """What our loop writes; a server that is gone, or was left, may still be at work on the model in its threads."""
    with LOCK:
        return generate(chat, requests, SAMPLING)


@pytest.mark.slow
def test_a_busy_server_is_asked_again(chat: ChatModel, double: Double, v: PersonaVector) -> None:
    remote = connect(f"vllm:{double.url}", chat.identity.id)
    double.manners.faults = 36
    assert generate(remote, requests(v), SAMPLING) == ours(chat, requests(v))


def test_a_server_that_stays_busy_is_given_up(
    chat: ChatModel, double: Double, v: PersonaVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    remote = connect(f"vllm:{double.url}", chat.identity.id)
    double.manners.faults = 10**6
    with pytest.raises(ModelError, match=r"got none for 0 seconds \(503: busy\); start it again, then run the same"):
        generate(remote, requests(v, 3), SAMPLING)


def test_a_call_that_always_fails_is_given_up(chat: ChatModel, double: Double, v: PersonaVector) -> None:
    remote = connect(f"vllm:{double.url}", chat.identity.id)
    double.manners.poison = requests(v)[5].prompt[0]
    with pytest.raises(ModelError, match="9 failures of one call, the last: 500: cannot; start it again"):
        generate(remote, requests(v), SAMPLING)


@pytest.mark.slow
def test_a_server_that_crashes_is_waited_for(
    chat: ChatModel, v: PersonaVector, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes back without the vector that it was sent."""
    other = tiny.vector(chat, seed=4)
    double = Double(chat, [v], Manners(crash_after=12)).start()
    remote = connect(f"vllm:{double.url}", chat.identity.id)

    def restart() -> None:
        double._thread.join(20)
        double.accepted.clear()
        time.sleep(0.5)
        double.start()

    helper = threading.Thread(target=restart)
    helper.start()
    asked = requests(v) + requests(other)
    assert generate(remote, asked, SAMPLING) == ours(chat, asked)
    helper.join()
    said = capsys.readouterr().err
    assert "is away" in said and "is there again" in said
    double.stop()


@pytest.mark.slow
def test_the_others_do_the_work_of_one_that_is_gone(chat: ChatModel, double: Double, v: PersonaVector) -> None:
    gone = Double(chat, [v], Manners(crash_after=10)).start()
    remote = connect(f"vllm:{gone.url},{double.url}", chat.identity.id)
    assert generate(remote, requests(v, 48), SAMPLING) == ours(chat, requests(v, 48))
    gone._thread.join(20)
    prompts = [request.prompt for request in requests(v)]
    assert len(reply_logprobs(remote, prompts, prompts)) == 24, "the next list as well"


def test_another_server_in_its_place_is_refused(chat: ChatModel, v: PersonaVector) -> None:
    double = Double(chat, [v], Manners(crash_after=10)).start()
    remote = connect(f"vllm:{double.url}", chat.identity.id)

    def replace() -> None:
        double._thread.join(20)
        double.manners.changes = {"model": {"dtype": "float16"}}
        double.start()

    helper = threading.Thread(target=replace)
    helper.start()
    with pytest.raises(ModelError, match="number format"):
        generate(remote, requests(v, 48), SAMPLING)
    helper.join()
    double.stop()


def test_no_server_comes_back(chat: ChatModel, v: PersonaVector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    double = Double(chat, [v], Manners(crash_after=10)).start()
    remote = connect(f"vllm:{double.url}", chat.identity.id)
    written = []
    with pytest.raises(ModelError, match="what was written is kept"):
        from personavec.steering.generate import elsewhere

        assert remote.engine is not None
        for group in elsewhere(remote.engine, requests(v, 48), SAMPLING):
            written += group
    assert dict(written) == {place: ours(chat, [requests(v, 48)[place]])[0] for place, _ in written}
    assert not [thread for thread in threading.enumerate() if thread.name == "personavec-engine"]


@pytest.mark.slow
def test_whoever_stops_reading_leaves_nothing_behind(chat: ChatModel, double: Double, v: PersonaVector) -> None:
    remote = connect(f"vllm:{double.url}", chat.identity.id)
    assert remote.engine is not None
    from personavec.steering.orders import make_orders

    orders = make_orders([(request.prompt, request.steering, (0,)) for request in requests(v, 96)])
    written = remote.engine.write(orders, SAMPLING)
    next(written)
    written.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "personavec-engine"]
    assert generate(remote, requests(v), SAMPLING) == ours(chat, requests(v))
