"""Where the blocks of a model are, and whether they are those of a decoder."""

from typing import Any

from torch import nn

from personavec.errors import ModelError


def find_blocks(hf: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder and its blocks: the one ModuleList of length `num_hidden_layers` under `get_decoder()`.

    Found by structure, so that any family works, PEFT-wrapped or inside a vision model.

    Raises:
        ModelError: There is no such list, or there are several.
    """
    inner = hf.get_base_model() if hasattr(hf, "get_base_model") else hf
    count = inner.config.get_text_config().num_hidden_layers
    decoder = inner.get_decoder() or inner
    outermost = _outermost(decoder, count)
    if not outermost and hasattr(inner, "base_model"):  # some families call their output head the decoder
        decoder = inner.base_model
        outermost = _outermost(decoder, count)
    if len(outermost) != 1:
        got = ", ".join(outermost) or "none"
        raise ModelError(
            f"expected one list of {count} blocks in {type(inner).__name__}, got {got}; "
            "this architecture is not supported yet: please report it"
        )
    (blocks,) = outermost.values()
    return decoder, blocks


def check_causal(decoder: nn.Module, blocks: nn.ModuleList, name: str) -> None:
    """Refuse an encoder, and a decoder that counts positions by another rule than what steers and reads it here.

    Raises:
        ModelError: It is one.
    """
    if any(getattr(block, "is_decoder", None) is False for block in blocks):
        raise ModelError(
            f"expected a causal decoder, got the encoder {name}, whose blocks read what comes later, too; choose "
            "another model, or set is_decoder in the config.json of one that was trained as a decoder"
        )
    tables = (
        m for n, m in decoder.named_modules() if n.endswith("position_embeddings") and isinstance(m, nn.Embedding)
    )
    if any(table.padding_idx is not None for table in tables):
        raise ModelError(
            f"expected a model whose first token is at position 0, got {name}, which begins behind the place of its "
            "padding token; this architecture is not supported"
        )


def _outermost(decoder: nn.Module, count: int) -> dict[str, nn.ModuleList]:
    """Lists of so many modules that stand in no other: one inside a block (experts, heads) may happen to be as long."""
    lists = {n: m for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    return {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
