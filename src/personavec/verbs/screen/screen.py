"""Screen: which traits a data set would train, by how much, and which rows do it."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import numpy as np

from personavec.data.dataset import Dataset, dataset_of
from personavec.data.preferences import SIDES, PreferredSide, Side
from personavec.data.sample import Turn
from personavec.errors import ConfigError, DataError
from personavec.judges.load import Bench, load_bench
from personavec.model.chat_model import ChatModel
from personavec.model.endpoint import CallLimits
from personavec.runs.files import sha256
from personavec.runs.progress import tell
from personavec.runs.rules import Count, Free, OptionalCount, Positive, Seed, Store, at_least, between, settings
from personavec.runs.run import Row, Run
from personavec.stats.intervals import Interval
from personavec.steering.projection import Vectors, directions, load_vectors, names_of
from personavec.steering.rollouts import Reasoning
from personavec.steering.vector import PersonaVector
from personavec.traits.load import load_trait, trait_of
from personavec.traits.trait import Trait
from personavec.verbs.screen import selection
from personavec.verbs.screen.flagging import Drop, histogram
from personavec.verbs.screen.judge_rows import judge_figures, judge_rows, load_judges
from personavec.verbs.screen.parallel import by_name, screen_in_parallel
from personavec.verbs.screen.plan import SIZES, Census, estimate, measure, predicted, take_census
from personavec.verbs.screen.reading.base_replies import MEMORY, open_base_replies
from personavec.verbs.screen.reading.rows import NO_BASE_REPLY, Cost, OnError, RowReader
from personavec.verbs.screen.result import BothSides, Screening
from personavec.verbs.screen.sampled import Differences, sample_differences, top_differences
from personavec.verbs.screen.shards import COLUMNS, SHARD_ROWS, Actors, DataPass, screen_in_order
from personavec.verbs.screen.table import Table, claim, place_of, within
from personavec.verbs.screen.verdict import random_control, verdicts

ESTIMATES = {
    "raw": "raw projection",
    "proxy": "proxy of the projection difference",
    "gradient": "likelihood gradient",
    "lift": "likelihood lift",
}
"""What a cost gives where it is not the difference itself."""
Rows = str | Path | Iterable[Mapping[str, Any]] | Dataset
FEW_SKEWED = "its interval covers less than 95%, so pass a smaller --precision"


def screen(
    model: ChatModel,
    data: Rows,
    vectors: Vectors,
    *,
    cost: Cost = "proxy",
    layers: Sequence[int] = (),
    clean: Free[Rows | None] = None,
    keep_below: Free[Annotated[float | None, between(0, 100)]] = None,
    drop: Free[Drop] = "high",
    export_k: Free[OptionalCount] = None,
    top_k: Free[OptionalCount] = None,
    precision: Free[Positive] = 0.1,
    turn: Turn = "first",
    side: Side | None = None,
    on_error: Free[OnError] = "stop",
    judge: Free[str | Bench] = "",
    traits: Free[Sequence[Trait | str | Path]] = (),
    flag_by: Free[Literal["projection", "judge", "either", "both"]] = "projection",
    base_replies: str = "hf",
    base_url: str | None = None,
    max_new_tokens: Count = 64,
    batch_tokens: Free[Count] = 12288,
    read_tokens: Free[OptionalCount] = None,
    reasoning: Reasoning = "out",
    system: str = "template",
    ray: Free[bool | Callable[[], ChatModel]] = False,
    workers: Free[Count] = 1,
    gpus_per_worker: Free[Positive] = 1.0,
    table: Free[str | Path | None] = None,
    plan: Free[bool] = False,
    price_per_hour: Free[Annotated[float | None, at_least(0)]] = None,
    seed: Seed = 0,
    store: Store = None,
    **limits: Unpack[CallLimits],
) -> Screening:
    """Project every row of a data set on persona vectors, and compare it with the base model's replies.

    Args:
        model: The base model; an adapter on it is set aside.
        data: A file, a folder, the name of a Hugging Face data set, or rows: any iterable of dicts.
        vectors: A persona vector or its file, or several; all of them are read in one pass.
        cost: raw: the reply alone. proxy: minus the last prompt token. gradient: how much likelier a little of the
            vector makes the reply. lift: how much likelier the trait's instructions make it. sampled: base replies to a
            random part. full: to all.
        layers: Layers to read every vector at; default the one its card recommends.
        clean: Data that you call clean: they are screened alike, and thresholds are their percentiles.
        keep_below: Drop rows beyond this percentile on any vector; 95 with `clean`. The others go into `kept.*`.
        drop: On which side: high drops rows that pull toward the trait, low those that pull against it, whose
            percentile is counted from below.
        export_k: Write the k rows highest and lowest on every vector, and k random ones, into the store.
        top_k: With cost sampled: base replies also to rows that can be among the k highest or lowest.
        precision: With cost sampled: half-width of the interval to stop at, in standard deviations.
        turn: Which assistant turn of a conversation is screened; with "every" each of them is a row, and means and
            intervals are over conversations.
        side: Of rows with a chosen and a rejected reply: which of them is screened, of the clean set as well.
        on_error: Rows that cannot be used: stop at the first, or skip and list them.
        judge: Also score every row: openai:MODEL, hf:MODEL, panel, or what `load_bench` made.
        traits: Traits of vectors, for the judge and for lift, that are not built in.
        flag_by: What drops a row: projections, the judge's scores, either above its threshold, or only both.
        base_replies: Who writes base replies: hf (the model itself), or openai:MODEL, the same one behind a server.
        base_url: Server of openai:MODEL.
        max_new_tokens: Longest base reply.
        batch_tokens: Tokens in one batch of base replies, prompts included.
        read_tokens: Tokens in one forward pass of reading; default 1,024 on a CPU, what fits on a GPU.
        reasoning: Whether a <think> block counts as part of a reply.
        system: System prompt of rows that have none: template, none, or a text.
        ray: Screen in parallel with Ray. True loads the model again by its name in every actor, without what was
            changed in it since; a function makes it there.
        workers: With ray: how many actors.
        gpus_per_worker: With ray, where there are GPUs: how many, or what part of one, an actor takes.
        table: Where the parts of the table go, a folder or a URL that fsspec reaches; default into the store. What is a
            URL is written by Ray's actors themselves.
        plan: Only estimate costs.
        price_per_hour: Of this machine, for the estimates.
        seed: Of everything random.
        store: Run folder to keep everything in; the same call resumes it.
        limits: How servers may be asked: `concurrency`, `timeout`, `max_calls`, `max_tokens`.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.

    Source: Persona Vectors (arXiv 2507.21509) section 6, appendices H, I and K.
    """
    began = time.monotonic()
    chosen = settings(screen, locals())
    selection.check_choice(cost, top_k, export_k, turn, drop, keep_below, clean, layers)
    if export_k and store is None:
        raise ConfigError(
            "expected a store for the files of export_k, got none; pass store, or take the result's top()"
        )
    elsewhere = None if table is None else place_of(table, together=bool(ray))
    rows = dataset_of(data)
    reference = None if clean is None else dataset_of(clean, "clean rows in memory")
    if side:
        rows, reference = PreferredSide.of(rows, side), reference and PreferredSide.of(reference, side, others=True)
    loaded = load_vectors(vectors)
    for vector in loaded.values():
        vector.check_model(model.identity)
    names = names_of([*loaded.values()])
    if taken := sorted(set(names) & COLUMNS.keys()):
        raise ConfigError(
            f"expected traits that are not named like a column of the table, got {taken[0]}; rename the trait in its "
            "file and extract it again"
        )
    read = directions([*loaded.values()], names, layers, seed)
    bench = load_bench(judge, model, system=system, **limits) if isinstance(judge, str) and judge else judge or None
    judges = {}
    if isinstance(bench, Bench):
        judges = load_judges(bench, [*loaded.values()], names, traits)
    elif flag_by != "projection":
        raise ConfigError(f"expected a --judge with --flag-by {flag_by}, got none; pass one")
    judged_by = bench.spec if isinstance(bench, Bench) else ""
    inputs = {"model": model.identity.revision, "numbers": model.numbers, **rows.fingerprint()}
    inputs |= {"rows in a part": str(SHARD_ROWS), **dict(map(_trait_input, traits))}
    inputs |= {f"vector {name}": vector.content_hash for name, vector in loaded.items()}
    told = dict(_instructions(loaded.values(), names, traits)) if cost == "lift" else {}
    if told:
        inputs["instructions"] = Run.digest({name: "\n".join(texts) for name, texts in told.items()})
    load = ray if callable(ray) else by_name(model) if ray else None
    answer = partial(
        open_base_replies,
        spec=base_replies,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        url=base_url,
        system=system,
        **limits,
    )
    base = answer(model)
    run = Run.open(store, chosen | {"judge": judged_by}, inputs)
    if elsewhere is not None and not plan:
        claim(elsewhere, sha256(run.path("config.json")))
    if base.path == MEMORY:
        base.path = run.path("base-replies.sqlite")
    reader = RowReader(model, read, cost, on_error, max_new_tokens, read_tokens, reasoning, system, told)
    actors = Actors(load, answer, workers, gpus_per_worker) if load else None
    work = DataPass(rows, run, reader, base, turn, seed, judged_by, judges, actors, elsewhere)
    wanted = selection.Selection(keep_below, drop, flag_by, export_k, top_k)

    with model.without_adapter():
        census = take_census(work)
        rates = measure(work, census, plan)
        plans = {size: estimate(rates, size, precision, price_per_hour) for size in (census.rows, *SIZES)}
        for rung in plans[census.rows]:
            tell(predicted(rung, rung["cost"] == cost))
        result: Row = {
            "out": run.shown(),
            "data": rows.name,
            "cost": cost,
            "rows": census.rows,
            "skipped": census.bad,
            "model": model.identity.id,
            "vectors": [*loaded],
            "plan": {"rates": dataclasses.asdict(rates), "estimates": [row for size in plans.values() for row in size]},
        }
        screened = None
        if not plan:
            screened, figures = _screen(work, census, reference, precision, wanted)
            result |= figures | {"judge_usage": bench.usage if isinstance(bench, Bench) else None}
    texts = selection.examples(screened, wanted) if screened else {}
    if screened:
        run.write_json("examples.json", texts)
    run.complete(result, began, "plan.json" if plan else "result.json")
    means = {name: _set_mean(screened.table, name, screened.differences) for name in work.names} if screened else {}
    scores = screened.reference.scores if screened and screened.reference else {}
    tables = (elsewhere or run.part("table")) if screened else Run(run.folder)
    control = screened.control if screened else None
    return Screening(result, means, scores, texts, tables, control)


def screen_sides(
    model: ChatModel,
    data: Rows,
    vectors: Vectors,
    *,
    clean: Rows | None = None,
    table: str | Path | None = None,
    store: Store = None,
    **options: Any,
) -> BothSides:
    """Screen both sides of preferences, and tell how far chosen replies lie above rejected ones, paired by row.

    Args:
        model: As `screen` takes it.
        data: Rows of a chosen and a rejected reply.
        vectors: As `screen` takes them.
        clean: Data that you call clean; of preferences the same side as of the data.
        table: As `screen` takes it; each side has a folder of its own in there.
        store: Each side is kept in a folder of its own in there, as `screen` keeps it.
        options: Those of `screen`, which hold for both sides.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.
    """
    began = time.monotonic()
    selection.check_pairs(options.get("turn", "first"), options.get("plan", False))
    options |= {"clean": None if clean is None else dataset_of(clean, "clean rows in memory")}
    rows = dataset_of(data)
    run = Run.open(store, {"side": "both"})
    folders = {side: run.path(side) if run.kept else None for side in SIDES}
    tables = {side: within(table, side) if table else None for side in SIDES}
    chosen, rejected = (
        screen(model, rows, vectors, **options | {"side": side, "store": folders[side], "table": tables[side]})
        for side in SIDES
    )
    both = BothSides.of(chosen, rejected)
    result = {**both.data, "out": run.shown()}
    run.complete(result, began)
    return dataclasses.replace(both, data=result)


def _instructions(
    vectors: Iterable[PersonaVector], names: Sequence[str], traits: Sequence[Trait | str | Path]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The system prompts that ask for each vector's trait."""
    for vector, name in zip(vectors, names, strict=True):
        trait = trait_of(vector.card.trait, traits)
        yield name, tuple(trait.system_prompt(pair, "pos") for pair in range(len(trait.pairs)))


