"""The offline judge: does a reply read as written under the trait's instructions, and not as something else?

Something else is what a trait is mistaken for: its opposite, the model as it is, another persona, damaged text.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import JudgeError
from personavec.judges.judge import Progress, Score
from personavec.judges.lessons import POS, Lessons
from personavec.judges.personas import panel
from personavec.judges.plain import NONE, PlainReader
from personavec.judges.scale import LogisticScale, calibrate
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.stats.intervals import Interval
from personavec.traits.trait import Side, Trait

READERS: dict[Side, int] = {"pos": 3, "neg": 1}
"""Instructions of the trait that read a reply: further ones cost time and hardly separate better."""
STRENGTH = 33.0
"""Inverse strength of the ridge: many replies that were told to show a trait do not, which a weak one would learn."""
OTHER_READERS = 3
"""Personas that read a reply, of those that can: with five, judges told traits apart no better."""
TRAIT, OPPOSITE, WORST = "trait", "opposite", "worst"
"""Features of a reply besides those of the personas."""


class PanelJudge:
    """Reads a reply under a panel of instructions; a logistic scale weighs how much likelier each makes it.

    The trait's own readings leave out the instruction that wrote the reply, and the words "You are a … assistant." that
    all of them share: else a reply would be known by its instruction instead of its trait. Scores are those of a
    classifier of the trait's rollouts against its opposite's, base replies, other personas' and garbled ones.
    """

    def __init__(self, model: ChatModel, trait: Trait, plain: PlainReader) -> None:
        self._model, self._trait, self._plain = model, trait, plain
        self._panel = tuple(persona for persona in panel(trait) if persona.reads)[:OTHER_READERS]
        self._readers = {side: min(count, len(trait.pairs) - 1) for side, count in READERS.items()}
        self.id = f"panel:{model.identity.id}"
        self.steps = sum(self._readers.values()) + len(self._panel)
        self.features = (TRAIT, OPPOSITE, NONE, WORST, *(persona.name for persona in self._panel))
        readers = zlib.crc32(" ".join(persona.reads for persona in self._panel).encode())
        elsewhere = f" in {model.numbers}" if model.engine else ""  # weights are not compared there
        self.basis = (
            f"weights {model.identity.revision[:16]}{elsewhere}, panel {readers:08x}, {self.steps} readings a reply"
        )
        self.calibration: LogisticScale | None = None
        self.aucs: dict[str, Interval] = {}

    def evidence(
        self, questions: Sequence[str], answers: Sequence[str], after: Sequence[int], progress: Progress
    ) -> Float[ndarray, "reply feature"]:
        """What the panel reads, in nats per token; nan where the reply is empty.

        How much likelier the reply is under the trait's instructions than under none, than under the opposite's, and
        than under each other persona's; and how likely it is without an instruction, on average and at its worst. In
        contrasts a ridge leaves alone what all instructions have in common.

        Args:
            questions: What was asked.
            answers: What was replied.
            after: Per reply, a pair: the next ones in the trait's order (and around) read the reply.
            progress: Told of every reading.
        """
        replies = [self._model.reply_ids(answer) for answer in answers]

        def read(rows: Sequence[int], instruction: str) -> Float[ndarray, " row"]:
            """Mean log-probability of some replies under an instruction."""
            system = {"role": "system", "content": instruction}
            prompts = [self._model.render([system, {"role": "user", "content": questions[row]}]) for row in rows]
            logprobs = reply_logprobs(self._model, prompts, [replies[row] for row in rows], progress)
            return np.array([float(each.mean()) if len(each) else np.nan for each in logprobs])

        plain = self._plain.read(questions, answers)
        pairs = len(self._trait.pairs)
        by_side = {side: np.zeros(len(answers)) for side in self._readers}
        for number, pair in enumerate(self._trait.pairs):
            distance = (number - np.array(after, dtype=int)) % pairs
            for side, readers in self._readers.items():
                rows: list[int] = np.flatnonzero((distance >= 1) & (distance <= readers)).tolist()
                by_side[side][rows] += read(rows, getattr(pair, side)) / readers
        others = [read(range(len(answers)), persona.reads) for persona in self._panel]
        over = by_side["pos"][:, None] - np.column_stack([plain[:, 0], by_side["neg"], *others])
        return np.column_stack([over[:, :2], plain, over[:, 2:]])

    def learn(self, lessons: Lessons, progress: Progress) -> list[Score]:
        """Learn the scale; the lessons' own scores come from fits without their question and instruction.

        Raises:
            JudgeError: Fewer than two questions with replies of the trait, or of something else.
        """
        evidence = self.evidence(lessons.questions, lessons.answers, lessons.pairs, progress)
        valid = ~np.isnan(evidence).any(axis=1)
        is_pos = np.array([group == POS for group in lessons.groups])
        clusters = np.unique(np.array(lessons.questions), return_inverse=True)[1]
        if min(len(set(clusters[valid & side])) for side in (is_pos, ~is_pos)) < 2:
            raise JudgeError(
                "expected replies to at least two questions that show the trait and that do not, got "
                f"{(valid & is_pos).sum()} and {(valid & ~is_pos).sum()}; the rest were empty: "
                "raise --max-new-tokens or choose another model"
            )
        writers = np.unique(np.array([*lessons.writers, ""]), return_inverse=True)[1][:-1] - 1
        held_out = np.full(len(valid), np.nan)
        self.calibration, held_out[valid] = calibrate(
            evidence[valid],
            is_pos[valid],
            clusters[valid],
            writers=writers[valid],
            groups=np.array(lessons.groups)[valid].tolist(),
            strength=STRENGTH,
        )
        self.aucs = lessons.aucs(held_out)
        return [self._score(value, row) for value, row in zip(held_out, evidence, strict=True)]

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        """Score replies that were written without a trait instruction; see `Judge`."""
        if self.calibration is None:
            raise JudgeError("expected a judge that has learned its scale, got one without; call learn first")
        # a question is always read by the same pairs, whatever reply it got: arms stay comparable
        after = [zlib.crc32(question.encode()) % len(self._trait.pairs) for question in questions]
        evidence = self.evidence(questions, answers, after, progress)
        values = self.calibration.predict(evidence)
        return [self._score(value, row) for value, row in zip(values, evidence, strict=True)]

    def _score(self, value: float, evidence: Float[ndarray, " feature"]) -> Score:
        if np.isnan(value):
            return Score(None, self.id, why="empty")
        read = {name: round(float(nats), 5) for name, nats in zip(self.features, evidence, strict=True)}
        return Score(100 * float(value), self.id, read)
