"""Encoders among causal models, and decoders that count positions by a rule of their own: refused by name."""

from pathlib import Path

import pytest
import transformers
from support import tiny

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.loading import load
from personavec.model.machine.place import pick_device, pick_dtype

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}


@pytest.mark.parametrize("family", ["Bert", "Electra", "Roberta", "Camembert", "RemBert", "RoFormer"])
def test_an_encoder_is_refused_by_name(family: str) -> None:
    kind = getattr(transformers, "BertLMHeadModel" if family == "Bert" else f"{family}ForCausalLM")
    hf = kind(kind.config_class(**SIZES))
    with pytest.raises(ModelError, match=f"expected a causal decoder, got the encoder {kind.__name__}"):
        ChatModel(hf, tiny.tokenizer())


def test_a_decoder_of_the_same_family_is_taken() -> None:
    assert (
        ChatModel(
            transformers.BertLMHeadModel(transformers.BertConfig(**SIZES, is_decoder=True)), tiny.tokenizer()
        ).n_layers
        == 4
    )


@pytest.mark.parametrize("family", ["Roberta", "Camembert", "XLMRoberta", "Data2VecText", "RobertaPreLayerNorm"])
def test_positions_that_begin_behind_the_padding_tokens_are_refused(family: str, tmp_path: Path) -> None:
    kind = getattr(transformers, f"{family}ForCausalLM")
    hf = kind(kind.config_class(**SIZES, is_decoder=True))
    with pytest.raises(ModelError, match=f"whose first token is at position 0, got {kind.__name__}"):
        ChatModel(hf, tiny.tokenizer())


def test_a_model_in_shards_is_whole(saved: tuple[Path, Path], tmp_path: Path) -> None:
    hf, tokenizer = load(str(saved[0]), pick_device("cpu"), pick_dtype("float32", pick_device("cpu")))
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    assert len([*tmp_path.glob("model-*.safetensors")]) > 2
    assert ChatModel.load(str(tmp_path), device="cpu", dtype="float32").n_layers == len(hf.get_decoder().layers)
