"""The subject: a causal language model, its tokenizer and its blocks; the only place that knows chat templates."""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from personavec.errors import ModelError
from personavec.models import load, pick_device, pick_dtype
from personavec.options import Common
from personavec.vector import PARTIAL, ModelIdentity

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'system': 'Instructions', 'user': 'Question', 'assistant': 'Answer'}[message['role']] }}: "
    "{{ message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""How a base model without a chat template is shown a conversation when it serves as a judge."""

Message = Mapping[str, str]


class BlockModel:
    """A model as a stack of blocks: what steering needs to know of it.

    Attributes:
        hf: The Hugging Face model, perhaps wrapped by PEFT.
        decoder: The module that owns the blocks.
        blocks: The decoder blocks in order; "layer i" everywhere means the output of `blocks[i]`.
        identity: What a persona vector must match.
    """

    def __init__(self, hf: Any, name: str) -> None:
        self.hf = hf
        self.decoder, self.blocks = find_blocks(hf)
        self.identity = ModelIdentity(
            id=name,
            revision=_fingerprint(hf, self.blocks),
            n_layers=len(self.blocks),
            d_model=hf.config.get_text_config().hidden_size,
        )

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.identity.n_layers

    @property
    def device(self) -> torch.device:
        """Where inputs must go."""
        return self.hf.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.hf.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]


