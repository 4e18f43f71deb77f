"""What an extraction found, for people, scripts and the report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from personavec.judges.scoring import KEEP_TRAIT, Judges, ScoredRow, mean_score, unscored
from personavec.runs.result import Result
from personavec.runs.run import Run, commit, versions
from personavec.runs.show import interval
from personavec.stats.intervals import Interval
from personavec.steering.rollouts import Interview
from personavec.steering.vector import PersonaVector
from personavec.traits.independent_check import IndependentCheck
from personavec.traits.trait import Trait
from personavec.verbs.extract.check import ARMS, by_arm
from personavec.verbs.extract.sweep import Cell
from personavec.verbs.extract.verdict import (
    SHOWN,
    checked_mean,
    conditions,
    elicited,
    judge_table,
    unanswerable,
    verdict,
)

TRANSCRIPTS = 3

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, repr=False)
class Extraction(Result):
    """A persona vector and what proves it.

    `to_dict()` is what `extract --json` prints of one trait, `details` all that was measured.
    """

    vector: PersonaVector
    details: Row
    """Content of result.json: counts, layers, sweep, arms of the check, transcripts."""
    sheet: Row
    """Content of sheet.json: pairs of replies for blind readers."""

    page = "extract"

    @classmethod
    def of(cls, details: Row, vector: PersonaVector, run: Run, sheet: Row) -> "Extraction":
        """From the content of result.json and sheet.json, and where they are kept."""
        arms = {arm["arm"]: arm for arm in details["check"]}
        shown = ("base", "steered", "suppressed")
        data = {
            "trait": details["trait"]["name"],
            "proven": details["proven"],
            "verdict_word": details["verdict_word"],
            "deciding": details["deciding"],
            "verdict": details["verdict"],
            "independent_check": details["independent_check"],
            "vector": run.shown(details["vectors"]["response avg"]),
            **details["choice"],
            "n_pos": details["counts"]["pos"]["kept"],
            "n_neg": details["counts"]["neg"]["kept"],
            "confounds": details.get("confounds"),  # an older run has none
            "trait_score": {name: arms[name]["trait"] for name in shown},
            "coherence": {name: arms[name]["coherence"] for name in shown},
            "random_control": arms["random"]["trait"],
            "unscored": {name: arm["unscored"] for name, arm in arms.items()},
            "judge": details["judge"]["id"],
            "judge_auc": details["judge"]["auc"],
            "judge_aucs": details["judge"]["aucs"],
            "judge_table": details["judge"]["table"],
            "sheet": run.shown("sheet.html") if sheet["pairs"] else None,
            "result": run.shown("result.json"),
            "seconds": details["seconds"],
        }
        return cls(data, vector, details, sheet)

    @property
    def proven(self) -> bool:
        """Whether every condition of the verdict holds."""
        return bool(self.details["proven"])

    @property
    def verdict(self) -> list[Row]:
        """The conditions, each with its figures and whether it holds."""
        return list(self.details["verdict"])

    @property
    def drawn(self) -> Row:
        """What the page is made of."""
        return self.details | {"sheet": self.sheet}

    @property
    def folder(self) -> Path | None:
        """Where it is kept."""
        return Path(self.data["result"]).parent if self.data["result"] else None

    def lines(self) -> list[tuple[str, str]]:
        """What says most."""
        choice = self.details["choice"]
        shown = {
            "trait": self.data["trait"],
            "verdict": self.data["verdict_word"],
            **{name: interval(score) for name, score in self.data["trait_score"].items()},
            "random direction": interval(self.data["random_control"]),
            "at": f"layer {choice['layer']}, coef {choice['coef']:.3g}, dose {choice['dose']:.2g}",
            "replies kept": f"{self.data['n_pos']} + {self.data['n_neg']}",
            "judge": f"{self.data['judge']}, AUC {interval(self.data['judge_auc'], 2)}",
        }
        against = [
            ("cannot be seen" if condition.get("moot") else "against it", condition["text"])
            for condition in self.verdict
            if not condition["holds"]
        ]
        if self.data["verdict_word"] == SHOWN:
            against = [("against it", self.data["deciding"]), *against]
        return [*shown.items(), *against]


@dataclasses.dataclass(frozen=True, repr=False)
class Extractions(Result):
    """Several traits of one model; `failed` are those whose replies could not be used."""

    each: tuple[Extraction, ...]

    page = "extract"

    def to_dict(self) -> Row:
        """What `extract --json` prints: of a single trait, its keys stand at the top as well."""
        return (self.each[0].to_dict() if len(self.each) + len(self.data["failed"]) == 1 else {}) | dict(self.data)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page of every trait, and an index of several."""
        return Path(self.published(path)["report"])

    def published(self, path: str | Path | None = None) -> Row:
        """Write the pages; what `--json` prints, with their paths."""
        reports = [each.report(Path(path) / each.data["trait"] if path else None) for each in self.each]
        traits = [data | {"report": str(at)} for data, at in zip(self.data["traits"], reports, strict=True)]
        shown = reports[0]
        if len(traits) + len(self.data["failed"]) > 1:
            details = [extraction.details for extraction in self.each]
            shown = self.drawing.write_index(
                self.place(path), details, self.data["failed"], self.data["judge_by_trait"]
            )
        return self.to_dict() | {"traits": traits, "report": str(shown)}

    def lines(self) -> list[tuple[str, str]]:
        """A line a trait."""
        return [(extraction.data["trait"], extraction.data["verdict_word"]) for extraction in self.each]


