"""Key-value caches with room in them: writing a token copies that token, not the whole cache."""

from inspect import signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel

COLUMNS = 256
"""Room in `Slots` is made in steps of this size."""


def empty(model: ChatModel) -> DynamicCache:
    """A cache of this model with nothing in it."""
    return DynamicCache(config=model.hf.config.get_text_config())


def using(model: ChatModel, cache: DynamicCache) -> dict[str, Any]:
    """The arguments that make a forward pass read a cache and write to it; transformers 5.24 renamed the first."""
    name = "cache" if "cache" in signature(model.decoder.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, at the front of tensors that are long enough for all that will be written.

    The values are those of a `DynamicLayer`, which concatenates, and so copies everything at every step.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._stores = _roomy(keys, room), _roomy(values, room)
        self._show(keys.shape[-2])

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (store[..., :length, :] for store in self._stores)
        self.keys, self.values, self._length = keys, values, length
        return keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new states behind the old ones; returns all."""
        start, end = self._length, self._length + key_states.shape[-2]
        if end > self._stores[0].shape[-2]:
            keys, values = self._show(start)
            self._stores = _roomy(keys, end), _roomy(values, end)
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[..., start:end, :] = states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep these rows."""
        keys, values = self._stores
        self._stores = keys[indices], values[indices]
        self._show(self._length)


def make_room(cache: DynamicCache, tokens: int) -> None:
    """Make room for so many tokens in every layer that would grow with them; sliding windows stay as they are."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None and layer.values is not None:
            cache.layers[index] = RoomyLayer(layer.keys, layer.values, tokens)


def _roomy(states: Tensor, room: int) -> Tensor:
    *outer, length, width = states.shape
    store = torch.empty((*outer, length + room, width), dtype=states.dtype, device=states.device)
    store[..., :length, :] = states
    return store


class Slots:
    """Keys and values of the rows that run.

    A row of n tokens holds the columns from `end - n` to `end`, so that a step writes one column of every row and
    copies nothing. The column before the longest row is always padding, see `ChatModel.tensor`.

    Attributes:
        cache: What a forward pass is given; reads and writes column `end` until `advance`, so a step that failed
            can be taken again.
        lengths: Tokens of every row.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.cache = DynamicCache()
        self._layers: list[_SlotLayer] = []
        self.lengths: list[int] = []
        self.end = 0

    @property
    def first(self) -> int:
        """The first column that a step reads."""
        return self.end - max(self.lengths, default=0) - 1

    def mask(self) -> Int[Tensor, "rows seq"]:
        """Which columns each row reads in a step, its new column included."""
        columns = torch.arange(self.first, self.end + 1, device=self.device)
        return (columns >= self.end - torch.tensor(self.lengths, device=self.device)[:, None]).long()

    def advance(self) -> None:
        """The step that wrote a column is over."""
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def add(self, prompts: DynamicCache, row: int, length: int, rows: int) -> None:
        """Put rows behind the others that all begin with one prompt.

        Args:
            prompts: Keys and values of some that were read together.
            row: Which of them; the last `length` columns count.
            length: Tokens of the prompt.
            rows: How many.

        Raises:
            ModelError: The model keeps something else than keys and values.
        """
        if not self.cache.layers:
            self._layers = [_SlotLayer(self, layer) for layer in prompts.layers]
            self.cache.layers = [*self._layers]
        if not self.lengths:
            self.end = length + 1
        longest = max([*self.lengths, length])
        if self.end <= longest or self.end >= self._columns:
            self._move(longest + 1)
        self.lengths += [length] * rows
        new = slice(len(self.lengths) - rows, len(self.lengths))
        prompt: Any
        for layer, prompt in zip(self._layers, prompts.layers, strict=True):
            for store, states in zip(layer.stores, (prompt.keys, prompt.values), strict=True):
                store[new, :, self.end - length : self.end] = states[row, :, -length:]

    def reserve(self) -> None:
        """Make sure that a step has a column to write."""
        if self.end >= self._columns:
            self._move(max(self.lengths) + 1)

    def remove(self, row: int) -> None:
        """Take a row out; the last row takes its place."""
        last = len(self.lengths) - 1
        window = slice(self.first, self.end)
        for layer in self._layers:
            for store in layer.stores:
                store[row, :, window] = store[last, :, window]
                store[last, :, window] = 0  # what is masked must be finite all the same
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    @property
    def _columns(self) -> int:
        return int(self._layers[0].stores[0].shape[2])

    def _move(self, end: int) -> None:
        """Copy all rows so that they end at another column, with room for as many columns again."""
        columns = -(-2 * end // COLUMNS) * COLUMNS
        longest = max(self.lengths, default=0)
        for layer in self._layers:
            for place, store in enumerate(layer.stores):
                moved = store.new_zeros((*store.shape[:2], columns, store.shape[3]))
                moved[:, :, end - longest : end] = store[:, :, self.end - longest : self.end]
                layer.stores[place] = moved
        self.end = end


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of `Slots`."""

    def __init__(self, slots: Slots, like: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if type(like) is not DynamicLayer or like.keys is None or like.values is None:
            raise ModelError(
                f"expected a cache of keys and values, got {type(like).__name__}; this model cannot be served yet"
            )
        self.dtype, self.device, self.is_initialized = like.keys.dtype, like.keys.device, True
        self.slots = slots
        self.stores = [
            states.new_zeros((slots.rows, states.shape[1], COLUMNS, states.shape[3]))
            for states in (like.keys, like.values)
        ]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new column; returns all that a step reads."""
        slots = self.slots
        rows, window = slice(len(slots.lengths)), slice(slots.first, slots.end + 1)
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store[rows, :, slots.end : slots.end + 1] = states
        keys, values = (store[rows, :, window] for store in self.stores)
        return keys, values

    def get_seq_length(self) -> int:
        """Columns that stand before the one a step writes."""
        return self.slots.end - self.slots.first
