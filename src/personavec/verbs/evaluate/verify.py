"""Verify: does steering do on this machine, with this model, exactly what it says?"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from personavec.model.chat_model import ChatModel
from personavec.model.hooks import attach, capture, idle_layers, parts
from personavec.model.kv_cache import cached, empty, shared, using
from personavec.model.logits import TOLERANCE, distance
from personavec.model.sampling import Sampling
from personavec.runs.result import Result
from personavec.runs.rules import Seed, check
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering, steer
from personavec.steering.vector import Card, PersonaVector

DOSE = 0.3
"""Large enough to be told from rounding, small enough that no stream overflows."""
NEW_TOKENS = 12
"""Of the replies that are written."""
CONVERSATIONS = (
    ("Tell me about your day.", "It was a fine day, and I learned something new."),
    ("What is the best way to learn to cook, if one has little time?", "Start with three dishes."),
)

Found = tuple[bool, str]


@dataclass(frozen=True)
class Probe:
    """What every check works with: two conversations of different length, and a change to make."""

    model: ChatModel
    rows: list[tuple[int, ...]]
    lengths: list[int]
    """Tokens of each prompt."""
    layer: int
    steering: Steering
    rounding: float
    """Relative step of the model's dtype; float32 is given room for the order of sums."""
    tolerance: float

    def run(
        self, steering: Sequence[Sequence[Steering]], which: slice = slice(1), left: bool = False
    ) -> tuple[Tensor, Tensor, int]:
        """Logits and stream at the layer, [row, token, …] with padding, and the number of steered tokens."""
        seen: list[Tensor] = []
        with (
            steer(self.model, steering, self.lengths[which]) as steered,
            attach(self.model, lambda _: None, {self.layer: lambda stream: seen.append(stream.clone())}),
        ):
            out = self.model.hf(**self.model.inputs(self.rows[which], left=left))
        return out.logits.float(), seen[0], steered.tokens

    def plain(
        self, index: int, steering: Sequence[Steering] = (), reply: Sequence[int] | None = None
    ) -> tuple[Tensor, int]:
        """Logits [token, vocab] of one row, or its prompt and another reply, and the number of steered tokens.

        Nothing but the tokens is given: no padding, no positions, no cache.
        """
        row = self.rows[index] if reply is None else (*self.rows[index][: self.lengths[index]], *reply)
        with steer(self.model, [steering], [self.lengths[index]]) as steered:
            out = self.model.hf(input_ids=torch.tensor([row], device=self.model.device), use_cache=False)
        return out.logits[0].float(), steered.tokens


class Verification(Result):
    """What was checked on this machine, and whether all of it passed."""

    def lines(self) -> list[tuple[str, str]]:
        """A line a check."""
        marks = {True: "ok", False: "FAILED"}
        return [(check["name"], f"{marks[check['passed']]} – {check['detail']}") for check in self.data["checks"]]


@torch.inference_mode()
def verify(model: ChatModel, vector: PersonaVector | None = None, *, seed: Seed = 0) -> Verification:
    """Check on this machine that steering does what it says.

    Args:
        model: What to check.
        vector: Steered along; default a random direction.
        seed: Of that.

    Returns:
        The model, each check with `name`, `passed` and `detail`, and whether all `passed`.

    Raises:
        ConfigError: `model` is no `ChatModel`.
        VectorError: The vector is of another model.
    """
    check(verify, locals())
    if vector is None:
        direction = torch.randn((model.n_layers, model.identity.d_model), generator=torch.Generator().manual_seed(seed))
        vector = PersonaVector(direction, Card("random direction", model.identity, "none"))
    vector.check_model(model.identity)
    probe = _probe(model, vector)
    checks = []
    for name, probed in CHECKS.items():
        try:
            passed, detail = probed(probe)
        except Exception as error:
            passed, detail = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
        checks.append({"name": name, "passed": passed, "detail": detail})
    return Verification(
        {
            "model": model.identity.id,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "n_layers": model.n_layers,
            "d_model": model.identity.d_model,
            "vector": vector.card.trait,
            "layer": probe.layer,
            "dose": DOSE,
            "checks": checks,
            "passed": all(check["passed"] for check in checks),
        }
    )


