"""What an accelerator gives, in one command without a network: python benchmarks/gpu.py --out gpu.json.

Three parts, on random weights of a known size (`--size qwen2.5-7b`; `tiny` tries the script on any machine):

- loop: replies written by our own loop, unsteered, every row steered, watched; how often a token waits for the device;
- reading: activations, at several sizes of a pass, with padding to mask and without;
- vllm: tokens a second of vLLM's server plain and eager, and with the plugin idle, steered, watched, and reading spans.
  Needs `--vllm PYTHON`, the python of an environment with vLLM and this package (see docs/vllm.md).

`--before CHECKOUT` measures the loop of an older checkout, too, in the same run. Writes one JSON, and prints a table
and the bars: the plugin idle costs at most 1%, steered and watched at most 5% against plain vLLM with graphs; our loop
is at least twice as fast as before.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1]
RUNS = 3
"""Of each figure; the median counts."""


@dataclass(frozen=True)
class Size:
    """A model to make up, and how much of everything is measured with it."""

    config: dict[str, int]
    rows: tuple[int, ...]
    prompt: int
    reply: int
    passes: tuple[int, ...]
    """Tokens of one pass that reads."""
    requests: int
    """Sent to vLLM at once."""


SIZES = {
    # the shape of Qwen2.5-7B, from its config.json
    "qwen2.5-7b": Size(
        {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        rows=(16, 47, 128, 256),
        prompt=128,
        reply=64,
        passes=(1024, 2048, 4096, 8192, 16384, 32768),
        requests=256,
    ),
    "tiny": Size(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        },
        rows=(4, 16),
        prompt=16,
        reply=8,
        passes=(256, 1024),
        requests=8,
    ),
}
ROW = 512
"""Tokens of a conversation that is read."""


def main() -> int:
    """Measure what is asked for; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="qwen2.5-7b")
    parser.add_argument("--parts", nargs="+", choices=("loop", "reading", "vllm"), default=["loop", "reading", "vllm"])
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM and this package")
    parser.add_argument("--before", metavar="CHECKOUT", help="an older checkout, whose loop is measured as well")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    given = parser.parse_args()
    if "vllm" in given.parts and not given.vllm:
        parser.error("expected --vllm PYTHON, got none; give it, or: --parts loop reading")
    torch.set_grad_enabled(False)
    size = SIZES[given.size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"size": given.size, "machine": machine(device)}
    with tempfile.TemporaryDirectory() as folder:
        if {"loop", "reading"} & {*given.parts}:
            found |= ours(size, given.parts, device)
        if given.before and "loop" in given.parts:
            found["loop before"] = before(given)
        if "vllm" in given.parts:
            torch.cuda.empty_cache()
            found["vllm"] = vllm(size, given.vllm, Path(folder), device)
    found["bars"] = bars(found)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{json.dumps(found['bars'], indent=1)}\n{given.out}")
    return int(not all(bar["held"] for bar in found["bars"].values()))


def machine(device: torch.device) -> dict[str, str]:
    """What the figures come from."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": card, "torch": torch.__version__, "transformers": transformers.__version__}


def ours(size: Size, parts: list[str], device: torch.device) -> dict[str, Any]:
    """Our own loop and reading on one random model, which is gone afterwards."""
    model = made(size, device)
    measures = {"loop": loop, "reading": reading}
    return {part: measures[part](model, size) for part in parts if part in measures}


def made(size: Size, device: torch.device) -> Any:
    """The random model as a `ChatModel`, with a tokenizer that knows numbers alone."""
    from personavec.model.chat_model import ChatModel

    torch.manual_seed(0)
    config = transformers.Qwen2Config(**size.config, max_position_embeddings=32768, eos_token_id=1)
    with device:
        hf = transformers.Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    return ChatModel(hf.eval(), tokenizer(size), "random")


def tokenizer(size: Size) -> transformers.PreTrainedTokenizerFast:
    """A word for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<end>": 1, **{f"t{number}": number for number in range(2, size.config["vocab_size"])}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<end>",
        chat_template="{% for m in messages %}t2 {{ m['content'] }} <end> {% endfor %}t3",
    )


