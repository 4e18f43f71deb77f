"""What an extract run found, as the JSON that people, scripts and the report read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from personavec.config import ExtractConfig
from personavec.model import ChatModel
from personavec.proof import ARMS, Cell, verdict
from personavec.run import commit, versions
from personavec.scoring import KEEP_TRAIT, WEAK_AUC, Judges, mean_score, unscored
from personavec.trait import Trait
from personavec.vector import PersonaVector

TRANSCRIPTS = 3

Row = dict[str, Any]


def summarise(
    config: ExtractConfig,
    model: ChatModel,
    trait: Trait,
    judges: Judges,
    vector: PersonaVector,
    rollouts: Sequence[Row],
    counts: dict[str, dict[str, int]],
    cells: Sequence[Cell],
    chosen: Cell,
    check: Sequence[Row],
) -> Row:
    """The content of result.json."""
    arms = {arm.name: [row for row in check if row["arm"] == arm.name] for arm in ARMS}
    means = {
        name: {kind: mean_score(rows, kind, config.seed) for kind in ("trait", "coherence")}
        for name, rows in arms.items()
    }
    reliabilities = vector.card.reliability or [None] * len(vector.norms)
    conditions = verdict(means, judges, config.coherence_floor)
    return {
        "trait": {
            "name": trait.name,
            "adjective": trait.adjective,
            "antonym": trait.antonym,
            "description": trait.description,
            "hash": trait.content_hash,
            "n_pairs": len(trait.pairs),
            "n_extract": len(trait.extract),
            "n_evaluate": len(trait.evaluate),
        },
        "model": dataclasses.asdict(model.identity)
        | {"dtype": str(model.dtype).removeprefix("torch."), "device": str(model.device)},
        "system_prompt": config.system,
        "judge": {
            "id": judges.trait.id,
            "auc": judges.trait.auc.to_json() if judges.trait.auc else None,
            "weak": judges.weak,
            "weak_below": WEAK_AUC,
            "basis": judges.trait.basis,
            "coherence": {
                "id": judges.coherence.id,
                "auc": judges.coherence.auc.to_json() if judges.coherence.auc else None,
            },
        },
        "counts": counts,
        "keep_at": KEEP_TRAIT,
        "rollout_scores": {
            side: {
                kind: [round(r[kind], 2) for r in rollouts if r["side"] == side and r[kind] is not None]
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
        "pairwise_cosine": vector.card.details.get("pairwise_cosine"),
        "sweep": {
            "floor": config.coherence_floor,
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
            "above_floor": bool(chosen.coherence.low >= config.coherence_floor),
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
        "proven": all(condition["holds"] for condition in conditions),
        "verdict": conditions,
        "transcripts": _transcripts(arms),
        "sampling": config.sampling,
        "seed": config.seed,
        "versions": versions(),
        "commit": commit(),
    }


def outcome(result: Row, folder: Path) -> Row:
    """What `extract --json` prints for one trait."""
    arms = {arm["arm"]: arm for arm in result["check"]}
    shown = ("base", "steered", "suppressed")
    return {
        "trait": result["trait"]["name"],
        "proven": result["proven"],
        "verdict": result["verdict"],
        "vector": str(folder / result["vectors"]["response avg"]),
        **result["choice"],
        "n_pos": result["counts"]["pos"]["kept"],
        "n_neg": result["counts"]["neg"]["kept"],
        "confounds": result.get("confounds"),  # an older run has none
        "trait_score": {name: arms[name]["trait"] for name in shown},
        "coherence": {name: arms[name]["coherence"] for name in shown},
        "random_control": arms["random"]["trait"],
        "unscored": {name: arm["unscored"] for name, arm in arms.items()},
        "judge": result["judge"]["id"],
        "judge_auc": result["judge"]["auc"],
        "result": str(folder / "result.json"),
        "seconds": result["seconds"],
    }


def _transcripts(arms: dict[str, list[Row]]) -> list[Row]:
    """The first sample of the first, middle and last question: chosen before anybody read them."""
    samples = {
        name: {row["question_id"]: row for row in arms[name] if row["sample"] == 0}
        for name in ("suppressed", "base", "steered")
    }
    last = max(samples["base"])
    return [
        {"question": samples["base"][q]["question"]} | {name: rows[q]["response"] for name, rows in samples.items()}
        for q in sorted({round(last * i / (TRANSCRIPTS - 1)) for i in range(TRANSCRIPTS)})
    ]
