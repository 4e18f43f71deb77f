"""Every family of causal models that transformers knows, as a tiny random one: which laws hold?

python benchmarks/families.py [FAMILY …] [--out FILE] [--table]

All of the mapping of causal models, and of the one of text and images what is not in it. Takes an hour or so, so run it
in the background; every family that is done is a line of FILE (JSON), and the same command goes on with the others.
`--table` prints what is in FILE as the table of docs/families.md.
"""

import argparse
import json
import logging
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support import tiny

from personavec.errors import PersonavecError
from personavec.model.chat_model import ChatModel
from personavec.model.kv_cache import cached, shared
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering, steer
from personavec.verbs.evaluate.verify import verify

VERSION = transformers.__version__
EVERY = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
LAYERS, NEW = 4, 8
SECONDS, GIB = 300, 8
"""What a family may take."""
ROWS = [tiny.prompt(5, 1), tiny.prompt(17, 2), tiny.prompt(1, 3), tiny.prompt(9, 4)]


def each(value: float, names: str) -> dict[str, float]:
    return dict.fromkeys(names.split(), value)


DEPTHS = (
    "num_hidden_layers n_layer n_layers num_layers depth decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_blocks"
)
SIZES: dict[str, float] = {
    **each(tiny.VOCAB, "vocab_size unpadded_vocab_size decoder_vocab_size vocab_size_per_layer_input"),
    **each(32, "hidden_size d_model n_embd emb_dim embedding_dim embedding_size attention_hidden_size lru_width"),
    **each(32, "word_embed_proj_dim input_embedding_size output_embedding_size router_hidden_size mamba_d_ssm"),
    **each(4, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"),
    **each(4, "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads"),
    **each(4, "swa_num_attention_heads linear_num_heads linear_num_value_heads mamba_n_heads mamba_num_heads"),
    **each(4, "n_mamba_heads num_experts num_local_experts n_routed_experts moe_num_experts"),
    **each(2, "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_query_groups"),
    **each(2, "num_experts_per_tok num_experts_per_token moe_k moe_topk num_loops max_window_layers"),
    **each(2, "attn_layer_period expert_layer_period n_recurrent_layers"),
    **each(8, "head_dim kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim swa_head_dim linear_key_head_dim"),
    **each(8, "linear_value_head_dim linear_head_dim mamba_d_head mamba_head_dim mamba_headdim dim_head d_head"),
    **each(8, "attention_head_size attention_head_dim rotary_dim index_head_dim query_pre_attn_scalar"),
    **each(8, "sliding_window attention_window_size window_size sliding_window_size local_attention index_topk"),
    **each(8, "local_attention_window_len attention_chunk_size chunk_size mamba_chunk_size"),
    **each(8, "block_size block_multiple_of"),
    **each(16, "q_lora_rank kv_lora_rank o_lora_rank mamba_dt_rank time_step_rank d_rel state_size mamba_d_state"),
    **each(16, "ssm_state_size loop_gate_rank laurel_rank gated_norm_rank hidden_size_per_layer_input adapter_rank"),
    **each(16, "qk_head_dim hc_lowrank index_n_heads"),  # with few heads an index ties, and padding decides
    **each(48, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim moe_intermediate_size d_inner"),
    **each(48, "shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size"),
    **each(48, "intermediate_size_mlp ffn_hidden_size expert_ffn_hidden_size feed_forward_size dim_ff dff"),
    **each(48, "moe_shared_expert_intermediate_size dense_intermediate_size"),
    **each(256, "max_position_embeddings n_positions max_seq_len model_max_length n_ctx context_length"),
    **each(256, "max_target_positions"),
    **each(0.2, "initializer_range init_std"),
    **each(1, "n_group num_expert_group topk_group n_groups mamba_n_groups expand mamba_expand first_k_dense_replace"),
    **each(1, "attn_layer_offset expert_layer_offset n_input_layers n_output_layers moe_layer_start_index"),
    **each(0, "num_kv_shared_layers rescale_every num_nextn_predict_layers"),
    "moe_layer_end_index": 3,
}
"""What a size is set to where a family has it."""
VISION = each(2, "num_attention_heads num_heads") | each(16, "image_size") | each(8, "patch_size")
MROPE = "qwen2_vl_text qwen2_5_vl_text glm4v_text glm4v_moe_text glm_ocr_text cosmos3_edge_text".split()
"""Kinds of text inside whose default divides the dimensions of a larger head among three axes."""
KINDS = (
    "layer_types mlp_layer_types layers_block_type indexer_types attn_layers no_rope_layers layer_rope_theta".split()
)
"""Lists with a value a layer: each of its values in turn."""
OF_ITS_DEPTH = frozenset({"transformers_version", "per_layer_config"})
"""What of an inner configuration is made anew for its new depth."""
CONV = {"layer_types": ["conv", "full_attention"] * 2}
ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl"
)
OTHERWISE: dict[str, dict[str, Any]] = {
    **dict.fromkeys("lfm2 lfm2_moe".split(), CONV),
    **{family: {"is_decoder": True} for family in ENCODERS.split()},
    **{family: {"head_dim": 8} for family in "hunyuan_v1_dense hunyuan_v1_moe ministral".split()},
    "nemotron": {"num_key_value_heads": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dory": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
}
"""Of some families, what their default leaves out or what must fit together."""


def main() -> None:
    """Judge the families named, or all, and keep a line of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/families.jsonl"))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    done = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.is_file() else []
    if asked.table:
        print(f"{date.today():%d %B %Y}, transformers {VERSION}, torch {torch.__version__}, float32:\n\n{table(done)}")
        return
    logging.disable()
    warnings.simplefilter("ignore")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    judged("llama")  # what it imports, the processes of the others have
    there = {row["family"] for row in done if row["transformers"] == VERSION}
    for family in asked.families or EVERY:
        if family not in there:
            row = apart(family)
            with asked.out.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(family, row["result"], {law: why for law, why in row["laws"].items() if why}, flush=True)


def apart(family: str) -> dict[str, Any]:
    """`judged` in a process of its own: some configurations are huge after all, or take for ever."""
    with ProcessPoolExecutor(1, get_context("fork"), bounded) as pool:
        try:
            return pool.submit(judged, family).result()
        except BrokenProcessPool:
            why = f"takes more than {SECONDS} seconds or {GIB} GiB"
            return {"family": family, "transformers": VERSION, "result": "unbuilt", "laws": {"build": why}, "cache": ""}


def bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
    signal.alarm(SECONDS)


def judged(family: str) -> dict[str, Any]:
    """What became of a family, see `RESULTS`; `laws` has why, empty where a law holds."""
    row: dict[str, Any] = {"family": family, "transformers": VERSION, "laws": {}, "cache": ""}
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        try:
            config, hf = build(family)
            hf(input_ids=torch.tensor([ROWS[0]]), use_cache=False)
            hf.save_pretrained(folder)
            config.save_pretrained(folder)  # of the whole, where the class is that of its text part
            tiny.tokenizer().save_pretrained(folder)
        except Exception as error:  # of any kind: these configurations were never meant to be built
            return row | {"result": "unbuilt", "laws": {"build": short(error)}}
        try:
            model = ChatModel.load(folder, dtype="float32", device="cpu")
        except PersonavecError as error:
            return row | {"result": "refused", "laws": {"load": short(error)}}
    row["cache"] = "shared" if shared(model) else "rows" if cached(model) else "none"
    for law, holds in LAWS.items():
        try:
            row["laws"][law] = holds(model)
        except PersonavecError as error:
            return row | {"result": "refused", "laws": {law: short(error)}}
        except Exception as error:
            row["laws"][law] = short(error)
    broken = {law for law, why in row["laws"].items() if why}
    told = "told" if "verify" in broken else "silent"
    row["result"] = "holds" if not broken else "library" if broken == {"hf.generate"} else told
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def build(family: str) -> tuple[Any, Any]:
    """A family's default configuration with small sizes, and a random model of it."""
    kind = CONFIG_MAPPING[family]
    config = kind(**changes(kind()) | OTHERWISE.get(family, {}))
    causal = family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    return config, auto.from_config(config).eval().requires_grad_(False)


def changes(config: Any, layers: int = LAYERS) -> dict[str, Any]:
    """What is changed of a configuration and of those inside it; what is None stays so."""
    there = config.to_dict()
    named = {config.attribute_map.get(name, name): size for name, size in (SIZES | each(layers, DEPTHS)).items()}
    small = {name: size for name, size in named.items() if type(there.get(name)) in (int, float)}
    lists = {name: value for name, value in there.items() if isinstance(value, list) and value}
    for name, values in lists.items():
        if name in KINDS:
            values = list(dict.fromkeys(values))
            small[name] = [values[layer % len(values)] for layer in range(layers)]
        elif len(values) == there.get("num_hidden_layers"):
            small[name] = values[:layers]
    if "kv_lora_rank" in there:  # latent attention: what is kept is of no head
        small["num_key_value_heads"] = SIZES["num_attention_heads"]
    if "cross_attention_layers" in there:
        small["cross_attention_layers"] = [1]
    if there.get("model_type") in MROPE:
        small["rope_parameters"] = (there.get("rope_parameters") or {}) | {"mrope_section": [1, 1, 2]}
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            of_text = name == "text_config"
            inner = part.to_dict() | changes(part, layers if of_text else 2) | ({} if of_text else VISION)
            small[name] = {key: value for key, value in inner.items() if key not in OF_ITS_DEPTH}
    return small | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


# the laws: each gives why it does not hold, or nothing


def in_order(model: ChatModel) -> str:
    """Every block runs once and in order, gives [rows, seq, d], and the next one gets what it gave."""
    order: list[int] = []
    given: dict[int, torch.Tensor] = {}
    got: dict[int, torch.Tensor] = {}

    def watch(layer: int) -> list[Any]:
        def before(_: Any, args: Any, named: Any) -> None:
            order.append(layer)
            got[layer] = args[0] if args else named["hidden_states"]

        def after(_: Any, __: Any, output: Any) -> None:
            given[layer] = output if isinstance(output, torch.Tensor) else output[0]

        block = model.blocks[layer]
        return [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after)]

    handles = [handle for layer in range(model.n_layers) for handle in watch(layer)]
    try:
        model.hf(input_ids=torch.tensor(ROWS[1:2]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if order != list(range(model.n_layers)):
        return f"blocks run in the order {order}"
    shapes = {tuple(stream.shape) for stream in given.values()}
    if shapes != {(1, len(ROWS[1]), model.identity.d_model)}:
        return f"blocks give {shapes}"
    apart = [layer for layer in range(1, model.n_layers) if not torch.equal(got[layer], given[layer - 1])]
    return f"blocks {apart} get something else than the one before gave" if apart else ""


def verified(model: ChatModel) -> str:
    """What `personavec verify` says."""
    checks = verify(model).data["checks"]
    return "; ".join(f"{check['name']}: {check['detail']}"[:160] for check in checks if not check["passed"])


def by_hand(model: ChatModel) -> str:
    """Steering equals a hook made by hand."""
    v, ids = tiny.vector(model), torch.tensor(ROWS[1:2])

    def add(_: Any, __: Any, output: Any) -> Any:
        delta = 2.0 * v.direction[1]
        return output + delta if isinstance(output, torch.Tensor) else (output[0] + delta, *output[1:])

    handle = model.blocks[1].register_forward_hook(add)
    try:
        wanted = model.hf(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    with steer(model, [(Steering(v, 2.0, 1, "all"),)]):
        steered = model.hf(input_ids=ids, use_cache=False).logits
    return "" if torch.equal(steered, wanted) else f"differs by {float((steered - wanted).abs().max()):.1g}"


@torch.inference_mode()
def plain(model: ChatModel, row: tiny.Row, what: tuple[Steering, ...]) -> list[int]:
    """A greedy reply by passes over all of one row: no cache, no padding, no positions."""
    ids = list(row)
    for _ in range(NEW):
        with steer(model, [what], [len(row)]):
            ids.append(int(model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in model.stop_ids:
            return ids[len(row) : -1]
    return ids[len(row) :]


def replies(model: ChatModel) -> str:
    """Greedy replies of rows of unequal length, each steered in its way, alone and together, equal plain passes."""
    v, kept = tiny.vector(model), model.stop_ids
    mixed = Steering(v, 1.0, 1), Steering(v, 0.5, "all", "prompt")
    whats: list[tuple[Steering, ...]] = [(Steering(v, 1.0, 1),), mixed, (), (Steering(v, 1.0, 2, "all"),)]
    requests = [Request(row, what) for row, what in zip(ROWS, whats, strict=True)]
    try:
        model.stop_ids = sorted({*kept, *plain(model, ROWS[0], whats[0])[-1:]})  # so that they end at different steps
        wanted = [plain(model, row, what) for row, what in zip(ROWS, whats, strict=True)]
        together = [list(reply.ids) for reply in generate(model, requests, Sampling(NEW, 0))]
        alone = [list(generate(model, [request], Sampling(NEW, 0))[0].ids) for request in requests]
    finally:
        model.stop_ids = kept
    wrong = [index for index, reply in enumerate(wanted) if reply != together[index]]
    return f"rows {wrong} together differ" if wrong else "" if alone == wanted else "a row alone differs"


def library(model: ChatModel) -> str:
    """`hf.generate` equals plain passes."""
    ids = torch.tensor(ROWS[:1])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "attention_mask": torch.ones_like(ids)}
    written = model.hf.generate(ids, **options)[0, len(ROWS[0]) :].tolist()
    wanted = plain(model, ROWS[0], ())
    return "" if written[: len(wanted)] == wanted else "differs"


LAWS: dict[str, Callable[[ChatModel], str]] = {
    "a hook by hand": by_hand,
    "replies": replies,
    "blocks in order": in_order,
    "verify": verified,
    "hf.generate": library,
}
"""What must hold, beside being loaded; the first two refuse what is not supported."""
RESULTS = {
    "holds": "All laws hold",
    "library": "All laws hold but one: transformers' own `generate` differs from plain passes",
    "refused": "Refused in one line, when loaded or by the first pass that steers or reads",
    "told": "Not to be used: `personavec verify` fails",
    "silent": "A law is broken, and `verify` passes",
    "unbuilt": "No tiny model was made, so nothing is known",
}
CACHES = {
    "shared": "",
    "rows": "; prompts are read anew for every reply that is scored or read, and the server refuses them",
    "none": "; every token is read together with all before it, which is slow, and the server refuses them",
}


def table(rows: list[dict[str, Any]]) -> str:
    """What was found, as Markdown."""
    groups: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: ([*RESULTS].index(row["result"]), [*CACHES, ""].index(row["cache"]))):
        why = reason(row) if row["result"] not in ("holds", "library") else CACHES[row["cache"]]
        groups.setdefault(f"{RESULTS[row['result']]}{why}", []).append(row["family"])
    if missing := [family for family in EVERY if family not in {row["family"] for row in rows}]:
        groups["Not judged yet"] = missing
    lines = ["| what holds | families |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {what} ({len(names)}) | {' '.join(sorted(names))} |" for what, names in groups.items())]
    )


def reason(row: dict[str, Any]) -> str:
    """Why, without numbers, so that alike families stand in one line."""
    if row["result"] == "unbuilt":
        return ""
    if row["result"] == "refused":
        (why,) = row["laws"].values()
        return ": " + next((text for kind, text in REFUSALS.items() if kind in why), why.replace("|", "/"))
    return ": " + ", ".join(law for law, why in row["laws"].items() if why)


REFUSALS = {
    "first token is at position 0": "positions begin behind the place of the padding token",
    "one list of": "no single list of blocks is found",
    "blocks that give": "blocks give another form of stream than [rows, seq, d_model]",
    "once a pass": "blocks run twice a pass",
    "to run": "a layer that does not run on text; the layers that do can be read and steered",
}


if __name__ == "__main__":
    main()
