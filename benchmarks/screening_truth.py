"""What many small data sets teach a model, and which score of their rows foretold it.

    pip install -e ".[train]"
    python benchmarks/screening_truth.py FOLDER devout environmentalist
    python benchmarks/screening_truth.py FOLDER devout environmentalist --score my.py
    python benchmarks/screening_truth.py FOLDER/truth.csv

Goes on after a kill. Each set (benchmarks/truth_sets.py) trains SmolLM2 (LoRA); its truth is how far that moved each
trait on held-out questions, by the panel judge and by the independent check, paired with the base model's replies.
Scores are taken of the rows before training, by the base model: a set's is the mean over its rows, and in mixtures each
has an AUROC of the planted ones. --score tries another one on the sets that were trained:
`my.py` defines `score(model, rows, vector)`, a number for each row (`prompt`, `response`).

Writes FOLDER/truth.csv, a line a set and trait measured, and prints how each score ranks the sets; of a table that is
there already it prints that alone.
"""

import argparse
import csv
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from truth_sets import Pools, Row, TruthSet, every_set, load, ready

import personavec as pv
from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs
from personavec.runs.run import Run
from personavec.stats.intervals import auc, spearman_rows
from personavec.steering.vector import PersonaVector
from personavec.traits.load import load_trait
from personavec.verbs.finetune.comparing import evaluate_on_card

TRAINING: dict[str, Any] = {"batch": 4, "rate": 2e-4, "epochs": 3, "checkpoints": 1, "warmup_steps": 0}
ASKED: dict[str, Any] = {"rollouts": 2, "max_new_tokens": 32}
RUNGS = ("raw", "proxy", "full", "gradient", "lift")
Score = Callable[[ChatModel, Sequence[Row], PersonaVector], Sequence[float]]


def truth(
    model: ChatModel, wanted: TruthSet, data: Path, vectors: dict[str, PersonaVector], run: Run
) -> dict[str, Row]:
    """How far a set moved each trait: the judge's difference with its interval, and the check's, in two arms."""
    kept = f"truth-{wanted.name}.json"
    if run.done(kept):
        return dict(run.read_json(kept))
    rows = [{name: row[name] for name in ("prompt", "response")} for row in load(data)]
    tuned = pv.finetune(model, rows, seed=wanted.seed, **TRAINING)
    measured = {}
    for trait in vectors:
        judge = run.path(f"base-{trait}") / "judge.json"
        found = pv.evaluate(tuned.model, trait, judge_file=judge, **ASKED)
        check = load_trait(trait).independent_check
        assert check is not None
        shares = {
            arm: float(np.nanmean(check.values([row["response"] for row in replies])))
            for arm, replies in found.replies.items()
        }
        measured[trait] = {
            "trait": found.data["difference"]["trait"],
            "coherence": found.data["difference"]["coherence"],
        }
        measured[trait] |= {"check": shares["changed"] - shares["base"]}
    run.write_json(kept, measured | {"losses": tuned.data["loss"]})
    return dict(run.read_json(kept))


def loss(model: ChatModel, rows: Sequence[Row]) -> list[float]:
    """How unlikely the reply is: nats a token."""
    prompts = [model.render([{"role": "user", "content": row["prompt"]}]) for row in rows]
    read = reply_logprobs(model, prompts, [model.reply_ids(row["response"]) for row in rows])
    return [-float(each.mean()) for each in read]


def length(model: ChatModel, rows: Sequence[Row]) -> list[float]:
    """Tokens of the reply."""
    return [float(len(model.reply_ids(row["response"]))) for row in rows]


def by_row(
    model: ChatModel, wanted: TruthSet, data: Path, vectors: dict[str, PersonaVector], pools: Pools, run: Run
) -> Row:
    """Every score of every row, by `SCORE TRAIT`."""
    kept = f"scores-{wanted.name}.json"
    if run.done(kept):
        return dict(run.read_json(kept))
    rows = load(data)
    found: Row = {}
    for cost in RUNGS:
        screened = pv.screen(model, rows, [*vectors.values()], cost=cost, max_new_tokens=48)
        found |= {f"{cost} {trait}": screened.table.column(trait).tolist() for trait in vectors}
    alike = {name: list(score(model, rows)) for name, score in (("loss", loss), ("length", length))}
    for trait in vectors:
        found[f"judge {trait}"] = pools.judged(trait, rows).tolist()
        check = load_trait(trait).independent_check
        assert check is not None
        found[f"check {trait}"] = check.values([row["response"] for row in rows])
        found |= {f"{name} {trait}": values for name, values in alike.items()}
    run.write_json(kept, found)
    return found


