"""A server under siege: of 1,000 requests some leave, are malformed, oversize or hostile; every good one is answered.

    python benchmarks/siege.py MODEL VECTOR

Prints one JSON object, and ends with 1 if anything that must hold did not.
"""

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

REQUESTS, CLIENTS, LARGEST = 1000, 16, 2**20
SHARES = {"leaves": 0.2, "malformed": 0.05, "oversize": 0.05, "hostile": 0.05}
"""Of all requests; the others are good."""
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "How was your day?"}], "max_tokens": 12}
MALFORMED = (b"", b"{", b"[" * 50_000, b"\xff\xfe", b"null", b"9" * 9999, b'{"messages": 5}', b'{"model": "\\ud800"}')


def hostile(vector: str) -> list[bytes | None]:
    """Bodies that ask for too much or for nonsense; None is a connection that says half of something and stays."""
    steerings: list[dict[str, Any]] = [
        {"op": "cap", "floor": 1e25},
        {"op": "cap", "ceiling": 1e39},
        {"coef": 1e30},
        {"coef": 1, "layer": 10**9},
        {"coef": 1, "layer": -1},
        {"coef": 1e5, "layer": "all"},
        {"coef": 1, "above": -1e300},
    ]
    fields: list[dict[str, Any]] = [{"temperature": value} for value in (1e-39, 5e-324, -1, 1e400, float("nan"))]
    fields += [{"seed": 2**70}, {"max_tokens": 10**12}, {"n": 10**6}, {"stop": [""] * 4}, {"top_p": 5e-324}]
    fields += [{"persona": {"steering": [steering | {"vector": vector}]}} for steering in steerings]
    return [None, *(json.dumps(CHAT | field).encode() for field in fields)]


class Siege:
    """A served model, and those who ask it."""

    def __init__(self, model: str, vector: str, folder: Path) -> None:
        self.errors = (folder / "stderr").open("w+")
        command = [sys.executable, "-m", "personavec", "serve", "--model", model, "--vectors", vector, "--port", "0"]
        command += ["--log", str(folder / "turns.db"), "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", self._said())):
            assert self.process.poll() is None, self._said()
            time.sleep(0.1)
        self.port = int(found[1])
        self.open: list[asyncio.StreamWriter] = []
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def _said(self) -> str:
        return Path(self.errors.name).read_text()

    async def ask(self, body: bytes | None, path: str = "/v1/chat/completions", leave: bool = False) -> tuple[int, str]:
        """Status and text of an answer; a GET without a body. Who leaves sees the first bytes at most."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += "Content-Type: application/json\r\n" + f"Content-Length: {len(body or b'')}\r\n\r\n"
        try:
            writer.write(head.encode() + (body or b""))
            if leave:
                await asyncio.wait_for(reader.read(20), random.random())
                return 0, ""
            await writer.drain()
            told = (await asyncio.wait_for(reader.read(), 300)).decode()
            return int(told[9:12] or 0), told
        except (ConnectionError, TimeoutError):
            return 0, ""
        finally:
            writer.close()

    async def good(self, number: int, vector: str) -> None:
        """A request that must be answered in full."""
        stream, body = number % 2 == 0, CHAT | {"seed": number, "stream": number % 2 == 0}
        path = "/v1/chat/completions"
        if number % 3 == 0:
            body |= {"persona": {"steering": [{"vector": vector, "dose": 0.1}]}, "n": 2}
        elif number % 7 == 0:
            path, body = "/v1/completions", {"prompt": ["Once", "Twice"], "max_tokens": 8, "stream": stream}
        status, told = await self.ask(json.dumps(body).encode(), path)
        whole = told.endswith("data: [DONE]\n\n\r\n0\r\n\r\n") if stream else '"usage"' in told
        self.outcomes["good, answered" if status == 200 and whole and '"error"' not in told else "good, not"] += 1

    async def one(self, number: int, kind: str, vector: str) -> None:
        """A request of a kind."""
        if kind == "good":
            await self.good(number, vector)
        elif kind == "leaves":
            await self.ask(json.dumps(CHAT | {"stream": number % 2 == 0}).encode(), leave=True)
            self.outcomes["left"] += 1
        else:
            oversize = [json.dumps(CHAT | {"user": "x" * LARGEST}).encode()]
            bodies = {"malformed": MALFORMED, "oversize": oversize, "hostile": hostile(vector)}[kind]
            body = bodies[number % len(bodies)]
            if body is None:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
                self.open.append(writer)
                self.outcomes["half open"] += 1
                return
            status, told = await self.ask(body)
            self.outcomes[f"{kind}, {status}"] += 1
            expected = {"malformed": (400,), "oversize": (413,), "hostile": (200, 400, 500)}[kind]
            if status not in expected or (status >= 400 and '"error"' not in told):
                self.wrong.append(f"{kind} {body[:80]!r}: {told[:200]}")

    async def run(self, vector: str) -> dict[str, Any]:
        """All requests, then what is left of them."""
        chance, free = random.Random(0), asyncio.Semaphore(CLIENTS)
        kinds = [kind for kind, share in SHARES.items() for _ in range(int(share * REQUESTS))]
        kinds += ["good"] * (REQUESTS - len(kinds))
        chance.shuffle(kinds)
        memory: list[float] = []

        async def bounded(number: int, kind: str) -> None:
            async with free:
                await self.one(number, kind, vector)
            if number % 50 == 49:
                memory.append(self.mebibytes)

        began = time.monotonic()
        await asyncio.gather(*(bounded(number, kind) for number, kind in enumerate(kinds)))
        seconds = time.monotonic() - began
        for _ in range(300):
            status = json.loads((await self.ask(None, "/v1/status"))[1].partition("\r\n\r\n")[2])
            if not status["running"] and not status["queued"]:
                break
            await asyncio.sleep(0.1)
        left = {name: status[name] for name in ("running", "queued")}
        return {"seconds": round(seconds, 1), "left": left, "mebibytes": [memory[len(memory) // 4], memory[-1]]}

    @property
    def mebibytes(self) -> float:
        """Resident memory of the server."""
        (line,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return round(int(line) / 1024)

    def stop(self) -> dict[str, Any]:
        """SIGTERM, with half-open connections and half bodies about."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        told = self.process.stdout.readline()
        ended = time.monotonic() - began
        self.process.wait(120)
        return {
            "stop_seconds": round(ended, 1),
            "exit_seconds": round(time.monotonic() - began, 1),
            "exit": self.process.returncode,
            "stderr_bytes": len(self._said()),
            "tracebacks": self._said().count("Traceback"),
            "served": json.loads(told or "{}"),
        }


async def main(model: str, path: str) -> int:
    """Run it; 0 if everything held."""
    with tempfile.TemporaryDirectory() as folder:
        siege = Siege(model, path, Path(folder))
        listed = json.loads((await siege.ask(None, "/v1/vectors"))[1].partition("\r\n\r\n")[2])
        figures = await siege.run(listed["data"][0]["id"])
        figures |= {"outcomes": dict(sorted(siege.outcomes.items())), "wrong": siege.wrong[:20]}
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", siege.port)
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n")
            writer.write(b"Content-Type: application/json\r\n\r\n{")
            siege.open.append(writer)
        await asyncio.sleep(0.5)
        figures |= await asyncio.to_thread(siege.stop)
    print(json.dumps(figures, indent=2))
    held = not siege.outcomes["good, not"] and not siege.wrong and not any(figures["left"].values())
    held = held and figures["exit_seconds"] < 10 and figures["stderr_bytes"] < 1e6 and figures["exit"] == 0
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
