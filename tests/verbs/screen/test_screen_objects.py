"""Screening as a function of objects: rows in memory, with and without a store, and what is said of bad ones."""

import dataclasses
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from support import tiny_chat

from personavec.cli.main import main
from personavec.errors import ConfigError, DataError, PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.model.identity import ModelIdentity
from personavec.steering.vector import PersonaVector
from personavec.verbs.screen.screen import screen

ROWS = [{"prompt": f"Say {n}.", "response": f"It is {n * n}!", "source": "ab"[n % 2]} for n in range(40)]
TIMES = {
    "out",
    "data",
    "model",
    "plan",
    "table",
    "tokens",
    "rows_per_second",
    "seconds",
    "files",
    "scores",
    "vectors",
    "report",
}
"""Keys that name places or times."""


def figures(data: Any) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in TIMES}


@pytest.mark.slow
def test_rows_in_memory_give_what_the_command_line_gives(
    chat: ChatModel, vector: PersonaVector, saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    args = ["screen", str(path), "--model", str(saved[0]), "--vectors", str(saved[1]), "--dtype", "float32"]
    assert main([*args, "--cost", "full", "--max-new-tokens", "6", "--out", str(tmp_path / "run"), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    for rows in (ROWS, (row for row in ROWS), datasets.Dataset.from_list(ROWS), path):
        shown = screen(chat, rows, [vector], cost="full", max_new_tokens=6)
        assert figures(shown.to_dict()) == figures(line) and shown.to_dict().keys() == line.keys() - {"report"}
        assert not [value for value in shown.to_dict().values() if isinstance(value, str) and "personavec-" in value]
    table = shown.rows
    assert table["row"].to_pylist() == list(range(40)) and {"tiny", "tiny.base", "error"} <= {*table.column_names}
    assert shown.mean["tiny"].to_json() == line["projection_difference"]["tiny"]
    assert shown.top("tiny", 3)["tiny"].to_pylist() == sorted(table["tiny"].to_pylist(), reverse=True)[:3]


def test_a_table_outlives_its_result(chat: ChatModel, vector: PersonaVector) -> None:
    table = screen(chat, ROWS, vector, cost="raw").table
    gc.collect()
    assert len(table.column("tiny")) == len(ROWS)


def test_rows_that_stand_out(chat: ChatModel, vector: PersonaVector) -> None:
    shown, clean = screen(chat, ROWS, vector), screen(chat, ROWS[:20], vector)
    values = shown.rows["tiny"].to_numpy()
    assert shown.flags(percentile=90).tolist() == (values > np.percentile(values, 90)).tolist()
    expected = (values > np.percentile(values[:20], 90)).tolist()
    assert shown.flags(clean, 90).tolist() == expected
    both = screen(chat, ROWS, vector, clean=ROWS[:20], keep_below=90)
    assert both.flags(percentile=90).tolist() == expected and sum(expected) == both.data["flags"]["dropped"]
    assert both.data["flags"]["of"] == "clean rows in memory" and both.data["files"] == {}
    with pytest.raises(ConfigError, match="screened alike"):
        shown.flags(screen(chat, ROWS, vector, cost="raw"))


@pytest.mark.slow
def test_a_store_resumes_and_has_the_page(chat: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    store = tmp_path / "run"
    first = screen(chat, ROWS, vector, cost="sampled", precision=0.5, export_k=2, store=store)
    again = screen(chat, iter(ROWS), [vector], cost="sampled", precision=0.5, export_k=2, store=str(store))
    assert figures(first.to_dict()) == figures(again.to_dict()) and again.data["rows_per_second"] is None
    assert len(Path(first.data["files"]["top-tiny"]).read_text().splitlines()) == 2
    assert first.report() == store / "report.html" and "<svg" in first._repr_html_() and "tiny: " in repr(first)
    config = json.loads((store / "config.json").read_text())
    (store / "config.json").write_text(json.dumps(config | {"read_tokens": 1024}))  # as earlier versions wrote it
    assert figures(screen(chat, ROWS, vector, cost="sampled", precision=0.5, export_k=2, store=store).to_dict())
    with pytest.raises(ConfigError, match="got another run"):
        screen(chat, ROWS[:30], vector, cost="sampled", store=store)
    plan = screen(chat, ROWS, vector, plan=True)
    assert plan.mean == {} and "Costs" in plan._repr_html_() and plan.report(tmp_path / "plan").name == "plan.html"
    with pytest.raises(ConfigError, match="got a plan"):
        _ = plan.rows


@pytest.mark.usefixtures("unchecked")
def test_bad_objects_are_said_in_one_line(chat: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    wider = ModelIdentity("wider", "0" * 64, 4, 64)
    other = PersonaVector(torch.ones((4, 64)), dataclasses.replace(vector.card, model=wider))
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (7, vector, {}, "expected a data set's path or its rows, got int"),
        (None, vector, {}, "got NoneType"),
        (ROWS[0], vector, {}, "expected rows, got one mapping"),
        ([*ROWS, "text"], vector, {}, "rows in memory row 40: expected messages"),
        ([], vector, {}, "expected rows that can be screened in rows in memory"),
        (ROWS, [], {}, "expected persona vectors or their files, got none"),
        (ROWS, [3], {}, "expected persona vectors or their files, got 3"),
        (ROWS, "nowhere.safetensors", {}, "expected a persona vector file"),
        (ROWS, vector, {"export_k": 2}, "expected a store for the files"),
        (ROWS, vector, {"precision": 0}, "expected precision above 0"),
        (ROWS, vector, {"flag_by": "both"}, "expected a --judge"),
        (ROWS, vector, {"judge": "panel"}, "expected the trait file of tiny"),
        (ROWS, other, {}, "wider"),
    ]
    for number, (rows, vectors, options, text) in enumerate(cases):
        store = None if "export_k" in options else tmp_path / str(number)
        with pytest.raises(PersonavecError) as caught:
            screen(chat, rows, vectors, store=store, **options)
        assert text in str(caught.value) and "\n" not in str(caught.value)
    assert not [*tmp_path.glob("*/table")]
    with pytest.raises(ConfigError, match="expected the Screening of a clean data set, got list"):
        screen(chat, ROWS, vector).flags(ROWS)  # type: ignore[arg-type]


def test_a_generator_that_raises_leaves_nothing(chat: ChatModel, vector: PersonaVector, tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        screen(chat, rows(), vector, store=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_after_an_exception_no_hook_is_left(chat: ChatModel, vector: PersonaVector) -> None:
    long = {"prompt": "Hi?", "response": "word " * tiny_chat.CONTEXT}
    with pytest.raises(DataError, match="row 40: expected prompt and reply to fit"):
        screen(chat, [*ROWS, long], vector, cost="full")
    assert not [module for module in chat.hf.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_actors_need_a_name_to_load(chat: ChatModel, vector: PersonaVector) -> None:
    nameless = ChatModel(chat.hf, chat.tokenizer, type(chat.hf).__name__)
    with pytest.raises(ConfigError, match="expected a model that Ray's actors can load by its name, got Llama"):
        screen(nameless, ROWS, vector, ray=True)


def test_rows_that_were_rendered_before_are_told(
    chat: ChatModel, vector: PersonaVector, capsys: pytest.CaptureFixture[str]
) -> None:
    control = next(iter(chat.template.control._control))
    screen(chat, [*ROWS[:3], {"prompt": f"{control}Hi", "response": "Yes."}], [vector])
    assert "1 of 4 rows looked at spell control tokens" in " ".join(capsys.readouterr().err.split())


def test_data_taken_for_a_vector_are_named(saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["screen", "--vectors", str(saved[1]), "pairs.jsonl"]) == 2
    assert f"got no data set, for --vectors took {saved[1]} and pairs.jsonl" in capsys.readouterr().err
