"""Both sides of preferences in one command: each as it is by itself, and the difference between them, paired by row."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tiny_chat

from personavec.cli.main import main
from personavec.data.dataset import dataset_of
from personavec.data.preferences import PreferredSide, Side
from personavec.errors import ConfigError, DataError
from personavec.steering.vector import load_vector
from personavec.verbs.screen import shards
from personavec.verbs.screen.result import BothSides
from personavec.verbs.screen.screen import screen, screen_sides

ROWS = [{"prompt": f"Say {n}.", "chosen": f"{n}, gladly!", "rejected": f"no {n}"} for n in range(12)]
SIDES: tuple[Side, ...] = ("chosen", "rejected")


def written(path: Path, rows: Any = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_the_command_screens_both_sides_and_tells_the_difference(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = written(tmp_path / "prefs.jsonl"), tmp_path / "run"
    args = ["screen", str(data), "--model", str(saved[0]), "--vectors", str(saved[1]), "--dtype", "float32"]
    args += ["--layers", "1", "2", "--side", "both", "--out", str(out)]
    assert main([*args, "--keep-below", "90", "--json"]) == 0
    said = capsys.readouterr()
    line = json.loads(said.out)
    assert "rows of chosen and rejected replies, of which the rejected one is read" in said.err
    assert line.keys() - {"report"} == json.loads((out / "result.json").read_text()).keys()
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    alone = {side: screen(chat, ROWS, vector, side=side, layers=(1, 2)) for side in SIDES}
    apart = alone["chosen"].less(alone["rejected"])
    assert [*line["difference"]] == ["tiny@1", "tiny@2"] == [*apart]
    for name, figures in line["difference"].items():
        assert {key: figures[key] for key in ("mean", "ci", "n", "dropped")} == apart[name].to_json()
        assert figures["random_control"]["draws"] == 20
        beyond = figures["random_control"]["beyond"] and not figures["ci"][0] <= 0 <= figures["ci"][1]
        assert figures["higher"] == ("neither" if not beyond else "chosen" if figures["mean"] > 0 else "rejected")
        for side in SIDES:
            assert line[side]["projection_difference"][name] == alone[side].mean[name].to_json()
    assert "neither side has a verdict" in line["caveat"]
    assert line["chosen"]["verdict"] == {"tiny@1": None, "tiny@2": None}
    for side in SIDES:
        kept = (out / side / "kept.jsonl").read_text().splitlines()
        assert 0 < len(kept) < 12 and all(json.loads(row) in ROWS for row in kept)
    page = (out / "report.html").read_text()
    assert "neither side has a verdict" in page.lower() and 'href="chosen/report.html"' in page
    assert (out / "rejected" / "report.html").is_file() and (out / "charts" / "difference.png").is_file()

    assert main([*args, "--keep-below", "90"]) == 0
    printed = capsys.readouterr().out
    assert "12 pairs of" in printed and "chosen less rejected" in printed and "neither side has a verdict" in printed
    assert main([*args, "--turn", "every", "--json"]) == 2 and main([*args, "--plan", "--json"]) == 2
    assert "expected --turn first or last with --side both" in capsys.readouterr().err


def test_every_cost_gives_the_same_difference_and_only_base_replies_a_verdict(saved: tuple[Path, Path]) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    shown = {
        cost: screen_sides(chat, iter(ROWS), vector, cost=cost, max_new_tokens=4) for cost in ("raw", "proxy", "full")
    }
    means = [each.difference["tiny"].mean for each in shown.values()]
    assert means == pytest.approx([means[0]] * 3, abs=1e-4)
    assert shown["raw"].data["caveat"] == shown["proxy"].data["caveat"] != shown["full"].data["caveat"] is None
    assert shown["full"].chosen.data["verdict"]["tiny"] in ("toward", "against", "neither")
    assert "chosen less rejected" in repr(shown["raw"]) and "<svg" in shown["full"]._repr_html_()


def test_less_says_that_cheap_scores_are_no_verdict(
    saved: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    chosen, rejected = (screen(chat, ROWS, vector, side=side) for side in SIDES)
    capsys.readouterr()
    chosen.less(rejected)
    assert "neither side has a verdict" in capsys.readouterr().err


def test_a_killed_run_goes_on_and_ends_the_same(
    saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    whole = screen_sides(chat, ROWS, vector, store=tmp_path / "whole")
    read = shards.screen_shard

    def killed(reader: Any, samples: Any, *more: Any) -> Any:
        if samples[0].response.startswith("no"):
            raise KeyboardInterrupt
        return read(reader, samples, *more)

    monkeypatch.setattr(shards, "screen_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        screen_sides(chat, ROWS, vector, store=tmp_path / "run")
    assert (tmp_path / "run" / "chosen" / "result.json").is_file()
    monkeypatch.setattr(shards, "screen_shard", read)
    again = screen_sides(chat, ROWS, vector, store=tmp_path / "run")
    assert again.data["difference"] == whole.data["difference"]
    parts = [(tmp_path / run / "rejected" / "table" / "part-000000.parquet").read_bytes() for run in ("whole", "run")]
    assert parts[0] == parts[1]
    with pytest.raises(ConfigError, match="cost: proxy there, raw here"):
        screen_sides(chat, ROWS, vector, store=tmp_path / "run", cost="raw")
    with pytest.raises(ConfigError, match="got another run"):
        screen(chat, ROWS, vector, store=tmp_path / "run")


def test_a_pair_is_left_out_where_either_reply_cannot_be_read(saved: tuple[Path, Path], tmp_path: Path) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    rows = [*ROWS, {"prompt": "Say.", "chosen": "", "rejected": "no"}, {"prompt": "Say.", "chosen": "yes"}]
    shown = screen_sides(chat, rows, vector, on_error="skip", store=tmp_path / "run")
    assert isinstance(shown, BothSides) and shown.data["skipped"] == 2
    assert shown.data["difference"]["tiny"]["n"] == 12 and shown.data["difference"]["tiny"]["dropped"] == 2
    assert shown.chosen.data["skipped"] == 2 and shown.rejected.data["skipped"] == 1
    with pytest.raises(DataError, match="expected a chosen and a rejected reply, got the keys 'prompt', 'completion'"):
        screen_sides(chat, [{"prompt": "a", "completion": "b"}], vector)


def test_what_both_sides_begin_with_is_context(saved: tuple[Path, Path]) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    ask = {"role": "user", "content": "Why?"}
    rows = [
        {side: [*said, ask, {"role": "assistant", "content": f"{side} {n}"}] for side in SIDES} | {"id": str(n)}
        for n in range(6)
    ]
    behind = [{"prompt": [*said, ask], "chosen": f"chosen {n}", "rejected": f"rejected {n}"} for n in range(6)]
    for data in (rows, behind):
        for side in SIDES:
            replies = [getattr(s, "response", s) for s in PreferredSide.of(dataset_of(data), side).samples("first")]
            assert replies == [f"{side} {n}" for n in range(6)]
    shown = screen_sides(chat, rows, vector)
    assert shown.difference["tiny"].mean != 0


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_rows_are_exported_as_they_stand(ending: str, saved: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / f"prefs{ending}"
    if ending == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*ROWS[0]])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        path.write_text(json.dumps(ROWS)) if ending == ".json" else written(path)
    shown = screen_sides(tiny_chat.build(), path, load_vector(saved[1]), export_k=2, store=tmp_path / "run")
    for side, screening in zip(SIDES, (shown.chosen, shown.rejected), strict=True):
        file = Path(screening.data["files"]["top-tiny"])
        assert file.parent == tmp_path / "run" / side
        rows = [raw.value for raw in dataset_of(file).rows()]
        places = np.argsort(-screening.table.column("tiny"), kind="stable")[:2]
        assert rows == [ROWS[place] for place in places]


def test_a_clean_set_may_be_of_either_kind(saved: tuple[Path, Path]) -> None:
    chat, vector = tiny_chat.build(), load_vector(saved[1])
    plain = [{"prompt": f"Say {n}.", "response": f"It is {n}."} for n in range(8)]
    for clean in (plain, ROWS[:8], iter(plain)):
        shown = screen_sides(chat, ROWS, vector, clean=clean)
        assert shown.rejected.data["clean"]["rows"] == 8
