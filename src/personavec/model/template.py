"""Chat templates: what they show of agents' turns (the rest is refused by name), and one for models without."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from personavec.errors import ModelError

Message = Mapping[str, Any]
"""A turn: `role` and `content`, and what the chat template is to show of an agent's besides."""
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ {'system': 'Instructions', 'user': 'Question', 'assistant': 'Answer'}[message['role']] }}: "
    "{{ message['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""How a base model without a chat template is shown a conversation when it serves as a judge."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What chat templates call the reasoning of a turn."""


def shown_turns(messages: Sequence[Message], tools: Sequence[Any], template: str, model: str) -> list[Message]:
    """Agents' turns under the names that a chat template has for what they hold.

    Args:
        messages: Turns with `role`, `content`, perhaps `name`, `tool_calls`, `tool_call_id` and `reasoning_content`.
        tools: What the model could call.
        template: The chat template's source.
        model: Whose it is, for people.

    Raises:
        ModelError: The template has no word for the tools, the role tool, calls or reasoning.
    """
    words = _words(template)
    needed = {"tools"} if tools else set()
    needed |= {"the role tool" for turn in messages if turn["role"] == "tool"}
    needed |= {name for turn in messages for name in ("tool_calls", "reasoning_content") if turn.get(name)}
    reasoning = next((name for name in REASONING if name in words), None)
    known = words | ({"reasoning_content"} if reasoning else set())
    known |= {"the role tool"} if re.search(r"""["']tool["']""", template) else set()
    if unknown := sorted(needed - known):
        raise ModelError(
            f"expected turns that {model}'s chat template shows whole, got {' and '.join(unknown)}, which it does not "
            "know; choose a model that was made for them, or drop those rows"
        )
    if reasoning in (None, "reasoning_content"):
        return [*messages]
    return [{reasoning if key == "reasoning_content" else key: turn[key] for key in turn} for turn in messages]


@lru_cache(maxsize=16)
def _words(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", template))
