"""Random numbers of a request that can be taken back, on a CPU, too.

vLLM draws a token for every row of a step. Of a row whose prompt is not read to its end it throws the token away, and
has the request's generator go back by one draw. It does so by the generator's offset, which those of a CPU do not have:
with vLLM 0.32 a single request with a seed and a prompt that is read in parts ends the engine for everybody.
"""

from typing import Any

import torch


class RewindableGenerator(torch.Generator):
    """A generator of a CPU that knows where it stood when the step began."""

    kept: torch.Tensor

    def get_offset(self) -> int:
        """As vLLM asks of those of a GPU before it goes back; the number says nothing here."""
        return 0

    def set_offset(self, offset: int) -> torch.Generator:  # noqa: ARG002 # as torch calls it
        """Go back to the beginning of the step."""
        return self.set_state(self.kept)


def keep(batch: Any, requests: Any) -> None:
    """Note where the generators of a batch stand, and make those of a CPU such that can go back.

    Args:
        batch: vLLM's `InputBatch`.
        requests: The states of its requests, by id.
    """
    for row, generator in batch.generators.items():
        if generator.device.type != "cpu":
            return
        if not isinstance(generator, RewindableGenerator):
            made = RewindableGenerator()
            made.set_state(generator.get_state())
            batch.generators[row] = requests[batch.req_ids[row]].generator = generator = made
        generator.kept = generator.get_state()
