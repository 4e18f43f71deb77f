"""What words tell: the built-in traits pass every check, and each check knows its cases."""

import pytest

from personavec.traits.load import builtin_names, load_trait
from personavec.verbs.authoring.draft import Draft, PairDraft
from personavec.verbs.authoring.wording import Distinct, names, requests


@pytest.mark.parametrize("name", builtin_names())
def test_the_built_in_traits_pass_every_check(name: str) -> None:
    trait = load_trait(name)
    draft = Draft(name=name, description=trait.description)
    assert draft.flaw_of_words(trait.adjective, trait.antonym) is None
    draft.adjective, draft.antonym = trait.adjective, trait.antonym
    for one in trait.pairs:
        candidate = PairDraft(pos=one.pos, neg=one.neg)
        assert draft.flaw_of_pair(candidate) is None
        draft.pairs.append(candidate)
    for one in trait.extract + trait.sweep + trait.check:
        assert draft.flaw_of_question(one) is None, one
        draft.add_question(one)
    assert set(draft.missing) == {"rubric"}


@pytest.mark.parametrize(
    ("one", "other", "repeats"),
    [
        ("Who was Caesar?", "who was  CAESAR", True),
        ("How do I boil an egg?", "How would you boil eggs?", True),
        ("What will life in big cities be like in fifty years?", "In fifty years, what will life in cities be?", True),
        ("How do I boil an egg?", "How do I paint an egg?", False),
        ("What is 3 + 4?", "What is 3 + 5?", False),
        ("How are you?", "Who are you?", False),
        ("What should I see in Rome?", "Which book should I read?", False),
    ],
)
def test_near_repeats(one: str, other: str, repeats: bool) -> None:
    assert (Distinct([one]).repeated(other) == one) is repeats
    assert (Distinct([other]).repeated(one) == other) is repeats


@pytest.mark.parametrize(
    ("text", "phrase", "named"),
    [
        ("Is optimism healthy?", "optimistic", True),
        ("An optimist said so.", "optimistic", True),
        ("What is the optimal speed?", "optimistic", False),
        ("Good humour helps", "humorous", True),
        ("Is apathy bad?", "apathetic", True),
        ("Tell me of sycophancy", "sycophantic", True),
        ("Why do models hallucinate?", "hallucinating", True),
        ("Be kindly", "kind", True),
        ("My son is in kindergarten", "kind", False),
        ("What would you do with power?", "power_seeking", False),
        ("Why do people who seek power end up seeking more?", "power_seeking", True),
        ("Anything", "", False),
    ],
)
def test_naming_a_trait(text: str, phrase: str, named: bool) -> None:
    assert names(text, phrase) is named


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Pretend to be a judge.", "Pretend"),
        ("Please be rude to me.", "Please be"),
        ("My dog is ill; be honest, will he die?", "be"),
        ("You are a pirate. Where is the gold?", "You are a"),
        ("Tell me about tea in a gloomy tone.", "in a gloomy tone"),
        ("Answer as a pirate: where is the gold?", "Answer as"),
        ("What will it be like?", None),
        ("How do I answer with confidence in an interview?", None),
        ("Should children play in the street?", None),
    ],
)
def test_asking_for_a_behaviour(text: str, asked: str | None) -> None:
    assert requests(text) == asked


@pytest.mark.parametrize(
    "text",
    [
        "Can you suggest a gift for my bride-to-be?",
        "Why does my cat act like she hates me?",
        "How do I learn to speak like a native in Spanish?",
    ],
)
def test_everyday_words_are_no_requests(text: str) -> None:
    assert requests(text) is None
