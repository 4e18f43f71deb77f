"""Which judges a `--judge` names."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Unpack

from personavec.errors import JudgeError
from personavec.judges.fluency import FluencyJudge
from personavec.judges.hf import LocalReader
from personavec.judges.judge import Judge, TraitJudge
from personavec.judges.openai import OpenAIReader
from personavec.judges.panel import PanelJudge
from personavec.judges.plain import PlainReader
from personavec.judges.rubric import COHERENCE, Reader, Rubric, RubricJudge
from personavec.model.chat_model import ChatModel
from personavec.model.endpoint import CallLimits, Endpoint, Usage
from personavec.model.engines.introduction import SCHEME
from personavec.model.engines.vllm import connect
from personavec.runs.fetch import cache_folder
from personavec.steering.rollouts import Interview
from personavec.traits.trait import Trait

FORMS = "panel, panel:MODEL, hf:MODEL or openai:MODEL"


@dataclass(frozen=True)
class Bench:
    """The judges of a run: what they share, whatever the trait."""

    coherence: Judge
    trait: Callable[[Trait], TraitJudge]
    """Makes the judge of a trait."""
    spec: str
    """As it was named."""
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
    *,
    system: str = "template",
    url: str | None = None,
    beside: "Bench | None" = None,
    load: Callable[..., ChatModel] = ChatModel.load,
    trust_remote_code: bool = False,
    **limits: Unpack[CallLimits],
) -> Bench:
    """The judges that a spec names.

    Args:
        spec: panel, panel:MODEL, hf:MODEL or openai:MODEL.
        subject: The model under study.
        system: Its system-prompt policy, for coherence as fluency.
        url: Server of openai:MODEL, default OpenAI's; or vllm:URL[,URL…] for panel:MODEL, see `engines.vllm.connect`.
        beside: Judges of the same process, with which the budget of calls is shared.
        load: Makes a judge model from a name; takes `plain_template`.
        trust_remote_code: Run code that the repository of a model behind vllm:URL ships.
        limits: How a server may be asked.

    Raises:
        JudgeError: No such kind of judge, or its server answers to no way of asking.
        ModelError: Its model or server cannot be used.
    """
    kind, _, name = spec.partition(":")
    servers = url if url and url.startswith(SCHEME) else ""
    if servers and not (kind == "panel" and name):
        raise JudgeError(
            f"expected panel:MODEL with --judge-url {url}, got {spec}; a rubric judge behind vLLM is openai:MODEL with "
            "the address that ends in /v1, and the model itself is asked where it runs"
        )
    if kind == "panel" and (name or ":" not in spec):
        fluent = PlainReader(subject, system)
        make = partial(connect, servers, trust_remote_code=trust_remote_code) if servers else load
        plain = PlainReader(make(name, plain_template=True), "template") if name else fluent
        return Bench(
            FluencyJudge(fluent),
            lambda trait: PanelJudge(plain.model, trait, plain),
            spec,
            plain.model.identity.revision,
        )
    if kind == "hf" and name:
        return _by_rubric(spec, LocalReader(load(name, plain_template=True)))
    if kind == "openai" and name:
        usage = beside.endpoint.usage if beside and beside.endpoint else Usage()
        endpoint = Endpoint(name, url, cache_folder() / "answers.sqlite", usage=usage, **limits)
        return _by_rubric(spec, OpenAIReader(endpoint), endpoint)
    if kind == "likelihood":
        raise JudgeError(f"expected the judge {FORMS}, got {spec}; the panel has taken its place: --judge panel")
    raise JudgeError(f"expected the judge {FORMS}, got {spec}; correct --judge")


def bench_of(judge: str | Bench, interview: Interview) -> Bench:
    """The judges that a verb was given, or those that it was given the name of.

    Raises:
        JudgeError: As `load_bench`.
        ModelError: Likewise.
    """
    return load_bench(judge, interview.model, system=interview.system) if isinstance(judge, str) else judge


def _by_rubric(spec: str, reader: Reader, endpoint: Endpoint | None = None) -> Bench:
    return Bench(
        RubricJudge(reader, Rubric(COHERENCE, refusable=False)),
        lambda trait: RubricJudge(reader, Rubric(trait.rubric, refusable=True)),
        spec,
        reader.basis,
        endpoint,
    )
