"""Base replies by one vLLM server, and by that one and another, each on a core of its own.

    taskset -c 0 vllm/bin/python -m personavec.vllm --accept-vectors KEPT --model MODEL --dtype float32 --port 8001 …
    taskset -c 1 vllm/bin/python -m personavec.vllm --accept-vectors KEPT --model MODEL --dtype float32 --port 8002 …
    python benchmarks/two_servers.py MODEL http://localhost:8001 http://localhost:8002

Every round writes the same number of replies to prompts of its own, so that neither finds anything kept; rounds of one
and of two servers take turns. Prints the seconds of each round, and the ratio of their medians.
"""

import argparse
import statistics
import time

from personavec.model.engines.vllm import connect
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("urls", nargs=2)
    parser.add_argument("--replies", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    engines = {count: connect(f"vllm:{','.join(options.urls[:count])}", options.model) for count in (1, 2)}
    taken: dict[int, list[float]] = {1: [], 2: []}
    for number in range(-1, options.rounds):
        for count, model in engines.items():
            prompts = [
                model.render(
                    [{"role": "user", "content": f"Round {number} of {count}: tell me about the number {row}."}]
                )
                for row in range(options.replies)
            ]
            began = time.monotonic()
            replies = generate(model, [Request(prompt, (), (0,)) for prompt in prompts], Sampling(options.tokens, 1.0))
            seconds = time.monotonic() - began
            assert len(replies) == options.replies
            if number >= 0:  # the first time is slower
                taken[count].append(seconds)
            print(f"round {number}, {count} of the servers: {seconds:.1f} s", flush=True)
    one, two = (statistics.median(taken[count]) for count in (1, 2))
    print(f"one server {one:.1f} s, two {two:.1f} s: {one / two:.2f} times as fast")


if __name__ == "__main__":
    main()
