"""Pairs of replies for blind readers, people or models: the sheet, its key, and what the readers say.

Source: Persona Vectors (arXiv 2507.21509), appendix B.2: pairs of replies to one question, one that the judge scored
above 80 and one below 20, in random order; people said of 94.7% of 300 pairs what the judge had said.
"""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from personavec.data.arrays import twice
from personavec.errors import DataError
from personavec.runs.files import write_file
from personavec.stats.intervals import FISHER, LOGIT, Interval, Transform, clustered

HIGH, LOW = 80.0, 20.0
PAIRS = 50
"""Of extremes, at most."""
TWINS = 20
"""Pairs of a steered reply and its unsteered twin, at most: about ten minutes."""
ASKED = "more"
"""Column that readers fill in begins with this; the trait's adjective follows."""

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
Pair = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Two replies to one question: the one that should show more of the trait comes first."""


def write_extremes(path: Path, rows: Rows, adjective: str, seed: int) -> Row:
    """Write a sheet of replies that the judge scored far apart, and its key.

    Args:
        path: Of the sheet, ending in .csv; the key goes beside it. A sheet that is there stays as it is.
        rows: Scored replies.
        adjective: Of the trait.
        seed: Of the choice and the order.

    Returns:
        The number of pairs, and how many questions had no such pair.
    """
    rng = np.random.default_rng(seed)
    by_question: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["trait"] is not None:
            by_question.setdefault(row["question"], []).append(row)
    pairs: list[Pair] = []
    without = 0
    for replies in by_question.values():
        high = [row for row in replies if row["trait"] > HIGH]
        low = [row for row in replies if row["trait"] < LOW]
        count = min(len(high), len(low))
        without += not count
        drawn = (rng.permutation(len(side))[:count] for side in (high, low))
        pairs += [(high[int(h)], low[int(k)]) for h, k in zip(*drawn, strict=True)]
    return {"pairs": len(_write(path, pairs, PAIRS, adjective, rng)), "questions_without_pair": without}


def write_twins(path: Path, steered: Rows, base: Rows, adjective: str, seed: int) -> Row:
    """Write a sheet of steered replies, each with its unsteered twin (same question, same sample), and its key.

    Args:
        path: Of the sheet, as `write_extremes` takes it.
        steered: Scored replies.
        base: Scored replies of the unsteered model.
        adjective: Of the trait.
        seed: Of the choice and the order.

    Returns:
        `pairs` as the sheet shows them, its `column` for answers, and how many pairs were left out because their texts
        are `equal` or one is `empty`.
    """
    plain = {(row["question_id"], row["sample"]): row for row in base}
    twins = [(row, plain[at]) for row in steered if (at := (row["question_id"], row["sample"])) in plain]
    texts = [tuple(reply["response"].strip() for reply in pair) for pair in twins]
    empty = [not all(each) for each in texts]
    equal = [first == second and bool(first) for first, second in texts]
    pairs = [pair for pair, *left_out in zip(twins, empty, equal, strict=True) if not any(left_out)]
    shown = _write(path, pairs, TWINS, adjective, np.random.default_rng(seed), "steered")
    return {"column": _column(adjective), "pairs": shown, "equal": sum(equal), "empty": sum(empty)}


def sheet_files(path: Path) -> dict[str, str]:
    """Paths of a sheet and of its key."""
    return {"sheet": str(path), "key": str(_key(path))}


def score_sheets(paths: Sequence[Path], key: Path | None = None) -> Row:
    """Score sheets that readers filled in, each under a name of its own.

    Intervals are over questions: shares on the logit scale, kappas on Fisher's.

    Args:
        paths: The filled-in sheets; a reader is called by the name of the file.
        key: Of all of them; default NAME.key.csv or sheet.key.csv beside the first.

    Returns:
        Of each of the `readers` the share of pairs in which the steered reply was chosen (null if the key names none),
        and that in which the judge scored the chosen reply higher; `between` two readers the share of equal answers,
        and Cohen's kappa. Pairs of which a reader cannot tell are dropped and counted.

    Raises:
        DataError: A sheet or the key cannot be read, they do not belong together, or an answer is none.
    """
    names = [path.stem for path in paths]
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"expected one sheet of each reader, got {name} twice; give each file its reader's name")
    key = key or _key_beside(paths[0])
    known = {row["pair"]: row for row in _read(key, "a key", ("pair", "score_1", "score_2"))}
    readers = {path.stem: _answers(path, key, known) for path in paths}
    questions = {pair: question for answers in readers.values() for pair, (question, _) in answers.items()}
    said = {name: {pair: each for pair, (_, each) in answers.items() if each} for name, answers in readers.items()}
    steered = {pair: row["steered"] for pair, row in known.items() if row.get("steered")}
    judged = {pair: higher for pair, row in known.items() if (higher := _higher(row))}

    def compared(first: Mapping[str, str], second: Mapping[str, str], of: Any = _equal, scale: Any = LOGIT) -> Row:
        both = [pair for pair in known if pair in first and pair in second]
        answers = np.array([[first[pair], second[pair]] for pair in both]).reshape(len(both), 2)
        interval = _interval(of, answers, [questions[pair] for pair in both], scale)
        return interval._replace(dropped=len(known) - len(both)).to_json()

    return {
        "key": str(key),
        "judge": next(iter(known.values())).get("judge"),
        "pairs": len(known),
        "readers": [
            {
                "reader": path.stem,
                "sheet": str(path),
                "steered_chosen": compared(said[path.stem], steered) if steered else None,
                "judge_agreement": compared(said[path.stem], judged),
                "cannot_tell": len(readers[path.stem]) - len(said[path.stem]),
                "missing": len(known) - len(readers[path.stem]),
            }
            for path in paths
        ],
        "between": [
            {
                "readers": [one, two],
                "equal": compared(said[one], said[two]),
                "kappa": compared(said[one], said[two], _kappa, FISHER),
            }
            for one, two in combinations(names, 2)
        ],
    }


def _write(
    path: Path, pairs: Sequence[Pair], most: int, adjective: str, rng: np.random.Generator, named: str = ""
) -> list[Row]:
    """Write a sheet of at most so many pairs and its key, in which a column may say where each pair's first stands."""
    taken: Counter[str] = Counter()
    ranked = []
    for index in rng.permutation(len(pairs)):  # as many questions as there are, before any comes twice
        question = pairs[index][0]["question"]
        ranked.append((taken[question], pairs[index]))
        taken[question] += 1
    ranked = sorted(ranked, key=lambda each: each[0])[:most]
    drawn = [ranked[index][1] for index in rng.permutation(len(ranked))]
    places = rng.permutation((np.arange(len(drawn)) + rng.integers(2)) % 2) + 1  # each side as often as the other
    shown, key = [], []
    for number, (pair, place) in enumerate(zip(drawn, places, strict=True), 1):
        replies = pair if place == 1 else pair[::-1]
        row = {"pair": number, "question": pair[0]["question"]}
        row |= {f"reply_{n}": reply["response"] for n, reply in enumerate(replies, 1)}
        scores = {
            f"score_{n}": "" if reply["trait"] is None else round(reply["trait"], 2)
            for n, reply in enumerate(replies, 1)
        }
        shown.append(row)
        where = {named: int(place)} if named else {}
        key.append({"pair": number, "text": _digest(row)} | where | scores | {"judge": pair[0]["judge"]})
    if not path.exists():  # else somebody may have filled it in
        write_file(_key(path), _csv(key))
        write_file(path, _csv([{**row, _column(adjective): ""} for row in shown]))
    return shown


