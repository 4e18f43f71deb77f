"""Ratios of speed, both sides measured in turn in one run: python benchmarks/speed.py [NAME …].

Names: reading sampling steering sweep judge. Every side runs once to warm up, then several times, alternating with
the other; the ratio is that of the medians. Prints one line a figure, as they stand in benchmarks/README.md.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from personavec.model.activations import activations
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, batches, generate
from personavec.steering.rollouts import Interview
from personavec.steering.steer import Steering
from personavec.steering.vector import Card, PersonaVector
from personavec.traits.load import builtin_names, load_trait
from personavec.verbs.extract.sweep import swept_layers

TOKENS = 24
BATCH_TOKENS = 12288


def main() -> None:
    """Run the benchmarks named on the command line, or all of them."""
    model = ChatModel.load("smollm2")
    print(f"smollm2, {model.dtype}, {torch.get_num_threads()} threads\n")
    found = {"reading": reading, "sampling": sampling, "steering": steering, "sweep": sweep, "judge": judge}
    for name in sys.argv[1:] or found:
        found[name](model)


def alternate(*sides: Callable[[], int], runs: int) -> list[float]:
    """Tokens per second of every side: the median of its runs, the first of which only warms up."""
    speeds: list[list[float]] = [[] for _ in sides]
    for run in range(runs + 1):
        for side, own in zip(sides, speeds, strict=True):
            began = time.perf_counter()
            tokens = side()
            if run:
                own.append(tokens / (time.perf_counter() - began))
    return [statistics.median(own) for own in speeds]


def reading(model: ChatModel) -> None:
    """Activations of 200 replies at half depth, against one row at a time with all hidden states."""
    rows = conversations(model, 200)
    layer = model.n_layers // 2 - 1
    ids = [[*row["prompt_ids"], *row["response_ids"]] for row in rows]
    total = sum(map(len, ids))
    ours: dict[int, torch.Tensor] = {}
    theirs: dict[int, torch.Tensor] = {}

    def batched() -> int:
        for batch, read in activations(model, rows, layers=[layer]):
            ours.update(zip(batch, read[:, 0, 0], strict=True))
        return total

    @torch.no_grad()
    def loop() -> int:
        for index, row in enumerate(rows):
            states = model.hf(input_ids=torch.tensor([ids[index]]), output_hidden_states=True).hidden_states
            theirs[index] = states[layer + 1][0, len(row["prompt_ids"]) :].float().mean(dim=0)
        return total

    fast, slow = alternate(batched, loop, runs=3)
    away = max(float((ours[i] - theirs[i]).norm() / theirs[i].norm()) for i in ours)
    say("reading at half depth, batched / one row at a time", fast, slow, f"largest relative difference {away:.1e}")


def sampling(model: ChatModel) -> None:
    """Sampled against greedy generation of equally many tokens."""
    requests = plain(model)
    greedy, hot = alternate(
        lambda: written(model, requests, Sampling(TOKENS, 0.0)),
        lambda: written(model, requests, Sampling(TOKENS, 1.0)),
        runs=9,
    )
    say("generation, temperature 1 / greedy", hot, greedy)
    greedy, nucleus = alternate(
        lambda: written(model, requests, Sampling(TOKENS, 0.0)),
        lambda: written(model, requests, Sampling(TOKENS, 1.0, 0.95)),
        runs=9,
    )
    say("generation, temperature 1 and top-p 0.95 / greedy", nucleus, greedy)


def steering(model: ChatModel) -> None:
    """A batch with another layer and coefficient in every row, against the same batch unsteered."""
    vector = random_vector(model)
    requests = plain(model)
    steered = [
        Request(r.prompt, (Steering(vector, 1e-3 * (1 + i), 8 + i % 12),), r.seed) for i, r in enumerate(requests)
    ]
    sampling = Sampling(TOKENS, 0.7)
    plain_speed, steered_speed = alternate(
        lambda: written(model, requests, sampling), lambda: written(model, steered, sampling), runs=9
    )
    say("generation, every row steered differently / unsteered", steered_speed, plain_speed)


def sweep(model: ChatModel) -> None:
    """A sweep as that of `extract` (5 layers, here with 4 doses), against as many unsteered replies."""
    vector = random_vector(model)
    questions = load_trait("optimistic").check
    cells = [(layer, coef) for layer in swept_layers((), model.n_layers) for coef in (0.001, 0.002, 0.003, 0.004)]
    swept = [
        plan.request
        for layer, coef in cells
        for plan in Interview(model).answers(
            questions,
            1,
            draw="sweep",
            extra={"layer": layer, "coef": coef},
            steering=[(Steering(vector, coef, layer),)],
        )
    ]
    unsteered = [Request(request.prompt, (), request.seed) for request in swept]

    def run(requests: list[Request]) -> int:
        sampling = Sampling(TOKENS, 0.7)
        packed = batches(requests, TOKENS, BATCH_TOKENS)
        return sum(written(model, [requests[i] for i in batch], sampling) for batch in packed)

    plain_speed, swept_speed = alternate(lambda: run(unsteered), lambda: run(swept), runs=3)
    say("sweep of 20 cells / unsteered replies to the same questions", swept_speed, plain_speed)


def judge(model: ChatModel) -> None:
    """Log-probabilities of 600 replies under 5 pairs × 2 sides, prompts shared, against every prompt read anew."""
    trait = load_trait("optimistic")
    rows = conversations(model, 600)
    replies = [tuple(row["response_ids"]) for row in rows]
    prompts = [
        [
            model.render(
                [
                    {"role": "system", "content": trait.system_prompt(pair, side)},
                    {"role": "user", "content": row["question"]},
                ]
            )
            for row in rows
        ]
        for side in ("pos", "neg")
        for pair in range(len(trait.pairs))
    ]
    scores: dict[str, list[torch.Tensor]] = {"shared": [], "naive": []}

    def shared() -> int:
        """The next pair and side."""
        found = reply_logprobs(model, prompts[len(scores["shared"]) // len(rows)], replies)
        scores["shared"] += found
        return sum(map(len, found))

    def naive() -> int:
        found = naive_logprobs(model, prompts[len(scores["naive"]) // len(rows)], replies)
        scores["naive"] += found
        return sum(map(len, found))

    fast, slow = alternate(shared, naive, runs=len(prompts) - 1)
    away = max(
        float((a.mean() - b.mean()).abs()) for a, b in zip(scores["shared"], scores["naive"], strict=True) if len(a)
    )
    say("judge, shared prompts / prompts read anew", fast, slow, f"largest difference {away:.3f} nats per token")


@torch.no_grad()
def naive_logprobs(
    model: ChatModel, prompts: list[tuple[int, ...]], replies: list[tuple[int, ...]]
) -> list[torch.Tensor]:
    """Prompt and reply in one pass, batched and sorted by length as well."""
    order = sorted(range(len(replies)), key=lambda i: len(prompts[i]) + len(replies[i]))
    out = [torch.empty(0)] * len(replies)
    for start in range(0, len(order), 24):
        batch = order[start : start + 24]
        ids, mask = model.tensor([prompts[i] + replies[i] for i in batch], left=False)
        keep = ids.shape[1] - min(len(prompts[i]) for i in batch) + 1
        logits = model.hf(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits
        first = ids.shape[1] - keep
        for row, i in zip(logits, batch, strict=True):
            begin = len(prompts[i]) - 1 - first
            own = row[begin : begin + len(replies[i])].float()
            target = torch.tensor(replies[i])[:, None]
            out[i] = own.gather(1, target)[:, 0] - own.logsumexp(-1)
    return out


@contextmanager
def endless(model: ChatModel) -> Iterator[None]:
    """No token ends a reply, so that both sides write equally many."""
    kept, model.stop_ids = model.stop_ids, []
    yield
    model.stop_ids = kept


def conversations(model: ChatModel, count: int) -> list[dict]:
    """Replies to the held-out questions of the built-in traits."""
    questions = [question for name in builtin_names() for question in load_trait(name).check]
    plans = Interview(model).answers(questions, -(-count // len(questions)), draw="bench", extra={"arm": "b"})
    plans = plans[:count]
    requests = [plan.request for plan in plans]
    rows: list[dict] = [{}] * count
    for batch in batches(requests, TOKENS, BATCH_TOKENS):
        for index, reply in zip(
            batch, generate(model, [requests[i] for i in batch], Sampling(TOKENS, 0.7)), strict=True
        ):
            ids = reply.ids or (model.stop_ids[0],)
            rows[index] = plans[index].row | {"prompt_ids": requests[index].prompt, "response_ids": ids}
    return rows


def plain(model: ChatModel) -> list[Request]:
    """One batch of 64 requests."""
    questions = load_trait("optimistic").extract[:16]
    return [plan.request for plan in Interview(model).answers(questions, 4, draw="bench", extra={"arm": "b"})]


def written(model: ChatModel, requests: list[Request], sampling: Sampling) -> int:
    """Write replies of full length; returns their tokens."""
    with endless(model):
        return sum(len(reply.ids) for reply in generate(model, requests, sampling))


def random_vector(model: ChatModel) -> PersonaVector:
    """A direction of length 1 at every layer."""
    direction = torch.randn((model.n_layers, model.identity.d_model), generator=torch.Generator().manual_seed(0))
    return PersonaVector(
        direction / direction.norm(dim=-1, keepdim=True), Card("random", model.identity, "response avg")
    )


def say(what: str, fast: float, slow: float, more: str = "") -> None:
    """One line of the table."""
    print(f"| {what} | {fast:,.0f} / {slow:,.0f} tokens/s | {fast / slow:.2f} | {more} |", flush=True)


if __name__ == "__main__":
    main()
