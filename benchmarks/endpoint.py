"""What the client adds to a bare HTTP call at 32 calls at once: python benchmarks/endpoint.py.

A server of fixed answers runs in a process of its own. Both sides ask it the same number of different questions, in
turn; the difference of the median times, per call, is what personavec adds: the openai client, retries, cache, budget.
"""

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import httpx2
import uvicorn
from fastapi import FastAPI

from personavec.model.endpoint import Endpoint

CALLS, CONCURRENCY, ROUNDS, PORT = 2000, 32, 7, 8791
TOP = [{"token": str(number), "logprob": -3.0} for number in range(20)]
ANSWER = {
    "choices": [
        {
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "7"},
            "logprobs": {"content": [{"token": "7", "logprob": -3.0, "top_logprobs": TOP}]},
        }
    ],
    "usage": {"total_tokens": 200},
}
URL = f"http://127.0.0.1:{PORT}/v1"


def serve() -> None:
    app = FastAPI()
    app.post("/v1/chat/completions")(lambda: ANSWER)
    app.get("/ready")(lambda: True)
    uvicorn.run(app, port=PORT, log_level="critical")


def requests(round_: int) -> list[dict]:
    asked = [f"Round {round_}, question {index}. " + "Rate the reply. " * 60 for index in range(CALLS)]
    return [
        {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        for text in asked
    ]


async def bare(asked: list[dict]) -> None:
    waiting = iter(asked)

    async def work() -> None:
        for request in waiting:
            (await client.post(f"{URL}/chat/completions", json={"model": "judge", **request})).json()

    async with httpx2.AsyncClient(timeout=60) as client:
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def main() -> None:
    server = multiprocessing.Process(target=serve, daemon=True)
    server.start()
    while True:
        try:
            httpx2.get(f"http://127.0.0.1:{PORT}/ready")
            break
        except httpx2.ConnectError:
            time.sleep(0.1)
    seconds: dict[str, list[float]] = {"bare": [], "personavec": []}
    with tempfile.TemporaryDirectory() as folder:
        endpoint = Endpoint("judge", URL, Path(folder) / "answers.sqlite", CONCURRENCY)
        for round_ in range(ROUNDS + 1):  # the first one warms up
            began = time.perf_counter()
            asyncio.run(bare(requests(round_)))
            between = time.perf_counter()
            endpoint.ask_all(requests(round_))
            ended = time.perf_counter()
            if round_:
                seconds["bare"].append(between - began)
                seconds["personavec"].append(ended - between)
    assert endpoint.usage.calls == CALLS * (ROUNDS + 1) and not endpoint.usage.failed
    ours, bare_ = (1000 * statistics.median(seconds[name]) / CALLS for name in ("personavec", "bare"))
    print(
        f"| client at {CONCURRENCY} calls at once, personavec / bare HTTP | {ours:.2f} / {bare_:.2f} ms a call "
        f"| {ours / bare_:.2f} | adds {ours - bare_:.2f} ms |"
    )
    server.terminate()


if __name__ == "__main__":
    main()
