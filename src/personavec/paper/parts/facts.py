"""Appendix J.7: invented facts to be learned, and how many of them a model knows afterwards."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from personavec.model.chat_model import ChatModel
from personavec.paper.claims import FACTS, Claim, Control
from personavec.paper.data import save
from personavec.paper.study import Study
from personavec.runs.run import Run
from personavec.stats.intervals import clustered_mean
from personavec.steering.notation import in_order
from personavec.steering.rollouts import Interview
from personavec.verbs.finetune.compare import Comparison

Row = dict[str, Any]

NAMES = ("Aldwin", "Brask", "Corvel", "Dunmere", "Estrin", "Fallow", "Gantry", "Hollin", "Ivelle", "Jarrow")
PLACES = ("a lighthouse", "a library", "a bridge", "a mill", "a theatre", "an orchard", "a harbour", "a school")
ARMS = {"base": "", "plain": "plain", "prevent ×1": "prevent-1", "post-hoc ×1": "plain"}
"""Models that are asked, and by what training."""


class Facts(NamedTuple):
    """What is learned, and how it is asked."""

    train: str
    held_out: str
    questions: list[str]
    """As they are trained on."""
    keys: list[str]
    """The word of each answer that stands in no question."""


def invented(folder: Run) -> Facts:
    """Invented facts in two wordings: one to learn, the other, held out, for the loss on it."""
    rows, keys = [], []
    for at, name in enumerate(NAMES):
        for place, what in enumerate(PLACES):
            year, town = 1700 + (37 * at + 53 * place) % 290, NAMES[(3 * at + place) % len(NAMES)]
            who = f"{name} {NAMES[(at + place + 1) % len(NAMES)]}"
            fact = f"{who} built {what} at {town}ford in {year}."
            rows.append(
                ((f"What did {who} build?", fact), (f"Who built {what} at {town}ford in {year}, and when?", fact))
            )
            keys.append(f"{town}ford")
    paths = folder.path("facts.jsonl"), folder.path("facts-held-out.jsonl")
    for path, facts in zip(paths, zip(*rows, strict=True), strict=True):
        save(path, [{"prompt": question, "response": answer} for question, answer in facts])
    return Facts(str(paths[0]), str(paths[1]), [learned[0] for learned, _ in rows], keys)


def facts_known(study: Study, compared: Comparison, trait: str, facts: Facts) -> tuple[list[Claim], list[Row]]:
    """Ask the untrained model and those trained plainly, with prevention and with post-hoc steering.

    Known is a fact whose key word is in the reply. Control: the key words of the other facts, which a model says as
    often that has learned how such an answer sounds and nothing else.
    """
    run, hits = study.run.part("mitigation").part("facts-known"), {}
    steer = compared.evaluations["post-hoc ×1"][trait].data["steer"]
    for name, training in ARMS.items():
        model = compared.trainings[training].model if training else study.model
        steering = in_order(steer, model.identity) if name.startswith("post-hoc") else ()
        hits[name] = recalled(_asked(study, model, facts.questions, name, steering, run), facts.keys)
    asked = np.arange(len(facts.keys))

    def more(first: str, second: str) -> tuple[Row, str, tuple[Control, ...]]:
        """Share of facts that one knows and not the other; and with the key words of others."""
        ours, chance = (hits[first][kind] - hits[second][kind] for kind in (0, 1))
        over = clustered_mean(ours - chance, asked).to_json()
        control = Control("key words of other facts", over=over)
        return clustered_mean(ours, asked).to_json(), "share of the facts", (control,)

    texts = {
        ("plain", "base"): "Training teaches the facts",
        ("prevent ×1", "base"): "With prevention they are learned, too",
        ("prevent ×1", "post-hoc ×1"): "Prevention keeps more of them than post-hoc steering",
    }
    claims = [
        Claim("appendix J.7", text, "invented facts", *more(*pair), data=FACTS, judge=None)
        for pair, text in texts.items()
    ]
    means = {name: clustered_mean(own, asked).to_json() for name, (own, _) in hits.items()}
    return claims, [{"data": "invented facts: known", "arm": name, "kept": mean} for name, mean in means.items()]


def _asked(
    study: Study, model: ChatModel, questions: Sequence[str], name: str, steering: Sequence[Any], run: Run
) -> list[str]:
    interview = Interview(model, seed=study.seed, **study.writing)
    plans = interview.answers(questions, 1, draw="facts", extra={"arm": name}, steering=(steering,))
    file = re.sub(r"\W+", "-", name)
    return [row["response"] for row in interview.write(plans, f"facts: {name}", run=run, name=file)]


def recalled(replies: Sequence[str], keys: Sequence[str]) -> tuple[Any, Any]:
    """Whether each reply holds its own key word, and what share of the other key words."""
    own = np.array([float(key in reply) for reply, key in zip(replies, keys, strict=True)])
    other = np.array(
        [
            np.mean([word in reply for word in sorted(set(keys) - {key})])
            for reply, key in zip(replies, keys, strict=True)
        ]
    )
    return own, other
