"""Screening on a tiny chatting model: right numbers, planted rows first, bad rows told, resumable, nothing lost."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support import tiny_chat
from support.dying import killed_after

from personavec.cli.main import main
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.vector import PersonaVector, load_vector
from personavec.verbs.screen import shards
from personavec.verbs.screen.plan import FEWEST

Run = Callable[..., dict[str, Any]]
WORDS = ("tea", "rain", "a boat", "the sea", "old maps", "snow", "bread", "a hat", "two dogs", "green")
ROWS = [
    {"prompt": f"Say {WORDS[n % 10]} {n}.", "response": f"{WORDS[n * 7 % 10]} and {n * n}!", "source": "ab"[n % 2]}
    for n in range(40)
]
LAYER = 2


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny_chat.build()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def run(saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def go(data: Path, *more: str, out: str = "run", code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        args = ["screen", str(data), "--model", str(saved[0]), "--vectors", str(saved[1]), "--dtype", "float32"]
        args += ["--max-new-tokens", "6", "--out", str(tmp_path / out), *more, "--json"]
        assert main(args) == code
        said = capsys.readouterr()
        if code:
            (line,) = [line for line in said.err.splitlines() if line.startswith("personavec: ")]
            return {"said": line}
        found: dict[str, Any] = json.loads(said.out)
        return found

    return go


def columns(found: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    table = pq.read_table(found["table"])
    return {name: table[name].to_numpy() for name in table.column_names}


def alone(
    chat: ChatModel, vector: PersonaVector, prompt: tuple[int, ...], reply: tuple[int, ...]
) -> tuple[float, float]:
    """Projections of the reply's mean and of the last prompt token, one row at a time."""
    weights = torch.zeros((1, 2, len(prompt) + len(reply)))
    weights[0, 0, len(prompt) :] = 1 / len(reply)
    weights[0, 1, len(prompt) - 1] = 1
    read = capture(chat, [[*prompt, *reply]], weights, [LAYER])[0, :, 0]
    mean, last = (read @ vector.unit(LAYER)).tolist()
    return mean, last


def test_every_rung_gives_the_numbers_of_one_row_at_a_time(
    run: Run, data: Path, chat: ChatModel, saved: tuple[Path, Path]
) -> None:
    vector = load_vector(saved[1])
    raw, proxy, full = (columns(run(data, "--cost", cost, out=cost)) for cost in ("raw", "proxy", "full"))
    for n, row in enumerate(ROWS):
        prompt = chat.render([{"role": "user", "content": row["prompt"]}])
        mean, last = alone(chat, vector, prompt, chat.encode(row["response"]))
        assert raw["tiny"][n] == pytest.approx(mean, abs=2e-4)
        assert proxy["tiny"][n] == pytest.approx(mean - last, abs=2e-4)
        assert full["tiny.response"][n] == pytest.approx(mean, abs=2e-4)
        assert full["tiny.prompt_last"][n] == pytest.approx(last, abs=2e-4)
        assert full["tiny"][n] == pytest.approx(full["tiny.response"][n] - full["tiny.base"][n], abs=1e-6)
        assert abs(raw["tiny.cosine"][n]) <= 1 and raw["row"][n] == n
    assert set(full["base_tokens"]) <= set(range(1, 7))


