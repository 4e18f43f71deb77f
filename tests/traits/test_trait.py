"""Laws of traits: what loads is valid, what is invalid says why, and the text of a trait is its identity."""

import json
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from personavec.errors import TraitError
from personavec.traits.load import builtin_names, load_trait
from personavec.traits.trait import Pair, Trait

SEVEN = {"apathetic", "evil", "hallucinating", "humorous", "impolite", "optimistic", "sycophantic"}
OURS = {"devout", "environmentalist", "fearful", "materialistic", "nostalgic", "poetic", "superstitious"}
BUILT_IN = tuple(sorted(OURS.union(SEVEN)))

SMALL = Trait(
    name="terse",
    adjective="terse",
    antonym="wordy",
    description="The assistant uses few words – très peu.",
    pairs=(
        Pair("Use three words.", "Use thirty words."),
        Pair("Answer in one line.", "Answer in ten lines."),
    ),
    extract=("How are you?", "What is rain?"),
    sweep=("What is hail?", "Who was Nero?"),
    check=("Who was Caesar?", "What is snow?"),
    rubric="0 is wordy, 50 is in between, 100 is terse.",
)

Edit = Callable[[dict[str, Any]], object]


def write(path: Path, data: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def assert_one_line(error: pytest.ExceptionInfo[TraitError]) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert "expected" in text and "got" in text and ";" in text


# Built-in traits


def every_question(trait: Trait) -> tuple[str, ...]:
    return trait.extract + trait.sweep + trait.check


def test_the_traits_of_the_paper_and_seven_of_our_own_are_built_in() -> None:
    assert builtin_names() == BUILT_IN


@pytest.mark.parametrize("name", BUILT_IN)
def test_builtin_has_the_usual_size(name: str) -> None:
    trait = load_trait(name)
    assert trait.name == name
    assert (len(trait.pairs), len(trait.extract), len(trait.sweep), len(trait.check)) == (5, 20, 10, 20)
    assert trait.independent_check is not None
    assert trait.antonym and trait.description
    words = [len(question.split()) for question in every_question(trait)]
    assert min(words) >= 4 and max(words) <= 25


@pytest.mark.parametrize("name", BUILT_IN)
def test_builtin_sides_have_like_length_so_that_length_is_no_cue(name: str) -> None:
    for pair in load_trait(name).pairs:
        pos, neg = len(pair.pos.split()), len(pair.neg.split())
        assert 12 <= min(pos, neg) and max(pos, neg) <= 35
        assert abs(pos - neg) <= 2


@pytest.mark.parametrize("name", BUILT_IN)
def test_builtin_questions_are_disjoint_and_never_name_the_trait(name: str) -> None:
    trait = load_trait(name)
    for question in every_question(trait):
        words = {word.strip(string.punctuation) for word in question.lower().split()}
        assert not {trait.adjective, trait.antonym} & words


@pytest.mark.parametrize("name", BUILT_IN)
def test_builtin_rubric_describes_the_scale_without_placeholders(name: str) -> None:
    rubric = load_trait(name).rubric
    assert all(f"{anchor} means" in rubric for anchor in (0, 50, 100))
    assert "{" not in rubric and "}" not in rubric


def test_no_question_serves_two_builtin_traits() -> None:
    questions = [q for name in BUILT_IN for q in every_question(load_trait(name))]
    assert len(questions) == len(set(questions))


# Identity


@pytest.mark.parametrize("trait", [*map(load_trait, BUILT_IN), SMALL], ids=lambda trait: trait.name)
def test_json_round_trip_is_identity(trait: Trait, tmp_path: Path) -> None:
    path = tmp_path / "trait.json"
    path.write_text(trait.to_json(), encoding="utf-8")
    again = load_trait(path)
    assert again == trait
    assert again.content_hash == trait.content_hash
    assert again.to_json() == trait.to_json()


def test_content_hash_ignores_layout_and_sees_content(tmp_path: Path) -> None:
    data = json.loads(SMALL.to_json())
    shuffled = write(tmp_path / "t.json", dict(reversed(data.items())))
    assert load_trait(shuffled).content_hash == SMALL.content_hash
    assert len({load_trait(name).content_hash for name in BUILT_IN}) == len(BUILT_IN)
    assert replace(SMALL, rubric=SMALL.rubric + " Ignore style.").content_hash != SMALL.content_hash


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(SMALL.to_json(), encoding="utf-8-sig")
    assert load_trait(str(path)) == SMALL


# System prompts


def test_system_prompt_names_the_side_then_instructs() -> None:
    assert SMALL.system_prompt(0, "pos") == "You are a terse assistant. Use three words."
    assert SMALL.system_prompt(1, "neg") == "You are a wordy assistant. Answer in ten lines."


def test_without_antonym_the_negative_side_is_helpful() -> None:
    trait = replace(SMALL, antonym="")
    assert trait.system_prompt(0, "neg") == "You are a helpful assistant. Use thirty words."


@pytest.mark.parametrize(
    ("word", "article"),
    [
        ("evil", "an"),
        ("optimistic", "an"),
        ("Apathetic", "an"),
        ("honest", "an"),
        ("honourable", "an"),
        ("uninterested", "an"),
        ("unkind", "an"),
        ("kind", "a"),
        ("humorous", "a"),
        ("hallucinating", "a"),
        ("unique", "a"),
        ("useful", "a"),
        ("one-sided", "a"),
        ("euphoric", "a"),
        ("utopian", "a"),
    ],
)
def test_article_follows_the_sound(word: str, article: str) -> None:
    prompt = replace(SMALL, adjective=word).system_prompt(0, "pos")
    assert prompt.startswith(f"You are {article} {word} assistant. ")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("pair", "side"), [(2, "pos"), (-1, "pos"), (0, "positive")])