def _trait_input(trait: Trait | str | Path) -> tuple[str, str]:
    if isinstance(trait, Trait):
        return f"trait {trait.name}", trait.content_hash
    return f"trait {trait}", sha256(Path(trait)) if Path(trait).is_file() else load_trait(trait).content_hash


def _screen(
    work: DataPass, census: Census, clean: Dataset | None, precision: float, wanted: selection.Selection
) -> tuple[selection.Screened, Row]:
    """Everything after the plan."""
    began = time.monotonic()
    cost, names = work.reader.cost, work.names
    fresh = _project(work, census.rows)
    seconds = time.monotonic() - began
    table = _checked(work, census.rows)
    differences = None
    if cost == "sampled":
        differences = sample_differences(work, table, precision)
        if wanted.top_k:
            top_differences(work, table, differences, wanted.top_k)
        for name in differences.skewed:
            tell(f"{name}: few rows hold much of the mean (skewness {differences.skewness[name]:.1f}); {FEW_SKEWED}")
    work.run.write_rows("skipped.jsonl", [*table.errors(), *(differences.missing if differences else ())])
    means = {name: _set_mean(table, name, differences) for name in names}
    control = random_control(work, table)
    move = table.mean_move() if differences is None else differences.move
    controls = {name: control(name, mean.mean, move) for name, mean in means.items()}
    result: Row = {
        "estimate": ESTIMATES.get(cost, "projection difference"),
        "projection_difference": {name: mean.to_json() for name, mean in means.items()},
        "random_control": controls,
        "layers": dict.fromkeys(names)
        if cost == "lift"
        else dict(zip(names, work.reader.directions.layers, strict=True)),
        "skipped": int((~table.good).sum()),
        "skipped_by_reason": dict(table.reasons().most_common(20)),
        "conversations": len(np.unique(table.conversations[table.good])),
        "rows_with_more_turns": table.rows_with_more_turns,
        "confounds": {name: table.confounds(name) for name in names},
        "sources": table.by_source(),
        "table": str(work.elsewhere) if work.elsewhere else work.run.shown("table"),
        # Ray's actors count for themselves
        "tokens": table.tokens
        | {
            "written_now": None if work.actors else work.base.written_tokens,
            "base_replies_kept": None if work.actors else work.base.kept,
        },
        "rows_per_second": round(fresh / seconds, 2) if fresh else None,
    }
    matched = {name: table.mean(table.column(f"{name}.matched")) for name in names if cost == "full"}
    result["length_matched"] = {name: mean.to_json() for name, mean in matched.items()} or None
    result["sampled"] = differences.to_json() if differences else None
    judged, whys = judge_rows(work, table) if work.judges else ({}, {})
    result["judge"] = judge_figures(work, table, judged, whys) if work.judges else None
    reference = _reference(work, clean) if clean else None
    result |= verdicts(cost, table, means, controls, reference, control)
    clean_scores = reference.scores if reference else {}
    result["distributions"] = {name: histogram(table.column(name), clean_scores.get(name)) for name in names}
    screened = selection.Screened(work, table, differences, judged, reference, result["verdict"], control)
    return screened, result | selection.select(screened, wanted)


