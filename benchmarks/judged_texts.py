"""Do the trait judges tell hand-written texts apart? Texts of every trait, its low pole, plain and shuffled ones.

    python benchmarks/judged_texts.py runs/extract-devout/devout [MORE FOLDERS]

Each folder is that of a trait in an extraction: its judge.json is what the extraction learned.
"""

import json
import sys
from pathlib import Path

import numpy as np

from personavec.judges.garble import garble
from personavec.judges.load import load_bench
from personavec.judges.scoring import Judges
from personavec.model.chat_model import ChatModel
from personavec.stats.intervals import auc_interval
from personavec.traits.load import load_trait

TEXTS = Path(__file__).parent.parent / "tests" / "support" / "judged_texts.json"
"""Eight questions; eight replies that show each trait, eight of its low pole, eight plain ones."""
OFFERED = 0.8
"""AUC against every other group from which a trait is called measurable."""


def groups(texts: dict) -> dict[str, list[str]]:
    """The replies by what they are, in the order of the questions."""
    named = {"plain": texts["plain"], "shuffled": [garble(text, (0, at))[0] for at, text in enumerate(texts["plain"])]}
    for name, sides in texts["traits"].items():
        named |= {name: sides["pos"], f"not {name}": sides["neg"]}
    return named


def table(model: ChatModel, folder: Path, texts: dict) -> dict[str, tuple[float, float, float]]:
    """AUC of a trait's own texts against those of each other group, with its interval."""
    trait, bench, named = load_trait(folder.name), load_bench("panel", model), groups(texts)
    judges = Judges(bench.trait(trait), bench.coherence, trait.content_hash)
    judges.restore(json.loads((folder / "judge.json").read_text()), str(folder))
    replies = [text for group in named.values() for text in group]
    scores = judges.trait.score(texts["questions"] * len(named), replies, lambda _: None)
    values = np.array([score.value for score in scores]).reshape(len(named), -1)
    own, questions = values[list(named).index(trait.name)], np.arange(len(texts["questions"]))
    found = {}
    for name, other in zip(named, values, strict=True):
        if name != trait.name:
            auc = auc_interval(np.r_[own, other], np.arange(2 * len(own)) < len(own), np.r_[questions, questions])
            found[name] = (auc.mean, auc.low, auc.high)
    return found


def main() -> None:
    """Print the worst groups of each trait, and whether the trait is measurable by texts it did not learn from."""
    model, texts = ChatModel.load("smollm2"), json.loads(TEXTS.read_text("utf-8"))
    for folder in map(Path, sys.argv[1:]):
        found = table(model, folder, texts)
        worst = sorted(found, key=lambda name: found[name][0])[:4]
        verdict = "measurable" if min(auc for auc, _, _ in found.values()) >= OFFERED else "not measurable"
        shown = ", ".join(f"{name} {found[name][0]:.2f} [{found[name][1]:.2f}, {found[name][2]:.2f}]" for name in worst)
        median = np.median([auc for auc, _, _ in found.values()])
        print(f"{folder.name}: {verdict}; median AUC {median:.2f}, lowest: {shown}", flush=True)


if __name__ == "__main__":
    main()
