"""The offline judge: how much likelier a reply is under the trait's positive than its negative instructions."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import JudgeError
from personavec.judges.judge import Progress, Score
from personavec.judges.logprobs import reply_logprobs
from personavec.model import ChatModel
from personavec.stats import Calibration, Interval, auc_interval, calibrate
from personavec.trait import Trait

WEAK_AUC = 0.75


class LikelihoodJudge:
    """Mean log-likelihood ratio per token over the instruction pairs, calibrated to 0–100.

    A reply that was written under one of the pairs is never judged by that pair: it would recognise its own
    sampling distribution instead of the trait. Source: DESIGN section 8.
    """

    def __init__(self, model: ChatModel, trait: Trait, calibration: Calibration | None = None) -> None:
        self._model, self._trait = model, trait
        self.id = f"likelihood:{model.identity.id}"
        self.steps = 2 * len(trait.pairs)
        self.calibration = calibration
        self.auc: Interval | None = None

    def ratios(
        self, questions: Sequence[str], answers: Sequence[str], progress: Progress
    ) -> Float[ndarray, "reply pair"]:
        """Log-likelihood ratio of each reply under each pair, in nats per token; nan for empty replies."""
        replies = [self._model.encode(answer) for answer in answers]
        sides = []
        for side in ("pos", "neg"):
            for pair in range(len(self._trait.pairs)):
                system = {"role": "system", "content": self._trait.system_prompt(pair, side)}
                prompts = [self._model.render([system, {"role": "user", "content": q}]) for q in questions]
                logprobs = reply_logprobs(self._model, prompts, replies, progress)
                sides.append([float(each.mean()) if len(each) else np.nan for each in logprobs])
        pos, neg = np.split(np.array(sides), 2)
        ratios: Float[ndarray, "reply pair"] = (pos - neg).T
        return ratios

    def calibrate(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        sides: Sequence[str],
        pairs: Sequence[int],
        seed: int,
        progress: Progress,
    ) -> list[Score]:
        """Learn the 0–100 scale from contrastive rollouts; returns their own scores, cross-validated by question.

        Raises:
            JudgeError: Fewer than two questions with replies on both sides.
        """
        ratios = self.ratios(questions, answers, progress)
        ratios[np.arange(len(pairs)), list(pairs)] = np.nan
        valid = ~np.isnan(ratios).all(axis=1)
        evidence = np.full(len(answers), np.nan)
        evidence[valid] = np.nanmean(ratios[valid], axis=1)
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
        self.auc = auc_interval(held_out[valid], is_pos[valid], groups[valid], seed)
        return [self._score(100 * value, x) for value, x in zip(held_out, evidence, strict=True)]

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        """Score replies that were written without a trait instruction; see `Judge`."""
        if self.calibration is None:
            raise JudgeError("expected a calibrated judge, got one without calibration; call calibrate first")
        ratios = self.ratios(questions, answers, progress)
        evidence = np.nan_to_num(ratios).mean(axis=1)
        values = 100 * self.calibration.predict(evidence[:, None])
        values[np.isnan(ratios).any(axis=1)] = np.nan
        return [self._score(value, x) for value, x in zip(values, evidence, strict=True)]

    def _score(self, value: float, evidence: float) -> Score:
        if np.isnan(value):
            return Score(None, self.id)
        return Score(float(value), self.id, {"nats_per_token": float(evidence)})
