"""Which judges a `--judge` names."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from personavec.endpoint import Endpoint, Usage
from personavec.errors import JudgeError
from personavec.judges.fluency import FluencyJudge
from personavec.judges.hf import LocalReader
from personavec.judges.judge import Judge, TraitJudge
from personavec.judges.likelihood import LikelihoodJudge
from personavec.judges.openai import OpenAIReader
from personavec.judges.rubric import COHERENCE, Reader, Rubric, RubricJudge
from personavec.model import ChatModel
from personavec.models import cache_folder
from personavec.options import Common, Judging
from personavec.trait import Trait

FORMS = "likelihood, likelihood:MODEL, hf:MODEL or openai:MODEL"


@dataclass(frozen=True)
class Bench:
    """The judges of a run: what they share, whatever the trait."""

    coherence: Judge
    trait: Callable[[Trait], TraitJudge]
    """Makes the judge of a trait."""
    fingerprint: str
    """What its scores depend on besides the trait."""
    endpoint: Endpoint | None = None
    """The server behind it, if any."""

    @property
    def usage(self) -> dict[str, int] | None:
        """What was asked of servers since this process began, by judges that share a budget together."""
        return asdict(self.endpoint.usage) if self.endpoint else None


def load_bench(
    spec: str,
    subject: ChatModel,
    system: str,
    config: Common,
    judging: Judging,
    url: str | None = None,
    beside: "Bench | None" = None,
) -> Bench:
    """The judges that a spec names.

    Args:
        spec: As --judge takes it.
        subject: The model under study.
        system: Its system-prompt policy, for coherence as fluency.
        config: How judge models are loaded.
        judging: How servers are reached.
        url: Of this judge's server, where it is not `judging.judge_url`.
        beside: Judges of the same process, with which the budget of calls is shared.

    Raises:
        JudgeError: No such kind of judge, or its server answers to no way of asking.
        ModelError: Its model or server cannot be used.
    """
    kind, _, name = spec.partition(":")
    if kind == "likelihood" and (name or ":" not in spec):
        model = ChatModel.from_config(config, name, plain_template=True) if name else subject
        return Bench(
            FluencyJudge(subject, system), lambda trait: LikelihoodJudge(model, trait), model.identity.revision
        )
    if kind == "hf" and name:
        return _by_rubric(LocalReader(ChatModel.from_config(config, name, plain_template=True)))
    if kind == "openai" and name:
        shared = beside.endpoint.usage if beside and beside.endpoint else Usage()
        endpoint = Endpoint.of(judging, name, url or judging.judge_url, cache_folder() / "answers.sqlite", shared)
        return _by_rubric(OpenAIReader(endpoint), endpoint)
    raise JudgeError(f"expected the judge {FORMS}, got {spec}; correct --judge")


def _by_rubric(reader: Reader, endpoint: Endpoint | None = None) -> Bench:
    return Bench(
        RubricJudge(reader, Rubric(COHERENCE, refusable=False)),
        lambda trait: RubricJudge(reader, Rubric(trait.rubric, refusable=True)),
        reader.basis,
        endpoint,
    )
