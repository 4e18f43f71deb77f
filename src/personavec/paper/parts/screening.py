"""Sections 6.2 and 6.3, appendices I, K and L: rows told apart, rows filtered, and rows chosen from real chats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from personavec.judges.scoring import scored_rows
from personavec.paper.claims import Claim, above
from personavec.paper.data import chats_file, write_once
from personavec.paper.grid import finetuning_grid
from personavec.paper.study import Study, surviving
from personavec.runs.run import Run
from personavec.stats.intervals import auc_interval, spearman_rows
from personavec.verbs.options import Common, given
from personavec.verbs.screen.options import ScreenConfig
from personavec.verbs.screen.table import Table

Row = dict[str, Any]

KEEP_BELOW = 95.0
"""Percentile of the clean rows. Source: arXiv 2507.21509, appendix K."""
FILTERS = ("projection", "judge", "either")
"""What drops rows."""


def separability(study: Study) -> Row:
    """Rows that overtly show a trait against rows that do not, by what the finetunings' screenings read."""
    claims, table = [], []
    folder = study.run.path("finetunings")
    files = study.run.read_json("finetunings.json")["files"]
    for trait in study.files:
        paths = [Path(files[f"{trait} {level}"]) for level in ("normal", "II")]
        prompts = [row["prompt"] for path in paths for row in Run(path.parent).rows(path.name)]
        questions = np.unique(prompts, return_inverse=True)[1]
        read = {level: Table(folder / f"{trait} {level}-screen" / "table", (trait,)) for level in ("normal", "II")}
        for kind, column in (("raw projection", f"{trait}.response"), ("projection difference", trait)):
            columns = [read[level].column(column) for level in ("normal", "II")]
            values = np.concatenate(columns)
            is_bad = np.repeat([False, True], [len(one) for one in columns])
            good = ~np.isnan(values)
            found = auc_interval(values[good], is_bad[good], questions[good], study.config.seed).to_json()
            told = f"The {kind} tells overt rows from normal ones: AUC above one half"
            claims.append(Claim("section 6.2, figure 9", told, trait, above(found, 0.5), unit="AUC − 0.5"))
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

    The rows are the overt ones of a trait among the normal ones. By projection, by the judge, by either, and as the
    control as many at random as by projection.
    """
    claims, table, failed = [], [], list[Row]()
    for trait in study.known(study.size.single):
        with surviving(failed, trait):
            sets = _filtered(study, trait)
            rows = {by: len(list(Run(path.parent).rows(path.name))) for by, path in sets.items()}
            table += [{"trait": trait, "by": by, "kept": kept, "of": rows["unfiltered"]} for by, kept in rows.items()]
            filled = {by: str(path) for by, path in sets.items() if rows[by]}
            scored = _trained(study, f"filtered-{trait}", filled, trait)
            fewer = {by: study.difference(scored["unfiltered"], own) for by, own in scored.items()}
            for by in FILTERS:
                told = f"Dropping rows by {'the ' * (by == 'judge')}{by} leaves less of the trait than training on all"
                control = fewer["random"]["mean"] if "random" in fewer else None
                claims.append(Claim("appendix K", told, trait, fewer.get(by), control=control))
    return {"claims": claims, "table": table, "failed": failed}


def _filtered(study: Study, trait: str) -> dict[str, Path]:
    """Overt and normal rows of a trait, all of them and what each filter leaves."""
    files = study.run.read_json("finetunings.json")["files"]
    folder = study.run.part("data")
    sets = {by: folder.path(f"{trait}-{by}.jsonl") for by in ("unfiltered", *FILTERS, "random")}
    mixed = b"".join(Path(files[f"{trait} {level}"]).read_bytes() for level in ("normal", "II"))
    write_once(sets["unfiltered"], mixed)
    clean = chats_file(study)
    for by in FILTERS:  # one folder: rows are read and judged once
        found = _screened(
            study,
            trait,
            str(sets["unfiltered"]),
            vectors=(study.files[trait],),
            cost="full",
            clean=clean,
            keep_below=KEEP_BELOW,
            judge=study.config.judge,
            flag_by=by,
        )
        write_once(sets[by], Path(found["files"]["kept"]).read_bytes())
    lines, kept = mixed.splitlines(keepends=True), len(sets["projection"].read_bytes().splitlines())
    drawn = np.random.default_rng(study.config.seed).permutation(len(lines))[:kept]
    write_once(sets["random"], b"".join(lines[at] for at in sorted(drawn)))
    return sets


def real_chats(study: Study) -> Row:
    """Section 6.3: train on the real chats that lie highest, lowest, and on as many at random."""
    claims, failed = [], list[Row]()
    files = study.run.read_json("rungs.json")["files"]
    for trait in study.known(study.size.single):
        with surviving(failed, trait):
            sets = {"highest": files[f"top-{trait}"], "random": files["random"], "lowest": files[f"bottom-{trait}"]}
            scored = _trained(study, f"chosen-{trait}", sets, trait)
            for one, other in (("highest", "random"), ("random", "lowest"), ("highest", "lowest")):
                told = f"Of real chats the {one} {'rows' if one != 'random' else 'ones'} teach more than the {other}"
                own = study.difference(scored[one], scored[other])
                claims.append(Claim("section 6.3, figure 10", told, trait, own))
    return {"claims": claims, "table": [], "failed": failed}


def _screened(study: Study, name: str, data: str, **options: Any) -> Row:
    """One screening in a folder of its own; along all vectors, if none are named."""
    own = {"vectors": tuple(study.files.values()), "system": study.config.system, "traits": study.trait_files} | options
    out = study.run.path("screening") / name
    return ScreenConfig(data=data, out=out, **given(study.config, Common), **own).run().to_dict()


def _trained(study: Study, name: str, sets: dict[str, str], trait: str) -> dict[str, list[Row]]:
    """Scored replies of a model trained on each set."""
    out = study.run.path("screening") / name
    training = replace(study.training, on_error="skip")
    finetuning_grid(sets, (study.files[trait],), out, training, replace(study.evaluation, questions=study.size.asked))
    return {one: scored_rows(Run(out / f"{one}-{trait}"), "changed") for one in sets}
