"""What the body of a chat completion holds, as providers write it: text, or an error, also under a status of 200."""

import re
from collections.abc import Mapping
from typing import Any

FILTERED = re.compile(
    r"content.?(filter|polic|management|moderation)|responsible.?ai|safety.?system|prohibited.?content|moderation"
    r"|invalid_prompt|data_inspection|was flagged",
    re.IGNORECASE,
)
"""How providers say that they will not answer what a request holds, in an error's code, type or first words."""


def text_of(content: Any) -> str:
    """The text of an answer; of one in parts the text parts alone, without thinking."""
    if not isinstance(content, list):
        return str(content or "")
    parts = (each if isinstance(each, Mapping) else {"text": each} for each in content)
    return "".join(str(part.get("text") or "") for part in parts if part.get("type", "text") in ("text", "output_text"))


def error_of(body: Any) -> Mapping[str, Any]:
    """The error that a body of status 200 is, or that its first choice is; empty where it is an answer."""
    places: list[Any] = [body, *(body.get("choices") or [])[:1]] if isinstance(body, Mapping) else []
    told: Any = next((place["error"] for place in places if isinstance(place, Mapping) and place.get("error")), {})
    return told if isinstance(told, Mapping) else {"message": str(told)}


def status_of(told: Mapping[str, Any]) -> int | None:
    """The code of an error, where it is an HTTP status."""
    codes = (str(told.get(name)) for name in ("code", "status", "status_code"))
    return next((int(code) for code in codes if re.fullmatch("[45][0-9]{2}", code)), None)


def passes(status: int | None) -> bool:
    """Whether an error of this status is one that passes: the same may be asked again."""
    return status is not None and (status in (408, 409, 429) or status >= 500)


def is_filtered(told: object) -> bool:
    """Whether an error says that it is the matter of the request that was turned down."""
    if not isinstance(told, Mapping):
        return bool(FILTERED.search(str(told)[:200]))
    return bool(FILTERED.search(" ".join(str(told.get(name))[:200] for name in ("code", "type", "message", "detail"))))
