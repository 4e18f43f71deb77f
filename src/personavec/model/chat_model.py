"""The subject: a causal language model, its tokenizer and its blocks; the only place that knows chat templates."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from personavec.errors import ModelError
from personavec.model.engines.engine import ModelEngine
from personavec.model.identity import ModelIdentity, _fingerprint
from personavec.model.layout.blocks import check_causal, find_blocks
from personavec.model.loading import load
from personavec.model.machine.limits import PassLimits, habits, limits_on
from personavec.model.machine.place import SPLIT, pick_device, pick_dtype
from personavec.model.machine.quantise import method_of
from personavec.model.template import PLAIN_TEMPLATE, ChatTemplate, Message


class BlockModel:
    """A model as a stack of blocks: what steering needs to know of it.

    Attributes:
        hf: The Hugging Face model, perhaps wrapped by PEFT.
        decoder: The module that owns the blocks.
        blocks: The decoder blocks in order; "layer i" everywhere means the output of `blocks[i]`.
        identity: What a persona vector must match.
    """

    def __init__(self, hf: Any, name: str | None = None) -> None:
        if not all(hasattr(hf, name) for name in ("config", "generate", "get_output_embeddings")):
            got = type(hf).__name__
            raise ModelError(
                f"expected a causal language model of transformers, got {got}; load it with AutoModelForCausalLM"
            )
        self.hf = hf
        self.decoder, self.blocks = find_blocks(hf)
        check_causal(self.decoder, self.blocks, f"{type(hf).__name__} ({name or hf.config.name_or_path})")
        self.identity = ModelIdentity(
            id=name or getattr(hf.config, "name_or_path", "") or type(hf).__name__,
            revision=_fingerprint(hf, self.blocks),
            n_layers=len(self.blocks),
            d_model=hf.config.get_text_config().hidden_size,
        )

    def __getattr__(self, name: str) -> Any:
        if name == "hf":
            raise self._gone()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _gone(self) -> ModelError:
        return ModelError(f"expected {self.identity.id} with its weights, got one without; load it again")

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.identity.n_layers

    @property
    def device(self) -> torch.device:
        """Where inputs must go.

        Raises:
            ModelError: The weights are gone.
        """
        embedding = self.hf.get_input_embeddings()
        spread = getattr(embedding, "_hf_hook", None)  # of accelerate: where the module runs, not where it waits
        place = getattr(spread, "execution_device", None)  # 0 is the first GPU
        device = torch.device(embedding.weight.device if place is None else place)
        if device.type == "meta":
            raise self._gone()
        return device

    @property
    def placement(self) -> str:
        """What `device` was given to put it where it is: a device, or "split" if it is spread over several."""
        return SPLIT if len({*(getattr(self.hf, "hf_device_map", None) or {}).values()}) > 1 else str(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the residual stream."""
        return self.hf.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]


