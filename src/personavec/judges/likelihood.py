"""The offline judge: how much likelier a reply is under the trait's positive than its negative instructions."""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import JudgeError
from personavec.judges.judge import Progress, Score
from personavec.judges.scale import LogisticScale, calibrate
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.stats.intervals import Interval, auc_interval
from personavec.traits.trait import Side, Trait

SIGNS: dict[Side, int] = {"pos": 1, "neg": -1}
PAIRS_PER_REPLY = 3
"""Pairs that read a reply: further ones cost time and hardly separate better."""
EVIDENCE = "nats_per_token"
"""Key of a score's evidence."""


class LikelihoodJudge:
    """Mean log-likelihood ratio per token over some of the instruction pairs, calibrated to 0–100.

    A reply that was written under one of the pairs is never judged by that pair: it would recognise its own
    sampling distribution instead of the trait.
    """

    def __init__(self, model: ChatModel, trait: Trait, calibration: LogisticScale | None = None) -> None:
        self._model, self._trait = model, trait
        self.id = f"likelihood:{model.identity.id}"
        self._pairs_per_reply = min(PAIRS_PER_REPLY, len(trait.pairs) - 1)
        self.steps = 2 * self._pairs_per_reply
        self.basis = f"weights {model.identity.revision[:16]}, {self._pairs_per_reply} pairs a reply"
        self.calibration = calibration
        self.auc: Interval | None = None

    def evidence(
        self, questions: Sequence[str], answers: Sequence[str], after: Sequence[int], progress: Progress
    ) -> Float[ndarray, " reply"]:
        """Mean log-likelihood ratio of each reply, in nats per token; nan for empty replies.

        Args:
            questions: What was asked.
            answers: What was replied.
            after: Per reply, a pair: the next ones in the trait's order (and around) read the reply.
            progress: Told of every reading.
        """
        replies = [self._model.encode(answer) for answer in answers]
        total = np.zeros(len(answers))
        for pair in range(len(self._trait.pairs)):
            distance = (pair - np.array(after, dtype=int)) % len(self._trait.pairs)
            rows: list[int] = np.flatnonzero((distance >= 1) & (distance <= self._pairs_per_reply)).tolist()
            own = [replies[row] for row in rows]
            for side, sign in SIGNS.items():
                system = {"role": "system", "content": self._trait.system_prompt(pair, side)}
                prompts = [self._model.render([system, {"role": "user", "content": questions[row]}]) for row in rows]
                logprobs = reply_logprobs(self._model, prompts, own, progress)
                total[rows] += [sign * float(each.mean()) if len(each) else np.nan for each in logprobs]
        return total / self._pairs_per_reply

    def score_rollouts(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        sides: Sequence[str],
        pairs: Sequence[int],
        seed: int,
        progress: Progress,
    ) -> list[Score]:
        """Learn the scale from rollouts; their own scores are cross-validated by question. See `TraitJudge`.

        Raises:
            JudgeError: Fewer than two questions with replies on both sides.
        """
        evidence = self.evidence(questions, answers, pairs, progress)
        valid = ~np.isnan(evidence)
        is_pos = np.array([side == "pos" for side in sides])
        groups = np.unique(np.array(questions), return_inverse=True)[1]
        if min(len(set(groups[valid & mask])) for mask in (is_pos, ~is_pos)) < 2:
            raise JudgeError(
                "expected replies to at least two questions on both sides, got "
                f"{(valid & is_pos).sum()} positive and {(valid & ~is_pos).sum()} negative ones; the rest were empty: "
                "raise --max-new-tokens or choose another model"
            )
        held_out = np.full(len(answers), np.nan)
        self.calibration, held_out[valid] = calibrate(evidence[valid, None], is_pos[valid], groups[valid])
        auc = auc_interval(held_out[valid], is_pos[valid], groups[valid], seed)
        self.auc = auc._replace(dropped=int((~valid).sum()))
        return [self._score(100 * value, x) for value, x in zip(held_out, evidence, strict=True)]

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        """Score replies that were written without a trait instruction; see `Judge`."""
        if self.calibration is None:
            raise JudgeError("expected a calibrated judge, got one without calibration; call calibrate first")
        # a question is always read by the same pairs, whatever reply it got: arms stay comparable
        after = [zlib.crc32(question.encode()) % len(self._trait.pairs) for question in questions]
        evidence = self.evidence(questions, answers, after, progress)
        values = 100 * self.calibration.predict(evidence[:, None])
        return [self._score(value, x) for value, x in zip(values, evidence, strict=True)]

    def _score(self, value: float, evidence: float) -> Score:
        if np.isnan(value):
            return Score(None, self.id, why="empty")
        return Score(float(value), self.id, {EVIDENCE: float(evidence)})
