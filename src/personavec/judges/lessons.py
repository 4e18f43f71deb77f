"""What a judge learns from: replies of which it is known who wrote them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.judges.garble import garble
from personavec.judges.personas import panel
from personavec.runs.run import Run
from personavec.stats.intervals import Interval, auc_interval
from personavec.steering.rollouts import Interview, Plan, ReplyRow
from personavec.traits.trait import Trait

POS = "pos"
GROUPS = {"opposite": "its opposite", "base": "base replies", "others": "other personas", "garbled": "garbled replies"}
"""What a trait must not be mistaken for."""
QUESTIONS_PER_PERSONA = 6
BASE_ROLLOUTS = 2
"""Base replies to each extraction question."""


@dataclass(frozen=True)
class Lessons:
    """Replies of which it is known who wrote them: the trait's rollouts and all that they must not be mistaken for."""

    rows: tuple[ReplyRow, ...]
    """Contrastive rollouts, base replies, other personas' replies and garbled base replies."""

    @cached_property
    def questions(self) -> list[str]:
        """What was asked."""
        return [row["question"] for row in self.rows]

    @cached_property
    def answers(self) -> list[str]:
        """What was replied."""
        return [row["response"] for row in self.rows]

    @cached_property
    def groups(self) -> list[str]:
        """What each row is an example of: "pos", or one of `GROUPS`."""
        return [_group(row) for row in self.rows]

    @cached_property
    def writers(self) -> list[str]:
        """Which instruction wrote each row; "" where there was none."""
        return [f"pair {row['pair']}" if "pair" in row else row.get("writer", "") for row in self.rows]

    @cached_property
    def pairs(self) -> list[int]:
        """A pair that must not read each row; any where none wrote it."""
        return [row.get("pair", row["question_id"]) for row in self.rows]

    @property
    def base(self) -> list[ReplyRow]:
        """The base replies among them."""
        return [row for row in self.rows if row.get("arm") == "base"]

    def aucs(self, scores: Float[ndarray, " row"]) -> dict[str, Interval]:
        """How well scores tell the trait's rollouts from each group, clustered by question; nan scores are dropped."""
        clusters = np.unique(np.array(self.questions), return_inverse=True)[1]
        groups, known = np.array(self.groups), ~np.isnan(scores)
        measured = {}
        for name in GROUPS:
            among = (groups == POS) | (groups == name)
            rows = among & known
            if len({*groups[rows].tolist()}) == 2:
                auc = auc_interval(scores[rows], groups[rows] == POS, clusters[rows])
                measured[name] = auc._replace(dropped=int((among & ~known).sum()))
        return measured


def _group(row: ReplyRow) -> str:
    side = row.get("side")
    return {"pos": POS, "neg": "opposite"}[side] if side else row["arm"]


def lessons(
    interview: Interview, trait: Trait, rollouts: Sequence[ReplyRow], base: Sequence[ReplyRow], run: Run | None = None
) -> Lessons:
    """What a judge of a trait learns from: rollouts and base replies, damaged copies of these, other personas' replies.

    Args:
        interview: Who is asked, and how.
        trait: Whose judge learns.
        rollouts: Contrastive rollouts.
        base: Replies to the same questions without an instruction.
        run: Keeps the other personas' replies in others.jsonl.
    """
    others = interview.write(persona_plans(interview, trait), f"{trait.name}: other personas", run=run, name="others")
    return Lessons((*rollouts, *base, *others, *garbled(base, interview.seed)))


def persona_plans(interview: Interview, trait: Trait) -> list[Plan]:
    """What the other personas are asked: some of the trait's extraction questions."""
    return [
        plan
        for place, persona in enumerate(panel(trait))
        for plan in interview.answers(
            trait.extract[place % 2 :: 2][:QUESTIONS_PER_PERSONA],
            1,
            draw=persona.name,
            extra={"arm": "others", "writer": persona.name},
            systems=(persona.writes,),
        )
    ]


def garbled(rows: Sequence[ReplyRow], seed: int) -> list[ReplyRow]:
    """Damaged copies of replies, each in one of three ways; those too short to be damaged are left out."""
    copies = [garble(row["response"], (seed, place))[place % 3] for place, row in enumerate(rows)]
    return [
        cast(ReplyRow, {**row, "id": f"garbled-{row['id']}", "arm": "garbled", "response": copy})
        for row, copy in zip(rows, copies, strict=True)
        if copy.split() != row["response"].split()
    ]
