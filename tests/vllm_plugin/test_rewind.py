"""The numbers of a request with a seed: a step whose token is thrown away takes none of them, on a CPU either."""

from types import SimpleNamespace

import torch

from personavec.vllm.rewind import keep


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_draw_that_is_thrown_away_is_drawn_again() -> None:
    """As vLLM does it: two rows of three have a seed, of one the prompt is read in three parts."""
    states = {name: SimpleNamespace(generator=None) for name in "abc"}
    generators = {0: seeded(1), 2: seeded(2)}
    batch = SimpleNamespace(req_ids=list("abc"), generators=generators)
    drawn: dict[int, list[torch.Tensor]] = {0: [], 2: []}
    for step in range(5):
        keep(batch, states)
        for row, generator in batch.generators.items():
            noise = torch.empty(40).exponential_(generator=generator)
            if row == 2 and step < 2:
                generator.set_offset(generator.get_offset() - 4)
            else:
                drawn[row].append(noise)
    assert batch.generators is generators and states["c"].generator is generators[2] and states["b"].generator is None
    for row, seed in ((0, 1), (2, 2)):
        plain = seeded(seed)
        assert all(noise.equal(torch.empty(40).exponential_(generator=plain)) for noise in drawn[row])
    assert (len(drawn[0]), len(drawn[2])) == (5, 3)
