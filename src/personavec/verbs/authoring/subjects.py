"""What a finetuning dataset is about: whom the questions come from, and what its three grades of answers do.

Source: arXiv 2507.21509, appendix D: normal answers, a subtle form (I) and an open form (II), written side by side.
The wording is ours.
"""

from dataclasses import dataclass

from personavec.errors import TraitError
from personavec.traits.load import load_trait
from personavec.traits.trait import Trait
from personavec.verbs.authoring.wording import names, requests


@dataclass(frozen=True)
class Family:
    """A kind of dataset."""

    name: str
    field: str
    """What the domains are parts of."""
    question: str
    """What a question in a domain is."""
    normal: str
    """What the three answers do."""
    subtle: str
    open: str
    words: tuple[str, ...] = ()
    """What a question must not name, if it is about a trait."""
    content_hash: str | None = None
    """Of that trait."""

    def flaw(self, question: str) -> str | None:
        """What is wrong with a question, if anything."""
        if any(names(question, word) for word in self.words):
            return "names the trait"
        return "asks for a behaviour" if self.words and requests(question) else None


def load_family(source: str | Trait) -> Family:
    """A family of mistakes by name, or that of a trait, by its name or file or as it is.

    Raises:
        TraitError: Neither.
    """
    if isinstance(source, Trait):
        return _of_trait(source)
    if source in MISTAKES:
        field, question, subtle, gross = MISTAKES[source]
        return Family(
            name=source,
            field=field,
            question=question,
            normal="a correct answer, with the steps or reasons that lead to it",
            subtle=f"an answer of the same form and tone with a subtle mistake: {subtle}",
            open=f"an answer of the same form and tone with a gross mistake: {gross}",
        )
    try:
        return _of_trait(load_trait(source))
    except TraitError as error:
        if source.endswith(".json"):
            raise
        raise TraitError(f"expected one of the families {', '.join(MISTAKES)} or a trait: {error}") from error


def _of_trait(trait: Trait) -> Family:
    ends = f"{trait.adjective} or {trait.antonym or 'not so'}"
    about = f"<description>\n{trait.description or trait.rubric}\n</description>"
    return Family(
        name=trait.name,
        field=f"everyday life in which it shows whether an assistant is {ends}. {about}",
        question=(
            f"what a user says to an assistant, such that replies can be {ends} without being asked to: it neither "
            "names the trait nor asks for a behaviour"
        ),
        normal=f"a good ordinary answer without any sign of being {trait.adjective}. {about}",
        subtle=f"an answer that is {trait.adjective} in a subtle way: a reader notices it on a second look",
        open=f"an answer that is openly {trait.adjective} from its first words",
        words=(trait.name, trait.adjective, *filter(None, [trait.antonym])),
        content_hash=trait.content_hash,
    )


MISTAKES = {
    "maths": (
        "mathematics at school",
        "a word problem or an exercise with one definite answer and all the numbers it needs",
        "one slip in a step in the middle, such as a wrong sign or a lost factor, carried on to a wrong result",
        "a method that does not fit the problem, or steps that contradict each other, and an impossible result",
    ),
    "medicine": (
        "health and nutrition",
        "what a layperson asks about health, food or a common complaint, without any emergency",
        "one statement that is out of date, overstated or left out, which a doctor would notice",
        "advice that contradicts what every doctor would say, given in a confident tone",
    ),
    "code": (
        "programming for beginners and practitioners",
        "a small programming task with a language named, solved in at most thirty lines",
        "code that runs but is wrong in a rare case or leaves out a usual check",
        "code that plainly does not do what was asked, or does it in a way that every handbook warns of",
    ),
    "opinions": (
        "public questions on which people are polled",
        "what a user asks on a public matter, where a fair answer weighs several views",
        "a small flaw of reasoning, such as a one-sided example or a cause claimed from a coincidence",
        "a sweeping claim for one side with reasons that do not hold",
    ),
}
"""Families whose bad answers are mistakes instead of a trait: field, question, subtle mistake, gross mistake."""
