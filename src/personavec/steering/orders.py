"""Requests as an engine elsewhere takes them: plain data, with the files of the vectors that they name."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from personavec.model.engines.engine import Order
from personavec.steering.steer import Steering

Ids = tuple[int, ...]


def make_orders(requests: Sequence[tuple[Ids, Sequence[Steering], tuple[int, ...]]]) -> list[Order]:
    """Orders for requests, each its prompt, what steers it, and its seed."""
    hashes: dict[int, str] = {}  # of the same vector once

    def hash_of(steering: Steering) -> str:
        vector = steering.vector
        if id(vector) not in hashes:
            hashes[id(vector)] = vector.content_hash
        return hashes[id(vector)]

    orders = []
    for prompt, steerings, seed in requests:
        active = [(steering, hash_of(steering)) for steering in steerings if steering.active]
        sent = [_sent(steering, content_hash) for steering, content_hash in active]
        files = {content_hash: steering.vector.to_bytes for steering, content_hash in active}
        orders.append(Order(prompt, sent, number_of(seed), files))
    return orders


def number_of(seed: tuple[int, ...]) -> int:
    """One number of 48 bits for a seed of several: what servers take, and JSON keeps whole."""
    return int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:6])


def _sent(steering: Steering, content_hash: str) -> Mapping[str, Any]:
    """JSON has no infinity: a bound that is none is left out."""
    bounds = {name: getattr(steering, name) for name in ("floor", "ceiling", "above", "below")}
    there = {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
    where = {"layer": steering.layer, "positions": steering.positions}
    return {"vector": content_hash, "op": steering.op, "coef": steering.coef} | where | there
