"""Forms that a writer fills in: how it is shown them, and how they are read out of whatever it says."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

NO_JSON = "no JSON object"


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    text.encode()  # half a surrogate pair, which JSON can spell, could not be written to a file: a ValueError too
    return text.strip()


Text = Annotated[str, AfterValidator(_filled)]
"""Text that is not empty."""
Line = Annotated[Text, AfterValidator(lambda text: " ".join(text.split()))]
"""The same on a single line."""


class Form(BaseModel):
    """What a writer is to fill in. It sees the descriptions of the fields."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})


F = TypeVar("F", bound=Form)


def instruction(form: type[Form]) -> str:
    """How a writer is shown the form, also if the server enforces it."""
    shape = json.dumps(_outline(form), ensure_ascii=False)
    return f"Answer with one JSON object of this form, and nothing before or after it:\n{shape}"


def opening(form: type[Form]) -> str:
    """How every such object begins, up to its first value."""
    shape = json.dumps(_outline(form))
    return shape[: re.match(r'(?:[\[{]|"\w+": )*', shape).end()].rstrip()  # type: ignore[union-attr]


def _outline(kind: Any, text: str = "…") -> Any:
    """An example of the JSON: in place of each value its description."""
    if isinstance(kind, type) and issubclass(kind, Form):
        return {name: _outline(field.annotation, field.description or "…") for name, field in kind.model_fields.items()}
    if getattr(kind, "__origin__", None) is list:
        return [_outline(get_args(kind)[0], text)]
    if hasattr(kind, "__metadata__"):
        return _outline(get_args(kind)[0], text)
    return text


def read(text: str, form: type[F]) -> tuple[F, int] | str:
    """The form in an answer, whatever stands around it.

    Returns:
        The form, and how many items of its lists were dropped; or what is wrong with the answer.
    """
    reason = NO_JSON
    said = re.sub(r"<think>.*", "", text.rpartition("</think>")[2], flags=re.DOTALL)  # never finished
    for content in _objects(said):
        wrong = ""
        try:
            value = form.model_validate(content)
            if copied := _strings(content) & _strings(_outline(form)):
                wrong = f"it copies the form instead of filling it in ({min(copied)!r})"
        except ValidationError as error:
            first = error.errors()[0]
            wrong = f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}"
        if wrong:
            reason = wrong if reason == NO_JSON else reason  # of the outermost object
            continue
        lists = [(items, getattr(value, name)) for name, items in content.items() if isinstance(items, list)]
        return value, sum(len(items) - len(kept) for items, kept in lists)
    return reason


def _strings(value: Any) -> set[str]:
    """All texts in a piece of JSON, names of keys aside."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return {text for item in inside for text in _strings(item)}
    return {value.strip()} if isinstance(value, str) else set()


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, whatever stands around them; in the end, the whole part of a torn one."""
    decoder = json.JSONDecoder()
    starts = [match.start() for match in re.finditer(r"\{", text)]
    for start in starts[:100]:
        try:
            yield decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    if starts:
        try:
            yield from_json(text[starts[0] :], allow_partial=True)
        except ValueError:
            return
