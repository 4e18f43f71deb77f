"""JSON as the package reads it: whatever is wrong with it is said in a few words, and what is read can be written."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEEPEST = 100
"""Lists and objects inside each other; what walks through a value later goes as deep."""
LONGEST_INTEGER = 300
"""Digits: longer ones are beyond every floating-point number."""
LONG = re.compile(rf"\d{{{LONGEST_INTEGER + 1}}}")


def read_json(path: str | Path, *, strict: bool = True) -> Any:
    """What a JSON file holds, as `parse_json` reads it, with or without a byte order mark.

    Raises:
        ValueError: It cannot be read; the text says in a few words what was found.
    """
    try:
        return parse_json(Path(path).read_bytes(), strict=strict)
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from error


def parse_json(text: str | bytes, *, strict: bool = True) -> Any:
    """What a JSON text means.

    Args:
        text: UTF-8 where it is bytes.
        strict: Refuse what Python reads all the same: NaN, Infinity, and a key twice in one object.

    Raises:
        ValueError: It is none, or has half a surrogate pair, an integer of more than `LONGEST_INTEGER` digits, or more
            than `DEEPEST` levels; the text says in a few words what was found.
    """
    whole = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    if not whole.strip():
        raise ValueError("an empty file")
    try:
        value = json.loads(
            whole,
            parse_int=_integer if LONG.search(whole) else int,
            parse_float=_finite if strict else float,
            parse_constant=_finite if strict else float,
            object_pairs_hook=_once if strict else None,
        )
        if whole.count("[") + whole.count("{") > DEEPEST:
            _check_depth(value, DEEPEST)
        if "\\u" in whole or not whole.isascii():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair, {error.object[error.start]!r}") from error
    except RecursionError as error:
        raise ValueError(f"lists or objects more than {DEEPEST} deep") from error
    return value


def finite(value: Any) -> bool:
    """Whether a value of JSON is a number to calculate with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]}, where a finite number is needed")
    return number


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} twice in one object")
    return fields


def _check_depth(value: Any, levels: int) -> None:
    if isinstance(value, dict | list):
        if not levels:
            raise RecursionError
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, levels - 1)