def _column(adjective: str) -> str:
    return f"{ASKED} {adjective} (1 or 2)"


def _digest(row: Mapping[str, Any]) -> str:
    """Which texts stand in a row, whatever a spreadsheet program made of their quotes and line ends."""
    texts = (re.sub(r"\W+", "", row[name] or "") for name in ("question", "reply_1", "reply_2"))
    return "t" + hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _answers(path: Path, key: Path, known: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    """Question and answer (1, 2 or nothing) of each pair of a filled-in sheet."""
    columns = ("pair", "question", "reply_1", "reply_2", f"{ASKED} ")
    answers: dict[str, tuple[str, str]] = {}
    for line, row in enumerate(_read(path, "a reader's sheet", columns), 2):
        pair, said = ((row[name] or "").strip() for name in ("pair", f"{ASKED} "))
        if pair not in known or pair in answers:
            raise DataError(
                f"expected pairs of {key}, each once, in {path}, got {pair or 'none'} in row {line}; leave that "
                "column as it was"
            )
        if _digest(row) != known[pair].get("text", _digest(row)):
            raise DataError(
                f"expected the replies that were written with {key} in {path}, got others in row {line}; pass the "
                "key of this very sheet, and leave questions and replies as they were"
            )
        if said not in ("", "1", "2"):
            raise DataError(f"expected 1, 2 or nothing in the last column of {path}, got {said!r} in row {line}")
        answers[pair] = row["question"], said
    if not any(said for _, said in answers.values()):
        raise DataError(f"expected answers in the last column of {path}, got none; write 1 or 2 in each row")
    return answers


def _higher(row: Mapping[str, str]) -> str:
    """Which reply of a pair the judge scored higher; nothing where it does not say."""
    try:
        first, second = (float(row[name] or "nan") for name in ("score_1", "score_2"))
    except ValueError as error:
        raise DataError(f"expected scores in the key, got {error}; keep the key as it was written") from error
    return "1" if first > second else "2" if second > first else ""


def _interval(of: Callable[[Any], float], answers: Any, questions: Sequence[str], scale: Transform) -> Interval:
    """A figure of two columns of answers, with its interval over questions; none of a kappa of 1."""
    if not len(answers):
        return Interval(np.nan, np.nan, np.nan, 0)
    clusters = np.unique(questions, return_inverse=True)[1]
    interval = clustered(lambda rows: of(answers[rows]), clusters, scale)
    flat = interval.low == interval.high  # it does not say how far it might have been another
    return interval._replace(low=np.nan, high=np.nan) if flat else interval


def _equal(answers: Any) -> float:
    return float((answers[:, 0] == answers[:, 1]).mean())


def _kappa(answers: Any) -> float:
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(*answers.T)) if len(np.unique(answers)) > 1 else np.nan