def _probe(model: ChatModel, vector: PersonaVector) -> Probe:
    prompts = [model.render([{"role": "user", "content": question}]) for question, _ in CONVERSATIONS]
    rows = [prompt + model.reply_ids(reply) for prompt, (_, reply) in zip(prompts, CONVERSATIONS, strict=True)]
    running = [layer for layer in range(model.n_layers) if layer not in idle_layers(model)]
    layer = running[len(running) // 2] if vector.card.layer is None else vector.card.layer
    # over the reply: the first token's norm is often a thousand times the usual one
    reply = torch.zeros((1, 1, len(rows[0])))
    reply[..., len(prompts[0]) :] = 1 / (len(rows[0]) - len(prompts[0]))
    vector.unit(layer)
    norm = capture(model, rows[:1], reply, [layer], of=lambda stream: stream.float().norm(dim=-1, keepdim=True))
    steering = Steering(vector, DOSE * float(norm) / float(vector.norms[layer]), layer)
    rounding = max(1e-5, torch.finfo(model.dtype).eps)
    # how a state is summed up depends on where a row begins
    tolerance = TOLERANCE[model.dtype] if shared(model) else max(2e-3, TOLERANCE[model.dtype])
    return Probe(model, rows, [len(prompt) for prompt in prompts], layer, steering, rounding, tolerance)


def _fires(probe: Probe) -> Found:
    plain, _, _ = probe.run([()])
    steered, _, tokens = probe.run([(probe.steering,)])
    reply = slice(probe.lengths[0] - 1, len(probe.rows[0]))
    wanted, change = reply.stop - reply.start, distance(steered[0, reply], plain[0, reply])
    detail = f"{tokens} of {wanted} tokens steered; their logits moved by up to {change:.2g} of their size"
    return tokens == wanted and change > probe.tolerance, detail


def _moves(probe: Probe) -> Found:
    _, plain, _ = probe.run([()])
    _, steered, _ = probe.run([(probe.steering,)])
    first, end = probe.lengths[0] - 1, len(probe.rows[0])
    before, after = plain[0, :end].float(), steered[0, :end].float()
    delta = probe.steering.coef * probe.steering.vector.direction[probe.layer].to(before)
    error = (after[first:] - before[first:] - delta).abs()
    # v is rounded to the dtype, and so is the sum
    allowed = torch.finfo(probe.model.dtype).eps * (before[first:].abs() + delta.abs())
    kept = torch.equal(after[:first], before[:first])
    detail = f"off by up to {float(error.max()):.1g} where coef·v is up to {float(delta.abs().max()):.2g}"
    return bool((error <= allowed).all()) and kept, f"{detail}; prompt tokens {'kept' if kept else 'CHANGED'}"


def _coef_0(probe: Probe) -> Found:
    plain, _, _ = probe.run([()], slice(2))
    steered, _, _ = probe.run([(replace(probe.steering, coef=0.0),)], slice(2))
    return torch.equal(plain, steered), f"logits differ by {float((plain - steered).abs().max()):.1g}"


def _cached(probe: Probe) -> Found:
    row, length, model = probe.rows[0], probe.lengths[0], probe.model
    if not cached(model):
        return True, "no cache is used: every token is read together with all before it"
    full, wanted = probe.plain(0, (probe.steering,))
    ids = torch.tensor([row], device=model.device)
    cache, logits = empty(model), []
    with steer(model, [(probe.steering,)], [length]) as steered:
        for start, end in [(0, length - 1), *((i, i + 1) for i in range(length - 1, len(row)))]:
            positions = torch.arange(start, end, device=model.device)[None]
            out = model.hf(input_ids=ids[:, start:end], position_ids=positions, **using(model, cache))
            logits.append(out.logits[0].float())
    return _agree(probe, distance(torch.cat(logits), full), steered.tokens, wanted)


def _padded(probe: Probe) -> Found:
    left = cached(probe.model)
    both, _, tokens = probe.run([(probe.steering,)], slice(2), left=left)
    alone = [probe.plain(index, (probe.steering,)) for index in (0, 1)]
    apart = max(
        distance(padded[-len(row) :] if left else padded[: len(row)], logits)
        for padded, row, (logits, _) in zip(both, probe.rows, alone, strict=True)
    )
    return _agree(probe, apart, tokens, sum(count for _, count in alone))


def _replies(probe: Probe) -> Found:
    """Greedy replies of a batch, one row steered, that end at different steps; every token must be likeliest."""
    model, kept = probe.model, probe.model.stop_ids
    prompts = [row[:length] for row, length in zip(probe.rows, probe.lengths, strict=True)]
    steerings: list[tuple[Steering, ...]] = [(replace(probe.steering, positions="all"),), ()]
    requests = [Request(prompt, what) for prompt, what in zip(prompts, steerings, strict=True)]
    try:
        model.stop_ids = []
        free = generate(model, requests, Sampling(NEW_TOKENS, 0.0))
        model.stop_ids = ends = [free[0].ids[NEW_TOKENS // 3]]
        replies = generate(model, requests, Sampling(NEW_TOKENS, 0.0))
    finally:
        model.stop_ids = kept
    behind = 0.0
    for index, (what, reply) in enumerate(zip(steerings, replies, strict=True)):
        logits = probe.plain(index, what, reply.ids)[0][probe.lengths[index] - 1 :]
        chosen = [*reply.ids, *(ends if reply.finish == "stop" else [])]
        logits = logits[: len(chosen)]
        gaps = logits.amax(dim=-1) - logits[torch.arange(len(chosen)), chosen]
        behind = max(behind, float((gaps / logits.std(dim=-1)).max()))
    lengths = " and ".join(str(len(reply.ids)) for reply in replies)
    detail = f"replies of {lengths} tokens; none is further than {behind:.1g} σ of the logits from the likeliest"
    return behind <= 4 * probe.tolerance, f"{detail} (tolerance {4 * probe.tolerance:g})"


def _mates(probe: Probe) -> Found:
    plain, before, _ = probe.run([(), ()], slice(2))
    mixed, after, _ = probe.run([(probe.steering,), ()], slice(2))
    row = slice(len(probe.rows[1]))
    # in a mixture of experts a row may round differently when its batch-mates choose other experts
    apart = distance(mixed[1, row], plain[1, row])
    kept, moved = torch.equal(before[1], after[1]), not torch.equal(before[0], after[0])
    detail = f"an unsteered row's stream is {'identical' if kept else 'CHANGED'}, its logits differ by {apart:.1g}"
    return kept and moved and apart <= probe.tolerance, detail


def _ablates(probe: Probe) -> Found:
    _, before, _ = probe.run([()])
    _, after, _ = probe.run([(replace(probe.steering, op="ablate", positions="all"),)])
    before, after = (stream[0, : len(probe.rows[0])].float() for stream in (before, after))
    unit = probe.steering.vector.unit(probe.layer).to(before)
    was, left = (float(((stream @ unit).abs() / before.norm(dim=-1)).max()) for stream in (before, after))
    detail = f"projection / ‖h‖ fell from up to {was:.2g} to {left:.1g} (rounding {probe.rounding:.1g})"
    return left <= probe.rounding < was, detail


def _reads(probe: Probe) -> Found:
    model = probe.model
    running = [layer for layer in range(model.n_layers) if layer not in idle_layers(model)]
    layers = running[:-1]
    weights = torch.zeros((len(probe.rows), 1, max(map(len, probe.rows))))
    for row, given in zip(probe.rows, weights, strict=True):
        given[:, : len(row)] = 1 / len(row)
    read = capture(model, probe.rows, weights, layers)[:, 0]
    wanted = torch.empty_like(read)
    embedded: list[Tensor] = []
    for row, means in zip(probe.rows, wanted, strict=True):
        ids = torch.tensor([row], device=model.device)
        with parts(model, [0], lambda _layer, _part, stream: embedded.append(stream)):
            states = model.hf(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        first = int(torch.equal(states[0], embedded[0]))  # some families (Mamba) leave out what block 0 is given
        means[:] = torch.stack([states[k + first][0].float().mean(dim=0) for k in range(len(layers))]).to(means)
        embedded.clear()
    error = float(((read - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())
    return error <= probe.rounding, f"layers 0 to {layers[-1]} differ by {error:.1g} (rounding {probe.rounding:.1g})"


def _clean(probe: Probe) -> Found:
    def count() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in probe.model.hf.modules())

    before = count()
    probe.run([(probe.steering,)])
    with suppress(InterruptedError), steer(probe.model, [(probe.steering,)], [1]):
        raise InterruptedError
    left = count() - before
    return left == 0, f"{left} left after a run and after an exception"


def _agree(probe: Probe, apart: float, tokens: int, wanted: int) -> Found:
    detail = f"{tokens} and {wanted} tokens steered; logits differ by {apart:.1g} (tolerance {probe.tolerance:g})"
    return tokens == wanted and apart <= probe.tolerance, detail


CHECKS: dict[str, Callable[[Probe], Found]] = {
    "steering changes the logits": _fires,
    "the stream moves by coef·v": _moves,
    "coef 0 changes no bit": _coef_0,
    "cached equals uncached": _cached,
    "left-padded equals alone": _padded,
    "replies equal plain passes": _replies,
    "batch-mates are untouched": _mates,
    "ablation leaves projection 0": _ablates,
    "layer k is hidden state k+1": _reads,
    "no hook is left": _clean,
}
