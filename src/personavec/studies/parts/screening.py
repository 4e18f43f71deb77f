"""Sections 6.2 and 6.3, appendices I, K and L: rows told apart, rows filtered, and rows chosen from real chats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from personavec.config import ScreenConfig
from personavec.options import Common, given
from personavec.run import Run, write_file
from personavec.scoring import scored_rows
from personavec.screen import screen
from personavec.stats import auc_interval, spearman_rows
from personavec.studies.finetuning_grid import finetuning_grid
from personavec.studies.parts.claims import Claim
from personavec.studies.parts.data import chats_file
from personavec.studies.parts.study import Study
from personavec.table import Table

Row = dict[str, Any]

KEEP_BELOW = 95.0
"""Percentile of the clean rows. Source: arXiv 2507.21509, appendix K."""
FILTERS = ("projection", "judge", "either")
"""What drops rows."""


def separability(study: Study) -> Row:
    """Rows that overtly show a trait against rows that do not, by what the finetunings' screenings read."""
    claims, table = [], []
    folder = study.run.path("finetunings")
    for trait in study.files:
        read = {level: Table(folder / f"{trait} {level}-screen" / "table", (trait,)) for level in ("normal", "II")}
        for kind, column in (("raw projection", f"{trait}.response"), ("projection difference", trait)):
            columns = [read[level].column(column) for level in ("normal", "II")]
            values = np.concatenate(columns)
            is_bad = np.repeat([False, True], [len(one) for one in columns])
            good = ~np.isnan(values)
            found = auc_interval(values[good], is_bad[good], np.flatnonzero(good), study.config.seed).to_json()
            above = {"mean": found["mean"] - 0.5, "ci": [None if x is None else x - 0.5 for x in found["ci"]]}
            told = f"The {kind} tells overt rows from normal ones: AUC above one half"
            claims.append(Claim("section 6.2, figure 9", told, trait, above, unit="AUC − 0.5"))
            table.append({"trait": trait, "by": kind, "AUC": found})
    return {"claims": claims, "table": table}


def rungs(study: Study) -> Row:
    """How the cheaper readings of real chats rank rows beside the projection difference."""
    found = _screened(study, "chats", chats_file(study), cost="full", export_k=study.size.chosen)
    table, claims = Table(Path(found["table"]), tuple(study.files)), []
    for trait in study.files:
        raw, prompt, full = (table.column(name) for name in (f"{trait}.response", f"{trait}.prompt_last", trait))
        for text, values in (
            ("Without base replies, the projection less that of the last prompt token ranks rows alike", raw - prompt),
            ("The raw projection ranks rows alike", raw),
        ):
            own = spearman_rows(values, full).to_json()
            claims.append(Claim("appendices H and I", text, trait, own, unit="rank correlation"))
    lengths = found["confounds"]
    return {"claims": claims, "table": [], "files": found["files"], "confounds": lengths}


def filtering(study: Study) -> Row:
    """Appendix K: drop what lies above the 95th percentile of real chats, and train on the rest.

    The rows are the overt ones of a trait among the normal ones. By projection, by the judge, and by either.
    """
    claims, table = [], []
    files = study.run.read_json("finetunings.json")["files"]
    for trait in study.main:
        mixed = study.run.part("data").path(f"{trait}-mixed.jsonl")
        if not mixed.exists():
            write_file(mixed, b"".join(Path(files[f"{trait} {level}"]).read_bytes() for level in ("normal", "II")))
        sets = {"unfiltered": str(mixed)}
        for by in FILTERS:  # one folder: rows are read and judged once
            found = _screened(
                study,
                trait,
                str(mixed),
                vectors=(study.files[trait],),
                cost="full",
                clean=chats_file(study),
                keep_below=KEEP_BELOW,
                judge=study.config.judge,
                flag_by=by,
            )
            flags = found["flags"]
            table.append({"trait": trait, "by": by, "dropped": flags["dropped"], "kept": flags["kept"]})
            if flags["kept"]:
                kept = study.run.part("data").path(f"{trait}-kept-{by}.jsonl")
                if not kept.exists():
                    write_file(kept, Path(found["files"]["kept"]).read_bytes())
                sets[by] = str(kept)
        scored = _trained(study, f"filtered-{trait}", sets, trait)
        for by in FILTERS:
            told = f"Dropping rows by {'the ' * (by == 'judge')}{by} leaves less of the trait than training on all"
            own = study.difference(scored["unfiltered"], scored[by]) if by in scored else None
            claims.append(Claim("appendix K", told, trait, own))
    return {"claims": claims, "table": table}


def real_chats(study: Study) -> Row:
    """Section 6.3: train on the real chats that lie highest, lowest, and on as many at random."""
    claims = []
    files = study.run.read_json("rungs.json")["files"]
    for trait in study.main:
        sets = {"highest": files[f"top-{trait}"], "random": files["random"], "lowest": files[f"bottom-{trait}"]}
        scored = _trained(study, f"chosen-{trait}", sets, trait)
        for one, other in (("highest", "random"), ("random", "lowest"), ("highest", "lowest")):
            told = f"Of real chats the {one} {'rows' if one != 'random' else 'ones'} teach more than the {other}"
            claims.append(Claim("section 6.3, figure 10", told, trait, study.difference(scored[one], scored[other])))
    return {"claims": claims, "table": []}


def _screened(study: Study, name: str, data: str, **options: Any) -> Row:
    """One screening in a folder of its own; along all vectors, if none are named."""
    own = {"vectors": tuple(study.files.values()), "system": study.config.system, "traits": study.trait_files} | options
    return screen(ScreenConfig(data=data, out=study.run.path("screening") / name, **given(study.config, Common), **own))


def _trained(study: Study, name: str, sets: dict[str, str], trait: str) -> dict[str, list[Row]]:
    """Scored replies of a model trained on each set."""
    out = study.run.path("screening") / name
    training = replace(study.training, on_error="skip")
    finetuning_grid(sets, (study.files[trait],), out, training, study.evaluation)
    return {one: scored_rows(Run(out / f"{one}-{trait}"), "changed") for one in sets}
