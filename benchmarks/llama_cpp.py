"""Our steering against llama.cpp's own: python benchmarks/llama_cpp.py LIBRARIES MODEL.gguf VEC:COEF[@LAYER] [MODEL].

Writes the steering as a control vector, has llama.cpp's library apply it to a model, and compares the logits of the
last prompt token with ours, steered at that layer and at its neighbours. LIBRARIES is a folder with libllama and
libggml; the library tells much on stderr.
"""

import ctypes
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from personavec.model.chat_model import ChatModel
from personavec.model.logits import distance
from personavec.steering.notation import parse_steering
from personavec.steering.steer import Steering, steer
from personavec.verbs.interop.formats import to_gguf

QUESTION = "What should I know before I move to another town?"
POINTER, INT = ctypes.c_void_p, ctypes.c_int32


class Params(ctypes.Structure):
    """Parameters of a model or a context, as the library fills them in; with room for any version's."""

    _fields_ = [("content", ctypes.c_char * 1024)]


class Batch(ctypes.Structure):
    """Tokens of one sequence."""

    _fields_ = [("n_tokens", INT), *((name, POINTER) for name in ("token", "embd", "pos", "n_seq_id", "seq_id", "out"))]


def load(folder: Path) -> Any:
    """llama.cpp's library, with the types of the functions that are called."""
    for kind in ("libggml-base", "libggml.", "libllama."):
        (path,) = [path for path in folder.glob("*.so") if path.name.startswith(kind)]
        lib: Any = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        if kind == "libggml.":
            lib.ggml_backend_load_all_from_path(str(folder).encode())
    for name, result, *arguments in (
        ("llama_model_default_params", Params),
        ("llama_context_default_params", Params),
        ("llama_model_load_from_file", POINTER, ctypes.c_char_p, Params),
        ("llama_init_from_model", POINTER, POINTER, Params),
        ("llama_batch_get_one", Batch, POINTER, INT),
        ("llama_decode", INT, POINTER, Batch),
        ("llama_set_adapter_cvec", INT, POINTER, POINTER, ctypes.c_size_t, INT, INT, INT),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), POINTER, INT),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def theirs(lib: Any, file: str, ids: tuple[int, ...], vector: Path | None, model: ChatModel) -> Tensor:
    """llama.cpp's logits of the last token; the vector is laid out as its loader does."""
    loaded = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
    context = lib.llama_init_from_model(loaded, lib.llama_context_default_params())
    if vector is not None:
        data = np.zeros((model.n_layers - 1, model.identity.d_model), np.float32)
        for tensor in gguf.GGUFReader(vector).tensors:
            data[int(tensor.name.removeprefix("direction.")) - 1] += tensor.data
        lib.llama_set_adapter_cvec(context, data.ctypes.data, data.size, data.shape[1], 1, model.n_layers)
    tokens = np.array(ids, np.int32)
    if lib.llama_decode(context, lib.llama_batch_get_one(tokens.ctypes.data, len(tokens))):
        raise SystemExit("llama_decode failed")
    logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (model.hf.config.vocab_size,))
    return torch.tensor(logits.copy())[None]


def ours(model: ChatModel, ids: tuple[int, ...], row: tuple[Steering, ...]) -> Tensor:
    with torch.inference_mode(), steer(model, [row]):
        logits: Tensor = model.hf(input_ids=torch.tensor([ids])).logits[0, -1:]
    return logits.float()


def main() -> None:
    folder, file, notation, name = [*sys.argv[1:], "smollm2"][:4]
    lib, model = load(Path(folder)), ChatModel.load(name, dtype="float32")
    steering = dataclasses.replace(parse_steering(notation), positions="all")
    ids = model.render([{"role": "user", "content": QUESTION}])
    with tempfile.TemporaryDirectory() as scratch:
        to_gguf(steering, "llama", vector := Path(scratch) / "vector.gguf")
        plain, steered = (theirs(lib, file, ids, one, model) for one in (None, vector))
    print("| what | difference of the centred logits, relative |\n|---|---|")
    print(f"| llama.cpp, steered / unsteered | {distance(steered, plain):.3f} |")
    print(f"| unsteered, ours / llama.cpp | {distance(ours(model, ids, ()), plain):.3f} |")
    at = steering.single_layer
    near: list[Any] = ["all"] if at is None else [at + step for step in (-1, 0, 1)]
    for layer in near:
        apart = distance(ours(model, ids, (dataclasses.replace(steering, layer=layer),)), steered)
        print(f"| steered, ours at {'all layers' if layer == 'all' else f'layer {layer}'} / llama.cpp | {apart:.3f} |")


if __name__ == "__main__":
    main()