class ChatModel(BlockModel):
    """A model that chats.

    Attributes:
        tokenizer: Its tokenizer.
        adapter: Folder of the adapter on top, where it was loaded from one.
        stop_ids: Token ids that end a reply.
        quantised: How its weights were quantised when they were loaded, one of `QUANTISED`.
        engine: Who computes, if not this process, see `engines.vllm.connect`.
    """

    engine: ModelEngine | None = None

    def __init__(self, hf: Any, tokenizer: Any, name: str | None = None) -> None:
        """Take a model as it is: edited, wrapped by PEFT, quantised, spread over devices.

        Args:
            hf: A Hugging Face causal language model.
            tokenizer: Its tokenizer, with a chat template.
            name: What cards and tables call it; default what it was loaded from.

        Raises:
            ModelError: No causal language model, no tokenizer, no chat template, or blocks that are not found.
        """
        super().__init__(hf, name)
        if getattr(tokenizer, "chat_template", None) is None:
            got = f"none in that of {self.identity.id}" if hasattr(tokenizer, "chat_template") else f"{type(tokenizer)}"
            raise ModelError(
                f"expected a tokenizer with a chat template, got {got}; choose an instruction-tuned model, or set "
                "tokenizer.chat_template"
            )
        self.tokenizer = tokenizer
        self.adapter: Path | None = None
        self.quantised: str | None = None
        stop = hf.generation_config.eos_token_id
        stop = [stop] if isinstance(stop, int) else list(stop or [])
        self.stop_ids = sorted({*stop, tokenizer.eos_token_id} - {None})
        self._template = ChatTemplate(tokenizer, self.identity.id)
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
        quantise: str | None = None,
        attention: str | None = None,
        weights: bool = True,
    ) -> "ChatModel":
        """Load a model by Hugging Face id, folder, GGUF file or alias.

        Args:
            name: What to load, see `personavec.model.loading.load`.
            dtype: "auto" or a torch dtype name.
            device: "auto", a torch device, or "split" for all devices together.
            adapter: A PEFT adapter folder to put on top.
            trust_remote_code: Run code that the model repository ships.
            plain_template: Give a model without a chat template a plain-text one (for judges only).
            quantise: Numbers of fewer bits for its weights: torchao:int8, torchao:int4, bitsandbytes:8bit or :4bit.
            attention: An implementation of attention, as transformers calls it: sdpa, eager, flash_attention_2 ….
            weights: False lays it out without them: it renders conversations and counts, and cannot run.

        Raises:
            ModelError: Not found, no chat template, adapter of another model, blocks not found.
        """
        place = pick_device(device)
        numbers, how = pick_dtype(dtype, place), {"quantise": quantise, "attention": attention}
        hf, tokenizer = load(name, place, numbers, trust_remote_code, split=device == SPLIT, weights=weights, **how)
        if tokenizer.chat_template is None:
            if not plain_template:
                raise ModelError(
                    f"expected a chat template, got none in {name}; choose an instruction-tuned model "
                    f"(a base model can still judge: --judge panel:{name})"
                )
            tokenizer.chat_template = PLAIN_TEMPLATE
        model = cls(hf if adapter is None else _adapt(hf, adapter), tokenizer, name)
        model.adapter, model.quantised = adapter, quantise
        return model

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        steer: Any = (),
        system: str = "template",
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> str:
        """Answer a question or a conversation: `model.chat("Is my essay good?", steer=vector.at(dose=0.2))`.

        Args:
            messages: A question, or turns with `role` and `content`, the last one the user's.
            steer: What steers the reply: a `Steering` (`vector.at(…)`) or several.
            system: As for `render`.
            max_new_tokens: Longest reply.
            temperature: Of sampling; 0 is greedy.
            top_p: Sample from the smallest set of tokens that holds this probability.
            seed: Equal seeds give equal replies.

        Returns:
            The reply's text. `stream` gives it piece by piece.

        Raises:
            ModelError: The chat template cannot render these turns, or the stream overflowed.
            VectorError: A vector of another model.
        """
        drawing = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        return "".join(self.stream(messages, steer=steer, system=system, **drawing))

    def stream(self, messages: str | Sequence[Message], **options: Any) -> Iterator[str]:
        """The reply that `chat` gives, piece by piece; takes the same options."""
        # generation steers, and so lives in a later room: it is looked up when somebody chats
        pieces: Iterator[str] = import_module("personavec.steering.generate").pieces(self, messages, **options)
        return pieces

    @property
    def template(self) -> ChatTemplate:
        """The chat template that the tokenizer holds now."""
        if self._template.source is not self.tokenizer.chat_template:
            self._template = ChatTemplate(self.tokenizer, self.identity.id)
        return self._template

    @property
    def numbers(self) -> str:
        """Number format, quantised weights and kind of device: a run stays on one of them."""
        method = method_of(self.hf.config)
        weights = f" with weights by {method}" if method else ""
        return f"{str(self.dtype).removeprefix('torch.')}{weights} on {self.device.type}"

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may have together, as far as the model's configuration says."""
        return getattr(self.hf.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    @cached_property
    def limits(self) -> PassLimits:
        """How much one pass may hold where the model is."""
        devices = {self.device, *(weight.device for weight in self.hf.parameters())}
        return limits_on(devices, self.hf.config.get_text_config(), self.dtype.itemsize)

    @property
    def adapted(self) -> bool:
        """Whether an adapter stands on top."""
        return hasattr(self.hf, "get_base_model")

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The plain weights for a while; does nothing where there is no PEFT adapter."""
        with self.hf.disable_adapter() if self.adapted else nullcontext():
            yield

    def twin(self) -> "ChatModel":
        """The same weights in modules of its own: hooks and adapters that are put on it do not reach this model."""
        shared = [*self.hf.parameters(), *self.hf.buffers()]
        return ChatModel(deepcopy(self.hf, {id(weight): weight for weight in shared}), self.tokenizer, self.identity.id)

    def with_adapter(self, adapter: str | Path) -> "ChatModel":
        """This model under a PEFT adapter from a folder; the weights are shared, this model stays as it is.

        Raises:
            ModelError: No adapter of this model.
        """
        twin = self.twin()
        with flags_kept(self.hf):  # PEFT freezes what it adapts
            model = ChatModel(_adapt(twin.hf, Path(adapter)), self.tokenizer, self.identity.id)
        model.adapter = Path(adapter)
        return model

    def render(
        self, messages: Sequence[Message], system: str = "template", tools: Sequence[Any] = ()
    ) -> tuple[int, ...]:
        """Token ids of a conversation up to where the assistant's reply begins.

        Args:
            messages: Turns with `role` and `content`, the last one the user's or a tool's.
            system: What to do when no turn is a system turn: "template" leaves it to the chat template (which
                may put in a default), "none" suppresses that default, any other text is used as system turn.
            tools: What the model could call, as chat templates take it.

        Raises:
            ModelError: The chat template cannot render these turns, or would leave something of them out.
        """
        turns, policy, shown = self.template.inert(messages, system, tools)
        return self.template.encode(self.template.text(turns, policy, tools=shown)).ids

    def text(
        self,
        messages: Sequence[Message],
        system: str = "template",
        *,
        open_reply: bool = True,
        tools: Sequence[Any] = (),
    ) -> str:
        """A conversation as the model reads it.

        Args:
            messages: Turns with `role` and `content`.
            system: As for `render`.
            open_reply: Whether it ends where an assistant's reply begins, or after the last turn.
            tools: As for `render`.

        Raises:
            ModelError: The chat template cannot render these turns, or would leave something of them out.
        """
        turns, policy, shown = self.template.inert(messages, system, tools)
        text = self.template.text(turns, policy, open_reply=open_reply, tools=shown)
        return self.template.control.restored(text)

    def reasoning_tokens(self, prompt: Sequence[int], reply: Sequence[int]) -> int:
        """How many tokens of a reply are reasoning: up to the last mark that closes it, or all where none does."""
        return self.template.reasoning_tokens(prompt, reply)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it stands, control tokens included: nothing is put before or after it."""
        return self.template.encode(text).ids

    def reply_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text where a reply stands: what it says in words is no control token.

        Raises:
            ModelError: The tokenizer makes one of it.
        """
        return self.template.reply_ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of reply ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def tensor(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Ids padded on one side, with their attention mask; both [batch, seq].

        On a CPU one column is always padding, see `Habits`.
        """
        width = max(map(len, rows)) + habits(self.device).padding
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, (tokens, real) in zip(rows, zip(ids, mask, strict=True), strict=True):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            tokens[span] = torch.tensor(row, dtype=torch.long)
            real[span] = 1
        return ids.to(self.device), mask.to(self.device)

    def inputs(self, rows: Sequence[Sequence[int]], *, left: bool = False) -> dict[str, Any]:
        """What a forward pass over padded rows takes: `input_ids`, `attention_mask`, `position_ids`, and no cache."""
        ids, mask = self.tensor(rows, left=left)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}


@contextmanager
def flags_kept(hf: nn.Module) -> Iterator[None]:
    """Which weights can be trained stays as it was, whatever happens meanwhile."""
    flags = [(weight, weight.requires_grad) for weight in hf.parameters()]
    try:
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


def _adapt(hf: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        if not adapter.is_dir():
            raise FileNotFoundError("no such folder")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT's use of transformers; no user can act on it
            return PeftModel.from_pretrained(hf, str(adapter)).eval()
    except Exception as error:  # of many kinds: files cut short, another base, another form
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"expected a PEFT adapter trained on {type(hf).__name__}, got {adapter} ({reason}); "
            "pass the adapter folder of this --model"
        ) from error
