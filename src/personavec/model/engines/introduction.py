"""What a server says of itself, and whether it is the one that is wanted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from personavec import __version__
from personavec.errors import ConfigError, ModelError
from personavec.model.endpoint import check_url
from personavec.model.engines.servers import ModelServer, ServerRefusal

if TYPE_CHECKING:
    from personavec.model.chat_model import ChatModel

SCHEME = "vllm:"
"""What an engine's name begins with, before the addresses."""
GENERATE = "/inference/v1/generate"
VECTORS = "/v1/personavec/vectors"
VERSIONS = ("0.32.",)
"""Beginnings of the versions of vLLM that were tried."""
START = "start it with `python -m personavec.vllm`"


@dataclass(frozen=True)
class Introduction:
    """What a server says of itself."""

    vllm: str
    """Its version."""
    model: tuple[Any, ...]
    """Name, revision, layers, width and vocabulary of its model."""
    dtype: str
    longest: int
    """Tokens that prompt and reply may have together."""
    accepts: bool
    """Whether it takes vectors besides those of its folder."""
    folder: frozenset[str]
    """Content hashes of the vectors that it was started with."""
    vectors: frozenset[str]
    """Of all that it has."""

    @property
    def commit(self) -> str | None:
        """Of its model's weights on the Hub, where it knows that."""
        return self.model[1] or None

    def check_alike(self, other: "Introduction", url: str) -> None:
        """Raise ModelError unless another server can stand in for this one."""
        for name, what in (
            ("vllm", "version of vLLM"),
            ("model", "model"),
            ("dtype", "number format"),
            ("longest", "--max-model-len"),
            ("folder", "folder of vectors"),
        ):
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                told = "another one" if name == "folder" else f"{_plain(there)}, elsewhere {_plain(here)}"
                raise ModelError(f"expected one {what} on all servers, got {told} at {url}; start them alike")


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


async def introduce(server: ModelServer, model: "ChatModel") -> Introduction:
    """Ask a server who it is.

    Raises:
        Away: It is not there.
        ModelError: It is not the one that is wanted.
    """
    url = server.url
    try:
        told = await server.get(VECTORS)
    except ServerRefusal as error:
        if error.status != 404:
            raise
        told = None
    if not isinstance(told, dict):
        raise ModelError(f"expected vLLM with personavec's plugin at {url}, got a server without it; {START}")
    version = told.get("version", "an older one")
    if version != __version__:
        raise ModelError(
            f"expected personavec {__version__} at {url}, got {version}; install one version on both sides"
        )
    vllm, there = str(told["vllm"]), told["model"]
    if not vllm.startswith(VERSIONS):
        tried = " or ".join(f"{version}x" for version in VERSIONS)
        raise ModelError(f"expected vLLM {tried} at {url}, got {vllm}; install a version that was tried")
    _check_model(there, model, url)
    said = await server.post(GENERATE, {"token_ids": [model.pad_id], "sampling_params": {"max_tokens": 1}})
    choices = said.get("choices") if isinstance(said, dict) else None
    if not choices or not isinstance(choices[0].get("token_ids"), list):
        raise ModelError(f"expected token ids from {url}, got text; let no gateway stand before it, and {START}")
    return Introduction(
        vllm,
        tuple(there[name] for name in ("name", "revision", "layers", "d_model", "vocabulary")),
        str(there["dtype"]),
        int(there["longest"]),
        bool(told["accepts"]),
        frozenset(each["hash"] for each in told["vectors"] if not each.get("given")),
        frozenset(each["hash"] for each in told["vectors"]),
    )


def _check_model(there: dict[str, Any], model: "ChatModel", url: str) -> None:
    """By name, by the commit of the Hub where both know it, and by shape: no weights are here to be compared."""
    config = model.hf.config
    vocabulary = config.get_text_config().vocab_size
    names = {model.identity.id, str(config.name_or_path)}
    shape = (model.n_layers, model.identity.d_model, vocabulary)
    other = (there["layers"], there["d_model"], there["vocabulary"])
    if not names & {there["name"], there.get("served")} or shape != other:
        raise ModelError(
            f"expected a server of {model.identity.id} ({_shape(shape)}) at {url}, got {there['name']} "
            f"({_shape(other)}); pass its --model, or start it with --served-model-name if only its folder is another"
        )
    commit = getattr(config, "_commit_hash", None)
    if commit and there["revision"] and commit != there["revision"]:
        raise ModelError(
            f"expected revision {commit[:12]} of {model.identity.id} at {url}, got {there['revision'][:12]}; start it "
            "with that --revision, or update the copy that is here"
        )


def _shape(shape: tuple[Any, ...]) -> str:
    return "{} layers, {} wide, {} tokens".format(*shape)


def urls_of(engine: str) -> tuple[str, ...]:
    """Addresses of the servers that an engine names.

    Raises:
        ConfigError: No such engine.
        ModelError: No address.
    """
    urls = tuple(url.strip().rstrip("/").removesuffix("/v1") for url in engine.removeprefix(SCHEME).split(","))
    if not engine.startswith(SCHEME) or not all(urls) or len({*urls}) < len(urls):
        raise ConfigError(
            f"expected the engine hf or vllm:URL[,URL…], each address once, got {engine}; correct --engine"
        )
    for url in urls:
        check_url(url)
    return urls
