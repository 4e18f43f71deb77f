"""Bookkeeping of one worker: which row edits each token of a step, and what is read of whom.

It knows a step only as spans of tokens with absolute positions, so that chunked prefill, prefix hits and preemption
are nothing special. Nothing here raises inside a step: what goes wrong is kept, and said with the readings.
"""

import base64
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from personavec.vllm.asked import LAST, PROMPT, RESPONSE, Asked, Change
from personavec.vllm.block import Tables, sent
from personavec.vllm.rows import make_row
from personavec.vllm.settings import StoredVector

LOG = logging.getLogger("vllm.personavec")
KEPT = 2048
"""Most readings that wait to be fetched; older ones are dropped."""
KINDS = (PROMPT, LAST, RESPONSE)
RowKey = tuple[int, tuple[Change, ...]]


@dataclass(frozen=True)
class StepPart:
    """The tokens of one request in a step."""

    request: str
    start: int
    """Position of the first."""
    count: int
    prompt: int
    """Tokens of its prompt."""
    asked: Any
    """What it asks for, as it was sent."""


@dataclass
class Record:
    """What is known of a request that is under way."""

    asked: Asked
    prompt: int
    rows: tuple[int, ...] | None = None
    """For each kind of token, which row edits it; None while it holds none."""
    sums: tuple[int, ...] | None = None
    """For each span, which row of the sums it has."""
    counted: int = 0
    """Positions before this one have been read."""
    summed: list[int] = field(default_factory=list)
    """Tokens that are in the sum of each span."""
    pieces: list[tuple[int, int, dict[int, Tensor]]] = field(default_factory=list)
    """Projections on all vectors: position of the first token, count, and [token, vector] by layer."""


