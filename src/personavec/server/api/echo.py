"""The prompt as an answer repeats it: its text, and where in it each token begins."""

from typing import Any, NamedTuple

from tokenizers.decoders import DecodeStream


class Echo(NamedTuple):
    """A prompt that is told."""

    text: str
    offsets: list[int]
    """Characters before each token."""


def echo(prompt: str | list[int], backend: Any) -> Echo:
    """A prompt as it was given; token ids are spelled, control tokens included.

    Args:
        prompt: Text or token ids.
        backend: A `tokenizers.Tokenizer`.
    """
    if isinstance(prompt, str):
        return Echo(prompt, [begin for begin, _ in backend.encode(prompt, add_special_tokens=False).offsets])
    stream, text, offsets = DecodeStream(skip_special_tokens=False), "", []
    for token in prompt:
        offsets.append(len(text))
        text += stream.step(backend, token) or ""
    return Echo(text, offsets)