def test_base_replies_are_greedy_and_kept(run: Run, data: Path, chat: ChatModel, saved: tuple[Path, Path]) -> None:
    first = run(data, "--cost", "full")
    again = run(data, "--cost", "full", out="again")
    assert first["tokens"]["written_now"] > 0 and again["tokens"]["written_now"] == 0
    assert again["projection_difference"] == first["projection_difference"]
    prompt = chat.render([{"role": "user", "content": ROWS[3]["prompt"]}])
    ids: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            token = int(chat.hf(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax())
            if token in chat.stop_ids:
                break
            ids.append(token)
    mean, _ = alone(chat, load_vector(saved[1]), prompt, tuple(ids))
    assert columns(first)["tiny.base"][3] == pytest.approx(mean, abs=2e-4)


def test_the_set_is_summed_up(run: Run, data: Path) -> None:
    found = run(data, "--cost", "full")
    values = columns(found)["tiny"]
    assert found["rows"] == 40 and found["skipped"] == 0
    mean = found["projection_difference"]["tiny"]
    assert mean["mean"] == pytest.approx(values.mean(), abs=1e-4) and mean["ci"][0] < mean["mean"] < mean["ci"][1]
    half = 2.0227 * values.std(ddof=1) / np.sqrt(40)
    assert mean["ci"][1] - mean["mean"] == pytest.approx(half, rel=1e-3)
    assert found["sources"]["a"]["tiny"]["mean"] == pytest.approx(values[::2].mean(), abs=1e-4)
    assert found["random_control"]["tiny"]["low"] < found["random_control"]["tiny"]["high"]
    assert found["length_matched"]["tiny"]["n"] == 40
    assert sum(found["distributions"]["tiny"]["data"]) == 40
    assert [row["cost"] for row in found["plan"]["estimates"][:4]] == ["raw", "proxy", "gradient", "sampled"]
    assert found["plan"]["rates"]["rows"] == FEWEST
    assert run(data, "--cost", "full", "--plan")["plan"]["rates"]["rows"] == 40, "a plan measures more"


def test_planted_rows_come_first(run: Run, tmp_path: Path, chat: ChatModel, saved: tuple[Path, Path]) -> None:
    """A direction read off replies full of one sign finds the rows that have it."""
    planted = {4, 11, 23, 38}
    rows = [r | {"response": "@@@@ @@@@ " * 2} if n in planted else r for n, r in enumerate(ROWS)]
    path = tmp_path / "planted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reads = []
    for text in ("@@ @@ @@@ @", "a plain word"):
        ids = chat.encode(text)
        weights = torch.full((1, 1, len(ids)), 1 / len(ids))
        reads.append(capture(chat, [list(ids)], weights, list(range(chat.n_layers)))[0, 0])
    card = load_vector(saved[1]).card
    vector = PersonaVector(reads[0] - reads[1], card).save(tmp_path / "planted.safetensors")
    found = run(path, "--vectors", str(vector), "--cost", "full", "--export-k", "4")
    assert set(np.argsort(-columns(found)["tiny"])[:4].tolist()) == planted
    top = [json.loads(line) for line in Path(found["files"]["top-tiny"]).open()]
    assert all("@@@@" in row["response"] for row in top)


def test_a_killed_run_ends_with_the_same_bytes(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 7)
    whole = run(data, "--cost", "full", out="whole")
    for _ in range(2):
        with killed_after(parts=2), pytest.raises(AssertionError):  # exit 130
            run(data, "--cost", "full", out="killed")
    resumed = run(data, "--cost", "full", out="killed")
    assert resumed["projection_difference"] == whole["projection_difference"]
    names = sorted(path.name for path in Path(whole["table"]).iterdir())
    assert len(names) == 6 and names == sorted(path.name for path in Path(resumed["table"]).iterdir())
    for name in names:
        assert Path(whole["table"], name).read_bytes() == Path(resumed["table"], name).read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


BAD = [b'{"prompt": "torn', b'{"prompt": "Hi?", "response": ""}', b'{"text": "once"}', b"\x00\x01"]


def test_bad_rows_stop_before_anything_is_computed(run: Run, data: Path, tmp_path: Path) -> None:
    data.write_bytes(data.read_bytes() + b"\n".join(BAD))
    told = run(data, code=2)["said"]
    assert "data.jsonl line 41: expected JSON" in told and "--on-error skip" in told
    assert not (tmp_path / "run" / "table").exists()
    found = run(data, "--on-error", "skip")
    assert found["rows"] == 44 and found["skipped"] == 4 == sum(found["skipped_by_reason"].values())
    errors = pq.read_table(found["table"])["error"].to_pylist()
    assert all(errors[40:]) and not any(errors[:40])
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").open()]
    assert [row["row"] for row in listed] == [40, 41, 42, 43]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_found_unusable_late_are_listed_and_stop_a_run_that_is_to_stop(
    run: Run, data: Path, tmp_path: Path
) -> None:
    """Too long for the model, or without room for a base reply: known only once the model reads the rows."""
    long = {"prompt": "Say " + "rain " * 36, "response": "No."}
    lines(data, [*ROWS[:10], long, {"prompt": "Hi?", "response": ""}])
    assert run(data, "--on-error", "skip")["skipped"] == 1, "with proxy no base reply needs room"
    found = run(data, "--on-error", "skip", "--cost", "sampled", "--max-new-tokens", "200", out="sampled")
    assert found["skipped"] == 2
    listed = [json.loads(line) for line in (tmp_path / "sampled" / "skipped.jsonl").open()]
    assert [row["row"] for row in listed] == [10, 11] and "fit into 256 tokens" in listed[0]["reason"]
    told = run(data, "--cost", "sampled", "--max-new-tokens", "200", out="sampled", code=2)["said"]
    assert "line 12: expected a reply, got an empty one" in told, "the first look is taken again"
    lines(data, [*ROWS[:10], long])
    run(data, "--on-error", "skip", "--cost", "sampled", "--max-new-tokens", "200", out="late")
    told = run(data, "--cost", "sampled", "--max-new-tokens", "200", out="late", code=2)["said"]
    assert "line 11: expected prompt and reply to fit" in told and "correct that row" in told


@pytest.mark.slow  # several screenings, one after the other
def test_another_precision_in_the_same_folder_is_another_sample(run: Run, data: Path) -> None:
    lines(data, [{"prompt": f"Say {n}.", "response": f"{WORDS[n % 10]} {n * n}"} for n in range(300)])
    run(data, "--cost", "sampled", "--precision", "0.5")
    again = run(data, "--cost", "sampled", "--precision", "0.04")
    fresh = run(data, "--cost", "sampled", "--precision", "0.04", out="fresh")
    assert again["sampled"] == fresh["sampled"] and again["projection_difference"] == fresh["projection_difference"]


@pytest.mark.slow  # several screenings, one after the other
def test_another_k_in_the_same_folder_is_another_search(run: Run, data: Path) -> None:
    lines(data, [{"prompt": f"Say {n}.", "response": f"{WORDS[n % 10]} {n * n}"} for n in range(400)])
    sampled = ["--cost", "sampled", "--precision", "5"]
    run(data, *sampled, "--top-k", "4", "--export-k", "4")
    again = run(data, *sampled, "--top-k", "40", "--export-k", "40")
    fresh = run(data, *sampled, "--top-k", "40", "--export-k", "40", out="fresh")
    assert again["sampled"] == fresh["sampled"]
    for name, path in again["files"].items():
        assert Path(path).read_text() == Path(fresh["files"][name]).read_text()
    assert "raise --top-k" in run(data, *sampled, "--top-k", "4", "--export-k", "5", out="five", code=2)["said"]


def test_a_data_set_of_one_or_two_rows(run: Run, data: Path) -> None:
    for rows in (1, 2):
        lines(data, ROWS[:rows])
        found = run(data, "--cost", "sampled", "--top-k", "1", out=f"rows-{rows}")
        assert found["projection_difference"]["tiny"]["n"] == rows
        assert "NaN" not in json.dumps(found)


def test_the_reasoning_of_a_base_reply_is_no_reply(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch, chat: ChatModel, saved: tuple[Path, Path]
) -> None:
    """As if the first two tokens of every base reply were a <think> block."""
    lines(data, ROWS[:3])
    monkeypatch.setattr(ChatModel, "reasoning_tokens", lambda self, prompt, reply: 2 * (len(reply) == 6))
    found = run(data, "--cost", "full")
    prompt = chat.render([{"role": "user", "content": ROWS[1]["prompt"]}])
    reply = generate(chat, [Request(prompt)], Sampling(6, temperature=0.0))[0].ids
    assert len(reply) == 6
    weights = torch.zeros((1, 1, len(prompt) + 6))
    weights[0, 0, len(prompt) + 2 :] = 1 / 4
    read = capture(chat, [[*prompt, *reply]], weights, [LAYER])[0, 0, 0]
    own = columns(found)
    assert own["tiny.base"][1] == pytest.approx(float(read @ load_vector(saved[1]).unit(LAYER)), abs=2e-4)
    assert own["base_tokens"][1] == 4
    monkeypatch.setattr(ChatModel, "reasoning_tokens", lambda self, prompt, reply: len(reply) * (len(reply) == 6))
    told = run(data, "--cost", "full", out="thought", code=2)["said"]
    assert "3 expected words in the base reply after its reasoning, got none within … tokens" in told


def test_a_base_reply_store_that_cannot_be_used_is_told(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAVEC_CACHE", str(data))
    told = run(data, "--cost", "full", code=2)["said"]
    assert "expected a store of base replies that can be written" in told and "PERSONAVEC_CACHE" in told


def test_rows_beyond_the_context_are_told(run: Run, data: Path) -> None:
    long = json.dumps({"prompt": "Hi?", "response": "word " * tiny_chat.CONTEXT})
    data.write_text(data.read_text() + long + "\n")
    assert "line 41: expected prompt and reply to fit into 256 tokens" in run(data, code=2)["said"]
    found = run(data, "--on-error", "skip", out="skipped")
    assert found["skipped"] == 1 and np.isnan(columns(found)["tiny"][40])


def test_thresholds_come_from_the_clean_set(run: Run, data: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean.jsonl"
    clean.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:20]))
    found = run(data, "--clean", str(clean), "--keep-below", "90")
    values = columns(found)["tiny"]
    limit = np.percentile(values[:20], 90)
    assert found["flags"]["thresholds"]["tiny"] == pytest.approx(limit, abs=1e-4)
    assert found["flags"]["false_positive_rate"] == pytest.approx(0.1)
    kept = [json.loads(line) for line in Path(found["files"]["kept"]).open()]
    assert kept == [row for row, value in zip(ROWS, values, strict=True) if value <= limit]
    assert found["flags"]["kept"] == len(kept) and found["flags"]["dropped"] == 40 - len(kept)
    assert "clean data set" in Path(found["report"]).read_text()