def _key(path: Path) -> Path:
    return path.with_name(f"{path.stem}.key.csv")


def _key_beside(path: Path) -> Path:
    places = [_key(path), path.with_name("sheet.key.csv")]
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"expected the key beside {path}, as {' or '.join(place.name for place in places)}, got none; pass --key, or "
        "put the filled-in sheet into the folder that it came from"
    )


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["pair"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")  # the mark by which spreadsheet programs know UTF-8


def _read(path: Path, what: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, whatever separator a spreadsheet program saved it with, by the beginnings of column names."""
    try:
        text = path.read_text("utf-8-sig")
        header = text.partition("\n")[0]
        separator = max(",;\t", key=header.count)
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [row for row in lines if any(row.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"expected a reader's sheet or its key, as CSV in UTF-8, got {path} ({error}); pass a sheet that extract "
            "or evaluate --agreement wrote, filled in"
        ) from error
    names = [name for name in (lines.fieldnames or () if rows else ()) if name]
    missing = [column for column in columns if not any(name.startswith(column) for name in names)]
    if missing:
        raise DataError(
            f"expected the columns of {what} in {path}, got {', '.join(names) or 'none'}; pass the filled-in sheet "
            "with all its columns, and keep its key as it was"
        )
    full = [next((column for column in columns if name.startswith(column)), name) for name in names]
    if column := twice(full):
        raise DataError(f"expected each column once in {path}, got {column!r} twice; remove one of them")
    return [{column: row[name] for column, name in zip(full, names, strict=True)} for row in rows]