def vector(identity: Any) -> Any:
    """A direction of length 1 at every layer of a model."""
    from personavec.steering.vector import Card, PersonaVector

    direction = torch.randn((identity.n_layers, identity.d_model), generator=torch.Generator().manual_seed(0))
    card = Card("random", identity, "response avg", layer=identity.n_layers // 2, coef=1.0)
    return PersonaVector(direction / direction.norm(dim=-1, keepdim=True), card)


def prompts(size: Size, count: int, length: int) -> list[tuple[int, ...]]:
    """Random ids, none of which ends a reply."""
    drawn = torch.randint(4, size.config["vocab_size"], (count, length), generator=torch.Generator().manual_seed(1))
    return [tuple(row) for row in drawn.tolist()]


def loop(model: Any, size: Size) -> dict[str, Any]:
    """Tokens a second by rows, and waits for the device a token."""
    from personavec.model.sampling import Sampling
    from personavec.steering.generate import Request, Watch, stream
    from personavec.steering.steer import Steering

    model.stop_ids = []
    push, found = vector(model.identity), {}
    layer = model.n_layers // 2
    for rows in size.rows:
        asked = prompts(size, rows, size.prompt)
        plain = [Request(ids, (), (number,)) for number, ids in enumerate(asked)]
        steered = [Request(r.prompt, (Steering(push, 0.01 * (1 + i), layer),), r.seed) for i, r in enumerate(plain)]
        kinds: dict[str, tuple[list[Any], list[Any]]] = {
            "plain": (plain, []),
            "steered": (steered, []),
            "watched": (plain, [Watch(layer, push.unit(layer))]),
        }

        def write(kind: str, kinds: Any = kinds) -> int:
            requests, watch = kinds[kind]
            return sum(len(step.rows) for step in stream(model, requests, Sampling(size.reply, 0.7), watch))

        write("plain")
        found[str(rows)] = {kind: speed(lambda kind=kind: write(kind), model.device) for kind in kinds}
        found[str(rows)]["waits a token"] = waits(lambda: write("plain"), model.device, size.reply)
        show(f"loop, {rows} rows", found[str(rows)])
    return found


def waits(act: Callable[[], Any], device: torch.device, tokens: int) -> float | None:
    """How often a token waits for the device, as torch sees it; None where there is none to wait for."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            act()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught) / tokens


def reading(model: Any, size: Size) -> dict[str, Any]:
    """Tokens a second by the size of a pass: rows of one length, and of two, whose padding is masked."""
    from personavec.model.hooks import capture

    found: dict[str, Any] = {}
    layers = [model.n_layers // 2]
    for tokens in size.passes:
        length = min(ROW, tokens // 2)
        rows = prompts(size, tokens // length, length)
        uneven = [rows[0][: length // 2], *rows[1:]]

        def read(rows: list[tuple[int, ...]], length: int = length) -> int:
            weights = torch.full((len(rows), 1, length), 1 / length)
            capture(model, rows, weights, layers)
            return sum(map(len, rows))

        try:
            read(rows)
            figures = {
                "without padding": speed(lambda rows=rows: read(rows), model.device),
                "with padding": speed(lambda uneven=uneven: read(uneven), model.device),
            }
        except torch.OutOfMemoryError:
            figures = {}
        found[str(tokens)] = figures or "out of memory"
        show(f"reading, {tokens:,} tokens a pass", figures)
    return found


def speed(act: Callable[[], int], device: torch.device) -> float:
    """Tokens a second, the median of some runs."""
    speeds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        tokens = act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(tokens / (time.perf_counter() - began))
    return round(statistics.median(speeds), 1)


def before(given: argparse.Namespace) -> Any:
    """The loop of an older checkout, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "before.json"
        command = [sys.executable, __file__, "--size", given.size, "--parts", "loop", "--out", str(out)]
        env = os.environ | {"PYTHONPATH": str(Path(given.before).resolve() / "src")}
        subprocess.run(command, env=env, check=False)
        if not out.exists():
            raise SystemExit(f"expected {given.before} to be a checkout whose loop runs, got an error, above")
        return json.loads(out.read_text())["loop"]


def vllm(size: Size, python: str, folder: Path, device: torch.device) -> dict[str, Any]:
    """A server of each kind in turn, all asked the same."""
    model_folder, vectors = folder / "model", folder / "vectors"
    content_hash, layer = write_model(size, model_folder, vectors)
    plain = [python, "-m", "vllm.entrypoints.openai.api_server", "--enable-scale-out"]
    plugin = [python, "-m", "personavec.vllm", "--vectors", str(vectors)]
    steering = [{"vector": content_hash, "layer": layer, "coef": 0.01}]
    watch = [{"vector": content_hash, "layer": layer}]
    kinds: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {
        "graphs": (plain, {"plain": {}}),
        "eager": ([*plain, "--enforce-eager"], {"plain": {}}),
        "plugin": (plugin, {"idle": {}, "steered": {"steering": steering}, "watched": {"watch": watch}, "reading": {}}),
    }
    found: dict[str, Any] = {}
    for kind, (command, asks) in kinds.items():
        options = ["--model", str(model_folder), "--load-format", "dummy", "--max-model-len", "2048"]
        options += ["--max-num-seqs", str(size.requests), "--no-enable-prefix-caching", "--seed", "0"]
        options += [] if device.type == "cuda" else ["--dtype", "float32"]
        with serving([*command, *options], folder / f"{kind}.log") as url:
            for name, persona in asks.items():
                figure = ask_all(url, size, persona, spans=name == "reading")
                found[f"{kind} {name}"] = figure
                show(f"vLLM, {kind} {name}", {"tokens/s": figure})
    return found


def write_model(size: Size, folder: Path, vectors: Path) -> tuple[str, int]:
    """The model's configuration and tokenizer, no weights, and a vector for it; its content hash and layer."""
    from personavec.model.identity import ModelIdentity

    config = transformers.Qwen2Config(
        **size.config, max_position_embeddings=32768, eos_token_id=1, architectures=["Qwen2ForCausalLM"]
    )
    config.save_pretrained(folder)
    tokenizer(size).save_pretrained(folder)
    layers, width = size.config["num_hidden_layers"], size.config["hidden_size"]
    made = vector(ModelIdentity("random", "0" * 64, layers, width))
    vectors.mkdir()
    made.save(vectors / "random.safetensors")
    return made.content_hash, layers // 2


@contextmanager
def serving(command: list[str], log: Path) -> Iterator[str]:
    """The URL of a server while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=out, stderr=subprocess.STDOUT, env=env
        )
    try:
        while not healthy(url):
            if process.poll() is not None:
                raise SystemExit(f"expected a server, got exit code {process.poll()}:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(120)


def healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask_all(url: str, size: Size, persona: dict[str, Any], spans: bool) -> float:
    """Tokens a second, written or, with spans, read; all requests at once."""
    asked = prompts(size, size.requests, ROW if spans else size.prompt)

    def ask(number: int, run: int) -> int:
        settings: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1 if spans else size.reply, "ignore_eos": True}
        more = {"spans": [[0, len(asked[number])]]} if spans else persona
        if more:
            own = {"id": f"{run} {number}"} if spans or "watch" in more else {}
            settings["extra_args"] = {"persona": more | own}
        body = json.dumps({"token_ids": asked[number], "sampling_params": settings}).encode()
        request = urllib.request.Request(f"{url}/inference/v1/generate", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=3600) as answer:
            return len(asked[number]) if spans else len(json.loads(answer.read())["choices"][0]["token_ids"])

    speeds = []
    with ThreadPoolExecutor(size.requests) as pool:
        for run in range(RUNS + 1):  # the first warms up
            began = time.perf_counter()
            tokens = sum(pool.map(lambda number, run=run: ask(number, run), range(size.requests)))  # type: ignore[misc]
            speeds.append(tokens / (time.perf_counter() - began))
    return round(statistics.median(speeds[1:]), 1)


def bars(found: dict[str, Any]) -> dict[str, Any]:
    """What was to be reached, and what was."""
    named: dict[str, Any] = {}
    servers = found.get("vllm", {})
    for kind, least in (("idle", 0.99), ("steered", 0.95), ("watched", 0.95)):
        if servers:
            ratio = servers[f"plugin {kind}"] / servers["graphs plain"]
            named[f"plugin {kind} / plain with graphs"] = {"ratio": ratio, "bar": least, "held": ratio >= least}
    for rows, figures in found.get("loop before", {}).items():
        ratio = found["loop"][rows]["plain"] / figures["plain"]
        named[f"loop, {rows} rows / before"] = {"ratio": ratio, "bar": 2.0, "held": ratio >= 2}
    for rows, figures in found.get("loop", {}).items():
        if figures["waits a token"] is not None:
            held = figures["waits a token"] <= 1.5  # the prompt has waits of its own
            named[f"loop, {rows} rows: waits a token"] = {"waits": figures["waits a token"], "bar": 1.5, "held": held}
    return named


def show(what: str, figures: dict[str, Any]) -> None:
    """A line of the table."""
    print(
        f"| {what} | {' | '.join(f'{name} {value:,.1f}' for name, value in figures.items() if value is not None)} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