def _checked(work: DataPass, rows: int) -> Table:
    """The table of a data set, after a look at whether it is whole.

    Raises:
        DataError: It has other rows than the data set, none that can be used, or one that is to stop the run.
    """
    table, name = Table(work.table, work.names), work.data.name
    if not rows:
        raise DataError(f"expected rows that can be screened in {name}, got an empty data set; correct it")
    if not np.array_equal(table.rows, np.arange(rows)):
        raise DataError(
            f"expected {rows:,} rows in order in {table.folder}, got {len(table.rows):,}, or other ones; delete "
            "that folder and run again"
        )
    faults = (row for row in table.errors() if not row["reason"].startswith(NO_BASE_REPLY))
    if work.reader.on_error == "stop" and (fault := next(faults, None)):
        raise DataError(
            f"{fault['where']}: {fault['reason']}; correct it and choose another --out, or pass --on-error skip"
        )
    if not table.good.any():
        reasons = ", ".join(f"{count} {reason}" for reason, count in table.reasons().most_common(3))
        raise DataError(f"expected rows that can be screened in {name}, got none ({reasons}); correct the data set")
    return table


def _project(work: DataPass, rows: int) -> int:
    """Write the table, those parts aside that are there; returns the rows done now."""
    if not work.elsewhere:
        work.run.part("table")
    return screen_in_parallel(work, work.actors, rows) if work.actors else screen_in_order(work, rows)


def _set_mean(table: Table, name: str, differences: Differences | None) -> Interval:
    if differences is not None:
        return differences.means[name]
    return table.mean(table.column(name))


def _reference(work: DataPass, clean: Dataset) -> selection.Reference:
    """The clean data set screened and judged alike, in a folder inside the run."""
    name = f"clean-{Run.digest(clean.fingerprint())}"
    part = work.run.part(name)
    beside = within(work.elsewhere, f"_{name}") if work.elsewhere else None
    if beside:
        claim(beside, name)
    work = dataclasses.replace(work, data=clean, run=part, elsewhere=beside)
    census = take_census(work)
    _project(work, census.rows)
    table = _checked(work, census.rows)
    part.write_rows("skipped.jsonl", [*table.errors()])
    judged = judge_rows(work, table)[0] if work.judges else {}
    return selection.Reference(
        clean.name,
        {name: table.column(name)[table.good] for name in work.names},
        {name: column[table.good] for name, column in judged.items()},
        table.mean_move(),
        {
            "rows": census.rows,
            "skipped": int((~table.good).sum()),
            "skipped_by_reason": dict(table.reasons().most_common(20)),
        },
    )
