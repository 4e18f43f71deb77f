"""Sections 6.2 and 6.3, appendices I, K and L: rows kept apart, rows filtered, and rows chosen from real chats."""

from pathlib import Path
from typing import Any

import numpy as np

from personavec.judges.scoring import ScoredRow
from personavec.paper.claims import Claim, above
from personavec.paper.data import chats_file, write_once
from personavec.paper.grid import finetuning_grid
from personavec.paper.study import Study, surviving
from personavec.runs.run import Run
from personavec.stats.intervals import auc_interval, spearman_rows
from personavec.verbs.screen.result import Screening
from personavec.verbs.screen.screen import screen

Row = dict[str, Any]

KEEP_BELOW = 95.0
"""Percentile of the clean rows. Source: arXiv 2507.21509, appendix K."""
FILTERS = ("projection", "judge", "either")
"""What drops rows."""


def separability(study: Study) -> Row:
    """Rows that overtly show a trait against rows that do not, by what the finetunings' screenings read."""
    claims, rows = [], []
    files = study.run.read_json("finetunings.json")["files"]
    for trait in study.files:
        paths = [Path(files[f"{trait} {level}"]) for level in ("normal", "II")]
        prompts = [row["prompt"] for path in paths for row in Run(path.parent).rows(path.name)]
        questions = np.unique(prompts, return_inverse=True)[1]
        tables = [study.table(f"finetunings/{trait} {level}-screen", trait) for level in ("normal", "II")]
        for kind, column in (("raw projection", f"{trait}.response"), ("projection difference", trait)):
            columns = [table.column(column) for table in tables]
            values = np.concatenate(columns)
            is_bad = np.repeat([False, True], [*map(len, columns)])
            good = ~np.isnan(values)
            auc = auc_interval(values[good], is_bad[good], questions[good]).to_json()
            text = f"The {kind} tells overt rows from normal ones: AUC above one half"
            claims.append(Claim("section 6.2, figure 9", text, trait, above(auc, 0.5), unit="AUC − 0.5"))
            rows.append({"trait": trait, "by": kind, "AUC": auc})
    return {"claims": claims, "table": rows}


def rungs(study: Study) -> Row:
    """How the cheaper readings of real chats rank rows next to the projection difference."""
    screened = _screened(study, "chats", chats_file(study), cost="full", export_k=study.size.chosen)
    table, claims = screened.table, []
    for trait in study.files:
        raw, prompt, full = (table.column(name) for name in (f"{trait}.response", f"{trait}.prompt_last", trait))
        for text, values in (
            ("Without base replies, the projection less that of the last prompt token ranks rows alike", raw - prompt),
            ("The raw projection ranks rows alike", raw),
        ):
            ranks = spearman_rows(values, full).to_json()
            claims.append(Claim("appendices H and I", text, trait, ranks, unit="rank correlation"))
    return {"claims": claims, "table": []} | {key: screened.data[key] for key in ("files", "confounds")}


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
            fewer = {by: study.difference(scored["unfiltered"], replies) for by, replies in scored.items()}
            for by in FILTERS:
                text = f"Dropping rows by {'the ' * (by == 'judge')}{by} leaves less of the trait than training on all"
                control = fewer["random"]["mean"] if "random" in fewer else None
                claims.append(Claim("appendix K", text, trait, fewer.get(by), control=control))
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
        options: Row = {"clean": clean, "keep_below": KEEP_BELOW, "judge": study.bench, "flag_by": by}
        screened = _screened(study, trait, str(sets["unfiltered"]), (study.files[trait],), cost="full", **options)
        write_once(sets[by], Path(screened.data["files"]["kept"]).read_bytes())
    lines, kept = mixed.splitlines(keepends=True), len(sets["projection"].read_bytes().splitlines())
    drawn = np.random.default_rng(study.seed).permutation(len(lines))[:kept]
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
            for high, low in (("highest", "random"), ("random", "lowest"), ("highest", "lowest")):
                text = f"Of real chats the {high} {'rows' if high != 'random' else 'ones'} teach more than the {low}"
                more = study.difference(scored[high], scored[low])
                claims.append(Claim("section 6.3, figure 10", text, trait, more))
    return {"claims": claims, "table": [], "failed": failed}


def _screened(study: Study, name: str, data: str, vectors: tuple[Path, ...] = (), **options: Any) -> Screening:
    """One screening in a folder of its own; along all vectors, if none are named."""
    return screen(
        study.model,
        data,
        vectors or tuple(study.files.values()),
        system=study.interview.system,
        traits=study.trait_files,
        seed=study.seed,
        store=study.run.path("screening") / name,
        **options,
    )


def _trained(study: Study, name: str, sets: dict[str, str], trait: str) -> dict[str, list[ScoredRow]]:
    """Scored replies of a model trained on each set."""
    grid = finetuning_grid(
        study.model,
        sets,
        (study.files[trait],),
        training={**study.training, "on_error": "skip"},
        questions=study.size.asked,
        rollouts=study.size.rollouts,
        traits=study.trait_files,
        store=study.run.path("screening") / name,
        **study.asking,
    )
    return {of: grid.replies[of][trait] for of in sets}
