"""Monitor: where recorded conversations lie along persona vectors, turn by turn, and which are unlike benign ones."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from personavec.data.dataset import Dataset
from personavec.errors import ConfigError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import token_texts
from personavec.runs.rules import Free, OptionalCount, Seed, Store, settings
from personavec.runs.run import Run
from personavec.steering.projection import Vectors, directions, vector_inputs, vectors_of
from personavec.steering.vector import PersonaVector
from personavec.verbs.monitor.calibrate import calibrate as calibrated
from personavec.verbs.monitor.calibrate import too_few
from personavec.verbs.monitor.calibration import KINDS, RATE, WATCHED, Calibration, Drift, fewest
from personavec.verbs.monitor.result import (
    FIELDS,
    SHOWN_ALERTS,
    Event,
    Monitoring,
    Readings,
    benign_paths,
    excess,
    summarise,
)
from personavec.verbs.monitor.turns import Conversations, Recordings, TurnCensus, TurnRow, conversations_of


def monitor(
    model: ChatModel,
    conversations: Conversations,
    vectors: Vectors,
    *,
    calibrate: Free[Conversations | None] = None,
    calibration: Free[Calibration | str | Path | None] = None,
    false_positive_rate: Annotated[Free[float], RATE] = 0.01,
    group_by: str = "",
    tokens: bool = False,
    on_error: Free[Literal["stop", "skip"]] = "stop",
    read_tokens: Free[OptionalCount] = None,
    reasoning: Literal["out", "in"] = "out",
    system: str = "template",
    seed: Seed = 0,
    store: Store = None,
) -> Monitoring:
    """Projections of every assistant turn at its last prompt token and over the reply, and alerts.

    Alerts are raised beyond limits that benign conversations set, never on values by themselves: without `calibrate` or
    `calibration` there are none.

    Args:
        model: Who reads; each vector at the layer of its card, all in one pass.
        conversations: A data set, its path or name, rows in any shape that data sets have, or lists of messages.
        vectors: Persona vectors of the model, or their files.
        calibrate: Conversations with nothing wrong in them: they set the limits.
        calibration: Take the limits of an earlier calibration, or its file.
        false_positive_rate: With `calibrate`, the share of benign turns, and of benign conversations for drift, that
            may raise an alert.
        group_by: Limits by group: a field of the rows, or "system" for the system prompt.
        tokens: Also the projection of every token of the replies.
        on_error: Rows that cannot be used: stop at the first before anything is computed, or skip and list them.
        read_tokens: Tokens in one forward pass; default 1,024 on a CPU, what fits on a GPU.
        reasoning: Whether a <think> block counts as part of the reply.
        system: System prompt of rows without one, see `ChatModel.render`.
        seed: Of halving the benign conversations.
        store: Run folder to keep everything in; the same call resumes it.

    Raises:
        PersonavecError: Bad input; what was done so far stays in the store.

    Source: Persona Vectors (arXiv 2507.21509) section 3.3.
    """
    began = time.monotonic()
    chosen = settings(monitor, locals())
    if calibrate is not None and calibration is not None:
        raise ConfigError("expected calibrate or calibration, got both; leave one out")
    data = conversations_of(conversations, "conversations in memory")
    benign = None if calibrate is None else conversations_of(calibrate, "benign conversations in memory", steered=False)
    limits = Calibration.load(calibration) if isinstance(calibration, str | Path) else calibration
    named = with_layers(vectors)
    for vector in named.values():
        vector.check_model(model.identity)
    read = directions([*named.values()], [*named], (), seed)
    hashes = {name: vector.content_hash for name, vector in named.items()}
    if limits:
        limits.check_model(model.identity.id, model.identity.revision)
        for name, layer in zip(named, read.layers, strict=True):
            limits.check_vector(hashes[name], name, layer)
    inputs = {"model": model.identity.revision, "numbers": model.numbers, **data.fingerprint()}
    run = Run.open(store, chosen, inputs | vector_inputs(vectors))
    recordings = Recordings(model, read, system, reasoning, group_by, tokens, on_error, read_tokens)

    census = recordings.census(run, data)
    usual: list[TurnRow] = []
    file = str(calibration) if isinstance(calibration, str | Path) else None
    if benign is not None:
        limits, usual = _calibrated(recordings, run, benign, named, false_positive_rate)
        limits.save(run.path("calibration.json"))
        file = run.shown("calibration.json")
    rows = recordings.read(run, data, census, "reading conversations")
    alerts = list(raised(rows, limits, hashes)) if limits else []
    run.write_rows("alerts.jsonl", alerts)
    readings = Readings(recordings, data.name, census, rows, alerts, usual, limits, file, hashes)
    result = summarise(readings, run)
    run.complete(result, began)
    largest = sorted(alerts, key=excess, reverse=True)[:SHOWN_ALERTS]
    beginnings = recordings.beginnings(data, {alert["conversation"] for alert in largest})
    return Monitoring(result, rows, alerts, limits, _texts(recordings, data, census), beginnings)


def with_layers(vectors: Vectors) -> dict[str, PersonaVector]:
    """Vectors by name, each with a layer to be read at.

    Raises:
        ConfigError: There are none, or one is there twice.
        VectorError: A card recommends no layer, or a file cannot be read.
    """
    named = vectors_of(vectors)
    if unknown := [vector.card.trait for vector in named.values() if vector.card.layer is None]:
        raise VectorError(f"expected a recommended layer for {unknown[0]}, got none; extract it again")
    return named


def raised(rows: Sequence[TurnRow], calibration: Calibration, hashes: Mapping[str, str]) -> Iterator[Event]:
    """Alerts of all turns in order: one for each value outside its band, and those of the sequential test.

    Args:
        rows: Turns as `turns.jsonl` has them, those of a conversation one after the other.
        calibration: The limits.
        hashes: Content hash of each vector by the name it has in the rows.
    """
    tests: dict[str, Drift | None] = {}
    conversation = None
    for row in rows:
        if row["conversation"] != conversation:
            conversation = row["conversation"]
            tests = {name: calibration.drift(vector, row["group"]) for name, vector in hashes.items()}
        for name, vector in hashes.items():
            along = row["vectors"][name]
            values: dict[str, float | None] = {kind: along[FIELDS[kind]] for kind in KINDS}
            alerts = calibration.check(vector, values, row["group"])
            test, value = tests[name], values[WATCHED]
            if test and value is not None:
                alerts += [alert] if (alert := test.add(value)) else []
            for alert in alerts:
                yield {
                    **alert,
                    "vector": name,
                    "conversation": row["conversation"],
                    "name": row["name"],
                    "where": row["where"],
                    "group": row["group"],
                    "turn": row["turn"],
                }


def _calibrated(
    recordings: Recordings, run: Run, benign: Dataset, vectors: Mapping[str, PersonaVector], rate: float
) -> tuple[Calibration, list[TurnRow]]:
    """Limits from the benign conversations, which are read alike, in a folder by themselves."""
    model, read = recordings.model, recordings.directions
    part = run.part(f"benign-{Run.digest(benign.fingerprint())}")
    census = recordings.census(part, benign)
    if census.conversations < fewest(rate):
        raise too_few(census.conversations, rate)
    rows = recordings.read(part, benign, census, "reading benign conversations")
    limits = {
        vector.content_hash: calibrated(benign_paths(rows, name), vector.card.trait, layer, rate, read.seed)
        for (name, vector), layer in zip(vectors.items(), read.layers, strict=True)
    }
    about = {
        "data": benign.name,
        "conversations": census.conversations,
        "turns": len(rows),
        "skipped": len(census.skipped),
        "group_by": recordings.group_by,
        "system": recordings.system,
        "reasoning": recordings.reasoning,
    }
    return Calibration(dataclasses.asdict(model.identity), rate, limits, about), rows


def _texts(recordings: Recordings, data: Dataset, census: TurnCensus) -> list[list[str]]:
    """The tokens of every reply of a conversation that was read alone, to be shown with their projections."""
    if not recordings.tokens or census.conversations > 1:
        return []
    (talk,) = recordings.usable(data, census)
    replies = [talk.sequences[turn.sequence][turn.counted : turn.end] for turn in talk.turns]
    return [token_texts(recordings.model, ids) for ids in replies]
