"""What an OpenAI-compatible server answers: a completion, an error in its place, a refusal, text in parts."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

FILTERED = re.compile(
    r"content.?(filter|polic|management|moderation)|responsible.?ai|safety.?system|prohibited.?content|moderation"
    r"|invalid_prompt|data_inspection|was flagged",
    re.IGNORECASE,
)
"""How providers say that they will not answer what a request holds, in an error's code, type or first words."""
FILTER, REFUSAL = "content_filter", "refusal"
"""Why an answer ended that holds none: the provider kept it back, or the model declined in a field of its own."""


class Answer(NamedTuple):
    """What the server said."""

    text: str
    finish: str
    """Why it ended: stop, length, content_filter, refusal …"""
    top: list[tuple[str, float]] | None = None
    """Likeliest first tokens with their log-probabilities; None where the server gave none."""


class Failure(NamedTuple):
    """One request that could not be answered, while others can."""

    reason: str
    status: int | None = None


def answer_of(body: Any) -> Answer:
    """The answer in the body of a chat completion.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: It is none.
    """
    choice = body["choices"][0]
    message = choice["message"]
    content = (choice.get("logprobs") or {}).get("content") or []
    top = [(str(token["token"]), float(token["logprob"])) for token in content[0]["top_logprobs"]] if content else None
    text, declined = _text(message.get("content")), str(message.get("refusal") or "")
    finish = REFUSAL if declined and not text else str(choice.get("finish_reason"))
    (text + declined).encode()  # half a surrogate pair, which JSON can spell, could not be kept: a ValueError
    return Answer(text or declined, finish, top)


def _text(content: Any) -> str:
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


def again(status: int | None) -> bool:
    """Whether a call that ended with this status is worth another."""
    return status is not None and (status in (408, 409, 429) or status >= 500)


def filtered(told: object) -> bool:
    """Whether an error says that it is the matter of the request that was turned down."""
    if not isinstance(told, Mapping):
        return bool(FILTERED.search(str(told)[:200]))
    return bool(FILTERED.search(" ".join(str(told.get(name))[:200] for name in ("code", "type", "message", "detail"))))
