"""A key-value cache with room in it: writing a token copies that token, not the whole cache."""

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from personavec.model.chat_model import ChatModel


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
