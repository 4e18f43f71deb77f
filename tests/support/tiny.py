"""Tiny random models of many families and one tokenizer, built in memory: no download, no cache."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from personavec.model.chat_model import ChatModel
from personavec.model.hooks import Forward, attach
from personavec.steering.steer import Positions, Steering, steer
from personavec.steering.vector import Card, PersonaVector

Row = tuple[int, ...]
KINDS: tuple[Positions, ...] = ("all", "prompt", "response")
N_LAYERS, D_MODEL, WINDOW = 4, 32, 8
"""`WINDOW` is shorter than most test conversations, so that sliding attention slides."""
WORDS = ("<pad>", "<s>", "<end>", "<system>", "<user>", "<assistant>", "<unk>")
ALPHABET = [chr(code) for code in range(32, 127)] + [chr(code) for code in range(0xA1, 0x140) if code != 0xAD]
VOCAB = len(WORDS) + len(ALPHABET)

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

ROPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", ROPE),
    "qwen2": ("Qwen2ForCausalLM", ROPE),
    "qwen3": ("Qwen3ForCausalLM", ROPE),
    "gemma3": (
        "Gemma3ForCausalLM",
        ROPE | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "mistral": ("MistralForCausalLM", ROPE | {"sliding_window": WINDOW}),
    "gpt2": ("GPT2LMHeadModel", {"num_attention_heads": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", {"num_attention_heads": 4, "intermediate_size": 48}),
    "phi3": ("Phi3ForCausalLM", {k: v for k, v in ROPE.items() if k != "head_dim"}),
    "olmo2": ("Olmo2ForCausalLM", {k: v for k, v in ROPE.items() if k != "head_dim"}),
    # as many experts as layers: the list of blocks must not be mistaken for a list of experts
    "mixtral": ("MixtralForCausalLM", ROPE | {"num_local_experts": N_LAYERS, "num_experts_per_tok": 2}),
    "peft": ("LlamaForCausalLM", ROPE),
}

LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("Qwen3_5ForCausalLM", ROPE | LINEAR),
    "lfm2": ("Lfm2ForCausalLM", ROPE | {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8}),
    "jamba": (
        "JambaForCausalLM",
        {k: v for k, v in ROPE.items() if k != "head_dim"}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_dt_rank": 8, "mamba_d_state": 8},
    ),
    "mamba": ("MambaForCausalLM", {"state_size": 8, "time_step_rank": 8}),
    # it keeps its state in its modules
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        ROPE | {"lru_width": 32, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention"]},
    ),
    # inside a model of text and images
    "gemma3_vision": (
        "Gemma3ForConditionalGeneration",
        {"text_config": FAMILIES["gemma3"][1], "vision_config": VISION | {"num_hidden_layers": 2}},
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": ROPE | {"model_type": "mistral"},
            "vision_config": VISION | {"num_hidden_layers": 2, "model_type": "pixtral"},
        },
    ),
}
"""Families whose cache holds more than keys and values, or none of use, and wrappers."""
IDLE: dict[str, tuple[str, dict[str, Any]]] = {
    "mllama": (
        "MllamaForCausalLM",
        {k: v for k, v in ROPE.items() if k != "head_dim"} | {"cross_attention_layers": [1]},
    ),
}
"""A family with a layer that runs only where there is an image."""
PLACED: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v32": (
        "DeepseekV32ForCausalLM",
        {k: v for k, v in ROPE.items() if k != "head_dim"}
        | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
        | {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 48, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
    ),
    "bart": (
        "BartForCausalLM",
        {"decoder_layers": N_LAYERS, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "init_std": 0.2},
    ),
}
"""Families to which it matters in which column a token stands: one reads the 8 that its index likes, one counts."""


def tokenizer() -> Any:
    """One token a character, and a chat template with the three roles."""
    vocab = {word: index for index, word in enumerate([*WORDS, *ALPHABET])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<end>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": ["<system>", "<user>", "<assistant>"]})
    made.chat_template = TEMPLATE
    return made


def build(family: str = "llama", seed: int = 0, **changes: Any) -> ChatModel:
    """A random float32 model of a family, the same for the same seed."""
    class_name, own = (FAMILIES | OTHERS | PLACED | IDLE)[family]
    model_class = getattr(transformers, class_name)
    options = {
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "max_position_embeddings": 256,
        # large enough for peaked distributions: rounding must not decide which token comes first
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    settings = options | own | changes
    if "text_config" in own:
        settings = {"text_config": options | own["text_config"], "vision_config": own["vision_config"]} | changes
    torch.manual_seed(seed)
    hf = model_class(model_class.config_class(**settings))
    if family == "peft":
        hf = lora(hf)
    return ChatModel(hf.eval().requires_grad_(False), tokenizer(), f"tiny-{family}")


def lora(hf: Any) -> Any:
    """A model under an adapter that changes it: B is not zero."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(hf, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    return adapted


def vector(model: ChatModel, seed: int = 0, **card: Any) -> PersonaVector:
    """A random persona vector for a model, about as long as half its stream."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn((model.n_layers, model.identity.d_model), generator=generator)
    return PersonaVector(direction, Card("tiny", model.identity, "response avg", **card))


def prompt(length: int, seed: int = 0) -> Row:
    """Random token ids that are no special tokens."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(len(WORDS), VOCAB, (length,), generator=generator).tolist())


def hooks(model: ChatModel) -> int:
    """Number of our hooks on all modules of a model; transformers leaves its own after `output_hidden_states`."""
    found = [h for m in model.hf.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(hook.__module__.startswith("personavec") for hook in found)


@torch.inference_mode()
def forward(model: ChatModel, rows: list[Row], left: bool = False) -> tuple[torch.Tensor, ...]:
    """Run rows in one batch without cache; returns mask, logits and the stream after every block."""
    ids, mask = model.tensor(rows, left=left)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    streams: dict[int, torch.Tensor] = {}
    with attach(model, nothing, {layer: lambda s, k=layer: streams.update({k: s}) for layer in range(model.n_layers)}):  # type: ignore[misc]
        logits = model.hf(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return mask.bool(), logits, torch.stack([streams[layer] for layer in range(model.n_layers)])


def nothing(_: Forward) -> None:
    """For hooks that need not know which tokens a forward pass holds."""


def steered(
    model: ChatModel, rows: list[Row], what: Sequence[Sequence[Steering]], lengths: Sequence[int], left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and streams of a batch under steering."""
    with steer(model, what, lengths):
        _, logits, streams = forward(model, rows, left)
    return logits, streams


def own(row: Row, tensor: torch.Tensor, left: bool) -> torch.Tensor:
    """The part of a padded [..., seq, d] tensor that belongs to a row: one column is always padding."""
    return tensor[..., -len(row) :, :] if left else tensor[..., : len(row), :]


def mixed(v: PersonaVector) -> list[tuple[Steering, ...]]:
    """A different thing to do to each of four rows."""
    return [
        (Steering(v, 1.5, 1), Steering(v * 0.3, -1.0, 2, "all")),
        (),
        (Steering(v, -0.7, "all", "prompt"), Steering(v, 1.0, 3, "all", op="ablate")),
        (Steering(v, 1.0, 2, "all", op="cap", floor=-0.1, ceiling=0.2),),
    ]
