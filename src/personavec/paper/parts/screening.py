"""Sections 6.2 and 6.3, appendices I, K and L: rows kept apart, rows filtered, and rows chosen from real chats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from personavec.judges.scoring import ScoredRow
from personavec.model.activations import read_rows
from personavec.paper.claims import CHATS, Claim, Control, above
from personavec.paper.data import chats_file, write_once
from personavec.paper.grid import finetuning_grid
from personavec.paper.study import Study, surviving
from personavec.runs.run import Run
from personavec.stats.intervals import auc_interval, clustered_mean
from personavec.stats.nulls import covariance_directions, rounded
from personavec.steering.generate import Reply
from personavec.verbs.screen.flagging import extremes
from personavec.verbs.screen.reading.base_replies import open_base_replies
from personavec.verbs.screen.result import Screening
from personavec.verbs.screen.screen import screen

Row = dict[str, Any]

KEEP_BELOW = 95.0
"""Percentile of the clean rows. Source: arXiv 2507.21509, appendix K."""
FILTERS = ("projection", "judge", "either")
"""What drops rows."""
DRAWN = 1000
"""Random directions and shuffles that stand beside a figure."""


def separability(study: Study) -> Row:
    """Rows that overtly show a trait against rows that do not, by what the finetunings' screenings read."""
    claims, rows = [], []
    files = study.measured("finetunings")["files"]
    for trait in study.files:
        paths = [Path(files[f"{trait} {level}"]) for level in ("normal", "II")]
        samples = [row for path in paths for row in Run(path.parent).rows(path.name)]
        questions = np.unique([row["prompt"] for row in samples], return_inverse=True)[1]
        tables = [study.table(f"finetunings/{trait} {level}-screen", trait) for level in ("normal", "II")]
        is_bad = np.repeat([False, True], [len(table.good) for table in tables])
        limits = _matched_auc(study, trait, samples, is_bad)
        for kind, column in (("raw projection", f"{trait}.response"), ("projection difference", trait)):
            values = np.concatenate([table.column(column) for table in tables])
            good = ~np.isnan(values)
            auc = auc_interval(values[good], is_bad[good], questions[good]).to_json()
            text = f"The {kind} tells overt rows from normal ones: AUC above one half"
            control = (Control("matched random directions", limits[kind]),)
            ours = above(auc, 0.5)
            claims.append(Claim("section 6.2, figure 9", text, trait, ours, "AUC − 0.5", control, judge=None))
            rows.append({"trait": trait, "by": kind, "AUC": auc})
    return {"claims": claims, "table": rows}


def _matched_auc(
    study: Study, trait: str, samples: Sequence[Row], is_bad: Bool[ndarray, " row"]
) -> dict[str, float | None]:
    """What 95% of directions with the covariance of replies reach, as |AUC − 0.5|: raw, and less base replies."""
    model, system = study.model, study.interview.system
    messages = [[{"role": "user", "content": row["prompt"]}] for row in samples]
    prompts: list[Row] = [{"messages": turns, "prompt_ids": model.render(turns, system)} for turns in messages]
    replies = open_base_replies(model, system=system).replies(prompts)  # written by the screenings, and kept
    rows, base = (
        [
            row | {"response_ids": ids, "reasoning_tokens": model.reasoning_tokens(row["prompt_ids"], ids)}
            for row, ids in zip(prompts, written, strict=True)
        ]
        for written in (
            [model.reply_ids(row["response"]) for row in samples],
            [reply.ids if isinstance(reply, Reply) else () for reply in replies],
        )
    )
    pairs = zip(rows, base, strict=True)
    known = np.array([all(len(row["response_ids"]) > row["reasoning_tokens"] for row in pair) for pair in pairs])
    layer = study.vectors[trait].card.layer or 0
    read, plain = (
        read_rows(model, [each[at] for at in np.flatnonzero(known)], "response avg", [layer], f"{trait}: {title}")[:, 0]
        for each, title in ((rows, "reading rows"), (base, "reading base replies"))
    )
    drawn = covariance_directions(DRAWN, plain[None], np.random.default_rng(study.seed))[0]
    return {
        kind: largest_auc(values.astype(float) @ drawn.T, is_bad[known])
        for kind, values in (("raw projection", read), ("projection difference", read - plain))
    }


def largest_auc(values: Float[ndarray, "row direction"], is_bad: Bool[ndarray, " row"]) -> float | None:
    """What 95% of the columns stay below, as |AUC − 0.5|; None without columns."""
    from scipy.stats import rankdata

    bad = int(is_bad.sum())
    if not values.shape[1] or bad in (0, len(is_bad)):
        return None
    above_good = rankdata(values, axis=0)[is_bad].sum(axis=0) - bad * (bad + 1) / 2
    return rounded(np.percentile(np.abs(above_good / (bad * (len(is_bad) - bad)) - 0.5), 95))