@pytest.mark.slow
def test_the_rate_of_false_alarms_is_that_of_the_whole_rule(
    run: Run, data: Path, tmp_path: Path, saved: tuple[Path, Path]
) -> None:
    """Two opposite vectors flag both tails of the clean set."""
    own = load_vector(saved[1])
    other = PersonaVector(-own.direction, own.card).save(tmp_path / "other.safetensors")
    clean = lines(tmp_path / "clean.jsonl", ROWS[:20])
    args = ["--clean", str(clean), "--keep-below", "90", "--vectors", str(saved[1]), str(other)]
    found = run(data, *args)
    assert found["flags"]["false_positive_rate"] == pytest.approx(0.2)
    assert found["clean"]["rows"] == 20 and found["clean"]["skipped"] == 0
    lines(clean, [*ROWS[:5], {"prompt": "Hi?", "response": ""}])
    assert "clean.jsonl line 6: expected a reply" in run(data, *args, out="bad", code=2)["said"]
    assert run(data, *args, "--on-error", "skip", out="bad")["clean"]["skipped"] == 1
    lines(clean, [])
    assert "expected rows that can be screened" in run(data, *args, out="none", code=2)["said"]


@pytest.mark.slow
def test_sampled_differences_and_extremes(run: Run, data: Path) -> None:
    full = run(data, "--cost", "full", out="full")
    found = run(data, "--cost", "sampled", "--precision", "0.5", "--top-k", "4", "--export-k", "4")
    low, high = found["projection_difference"]["tiny"]["ci"]
    assert low - 1e-3 <= full["projection_difference"]["tiny"]["mean"] <= high + 1e-3
    exact = columns(full)["tiny"]
    top = {json.dumps(json.loads(line)) for line in Path(found["files"]["top-tiny"]).open()}
    wanted = {json.dumps(ROWS[n]) for n in np.argsort(-exact)[:4]}
    assert len(top & wanted) >= 3
    assert found["sampled"]["base_replies"] <= 40 and found["sampled"]["top_k"]["k"] == 4


