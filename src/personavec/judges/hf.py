"""`hf:MODEL`: a local model as rubric judge, on letter labels, from the whole distribution of its next token."""

from collections.abc import Sequence

import torch

from personavec.errors import JudgeError
from personavec.judges.judge import Progress, Score
from personavec.judges.rubric import LETTERS, REFUSED, Message, expectation
from personavec.model.chat_model import ChatModel
from personavec.model.machine.limits import in_parts
from personavec.steering.generate import Request, batches


class LocalReader:
    """A rubric judge's reader on this machine. Always without adapter."""

    scale = LETTERS

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self.id = f"hf:{model.identity.id}"
        self.basis = f"weights {model.identity.revision[:16]}, expected value on {self.scale.name}"
        labels = [*self.scale.values, REFUSED]
        forms = {
            label: [read(form) for read in (model.encode, model.reply_ids) for form in (label, f" {label}")]
            for label in labels
        }
        # some tokenizers make one token of both forms
        self._labels = {ids[0]: label for label, tokens in forms.items() for ids in tokens if len(ids) == 1}
        missing = [label for label in labels if label not in self._labels.values()]
        if missing:
            raise JudgeError(
                f"expected {model.identity.id} to have one token for each of {', '.join(labels)}, got several for "
                f"{', '.join(missing)}; choose another judge model"
            )

    @torch.inference_mode()
    def read(self, conversations: Sequence[list[Message]], progress: Progress) -> list[Score]:
        """Score what is asked in each conversation."""
        requests = [Request(self._model.render(messages)) for messages in conversations]
        scores = [Score(None, self.id) for _ in requests]
        columns = torch.tensor(list(self._labels), device=self._model.device)

        def of_batch(part: Sequence[int]) -> list[list[float]]:
            inputs = self._model.inputs([requests[index].prompt for index in part], left=True)
            logits = self._model.hf(**inputs, logits_to_keep=1).logits[:, -1]
            logprobs = torch.log_softmax(logits.float(), dim=-1)
            rows: list[list[float]] = logprobs[:, columns.to(logits.device)].tolist()
            return rows

        for batch in batches(requests, 0, int(self._model.limits.cached.most)):
            for part, logprobs in in_parts(batch, of_batch, self._model.limits.cached):
                for index, row in zip(part, logprobs, strict=True):
                    value, why, mass = expectation(zip(self._labels.values(), row, strict=True), self.scale)
                    scores[index] = Score(value, self.id, {"mass": round(mass, 6)}, why)
            progress(len(batch))
        return scores