class Book:
    """The requests of one worker and the rows that they hold."""

    def __init__(
        self,
        tables: Tables,
        vectors: Mapping[str, StoredVector],
        layers: Sequence[int],
        edits: int,
        read: Callable[[Any], Asked],
    ) -> None:
        """Start with no request.

        Args:
            tables: That the edits of the blocks look into.
            vectors: By content hash, in the order of the tables.
            layers: Of this worker that are edited, in the order of the tables.
            edits: Room for directions in a layer of a row.
            read: Turns what a request sent into what it asks for.
        """
        self.tables, self.vectors, self.layers, self.edits, self.read = tables, vectors, list(layers), edits, read
        self.records: dict[str, Record] = {}
        self.done: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.failed: OrderedDict[str, str] = OrderedDict()
        """What went wrong, by request."""
        self._places = {content_hash: place for place, content_hash in enumerate(vectors)}
        self._rows: OrderedDict[RowKey, int] = OrderedDict()
        self._users: Counter[int] = Counter()
        self._free = list(range(tables.rows - 1, 0, -1))
        self._free_sums = list(range(tables.spans - 1, 0, -1))
        self._reads: list[tuple[Record, int, int, int]] = []
        """Of the step that runs: record, first token in the batch, count, position of the first."""

    def step(self, parts: Sequence[StepPart], alive: Collection[str]) -> None:
        """Prepare the buffers for a step, after the one before it has been read.

        Args:
            parts: Its requests, in the order of their tokens.
            alive: Requests that are not over, in this step or waiting.
        """
        try:
            self.collect()
            for request in [request for request in self.records if request not in alive]:
                self._finish(request)
        except Exception as error:
            LOG.exception("personavec: readings were lost")
            self._fail("", error)
        slot: list[int] = []
        span: list[int] = []
        present = {part.request for part in parts}
        for part in parts:
            slots, spans = [0] * part.count, [0] * part.count
            try:
                if part.asked is not None:
                    slots, spans = self._place(part, present, len(slot))
            except Exception as error:
                LOG.exception("personavec: %s is not steered", part.request)
                self._fail(part.request, error)
            slot += slots
            span += spans
        self.tables.assign(slot, span)

    def _fail(self, request: str, error: Exception) -> None:
        self.failed[request] = f"{type(error).__name__}: {error}"[:300]
        if len(self.failed) > KEPT:
            self.failed.popitem(last=False)

    def _place(self, part: StepPart, present: Collection[str], offset: int) -> tuple[list[int], list[int]]:
        record = self.records.get(part.request)
        if record is None:
            record = self.records[part.request] = Record(self.read(part.asked), part.prompt)
            record.summed = [0] * len(record.asked.spans)
        if record.rows is None:
            record.rows = tuple(self._row(kind, record.asked.changes, present) for kind in KINDS)
        if record.sums is None:
            self._take_sums(record, present)
        end, last = part.start + part.count, record.prompt - 1
        at_last = 1 if part.start <= last < end else 0
        before = min(max(last - part.start, 0), part.count)
        slots = [record.rows[PROMPT]] * before + [record.rows[LAST]] * at_last
        slots += [record.rows[RESPONSE]] * (part.count - len(slots))
        spans = [0] * part.count
        fresh = max(part.start, record.counted)  # what is computed again after a preemption has been read before
        for number, (first, stop) in enumerate(record.asked.spans):
            first, stop = max(first, fresh), min(stop, end)
            if first < stop:
                spans[first - part.start : stop - part.start] = [record.sums[number]] * (stop - first)  # type: ignore[index]
                record.summed[number] += stop - first
        if record.asked.looks and (first := max(fresh, last)) < end:
            self._reads.append((record, offset + first - part.start, end - first, first))
        record.counted = max(record.counted, end)
        return slots, spans

    def _row(self, kind: int, changes: tuple[Change, ...], present: Collection[str]) -> int:
        """The row that does some changes to a kind of token, shared by all requests that ask for the same."""
        here = tuple(change for change in changes if any(change.here(layer, kind) for layer in self.layers))
        if not here:
            return 0
        key = (kind, here)
        if key not in self._rows:
            row = self._free_row(present)
            self.tables.write(row, *make_row(here, kind, self.vectors, self.layers, self.edits))
            self._rows[key] = row
        self._rows.move_to_end(key)
        row = self._rows[key]
        self._users[row] += 1
        return row

    def _free_row(self, present: Collection[str]) -> int:
        if not self._free and all(self._users[row] for row in self._rows.values()):
            self._give_back(present)
        if not self._free:
            oldest = next(key for key, row in self._rows.items() if not self._users[row])
            self._free.append(self._rows.pop(oldest))
        return self._free.pop()

    def _take_sums(self, record: Record, present: Collection[str]) -> None:
        if len(self._free_sums) < len(record.asked.spans):
            self._give_back(present)
        record.sums = tuple(self._free_sums.pop() for _ in record.asked.spans)
        if record.sums:  # whatever was summed before is gone
            record.counted, record.summed, record.pieces = 0, [0] * len(record.sums), []
            for sums in (*self.tables.sums, *self.tables.norms):
                sums[list(record.sums)] = 0.0

    def _give_back(self, present: Collection[str]) -> None:
        """Take the rows of requests that wait, preempted: they get others when they go on."""
        for request, record in self.records.items():
            if request not in present:
                self._release(record)

    def _release(self, record: Record) -> None:
        for row in record.rows or ():
            if row:
                self._users[row] -= 1
        self._free_sums += record.sums or ()
        record.rows = record.sums = None

    def collect(self) -> None:
        """Copy what the last step has read; what is not copied is overwritten by the next one."""
        reads, self._reads = self._reads, []
        if not reads:
            return
        layers = {layer for record, *_ in reads for _, layer in record.asked.looks if layer in self.layers}
        tokens = [place for _, first, count, _ in reads for place in range(first, first + count)]
        chosen = sent(tokens, self.tables.slot.device)
        seen = {layer: self.tables.seen[self.layers.index(layer)][chosen] for layer in layers}
        at = 0
        for record, _, count, position in reads:
            mine = {layer: seen[layer][at : at + count] for _, layer in record.asked.looks if layer in seen}
            record.pieces.append((position, count, mine))
            at += count

    def _finish(self, request: str) -> None:
        record = self.records.pop(request)
        if record.asked.id:
            self.done[record.asked.id] = self._readings(request, record)
            if len(self.done) > KEPT:
                self.done.popitem(last=False)
        self._release(record)

    def fetch(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Readings by the ids of their requests, which are then forgotten; what is not there is left out."""
        if self.tables.slot.is_cuda:
            torch.cuda.synchronize()  # this may run beside the stream of the step
        self.collect()
        found = {}
        for request, record in list(self.records.items()):
            if record.asked.id in ids:
                found[record.asked.id] = self._readings(request, record)
                record.asked = Asked(record.asked.changes)  # the rest of it, if there is one, is not read
        for name in ids:
            if name in self.done:
                found[name] = self.done.pop(name)
        return {name: _plain(readings) for name, readings in found.items()}

    def _readings(self, request: str, record: Record) -> dict[str, Any]:
        """What was read of a request, on the host."""
        looks = []
        for content_hash, layer in record.asked.looks:
            place = self._places[content_hash]
            pieces = [seen[layer][:, place] for _, _, seen in record.pieces if layer in seen]
            looks.append(torch.cat(pieces).cpu() if pieces else None)
        spans = []
        for number, count in enumerate(record.summed):
            rows = record.sums[number] if record.sums else 0
            means: dict[int, Tensor] = {}
            norms: dict[int, float] = {}
            if rows and count:
                pairs = zip(self.layers, self.tables.sums, strict=True)
                means = {layer: (sums[rows] / count).cpu() for layer, sums in pairs}
                lengths = torch.stack([each[rows] for each in self.tables.norms]) / count
                norms = dict(zip(self.layers, lengths.tolist(), strict=True))
            spans.append({"tokens": count, "mean": means, "norm": norms})
        error = self.failed.get(request) or self.failed.get("")
        if any(count != stop - first for count, (first, stop) in zip(record.summed, record.asked.spans, strict=True)):
            error = error or "expected spans of tokens that the model read, got some that it did not"
        first = record.pieces[0][0] if record.pieces else None
        return {
            "start": first,
            "watch": looks,
            "spans": spans,
            "error": error,
        }


def _plain(readings: dict[str, Any]) -> dict[str, Any]:
    """Readings as JSON has them: projections as lists, the mean of each layer as base64 of little-endian float32."""
    return readings | {
        "watch": [None if look is None else look.tolist() for look in readings["watch"]],
        "spans": [
            {
                "tokens": span["tokens"],
                "mean": {str(layer): _encoded(mean) for layer, mean in span["mean"].items()},
                "norm": {str(layer): norm for layer, norm in span["norm"].items()},
            }
            for span in readings["spans"]
        ],
    }


def _encoded(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().astype("<f4").tobytes()).decode()