class ChatModel(BlockModel):
    """A model that chats.

    Attributes:
        tokenizer: Its tokenizer.
        stop_ids: Token ids that end a reply.
    """

    def __init__(self, hf: Any, tokenizer: Any, name: str) -> None:
        super().__init__(hf, name)
        self.tokenizer = tokenizer
        stop = hf.generation_config.eos_token_id
        stop = [stop] if isinstance(stop, int) else list(stop or [])
        self.stop_ids = sorted({*stop, tokenizer.eos_token_id} - {None})
        vocabulary = tokenizer.get_vocab()
        self._think = vocabulary.get("<think>"), vocabulary.get("</think>")
        self.pad_id = self.stop_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        adapter: Path | None = None,
        trust_remote_code: bool = False,
        plain_template: bool = False,
    ) -> "ChatModel":
        """Load a model by Hugging Face id, folder, GGUF file or alias.

        Args:
            name: What to load, see `personavec.models.load`.
            dtype: "auto" or a torch dtype name.
            device: "auto" or a torch device.
            adapter: A PEFT adapter folder to put on top.
            trust_remote_code: Run code that the model repository ships.
            plain_template: Give a model without a chat template a plain-text one (for judges only).

        Raises:
            ModelError: Not found, no chat template, adapter of another model, blocks not found.
        """
        place = pick_device(device)
        hf, tokenizer = load(name, place, pick_dtype(dtype, place), trust_remote_code)
        if tokenizer.chat_template is None:
            if not plain_template:
                raise ModelError(
                    f"expected a chat template, got none in {name}; choose an instruction-tuned model "
                    f"(a base model can still judge: --judge likelihood:{name})"
                )
            tokenizer.chat_template = PLAIN_TEMPLATE
        if adapter is not None:
            hf = _adapt(hf, adapter)
        return cls(hf, tokenizer, name)

    @classmethod
    def from_config(
        cls, config: Common, name: str | None = None, *, adapter: Path | None = None, plain_template: bool = False
    ) -> "ChatModel":
        """Load what a verb's options ask for: the model and its (or another) adapter, or else another model by name.

        Raises:
            ModelError: As `load`.
        """
        return cls.load(
            name or config.model,
            dtype=config.dtype,
            device=config.device,
            adapter=None if name else adapter or getattr(config, "adapter", None),
            trust_remote_code=config.trust_remote_code,
            plain_template=plain_template,
        )

    @property
    def numbers(self) -> str:
        """Number format and kind of device: a run stays on one of them."""
        return f"{str(self.dtype).removeprefix('torch.')} on {self.device.type}"

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may have together, as far as the model's configuration says."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The plain weights for a while; does nothing where there is no PEFT adapter."""
        with self.hf.disable_adapter() if hasattr(self.hf, "get_base_model") else nullcontext():
            yield

    def render(self, messages: Sequence[Message], system: str = "template") -> tuple[int, ...]:
        """Token ids of a conversation up to where the assistant's reply begins.

        Args:
            messages: Turns with `role` and `content`, the last one the user's.
            system: What to do when no turn is a system turn: "template" leaves it to the chat template (which
                may put in a default), "none" suppresses that default, any other text is used as system turn.

        Raises:
            ModelError: The chat template cannot render these turns.
        """
        return self.encode(self.text(messages, system))

    def text(self, messages: Sequence[Message], system: str = "template", *, open_reply: bool = True) -> str:
        """A conversation as the model reads it.

        Args:
            messages: Turns with `role` and `content`.
            system: As for `render`.
            open_reply: Whether it ends where an assistant's reply begins, or after the last turn.

        Raises:
            ModelError: The chat template cannot render these turns.
        """
        if messages[0]["role"] == "system" or system == "template":
            return self._apply(messages, open_reply)
        if system != "none":
            return self._apply([{"role": "system", "content": system}, *messages], open_reply)
        bare = self._apply(messages, open_reply)
        empty = self._apply([{"role": "system", "content": ""}, *messages], open_reply)
        return min(bare, empty, key=len)

    def _apply(self, messages: Sequence[Message], open_reply: bool) -> str:
        def text(turns: Sequence[Message]) -> str:
            apply = self.tokenizer.apply_chat_template
            return str(apply(list(turns), add_generation_prompt=open_reply, tokenize=False))

        instructed = messages[0]["role"] == "system" and len(messages) > 1
        try:
            rendered = text(messages)
            if not (instructed and messages[0]["content"] and rendered == text(messages[1:])):
                return rendered
        except TemplateError as error:
            if not instructed:
                reason = f"{self.identity.id}'s chat template refused this conversation ({error})"
                raise ModelError(f"expected turns that alternate and end with the user, got: {reason}") from error
        # some families (Gemma) have no system role, or pass over it: the instruction then leads the first user turn
        system, first, *rest = messages
        return text([{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest])

    def reasoning_tokens(self, prompt: Sequence[int], reply: Sequence[int]) -> int:
        """How many tokens of a reply are reasoning: up to the last `</think>`, or all where it was never closed."""
        opened, closed = self._think
        if closed in reply:
            return len(reply) - list(reply)[::-1].index(closed)
        marks = [token for token in (*prompt, *reply) if token in self._think]
        return len(reply) if marks and marks[-1] == opened else 0

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it stands: nothing is put before or after it."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of reply ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def tensor(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Ids padded on one side, with their attention mask; both [batch, seq].

        One column is always padding: with a mask that is not all ones, CPU attention takes a kernel that decodes
        1.5 times faster.
        """
        width = max(map(len, rows)) + 1
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, (own, real) in zip(rows, zip(ids, mask, strict=True), strict=True):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            own[span] = torch.tensor(row, dtype=torch.long)
            real[span] = 1
        return ids.to(self.device), mask.to(self.device)

    def inputs(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> dict[str, Any]:
        """What a forward pass over padded rows takes: `input_ids`, `attention_mask`, `position_ids`, and no cache."""
        ids, mask = self.tensor(rows, left=left)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}


def find_blocks(hf: Any) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder and its blocks: the one ModuleList of length `num_hidden_layers` under `get_decoder()`.

    Found by structure, so that any family works, PEFT-wrapped or inside a vision model.

    Raises:
        ModelError: There is no such list, or there are several.
    """
    inner = hf.get_base_model() if hasattr(hf, "get_base_model") else hf
    decoder = inner.get_decoder() or inner
    count = inner.config.get_text_config().num_hidden_layers
    found = {
        name: module
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    # a list inside a block (experts, heads) may happen to be as long: the outermost one holds the blocks
    outermost = {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}
    if len(outermost) != 1:
        got = ", ".join(outermost) or "none"
        raise ModelError(
            f"expected one list of {count} blocks in {type(inner).__name__}, got {got}; "
            "this architecture is not supported yet: please report it"
        )
    (blocks,) = outermost.values()
    return decoder, blocks


def _fingerprint(hf: Any, blocks: nn.ModuleList) -> str:
    """Sha256 over the shape of the model and a sample of its weights: cheap, and equal for equal models.

    The sample is rounded so far that no dtype shows in it, except float16 for weights stored in float32. Adapters
    are left out. Weights that are not here as numbers (quantised; partitioned by ZeRO-3 or FSDP; not loaded) are left
    out too, and the result then says that it is partial.
    """
    text = hf.config.get_text_config()
    digest = hashlib.sha256(json.dumps([text.model_type, len(blocks), text.hidden_size, text.vocab_size]).encode())
    adapter = getattr(hf.base_model, "prefix", "lora_")
    partial = ""
    for block in (blocks[0], blocks[len(blocks) // 2], blocks[-1]):
        for name, weight in sorted(block.named_parameters()):
            if adapter in name:
                continue
            if not _readable(weight):
                partial = PARTIAL
                continue
            sample = weight.detach().flatten()[:64].to("cpu", torch.bfloat16).float()
            digest.update((sample * 2**14).round().int().numpy().tobytes())
    return digest.hexdigest() + partial


def _readable(weight: Tensor) -> bool:
    """Whether a weight is here whole, in a number format of 16 bits or more."""
    here = weight.numel() > 0 and not weight.is_meta and not hasattr(weight, "to_local")
    return here and weight.is_floating_point() and weight.itemsize > 1


def _adapt(hf: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        if not adapter.is_dir():
            raise FileNotFoundError("no such folder")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers; no user can act on it
            return PeftModel.from_pretrained(hf, str(adapter)).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"expected a PEFT adapter trained on {type(hf).__name__}, got {adapter} ({reason}); "
            "pass the adapter folder of this --model"
        ) from error
