"""What the server costs and survives: python benchmarks/server.py VECTOR [turns|cost|streams|soak …].

    pip install -e ".[serve]"

Server and clients are one process each on this machine; replies do not end by themselves here, so that arms write the
same number of tokens. Arms take turns, and ratios are taken within a round.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from openai import AsyncOpenAI

from personavec.stats.intervals import clustered_mean

CLIENTS, TOKENS, ROUNDS, SOAK = 16, 48, 6, 1000
TURN_TOKENS = 16
QUESTIONS = (
    "How was your day?",
    "What is a good way to spend a Sunday?",
    "How do boats float?",
    "What should I cook tonight?",
    "Why is the sky blue?",
    "How do I learn to swim?",
    "What makes a good friend?",
    "How old are the mountains?",
    "What should I read next?",
    "How does a clock work?",
    "Where do birds go in winter?",
    "How do I plant a tree?",
    "What is a fair price for a bicycle?",
    "How do I fall asleep faster?",
    "Why do cats purr?",
    "What is the point of a budget?",
)
"""One for each client: equal prompts would be read once by the offline batch."""
ALL = {"watch": [{"vector": "VECTOR", "layer": "all"}], "steering": []}


def serve(vector: str, port: int) -> None:
    """The server, as `personavec serve` starts it, with a way to be told to write offline."""
    import uvicorn

    from personavec.model.sampling import Sampling
    from personavec.server.app import build
    from personavec.server.options import ServeConfig
    from personavec.steering.generate import Request, generate

    log = Path(mkdtemp()) / "turns.db"
    config = ServeConfig(dtype="float32", vectors=(Path(vector),), log=log, watch=("none",), queue=SOAK)
    service = config.assemble()
    service.model.stop_ids = []
    app = build(service, {})

    @app.get("/offline")
    def offline() -> float:
        asked = [service.model.render([{"role": "user", "content": QUESTIONS[n]}]) for n in range(CLIENTS)]
        began = time.monotonic()
        generate(service.model, [Request(ids, (), (0, n)) for n, ids in enumerate(asked)], Sampling(TOKENS, 0.7))
        return CLIENTS * TOKENS / (time.monotonic() - began)

    @app.get("/state")
    def state() -> dict[str, Any]:
        modules = service.model.hf.modules()
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {
            "running": service.engine.running,
            "queued": service.engine.queued,
            "hooks": hooks,
            "seconds": time.process_time(),
            "mebibytes": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        }

    @app.get("/prefixes/{mebibytes}")
    def prefixes(mebibytes: int) -> int:
        """Forget what was kept, and keep so much from here on; nothing may be under way."""
        service.engine.prefixes.clear()
        service.engine.prefixes.most_bytes = mebibytes * 2**20
        return mebibytes

    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Clients:
    """Sixteen of them."""

    def __init__(self, url: str, vector: str) -> None:
        from personavec.steering.vector import load_vector

        self.url, self.trait = url, load_vector(Path(vector)).card.trait
        self.openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)

    async def get(self, path: str) -> Any:
        return (
            await self.openai.get(f"{self.url}{path}", cast_to=float)
            if path.startswith(("/offline", "/prefixes"))
            else await self.openai.get(f"{self.url}{path}", cast_to=object)
        )

    async def ask(self, number: int, stream: bool, tokens: int = TOKENS, persona: Any = None) -> float:
        """One reply; returns seconds to its first token."""
        began = time.monotonic()
        persona = json.loads(json.dumps(persona or {}).replace("VECTOR", self.trait))
        reply = await self.openai.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": QUESTIONS[number % CLIENTS]}],
            max_tokens=tokens,
            temperature=0.7,
            seed=number,
            stream=stream,
            extra_body={"persona": persona},
        )
        first = 0.0
        if stream:
            async for _ in reply:
                first = first or time.monotonic() - began
        return first

    async def speed(self, stream: bool, persona: Any = None) -> tuple[float, float]:
        """Tokens a second of all of them at once: by the clock, and by the server's processor time."""
        began, before = time.monotonic(), (await self.get("/state"))["seconds"]
        await asyncio.gather(*(self.ask(number, stream, persona=persona) for number in range(CLIENTS)))
        tokens, after = CLIENTS * TOKENS, (await self.get("/state"))["seconds"]
        return tokens / (time.monotonic() - began), tokens / (after - before)


def told(name: str, speeds: list[float], against: list[float]) -> None:
    """A line of the table."""
    ratios = np.array(speeds) / np.array(against)
    found = clustered_mean(ratios, np.arange(len(ratios)))
    print(f"| {name} | {np.median(speeds):.1f} | {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] |", flush=True)


async def turns(clients: Clients) -> None:
    """A chat of ten turns, with what was read of earlier ones and without."""
    steered = {"vector": clients.trait, "dose": 0.1}
    arms: dict[str, Any] = {
        "not steered": [],
        "replies steered": [steered],
        "all tokens steered": [steered | {"positions": "all"}],
    }
    print("| a chat of 10 turns | tokens of its prompts | read | a share of | replies | seconds | without |")
    print("|---|---|---|---|---|---|---|")
    for name, steering in arms.items():
        found = []
        for mebibytes in (512, 0):
            await clients.get(f"/prefixes/{mebibytes}")
            began, prompts, reused, messages = time.monotonic(), 0, 0, []
            for question in QUESTIONS[:10]:
                messages.append({"role": "user", "content": question})
                reply = await clients.openai.chat.completions.create(
                    model="smollm2",
                    messages=messages,
                    max_tokens=TURN_TOKENS,
                    temperature=0,
                    extra_body={"persona": {"steering": steering}},
                )
                messages.append({"role": "assistant", "content": reply.choices[0].message.content})
                prompts += reply.usage.prompt_tokens
                reused += reply.usage.prompt_tokens_details.cached_tokens
            found.append((prompts, prompts - reused, time.monotonic() - began, messages))
        (prompts, read, seconds, said), (_, whole, slowly, alike) = found
        same = "the same" if said == alike else "other ones"
        print(f"| {name} | {prompts:,} | {read:,} | 1/{whole / read:.1f} | {same} | {seconds:.1f} | {slowly:.1f} |")


