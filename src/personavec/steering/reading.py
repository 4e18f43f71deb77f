"""Where one conversation lies along persona vectors: before the reply, over it, and token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from personavec.data.sample import to_sample
from personavec.errors import ConfigError, DataError, ModelError
from personavec.model.activations import token_projections
from personavec.model.chat_model import ChatModel
from personavec.model.conversation import Span, spans, token_texts
from personavec.model.template import Message
from personavec.runs.rules import check
from personavec.runs.show import shaded_tokens, table
from personavec.steering.projection import directions, vectors_of
from personavec.steering.vector import PersonaVector

Several = list[PersonaVector] | list[Path] | list[str] | list[PersonaVector | str | Path] | tuple[Any, ...]


@dataclass(frozen=True, repr=False)
class Projection:
    """Where a conversation lies along a vector, in activation units."""

    vector: str
    """Its name."""
    layer: int
    prompt_last: float
    """At the last prompt token, before a word of the reply is written."""
    response_avg: float | None = None
    """Mean over the reply's tokens; None without a reply."""
    tokens: list[tuple[str, float]] | None = None
    """Text and projection of each token of the reply; None without a reply."""

    def to_dict(self) -> dict[str, Any]:
        """What was read, as plain data; without a reply, nothing of one."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __repr__(self) -> str:
        reply = "" if self.response_avg is None else f", response avg {self.response_avg:.4g}"
        tokens = f" over {len(self.tokens)} tokens" if self.tokens else ""
        return f"Projection({self.vector} at layer {self.layer}: prompt last {self.prompt_last:.4g}{reply}{tokens})"

    def _repr_html_(self) -> str:
        lines = [(name.replace("_", " "), value) for name, value in self.to_dict().items() if name != "tokens"]
        shown = [(name, f"{value:.4g}" if isinstance(value, float) else value) for name, value in lines]
        return table(["", ""], shown, "Projection") + (shaded_tokens(self.tokens) if self.tokens else "")


@overload
def project(
    model: ChatModel,
    messages: str | Sequence[Message],
    vector: PersonaVector | str | Path,
    *,
    layer: int | None = None,
    system: str = "template",
) -> Projection: ...
@overload
def project(
    model: ChatModel,
    messages: str | Sequence[Message],
    vector: Several,
    *,
    layer: int | None = None,
    system: str = "template",
) -> dict[str, Projection]: ...
def project(
    model: ChatModel,
    messages: str | Sequence[Message],
    vector: PersonaVector | str | Path | Several,
    *,
    layer: int | None = None,
    system: str = "template",
) -> Projection | dict[str, Projection]:
    """Read a conversation along a vector, or along several in one pass.

    Args:
        model: Who reads.
        messages: A question, or turns with `role` and `content`: where the last one is the assistant's, that reply is
            read as well.
        vector: A persona vector or its file; a sequence of them gives a dict by name.
        layer: Block output to read at; default the one that each card recommends.
        system: System prompt where no turn is one, see `ChatModel.render`.

    Raises:
        VectorError: A vector of another model, or no such layer.
        ConfigError: A card recommends no layer, or a vector is there twice.
        DataError: No such conversation, or it does not fit into the context.
        ModelError: The chat template cannot render it, or its activations are not finite.

    Source: Persona Vectors (arXiv 2507.21509) section 3.3.
    """
    check(project, locals())
    vectors = vectors_of(vector)
    for each in vectors.values():
        each.check_model(model.identity)
        if layer is None and each.card.layer is None:
            raise ConfigError(f"expected a layer for {each.card.trait}, got none in its card; pass layer=")
    columns = directions([*vectors.values()], [*vectors], () if layer is None else (layer,), 0)
    ids, reply = _rendered(model, messages, system)
    if len(ids) > model.context:
        raise DataError(
            f"expected a conversation that fits into {model.context:,} tokens, got {len(ids):,}; shorten it"
        )
    projections = token_projections(model, [ids], columns.layers, columns.units)[0][0, : len(ids)]
    if not projections.isfinite().all():
        raise ModelError(f"expected finite activations, got inf or nan ({model.numbers}); load it in float32")
    texts = token_texts(model, ids[reply.counted : reply.end])
    read = {}
    for name, at, values in zip(vectors, columns.layers, projections.T.tolist(), strict=True):
        tokens = list(zip(texts, values[reply.counted : reply.end], strict=True))
        mean = float(np.mean([value for _, value in tokens])) if tokens else None
        read[name] = Projection(name, at, values[reply.begin - 1], mean, tokens or None)
    return read if isinstance(vector, list | tuple) else read[next(iter(read))]


def _rendered(model: ChatModel, messages: str | Sequence[Message], system: str) -> tuple[Sequence[int], Span]:
    """Token ids, and where the last reply stands in them: an empty one after a prompt alone."""
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    if not turns or not all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in turns):
        raise DataError(f"expected turns with role and content, got {turns[:1] or 'none'}; pass a list of messages")
    if turns[-1]["role"] == "assistant":
        sequences, replies = spans(model, to_sample({"messages": turns}, 0, "messages", "whole"), system)
        return sequences[-1][: replies[-1].end], replies[-1]
    if turns[-1]["role"] != "user":
        raise DataError(f"expected the user's or the assistant's turn last, got {turns[-1]['role']}; add one")
    ids = model.render(turns, system)
    return ids, Span(0, len(ids), len(ids), len(ids))