class Evidence(NamedTuple):
    """What an extraction measured."""

    known: Sequence[ScoredRow]
    """What the judges learned from: rollouts first of all."""
    cells: Sequence[Cell]
    chosen: Cell
    check: Sequence[ScoredRow]
    """Replies of all arms."""


def summarise(
    interview: Interview,
    trait: Trait,
    judges: Judges,
    vector: PersonaVector,
    floor: float,
    evidence: Evidence,
) -> Row:
    """The content of result.json."""
    model, seed = interview.model, interview.seed
    known, cells, chosen, check = evidence
    rollouts = [row for row in known if "side" in row]
    arms, checked_by = by_arm(check), trait.independent_check
    means = {name: {kind: mean_score(rows, kind) for kind in ("trait", "coherence")} for name, rows in arms.items()}
    reliabilities = vector.card.reliability or [None] * len(vector.norms)
    listed = conditions(known, arms, judges, checked_by, floor)
    shown = elicited(checked_by, rollouts) if checked_by else None
    word, deciding = unanswerable(checked_by, rollouts) or verdict(listed, shown)
    return {
        "trait": {
            "name": trait.name,
            "adjective": trait.adjective,
            "antonym": trait.antonym,
            "description": trait.description,
            "hash": trait.content_hash,
            "n_pairs": len(trait.pairs),
            "n_extract": len(trait.extract),
            "n_sweep": len(trait.sweep),
            "n_check": len(trait.check),
        },
        "model": dataclasses.asdict(model.identity)
        | {"dtype": model.numbers.split()[0], "device": model.engine.name if model.engine else str(model.device)},
        "system_prompt": interview.system,
        "judge": judges.described() | {"table": judge_table(known)},
        "counts": {side: vector.card.details["counts"][side] for side in ("pos", "neg")},
        "keep_at": KEEP_TRAIT,
        "rollout_scores": {
            side: {
                kind: [round(value, 2) for r in rollouts if r["side"] == side and (value := r[kind]) is not None]
                for kind in ("trait", "coherence")
            }
            for side in ("pos", "neg")
        },
        "layers": [
            {"layer": layer, "norm": norm, "activation_norm": activation_norm, "reliability": reliability}
            for layer, (norm, activation_norm, reliability) in enumerate(
                zip(vector.norms.tolist(), vector.card.activation_norms, reliabilities, strict=True)
            )
        ],
        "confounds": vector.card.details["confounds"],
        **{name: vector.card.details.get(name) for name in ("pairwise_cosine", "instruction_agreement")},
        "sweep": {
            "floor": floor,
            "cells": [
                {"layer": cell.layer, "coef": cell.coef, "dose": cell.dose}
                | {"trait": cell.trait.to_json(), "coherence": cell.coherence.to_json()}
                for cell in cells
            ],
        },
        "choice": {
            "layer": chosen.layer,
            "coef": chosen.coef,
            "dose": chosen.dose,
            "above_floor": bool(chosen.coherence.low >= floor),
            "largest_dose": chosen.dose == max(cell.dose for cell in cells),
        },
        "check": [
            {
                "arm": arm.name,
                "direction": arm.direction,
                "coef": arm.share * chosen.coef,
                "dose": arm.share * chosen.dose,
                "trait": means[arm.name]["trait"].to_json(),
                "coherence": means[arm.name]["coherence"].to_json(),
                "unscored": {kind: unscored(arms[arm.name], kind) for kind in ("trait", "coherence")},
                "truncated": sum(row["finish"] == "length" for row in arms[arm.name]),
            }
            for arm in ARMS
        ],
        "proven": word == "proven",
        "verdict_word": word,
        "deciding": deciding,
        "verdict": [condition.to_json() for condition in listed],
        "independent_check": checked_by and _checked(checked_by, arms, rollouts, shown),
        "transcripts": _transcripts(arms),
        "sampling": interview.sampling.sampling,
        "seed": seed,
        "versions": versions(),
        "commit": commit(),
    }


def _checked(
    check: IndependentCheck, arms: dict[str, list[ScoredRow]], rollouts: Sequence[ScoredRow], shown: Interval | None
) -> Row:
    """What the independent check counts in every arm, and in replies told to show the trait or the opposite."""
    sides = {side: [row for row in rollouts if row["side"] == side] for side in ("pos", "neg")}
    return check.fields() | {
        "unit": check.unit,
        "told_auc": shown and shown.to_json(),
        "told": {side: checked_mean(check, rows).to_json() for side, rows in sides.items()},
        "arms": {name: checked_mean(check, rows).to_json() for name, rows in arms.items()},
    }


def _transcripts(arms: dict[str, list[ScoredRow]]) -> list[Row]:
    """The first sample of the first, middle and last question: chosen before anybody read them."""
    samples = {
        name: {row["question_id"]: row for row in arms[name] if row["sample"] == 0}
        for name in ("suppressed", "base", "steered")
    }
    last = max(samples["base"])
    return [
        {"question": samples["base"][q]["question"]}
        | {name: rows[q]["response"] for name, rows in samples.items()}
        | {"cut": [name for name, rows in samples.items() if rows[q]["finish"] == "length"]}
        for q in sorted({round(last * i / (TRANSCRIPTS - 1)) for i in range(TRANSCRIPTS)})
    ]