async def cost(clients: Clients) -> None:
    """Watching and steering against plain requests."""
    arms = {
        "plain": {},
        "watching one layer": {"watch": ["VECTOR"]},
        "watching all layers": ALL,
        "steering one layer": {"steering": [{"vector": "VECTOR", "dose": 0.1}]},
        "steering all layers": {"steering": [{"vector": "VECTOR", "coef": 0.3, "layer": "all"}]},
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    await clients.speed(False)
    for turn in range(ROUNDS):
        for place in range(len(arms)):
            name = list(arms)[(place + turn) % len(arms)]
            found[name].append((await clients.speed(False, arms[name]))[1])
    print("| 16 requests at once | tokens a second of processor time | ratio to plain |\n|---|---|---|")
    for name, speeds in found.items():
        told(name, speeds, found["plain"])


async def streams(clients: Clients) -> None:
    """Streams against the offline batch, and the first token of a newcomer."""
    offline, streamed, idle, busy = [], [], [], []
    await clients.speed(True)
    for _ in range(ROUNDS):
        offline.append(float(await clients.get("/offline")))
        streamed.append((await clients.speed(True))[0])
        for number in range(3):
            idle.append(await clients.ask(number, True, 2))
        others = [asyncio.create_task(clients.ask(number, True, 3 * TOKENS)) for number in range(CLIENTS - 1)]
        await asyncio.sleep(4)
        for number in range(3):
            busy.append(await clients.ask(number, True, 2))
        await asyncio.gather(*others)
    print("| 16 streams | tokens/s | ratio to the offline batch |\n|---|---|---|")
    told("offline batch of 16", offline, offline)
    told("16 streaming clients", streamed, offline)
    print(
        f"\nfirst token: {np.median(idle):.3f} s on an idle server, {np.median(busy):.3f} s beside 15 streams, ", end=""
    )
    print(f"ratio {np.median(busy) / np.median(idle):.2f}")


async def soak(clients: Clients) -> None:
    """A thousand requests, of which some clients leave, some bodies are malformed and some too long."""
    from collections import Counter
    from urllib.parse import urlparse

    rng = np.random.default_rng(0)
    kinds = rng.permutation(
        ["leaves"] * (SOAK // 5)
        + ["malformed"] * (SOAK // 20)
        + ["oversize"] * (SOAK // 20)
        + ["good"] * (SOAK * 7 // 10)
    )
    port, outcome, memory = urlparse(clients.url).port, Counter(), []
    free = asyncio.Semaphore(24)

    async def raw(body: bytes, wait: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            return await reader.read(200) if wait else b""
        except OSError:  # refused before all was sent
            return b"HTTP/1.1 413"
        finally:
            writer.close()

    async def one(number: int, kind: str) -> None:
        async with free:
            asked = {
                "model": "smollm2",
                "messages": [{"role": "user", "content": QUESTIONS[number % CLIENTS]}],
                "max_tokens": 40,
                "stream": number % 2 == 0,
            }
            if kind == "good":
                try:
                    await clients.ask(
                        number,
                        number % 2 == 0,
                        6,
                        [{}, ALL, {"steering": [{"vector": "VECTOR", "dose": 0.1}]}][number % 3],
                    )
                    outcome["good, answered"] += 1
                except Exception as error:
                    outcome[f"good, {type(error).__name__}"] += 1
            elif kind == "leaves":
                await raw(json.dumps(asked).encode(), wait=number % 2 == 0)
                outcome["left"] += 1
            else:
                body = b'{"model": ' if kind == "malformed" else json.dumps(asked | {"user": "x" * 2**21}).encode()
                outcome[f"{kind}, {(await raw(body, wait=True))[9:12].decode()}"] += 1
        if number % 50 == 49:
            memory.append((await clients.get("/state"))["mebibytes"])

    await asyncio.gather(*(one(number, str(kind)) for number, kind in enumerate(kinds)))
    state = {"running": 1}
    for _ in range(300):
        state = await clients.get("/state")
        if not state["running"] and not state["queued"]:
            break
        await asyncio.sleep(0.1)
    print(dict(sorted(outcome.items())))
    print(f"left running {state['running']}, queued {state['queued']}, hooks {state['hooks']}; ", end="")
    print(f"memory {memory[len(memory) // 4]:.0f} MiB after a quarter, {memory[-1]:.0f} MiB at the end")


async def main(vector: str, parts: list[str]) -> None:
    port = 8765
    server = subprocess.Popen([sys.executable, __file__, "serve", vector, str(port)])
    clients = Clients(f"http://127.0.0.1:{port}", vector)
    try:
        for _ in range(600):
            try:
                await clients.openai.models.list()
                break
            except Exception:
                await asyncio.sleep(0.2)
        for part in parts:
            await clients.get("/prefixes/0")  # arms ask the same questions again and again
            await {"turns": turns, "cost": cost, "streams": streams, "soak": soak}[part](clients)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        asyncio.run(main(sys.argv[1], sys.argv[2:] or ["turns", "cost", "streams", "soak"]))
