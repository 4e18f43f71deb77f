"""Checks argument types and tensor shapes of the whole package while tests run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
with_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """In place of jaxtyping's: what names no shape is checked without a frame for shapes, at a fraction of the cost."""
    shaped = with_shapes(typechecker=typechecker)

    def decorated(what: Any) -> Any:
        hints = getattr(what, "__annotations__", {}).values()
        if any(map(_has_shape, hints)):
            return shaped(what)
        if not isinstance(what, type):
            return _switched(what)
        if dataclasses.is_dataclass(what) and "__init__" in vars(what):
            what.__init__ = _switched(what.__init__)  # type: ignore[misc]
        return what

    return decorated


def _has_shape(hint: Any) -> bool:
    return getattr(hint, "__module__", "") == "jaxtyping" or any(map(_has_shape, get_args(hint)))


def _switched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checked, unless checks are switched off."""
    strict = checked(function)
    config = jaxtyping.config

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return (function if config.jaxtyping_disable else strict)(*args, **kwargs)

    return called