def test_no_such_pair_or_side(pair: int, side: Any) -> None:
    with pytest.raises(TraitError) as error:
        SMALL.system_prompt(pair, side)
    assert_one_line(error)


# What cannot be loaded


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("optimism", "optimistic"),
        ("Evil", "evil"),
        ("sycophancy", "sycophantic"),
        ("hallucination", "hallucinating"),
        ("no/such/humorous.json", "humorous"),
    ],
)
def test_unknown_name_lists_near_names(wrong: str, near: str) -> None:
    with pytest.raises(TraitError, match=rf"did you mean .*\b{near}\b") as error:
        load_trait(wrong)
    assert_one_line(error)


def test_unknown_name_without_near_names_lists_all() -> None:
    with pytest.raises(TraitError) as error:
        load_trait("zzz")
    assert all(name in str(error.value) for name in BUILT_IN)
    assert "did you mean" not in str(error.value)
    assert_one_line(error)


def test_builtin_name_wins_over_a_run_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    assert load_trait("evil").name == "evil"


@pytest.mark.parametrize("key", ["name", "adjective", "antonym", "description", "pairs", "questions", "rubric"])
def test_missing_key_is_named(key: str, tmp_path: Path) -> None:
    data = json.loads(SMALL.to_json())
    del data[key]
    path = write(tmp_path / "t.json", data)
    with pytest.raises(TraitError, match=f"expected the key '{key}'") as error:
        load_trait(path)
    assert str(error.value).startswith(str(path))
    assert_one_line(error)


def test_all_missing_keys_are_named_at_once(tmp_path: Path) -> None:
    data = json.loads(SMALL.to_json())
    del data["rubric"], data["antonym"]
    with pytest.raises(TraitError, match="expected the keys 'antonym', 'rubric', got name, "):
        load_trait(write(tmp_path / "t.json", data))


