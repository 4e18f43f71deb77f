"""A thread that owns the model and writes replies for all clients, in a single batch that rows join and leave."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from personavec.errors import SteeringOverflow
from personavec.model.chat_model import ChatModel
from personavec.model.kv_cache import Slots, States, check_served, continued, states_of, using
from personavec.model.machine.limits import habits
from personavec.server.limits import LOG
from personavec.server.writing.drawing import draw_tokens
from personavec.server.writing.job import Full, Job, reason
from personavec.server.writing.prefixes import BLOCK, Block, Prefixes
from personavec.server.writing.scores import SCORED, score_prompts
from personavec.steering.generate import Watch, watching
from personavec.steering.steer import steer

READ_TOKENS = 1024
"""Tokens of prompts that are read in one batch, padding included; a longer prompt is read alone."""

STUCK = 0.5
"""Seconds more than given after which a thread that does not end is left behind; the process can end without it."""

TOO_LARGE = "expected a reply that fits into memory by itself, got {:,} tokens that do not; send a shorter conversation"


class Engine:
    """Continuous batching: every step writes one token of each row, and rows come and go between steps.

    Each row is steered by a list of its request, in the prompt and in every step, and what its batch-mates ask for
    cannot change it. A row whose numbers overflow ends with an error, and the others go on. Where memory runs out,
    fewer rows are written at once and the others wait in line again; what does not fit by itself ends with an error.

    Attributes:
        rows: Most replies that were to be written at once.
        most: How many are; less once memory ran out.
        out_of_memory: How many times it did.
    """

    holds_forms = True
    """Whether replies can be held to a form."""

    def __init__(self, model: ChatModel, rows: int = 16, queue: int = 64, prefix_bytes: int = 2**29) -> None:
        """Start the thread.

        Args:
            model: What it owns from here on.
            rows: Most replies that are written at once.
            queue: Most replies that may wait for a row.
            prefix_bytes: Memory for what was read of earlier conversations.

        Raises:
            ModelError: The model's cache cannot be divided among rows that come and go.
        """
        check_served(model)
        self.model, self.rows, self.queue = model, rows, queue
        self.most, self.out_of_memory = rows, 0
        self._waiting: deque[list[Job]] = deque()
        self._jobs: list[Job] = []
        self._joining: list[Job] = []
        """Taken from the queue, and not yet among those that are written."""
        self._slots = Slots(rows, model.device)
        self.prefixes = Prefixes(prefix_bytes if continued(model) else 0)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Replies that are being written."""
        return len(self._jobs)

    @property
    def queued(self) -> int:
        """Replies that wait for a row."""
        return sum(map(len, tuple(self._waiting)))

    @property
    def alive(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._closing

    def submit(self, *prompts: Sequence[Job]) -> None:
        """Queue replies, all or none; those to one prompt are steered alike, and it is read once for all of them.

        Raises:
            Full: Ask again later, or elsewhere.
        """
        with self._changed:
            if self._closing:
                raise Full("expected a running server, got one that shuts down; ask another one")
            if self.queued + sum(map(len, prompts)) > self.queue:
                raise Full(f"expected room in the queue of {self.queue}, got {self.queued} waiting; ask later")
            self._waiting += self._lined_up(prompts)
            self._changed.notify()

    def _lined_up(self, prompts: Iterable[Sequence[Job]]) -> list[list[Job]]:
        """Replies to one prompt together, as far as there are rows for them."""
        return [[*jobs[start : start + self.most]] for jobs in prompts for start in range(0, len(jobs), self.most)]

    def close(self, seconds: float) -> None:
        """Take no more requests, give those under way so many seconds, and end the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        until = time.monotonic() + seconds
        jobs = [*self._jobs, *self._joining, *(job for jobs in tuple(self._waiting) for job in jobs)]
        for job in jobs:
            job.deadline = min(job.deadline, until)
        self._thread.join(seconds + STUCK)
        for job in jobs:  # in the middle of a long step it looks at no clock
            job.end("deadline")

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._jobs or self._closing)
            if self._closing and not self._jobs and not self._waiting:
                return
            fits = True
            try:
                self._admit()
                if self._jobs:
                    self._write()
            except torch.OutOfMemoryError:
                fits = False
            except Exception as error:  # no request may end the server: those under way do not survive, it does
                for job in (*self._jobs, *self._joining):
                    job.end("error", reason(error))
                self._jobs.clear()
                self._free()
            if not fits:  # outside of the handler: its traceback would hold what is to be freed
                self._halve()

    def _free(self) -> None:
        """Give back what can be had again; what was read of those who are being written can not."""
        self.prefixes.clear()
        if not self._jobs:
            self._slots = Slots(self.most, self.model.device)
        torch.cuda.empty_cache()

    def _halve(self) -> None:
        """Write half as many replies at once from here on; those under way come first in line, and are read again.

        Where it was a single one already, that one ends.
        """
        self.out_of_memory += 1
        under_way = [job for job in dict.fromkeys((*self._jobs, *self._joining)) if job.reply.finish is None]
        if self.most == 1:
            _end_too_large(under_way)
        else:
            with self._changed:
                self.most = math.ceil(self.most / 2)
                self._waiting = deque(self._lined_up([*([job] for job in under_way), *self._waiting]))
            LOG.warning("memory ran out: from here on %d of %d rows are used", self.most, self.rows)
        self._jobs.clear()
        self._joining = []
        self._free()

    @property
    def _fits(self) -> bool:
        """Whether the next request finds its rows free."""
        if not self._waiting or (self._waiting[0][0].alone and self._jobs):
            return False
        return len(self._waiting[0]) <= self.most - len(self._jobs)

    def _admit(self) -> None:
        """Read the prompts of those who find rows free, and draw their first tokens."""
        while self._fits:
            admitted: list[list[Job]] = []
            free = self.most - len(self._jobs)
            with self._changed:
                while self._waiting and len(self._waiting[0]) <= free and self._small([*admitted, self._waiting[0]]):
                    admitted.append(self._waiting.popleft())
                    free -= len(admitted[-1])
            self._joining = [job for jobs in admitted for job in jobs]
            self._join([jobs for jobs in admitted if not all(job.over for job in jobs)])
            for job in self._joining:
                if job.over:
                    job.end("cancelled" if job.cancelled else "deadline")
            self._joining = []

    def _join(self, admitted: Sequence[list[Job]]) -> None:
        """Read prompts and let their replies begin; if one of them fails, it fails alone."""
        if not admitted:
            return
        if admitted[0][0].alone:
            self._free()
        done = None
        try:
            done = self._read([jobs[0] for jobs in admitted])
        except torch.OutOfMemoryError:
            pass
        except Exception as error:
            if len(admitted) > 1:
                for jobs in admitted:
                    self._join([jobs])
            else:
                for job in admitted[0]:
                    job.end("error", reason(error))
            return
        if done is None:  # outside of the handler, as in `_run`
            self._read_later(admitted)
            return
        cache, logits, read = done
        sizes = [len(jobs[0].tokens) for jobs in admitted]
        for row, jobs in enumerate(admitted):
            for job in jobs:
                job.reply.read[len(job.reply.ids) :] = [read[row]]
        draw_tokens(
            [job for jobs in admitted for job in jobs], logits[[row for row, jobs in enumerate(admitted) for _ in jobs]]
        )
        for row, jobs in enumerate(admitted):
            going = [job for job in jobs if not job.over]
            if any(job.reply.finish != "error" for job in jobs):
                self._keep(jobs[0], states_of(cache, row, sizes[row]))
            if going:
                self._slots.add(cache, row, sizes[row], len(going))
                self._jobs += going

    def _read_later(self, admitted: Sequence[list[Job]]) -> None:
        """After memory ran out: read prompts one by one, and one that failed by itself when nothing else is held."""
        self.out_of_memory += 1
        self._free()
        if len(admitted) > 1:
            for jobs in admitted:
                self._join([jobs])
        elif admitted[0][0].alone:
            _end_too_large(admitted[0])
        else:
            admitted[0][0].alone = True
            with self._changed:
                self._waiting.appendleft(admitted[0])

    def _read(self, first: Sequence[Job]) -> tuple[DynamicCache, Float[Tensor, "rows vocab"], list[list[float]]]:
        """Read prompts in one batch: the cache, what follows each, and the projections at its last token.

        Of every prompt the last tokens are read, as many as the longest of what no earlier conversation began with.
        """
        lengths = [len(job.tokens) for job in first]
        known = [self._known(job) for job in first]
        tail = max(length - BLOCK * len(path) for length, path in zip(lengths, known, strict=True))
        ids, mask = self.model.tensor([job.tokens[-tail:] for job in first], left=True)
        kept = [max(0, length - tail) for length in lengths]
        cache = DynamicCache()
        if any(kept):
            padding = habits(self.model.device).padding
            before = _fill(cache, known, kept, padding).to(mask)
            ids, mask = ids[:, padding:], torch.cat([before, mask[:, padding:]], dim=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        watch, places = _watched(first)
        prompts, scored = [len(job.prompt) for job in first], any(job.scored_now for job in first)
        with steer(self.model, [job.steering for job in first], prompts), watching(self.model, watch) as seen:
            for part in self._parts(first, ids.shape[1]):
                columns = slice(mask.shape[1] - ids.shape[1] + part.stop)
                logits = self._forward(ids[:, part], mask[:, columns], positions[:, part], cache, scored)
                if scored:
                    score_prompts(first, logits, part, ids.shape[1])
        read = torch.stack(seen, dim=1).tolist() if watch else [[]] * len(first)
        for job, reused in zip(first, kept, strict=True):
            job.reused = reused
        read = [[row[place] for place in columns] for columns, row in zip(places, read, strict=True)]
        return cache, logits[:, -1], read

    def _known(self, job: Job) -> list[Block]:
        """What a prompt begins with and was read before; its last token is always read, for what follows it.

        Nothing of one whose tokens are scored: what the model says of them is not kept.
        """
        return [] if job.scored_now else self.prefixes.find(job.reading, job.prompt[:-1])

    def _keep(self, job: Job, states: States) -> None:
        """Remember what was read of a conversation, given its keys and values."""
        ids = (*job.prompt, *job.reply.ids)[: min(job.lasting, states[0][0].shape[1])]
        try:
            self.prefixes.keep(job.reading, ids, states)
        except torch.OutOfMemoryError:  # nobody needs it
            self.prefixes.clear()

    def _small(self, prompts: Sequence[list[Job]]) -> bool:
        """Whether prompts may be read in one batch: those who write replies wait for it."""
        unread = [len(jobs[0].tokens) - BLOCK * len(self._known(jobs[0])) for jobs in prompts]
        alone = any(jobs[0].alone for jobs in prompts)
        return len(prompts) == 1 or (not alone and len(prompts) * max(unread) <= READ_TOKENS)

    def _write(self) -> None:
        """Take steps until somebody leaves or can join."""
        jobs, slots, device = self._jobs, self._slots, self.model.device
        watch, places = _watched(jobs)
        # what was done to prompts is over
        steering = [tuple(added for added in job.steering if added.positions != "prompt") for job in jobs]
        try:
            with steer(self.model, steering, [len(job.prompt) for job in jobs]), watching(self.model, watch) as seen:
                while True:
                    slots.reserve()
                    tokens = torch.tensor([job.reply.ids[-1:] for job in jobs], device=device)
                    positions = torch.tensor(slots.lengths, device=device)[:, None]
                    logits = self._forward(tokens, slots.mask(), positions, slots.cache)[:, -1]
                    slots.advance()
                    read = torch.stack(seen, dim=1).tolist() if watch else [[]] * len(jobs)
                    for job, columns, row in zip(jobs, places, read, strict=True):
                        job.reply.read.append([row[place] for place in columns])
                    draw_tokens(jobs, logits)
                    if self._fits or any(job.over for job in jobs):
                        break
        except SteeringOverflow as error:  # the others take the step again
            for row in error.rows:
                jobs[row].end("error", str(error))
        self._take_out()

    def _parts(self, first: Sequence[Job], width: int) -> list[slice]:
        """The columns that are read at once: all, or as many as logits are held of while prompts are scored."""
        scored = any(job.scored_now for job in first) and continued(self.model)
        step = max(1, SCORED // len(first)) if scored else width
        return [slice(start, min(start + step, width)) for start in range(0, width, step)]

    def _forward(
        self,
        ids: Int[Tensor, "rows seq"],
        mask: Int[Tensor, "rows all"],
        positions: Int[Tensor, "rows seq"],
        cache: DynamicCache,
        every: bool = False,
    ) -> Float[Tensor, "rows kept vocab"]:
        """What follows every token, or the last one of each row."""
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": not every}
        logits: Tensor = self.model.hf(**inputs, **using(self.model, cache)).logits
        return logits

    def _take_out(self) -> None:
        """Let those leave who are over."""
        for row in reversed(range(len(self._jobs))):
            job = self._jobs[row]
            if job.over:
                if job.reply.finish is None:
                    job.end("cancelled" if job.cancelled else "deadline")
                if job.reply.finish != "error":
                    self._keep(job, self._slots.row(row))
                self._slots.remove(row)
                self._jobs[row] = self._jobs[-1]
                self._jobs.pop()


def _fill(
    cache: DynamicCache, known: Sequence[list[Block]], kept: Sequence[int], padding: int
) -> Int[Tensor, "rows columns"]:
    """Put the first tokens of every row into an empty cache, as many as are kept; returns their mask.

    They end in the last column, and before the longest is as much padding as `Habits` has.
    """
    columns = max(kept) + padding
    first = next(path[0] for path in known if path)
    for layer, like in enumerate(first.states):
        keys, values = (part.new_zeros((len(kept), len(part), columns, part.shape[2])) for part in like)
        for row, (path, size) in enumerate(zip(known, kept, strict=True)):
            for place, states in enumerate((keys, values)):
                if size:
                    whole = torch.cat([block.states[layer][place] for block in path], dim=1)
                    states[row, :, columns - size :] = whole[:, :size]
        cache.update(keys, values, layer)
    return (torch.arange(columns) >= columns - torch.tensor(kept)[:, None]).long()


def _watched(jobs: Sequence[Job]) -> tuple[list[Watch], list[list[int]]]:
    """All directions that jobs read, each once, and where each job finds those that it reads."""
    watch = list({id(direction): direction for job in jobs for direction in job.watch}.values())
    places = {id(direction): place for place, direction in enumerate(watch)}
    return watch, [[places[id(direction)] for direction in job.watch] for job in jobs]


def _end_too_large(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.end("error", TOO_LARGE.format(len(job.tokens)))