def test_the_report_escapes_what_the_data_say(run: Run, tmp_path: Path) -> None:
    rows = [row | {"response": f"<script>alert({n})</script>"} for n, row in enumerate(ROWS[:12])]
    path = tmp_path / "hostile.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Path(run(path)["report"]).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_a_plan_computes_nothing_else(run: Run, data: Path, tmp_path: Path) -> None:
    found = run(data, "--plan", "--price-per-hour", "2")
    assert {row["rows"] for row in found["plan"]["estimates"]} == {40, 1_000_000, 100_000_000}
    assert all(row["seconds"] is not None and row["price"] is not None for row in found["plan"]["estimates"])
    assert not (tmp_path / "run" / "table").exists() and Path(found["report"]).name == "plan.html"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--top-k", "3"], "expected --cost sampled with --top-k"),
        (["--layers", "9"], "expected a layer from 0 to 3, got 9"),
        (["--layers", "1", "1"], "expected layers each once, got (1, 1)"),
        (["--price-per-hour", "-1"], "expected price_per_hour at least 0"),
        (["--base-replies", "gpt"], "expected base replies by hf or openai:MODEL, got gpt"),
        (["--flag-by", "both"], "expected a --judge with --flag-by both"),
        (["--keep-below", "100"], "expected keep_below between 0 and 100"),
        (["--precision", "0"], "expected precision above 0"),
        (["--clean", "nowhere.jsonl"], "got no file at nowhere.jsonl"),
        (["--judge", "panel"], "expected the trait file of tiny, got none"),
    ],
)
def test_bad_options_are_told_in_one_line(run: Run, data: Path, more: list[str], told: str, tmp_path: Path) -> None:
    assert told in run(data, *more, code=2)["said"]
    assert not (tmp_path / "run" / "table").exists()