def summary(rows: Sequence[Row], scores: Sequence[str], traits: Sequence[str]) -> None:
    """Print how each score ranks the sets by what they taught, within each trait, and finds planted rows."""
    print(
        "| score | "
        + " | ".join(f"{trait}: rank correlation over sets" for trait in traits)
        + " | AUROC of planted rows |"
    )
    print("|---|" + "---|" * (len(traits) + 1))
    for score in scores:
        cells = []
        for trait in traits:
            own = [row for row in rows if row["measured"] == trait and np.isfinite(row[score])]
            ranks = spearman_rows(*(np.array([float(row[key]) for row in own]) for key in (score, "truth")))
            cells.append(
                "–" if ranks.mean is None else f"{ranks.mean:.2f} [{ranks.low:.2f}, {ranks.high:.2f}] ({len(own)})"
            )
        planted = [row[f"auroc {score}"] for row in rows if np.isfinite(row[f"auroc {score}"])]
        print(
            f"| {score} | {' | '.join(cells)} | {np.mean(planted):.2f} ({len(planted)} mixtures) |"
            if planted
            else f"| {score} | {' | '.join(cells)} | – |"
        )


TOLD = ("set", "poison", "source", "topic", "measured")
"""Columns that are words."""


def read(table: Path) -> tuple[list[Row], list[str], list[str]]:
    """A table's lines, its scores and the traits that were measured."""
    with table.open(newline="") as file:
        lines = [
            {name: value if name in TOLD else float(value or "nan") for name, value in line.items()}
            for line in csv.DictReader(file)
        ]
    scores = [name.removeprefix("auroc ") for name in lines[0] if name.startswith("auroc ")]
    return lines, scores, list(dict.fromkeys(str(line["measured"]) for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("vectors", nargs="*", help="files, or names of vectors that come with the package")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--most", type=int, help="stop after so many sets")
    parser.add_argument("--score", type=Path, help="a Python file that defines score(model, rows, vector)")
    given = parser.parse_args()
    if given.folder.suffix == ".csv":
        summary(*read(given.folder))
        return
    if not given.vectors:
        parser.error("expected vectors, got none")
    model = ChatModel.load(given.model)
    vectors = {vector.card.trait: vector for vector in map(pv.load_vector, given.vectors)}
    own: Score | None = runpy.run_path(str(given.score))["score"] if given.score else None
    folder = given.folder.resolve()
    pools = Pools(model, vectors, folder / "pools")
    settings = {"model": model.identity.id, "numbers": model.numbers}
    run = Run.open(folder / "work", settings, {name: vector.content_hash for name, vector in vectors.items()})
    for trait, vector in vectors.items():
        card = folder / f"{trait}.safetensors"
        evaluate_on_card(
            model, trait, card if card.exists() else vector.save(card), store=run.path(f"base-{trait}"), **ASKED
        )
    table: list[Row] = []
    names: list[str] = []
    sets = [each for each in every_set([*vectors]) if not own or run.done(f"truth-{each.name}.json")]
    for number, (wanted, data) in enumerate(ready(sets, pools, folder / "sets")):
        if given.most is not None and number >= given.most:
            break
        print(f"set {number}: {wanted.name}", file=sys.stderr, flush=True)
        scored = by_row(model, wanted, data, vectors, pools, run)
        measured = truth(model, wanted, data, vectors, run)
        rows = load(data)
        planted = np.array([row["planted"] for row in rows])
        for trait, vector in vectors.items():
            mine = {"mine": own(model, rows, vector)} if own else {}
            values = {name.split()[0]: column for name, column in scored.items() if name.endswith(f" {trait}")} | mine
            names = [*values]
            line: Row = {"set": wanted.name, "poison": wanted.trait, "source": wanted.source, "topic": wanted.topic}
            line |= {
                "share": wanted.share,
                "seed": wanted.seed,
                "measured": trait,
                "truth": measured[trait]["trait"]["mean"],
            }
            line |= dict(zip(("low", "high"), measured[trait]["trait"]["ci"], strict=True))
            line |= {"check": round(measured[trait]["check"], 4), "coherence": measured[trait]["coherence"]["mean"]}
            for name, column in values.items():
                known = np.array(column, dtype=float)
                line[name] = float(f"{np.nanmean(known):.5g}")
                both = trait == wanted.trait and 0 < planted.sum() < len(planted)
                line[f"auroc {name}"] = (
                    round(auc(known[planted & ~np.isnan(known)], known[~planted & ~np.isnan(known)]), 4)
                    if both
                    else np.nan
                )
            table.append(line)
        with (folder / "truth.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*table[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    summary(table, names, [*vectors])


if __name__ == "__main__":
    main()