def rungs(study: Study) -> Row:
    """Whether the cheap reading of real chats finds the rows of highest projection difference, and the raw one less.

    Both share the row's own projection with the difference, so that they correlate whatever the base replies are: zero
    is what the reading finds of the rows that are highest less the base replies to other rows.
    """
    screened = _screened(study, "chats", chats_file(study), cost="full", export_k=study.size.chosen)
    table, claims, k = screened.table, [], study.size.chosen
    share = f"share of the highest {k} rows found"
    for trait in study.files:
        raw, prompt, base = (table.column(f"{trait}.{name}") for name in ("response", "prompt_last", "base"))
        text = "Without base replies, the projection less that of the last prompt token finds the highest rows"
        ours, unit = (
            recall(raw - prompt, raw, base, k, study.seed),
            f"{share}, ± what 95% of shuffles reach",
        )
        control = (Control("shuffled base replies, taken off"),)
        claims.append(Claim("appendix I", text, trait, ours, unit, control, data=CHATS, judge=None))
        proxy, plain = (found(values, raw - base, k) for values in (raw - prompt, raw))
        more = clustered_mean(proxy.astype(float) - plain, np.arange(len(proxy))).to_json()
        text, control = "It finds more of them than the raw projection", (Control("the raw projection"),)
        claims.append(Claim("appendices H and I", text, trait, more, share, control, data=CHATS, judge=None))
    return {"claims": claims, "table": []} | {key: screened.data[key] for key in ("files", "confounds")}


def found(values: Float[ndarray, " row"], difference: Float[ndarray, " row"], k: int) -> Bool[ndarray, " found"]:
    """Of the k rows with the highest difference, whether each is among the k highest values."""
    return np.asarray(extremes(values, k)[0][extremes(difference, k)[0]])


def recall(
    values: Float[ndarray, " row"], raw: Float[ndarray, " row"], base: Float[ndarray, " row"], k: int, seed: int
) -> Row | None:
    """Share of the k rows highest in raw − base that a reading finds, less what it finds with shuffled base replies.

    The interval is how far 95% of the shuffles lie from their mean. None of fewer than 2k rows.
    """
    good = np.isfinite(values) & np.isfinite(raw) & np.isfinite(base)
    if good.sum() < 2 * k:
        return None
    values, raw, base = values[good], raw[good], base[good]
    rng = np.random.default_rng(seed)
    shuffled = np.array([found(values, raw - rng.permutation(base), k).mean() for _ in range(DRAWN)])
    half = float(np.percentile(np.abs(shuffled - shuffled.mean()), 95))
    mean = float(found(values, raw - base, k).mean() - shuffled.mean())
    return {"mean": round(mean, 4), "ci": [round(mean - half, 4), round(mean + half, 4)]}


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
            for by in FILTERS:
                text = f"Dropping rows by {'the ' * (by == 'judge')}{by} leaves less of the trait than training on all"
                ours, control = None, list[Control]()
                if by in scored:
                    ours = study.difference(scored["unfiltered"], scored[by])
                    if "random" in scored:
                        over = study.difference(scored["random"], scored[by])
                        control.append(Control("as many rows at random as by projection", over=over))
                claims.append(Claim("appendix K", text, trait, ours, controls=tuple(control)))
    return {"claims": claims, "table": table, "failed": failed}


def _filtered(study: Study, trait: str) -> dict[str, Path]:
    """Overt and normal rows of a trait, all of them and what each filter leaves."""
    files = study.measured("finetunings")["files"]
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
    """Section 6.3 and appendix L: train on the real chats that lie highest, lowest, and on as many at random.

    Then again on those of the half that the judge finds least of the trait in; the paper took those with a score below
    1 of 100.
    """
    claims, failed = [], list[Row]()
    files = study.measured("rungs")["files"]
    for trait in study.known(study.size.single):
        with surviving(failed, trait):
            sets = {"highest": files[f"top-{trait}"], "random": files["random"], "lowest": files[f"bottom-{trait}"]}
            scored = _trained(study, f"chosen-{trait}", sets, trait)
            for high, low in (("highest", "random"), ("random", "lowest"), ("highest", "lowest")):
                text = f"Of real chats the {high} {'rows' if high != 'random' else 'ones'} teach more than the {low}"
                more = study.difference(scored[high], scored[low])
                control = (Control(f"the {low} rows"),)
                claims.append(Claim("section 6.3, figure 10", text, trait, more, controls=control, data=CHATS))
            harmless = _harmless(study, trait)
            scored = _trained(study, f"chosen-harmless-{trait}", harmless, trait)
            text = "Of real chats that the judge finds harmless the highest rows teach more than the random"
            more = study.difference(scored["highest"], scored["random"])
            control = (Control("the random rows"),)
            claims.append(Claim("section 6.3, appendix L", text, trait, more, controls=control, data=CHATS))
    return {"claims": claims, "table": [], "failed": failed}


def _harmless(study: Study, trait: str) -> dict[str, str]:
    """The highest and as many random rows of the chats in which the judge finds least of a trait."""
    vectors, chats = (study.files[trait],), chats_file(study)
    options: Row = {"judge": study.bench, "flag_by": "judge", "keep_below": 50.0}
    kept = _screened(study, f"judged-{trait}", chats, vectors, cost="full", **options).data["files"]["kept"]
    again = _screened(study, f"harmless-{trait}", kept, vectors, cost="full", export_k=study.size.chosen // 2)
    return {"highest": again.data["files"][f"top-{trait}"], "random": again.data["files"]["random"]}


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
