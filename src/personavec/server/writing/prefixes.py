"""What was read of earlier conversations, so that their next turn reads only what is new."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from personavec.model.kv_cache import States
from personavec.steering.steer import Steering

BLOCK = 16
"""Tokens that are kept together: a prefix is known up to a multiple of this."""

Reading = tuple[Steering, ...]
"""What changes the stream at every token of a prompt but the last one."""


@dataclass(eq=False)
class Block:
    """Keys and values of some tokens, which depend on all tokens before them: on the blocks it stands behind."""

    tokens: tuple[int, ...] = ()
    states: States = ()
    parent: "Block | None" = None
    children: "dict[tuple[int, ...], Block]" = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Memory of its keys and values."""
        return sum(part.nbytes for layer in self.states for part in layer)


class Prefixes:
    """Beginnings of conversations, within a bound of memory; those that were not used for longest go first.

    A tree for each steering of prompts: two conversations share what they have in common, and one that is steered
    otherwise finds nothing. Belongs to one thread.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._roots: dict[Reading, Block] = {}
        self._by_use: OrderedDict[Block, Reading] = OrderedDict()
        """Oldest use first; a block is never older than those behind it."""

    def find(self, reading: Reading, ids: Sequence[int]) -> list[Block]:
        """The blocks that ids begin with, first to last."""
        path: list[Block] = []
        here = self._roots.get(reading)
        while here is not None:
            here = here.children.get(tuple(ids[BLOCK * len(path) : BLOCK * (len(path) + 1)]))
            path += [here] if here is not None else []
        self._use(path)
        return path

    def keep(self, reading: Reading, ids: Sequence[int], states: States) -> None:
        """Copy the keys and values of ids, those alone that are not there yet."""
        path = self.find(reading, ids)
        size = sum(part[:, :BLOCK].nbytes for layer in states for part in layer)
        starts = range(BLOCK * len(path), len(ids) - BLOCK + 1, BLOCK)[: self.most_bytes // size - len(path)]
        while self.bytes + size * len(starts) > self.most_bytes:
            self._drop()
        for start in starts:
            parent = path[-1] if path else self._roots.setdefault(reading, Block())
            here = slice(start, start + BLOCK)
            copied = [(keys[:, here].clone(), values[:, here].clone()) for keys, values in states]
            block = Block(tuple(ids[here]), copied, parent)
            parent.children[block.tokens] = block
            self._by_use[block] = reading
            self.bytes += size
            path.append(block)
        self._use(path)

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self._by_use.clear()
        self.bytes = 0

    def _use(self, path: Sequence[Block]) -> None:
        for block in reversed(path):
            self._by_use.move_to_end(block)

    def _drop(self) -> None:
        """Forget the block that was not used for longest; nothing stands behind it."""
        block, reading = self._by_use.popitem(last=False)
        self.bytes -= block.bytes
        assert block.parent is not None and not block.children
        del block.parent.children[block.tokens]
        if not self._roots[reading].children:
            del self._roots[reading]
