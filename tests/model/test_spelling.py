"""Tokens are spelled to the byte, whatever part of a character they are."""

from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from personavec.model.spelling import BYTES, Spelling

SPECIAL = "<end>"


def byte_level() -> Any:
    """Every byte is a token, and the first two bytes of most emoji are one more."""
    vocab = {character: number for number, character in enumerate(BYTES)}
    first, second = (next(name for name, byte in BYTES.items() if byte == value) for value in (0xF0, 0x9F))
    vocab |= {first + second: 256, SPECIAL: 257}
    backend = Tokenizer(models.BPE(vocab, [(first, second)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL)


def fallback() -> Any:
    """As Llama 2 has it: the space that begins a text is dropped, unknown characters are bytes."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), "<unk>", SPECIAL, "▁", *map(chr, range(33, 127))]
    backend = Tokenizer(
        models.BPE({name: n for n, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL)


TOKENIZERS = {"byte level": byte_level(), "byte fallback": fallback(), "characters": tiny.tokenizer()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_joined_bytes_are_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    spelling = Spelling(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    parts = [spelling.spell(token, place == 0).bytes or b"" for place, token in enumerate(ids)]
    assert b"".join(parts) == tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True).encode()


def test_parts_of_a_character_are_told_apart() -> None:
    for kind, wanted in (("byte level", [b"\xf0\x9f", b"\x90", b"\xb6"]), ("byte fallback", [b"\xf0", b"\x9f"])):
        tokenizer = TOKENIZERS[kind]
        spelling = Spelling(tokenizer)
        ids = tokenizer("a🐶", add_special_tokens=False)["input_ids"]
        spelled = [spelling.spell(token) for token in ids if spelling.spell(token).text.startswith("bytes:")]
        assert [one.bytes for one in spelled][: len(wanted)] == wanted
        assert len({one.text for one in spelled}) == len(spelled)
    assert spelled[0].text == r"bytes:\xf0"


def test_what_writes_nothing_has_no_bytes() -> None:
    tokenizer = TOKENIZERS["byte level"]
    assert Spelling(tokenizer).spell(tokenizer.eos_token_id) == (SPECIAL, None)
    assert Spelling(tokenizer).spell(5000).bytes is None, "a row of the embeddings without a token"