MALFORMED: dict[str, tuple[Edit, str]] = {
    "missing check": (lambda d: d["questions"].pop("check"), "key 'check'"),
    "two sets of old": (
        lambda d: d.update(questions={"extract": ["a?", "b?"], "evaluate": ["c?", "d?"]}),
        "expected sweep and check in 'questions', got evaluate; divide its questions",
    ),
    "check is text": (lambda d: d.update(independent_check="words"), "in independent_check, got 'words'"),
    "missing neg": (lambda d: d["pairs"][1].pop("neg"), r"key 'pairs\[1\].neg'"),
    "one pair": (lambda d: d["pairs"].pop(), "at least 2 instruction pairs"),
    "no pairs": (lambda d: d["pairs"].clear(), "at least 2 instruction pairs"),
    "duplicate pair": (lambda d: d["pairs"].append(dict(d["pairs"][0])), "pairs once"),
    "equal sides": (lambda d: d["pairs"][0].update(neg="use  three WORDS."), r"opposite .* pairs\[0\]"),
    "overlap": (lambda d: d["questions"]["check"].append("what is  RAIN?"), "two sets, got 1 of extract in check"),
    "overlap of sweep": (lambda d: d["questions"]["sweep"].append("What is snow?"), "got 1 of sweep in check"),
    "duplicate question": (lambda d: d["questions"]["extract"].append("How are you?"), "extract once"),
    "no questions": (lambda d: d["questions"]["extract"].clear(), "questions in questions.extract"),
    "one question": (lambda d: d["questions"]["sweep"].pop(), "at least 2 questions in questions.sweep"),
    "empty question": (lambda d: d["questions"]["extract"].append(" "), r"questions.extract\[2\]"),
    "empty instruction": (lambda d: d["pairs"][1].update(pos=""), r"pairs\[1\].pos"),
    "empty adjective": (lambda d: d.update(adjective=""), "adjective"),
    "empty rubric": (lambda d: d.update(rubric="\n"), "rubric"),
    "name is a path": (lambda d: d.update(name="../x"), "a name of letters"),
    "name is empty": (lambda d: d.update(name=""), "a name of letters"),
    "rubric is a number": (lambda d: d.update(rubric=5), "text in 'rubric', got a number"),
    "question is null": (lambda d: d["questions"]["extract"].append(None), "got null"),
    "questions are a list": (lambda d: d.update(questions=["How?"]), "extract, sweep, check in"),
    "pairs are text": (lambda d: d.update(pairs="be terse"), "a list in 'pairs', got text"),
    "pair is text": (lambda d: d["pairs"].append("be terse"), r"pos and neg in 'pairs\[2\]', got text"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_trait_says_what_and_where(case: str, tmp_path: Path) -> None:
    edit, message = MALFORMED[case]
    data = json.loads(SMALL.to_json())
    edit(data)
    path = write(tmp_path / "t.json", data)
    with pytest.raises(TraitError, match=message) as error:
        load_trait(path)
    assert str(error.value).startswith(str(path))
    assert_one_line(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "x",\n}', "line 2"),
        (b"", "expected JSON"),
        (b"[1, 2]", "a JSON object, got a list"),
        (b'{"name": "\xff"}', "UTF-8"),
    ],
)
def test_bad_json_says_where(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(TraitError, match=message) as error:
        load_trait(path)
    assert_one_line(error)


def test_a_trait_made_in_code_is_checked_too() -> None:
    with pytest.raises(TraitError, match="two sets"):
        replace(SMALL, check=SMALL.extract)


# The reference's two-file form


def half(*questions: str) -> dict[str, object]:
    return {
        "instruction": [{"pos": pair.pos, "neg": pair.neg} for pair in SMALL.pairs],
        "questions": list(questions),
        "eval_prompt": "How terse is this?\n[Q]{question}[/Q]\n[A]{answer}[/A]\nSay 0 to 100.",
    }


@pytest.mark.parametrize(
    ("extract", "evaluate"),
    [
        ("trait_data_extract/terse.json", "trait_data_eval/terse.json"),
        ("terse_extract.json", "terse_eval.json"),
    ],
)
def test_two_file_form(extract: str, evaluate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / extract, half(*SMALL.extract))
    write(tmp_path / evaluate, half(*SMALL.sweep, *SMALL.check))
    trait = load_trait(path)
    assert (trait.name, trait.adjective, trait.antonym) == ("terse", "terse", "")
    sets = (trait.extract, trait.sweep, trait.check)
    assert (trait.pairs, *sets) == (SMALL.pairs, SMALL.extract, SMALL.sweep, SMALL.check)
    assert trait.rubric == half()["eval_prompt"]
    assert trait.system_prompt(0, "neg") == "You are a helpful assistant. Use thirty words."

    monkeypatch.chdir(path.parent)
    assert load_trait(path.name) == trait

    rewritten = tmp_path / "one.json"
    rewritten.write_text(trait.to_json(), encoding="utf-8")
    assert load_trait(rewritten) == trait


@pytest.mark.parametrize("name", ["trait_data_extract/terse.json", "trait_data_eval/terse.json", "terse.json"])
def test_two_file_form_needs_its_other_half(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, half(*SMALL.extract))
    with pytest.raises(TraitError, match="evaluation half") as error:
        load_trait(path)
    assert_one_line(error)


def test_two_file_form_with_shared_questions_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x_extract" / "terse.json", half(*SMALL.extract))
    write(tmp_path / "x_eval" / "terse.json", half(*SMALL.extract, *SMALL.sweep))
    with pytest.raises(TraitError, match="two sets"):
        load_trait(path)


def test_a_trait_from_lists_of_texts(unchecked: None) -> None:
    pairs = [("Be brief.", "Be wordy."), Pair("Few words.", "Many words.")]
    whole = {"pairs": pairs, "extract": ["How are you?", "What is rain?"]}
    whole |= {"sweep": ["When?", "Where?"], "check": iter(["Who?", "Why?"])}
    trait = Trait.of("terse", **whole)
    assert trait.system_prompt(0, "pos") == "You are a terse assistant. Be brief."
    assert trait.pairs[1] == pairs[1] and trait.check == ("Who?", "Why?") and "as terse as can be" in trait.rubric
    for bad, told in (
        ({"pairs": [("Be brief.",), ("a", "b")]}, r"expected pairs of two instructions, got \('Be brief.',\)"),
        ({"pairs": [("a", "b", "c"), ("d", "e")]}, "expected pairs of two instructions"),
        ({"pairs": ["ab", "cd"]}, "expected pairs of two instructions, got 'ab'"),
        ({"pairs": [("Be brief.", 3), ("a", "b")]}, r"expected text in 'pairs\[0\].neg', got a number"),
        ({"extract": ["Who?", None]}, r"expected text in 'extract\[1\]', got null"),
        ({"check": ["How are you?", "Why?"]}, "expected no question in two sets"),
        ({"extract": ["Who is it?"]}, "expected at least 2 questions in questions.extract"),
    ):
        with pytest.raises(TraitError, match=told):
            Trait.of("terse", **whole | {"check": ["Who?", "Why?"]} | bad)
