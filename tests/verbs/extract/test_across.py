"""Each judge on every trait's replies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from personavec.judges.judge import Progress, Score
from personavec.judges.load import Bench
from personavec.runs.run import Run
from personavec.traits.load import load_trait
from personavec.traits.trait import Trait
from personavec.verbs.extract.across import judge_by_trait

TRAITS = [load_trait(name) for name in ("devout", "poetic", "fearful")]


class WordJudge:
    """Scores 90 for a word, else 10."""

    basis, steps, calibration = "words", 1, None

    def __init__(self, *words: str) -> None:
        self.id, self._words = f"words:{words}", words
        self.aucs: dict[str, Any] = {}

    def score(self, questions: Sequence[str], answers: Sequence[str], progress: Progress) -> list[Score]:
        progress(len(questions))
        return [
            Score(90.0 + len(question) % 3 if any(word in answer for word in self._words) else 10.0, self.id)
            for question, answer in zip(questions, answers, strict=True)
        ]

    def learn(self, *_: Any) -> list[Score]:
        raise NotImplementedError


def found(tmp_path: Path, words: dict[str, tuple[str, ...]]) -> Any:
    """Rollouts that hold their trait's name, and judges that look for words."""

    def judge(trait: Trait) -> WordJudge:
        return WordJudge(*words[trait.name])

    run = Run.open(tmp_path / "run", {}, {})
    for trait in TRAITS:
        part, own = run.part(trait.name), judge(trait)
        rows = [
            {"id": f"pos-{pair}-{at}-0", "side": "pos", "pair": pair, "question_id": at, "question": question}
            | {"sample": 0, "response": trait.name}
            for pair in range(5)
            for at, question in enumerate(trait.extract)
        ]
        rows += [row | {"id": f"neg{row['id']}", "side": "neg", "response": "none"} for row in rows]
        scores = own.score([row["question"] for row in rows], [row["response"] for row in rows], lambda _: None)
        part.write_rows("rollouts.jsonl", rows)
        part.write_rows(
            "rollouts.scores.jsonl",
            [
                {"id": row["id"], "judge": own.id, "trait": score.value, "coherence": 90.0, "evidence": {}}
                for row, score in zip(rows, scores, strict=True)
            ],
        )
        learned = {"id": own.id, "basis": "words", "aucs": {}}
        part.write_json("judge.json", {"trait_hash": trait.content_hash, "trait": learned, "coherence": learned})
    bench = Bench(WordJudge("e"), judge, "words", "")  # type: ignore[arg-type]
    return judge_by_trait(bench, run, TRAITS)


def test_a_judge_that_takes_another_trait_for_its_own_is_seen(tmp_path: Path) -> None:
    table = found(tmp_path, {"devout": ("devout",), "poetic": ("poetic", "fearful"), "fearful": ("fearful",)})
    assert table["scores"]["devout"]["devout"]["mean"] == pytest.approx(91, abs=1)
    assert table["scores"]["devout"]["devout"]["clusters"] == 20
    assert table["scores"]["devout"]["poetic"]["mean"] == 10
    assert table["above"]["devout"]["difference"]["ci"][0] > 70
    assert table["above"]["poetic"]["largest"] == "fearful"
    low, high = table["above"]["poetic"]["difference"]["ci"]
    assert low < 0 < high
    assert table["scores"]["poetic"]["devout"]["n"] == 20, "one reply a question of every other trait"


def test_a_single_trait_has_no_table(tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", {}, {})
    bench = Bench(WordJudge("e"), lambda _: WordJudge("e"), "words", "")  # type: ignore[arg-type,return-value]
    assert judge_by_trait(bench, run, TRAITS[:1]) is None