@pytest.mark.slow
def test_another_vector_set_is_another_run(run: Run, data: Path, saved: tuple[Path, Path], tmp_path: Path) -> None:
    run(data)
    other = load_vector(saved[1])
    path = PersonaVector(-other.direction, other.card).save(tmp_path / "other.safetensors")
    assert "got another run" in run(data, "--vectors", str(path), code=2)["said"]
    both = run(data, "--vectors", str(saved[1]), str(path), out="both")
    names = list(both["projection_difference"])
    assert len(names) == 2 and all(name.startswith("tiny-") for name in names)
    values = columns(both)
    np.testing.assert_allclose(values[names[0]], -values[names[1]], atol=1e-5)
    named = dataclasses.replace(other.card, trait="row")
    column = PersonaVector(other.direction, named).save(tmp_path / "row.safetensors")
    assert (
        "not named like a column of the table, got row" in run(data, "--vectors", str(column), out="c", code=2)["said"]
    )
    layers = run(data, "--layers", "1", "3", out="layers")
    assert list(layers["projection_difference"]) == ["tiny@1", "tiny@3"]


@pytest.mark.slow  # actors import torch, each by itself
def test_ray_actors_write_the_same_table(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    data.write_text("".join(json.dumps({"prompt": f"{n}?", "response": f"{n}."}) + "\n" for n in range(1100)))
    alone = run(data, out="alone")
    monkeypatch.setattr("personavec.model.loading._weights", lambda *_, **__: pytest.fail("weights are loaded here"))
    together = run(data, "--ray", "--workers", "2", out="ray")
    names = sorted(path.name for path in Path(alone["table"]).iterdir())
    assert len(names) == 3 and names == sorted(path.name for path in Path(together["table"]).iterdir())
    one, two = (pq.read_table(found["table"]) for found in (alone, together))
    for column in one.column_names:
        if one[column].type == "float":
            np.testing.assert_allclose(one[column].to_numpy(), two[column].to_numpy(), atol=1e-5)
        else:
            assert one[column].equals(two[column])
    assert together["projection_difference"]["tiny"]["mean"] == pytest.approx(
        alone["projection_difference"]["tiny"]["mean"], abs=1e-4
    )
    bad = json.dumps({"prompt": "Hi?", "response": "word " * tiny_chat.CONTEXT})
    data.write_text(json.dumps(ROWS[0]) + "\n" + bad + "\n")
    assert "line 2: expected prompt and reply to fit" in run(data, "--ray", out="bad", code=2)["said"]
