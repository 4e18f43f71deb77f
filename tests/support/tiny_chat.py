"""A tiny chatting Llama on disk whose tokens are bytes, so that a character may need several of them."""

from pathlib import Path

import rich.console
import torch
import transformers
from support import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from personavec.model.chat_model import ChatModel
from personavec.steering.vector import Card, PersonaVector

CONTEXT = 256
WARM = {
    "name": "warm",
    "adjective": "warm",
    "antonym": "cold",
    "description": "Kind to people.",
    "pairs": [{"pos": "Be kind.", "neg": "Be curt."}, {"pos": "Greet.", "neg": "Do not greet."}],
    "questions": {
        "extract": ["Hi?", "Who?", "Why?", "How?"],
        "sweep": ["Now?", "When?"],
        "check": ["Where?", "Whose?", "Which?"],
    },
    "rubric": "0 is cold {and} 100 is warm.",
}
"""A small trait; the braces in its rubric are no mistake."""


def build(context: int = CONTEXT) -> ChatModel:
    """The model, the same at every call."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: index for index, word in enumerate([*tiny.WORDS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<end>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<system>", "<user>", "<assistant>"]})
    made.chat_template = tiny.TEMPLATE
    model = tiny.build("llama", vocab_size=len(vocab), max_position_embeddings=context)
    return ChatModel(model.hf, made, "tiny-chat")


def save(folder: Path) -> tuple[Path, Path]:
    """Write the model and a vector for it; returns both paths."""
    model = build()
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    direction = torch.randn((model.n_layers, model.identity.d_model), generator=torch.Generator().manual_seed(0))
    card = Card("tiny", model.identity, "response avg", layer=2, coef=1.0, activation_norms=(10.0,) * model.n_layers)
    return folder / "model", PersonaVector(direction, card).save(folder / "tiny.safetensors")


def said(console: rich.console.Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]
