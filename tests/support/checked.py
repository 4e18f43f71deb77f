"""Checks argument types and tensor shapes of the whole package while tests run."""

import functools
from collections.abc import Callable
from typing import Any, ForwardRef, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
with_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[..., Any]) -> Callable[[Any], Any]:
    """In place of jaxtyping's: what names no shape is checked without a frame for shapes, at a fraction of the cost."""
    shaped = with_shapes(typechecker=typechecker)

    def decorated(what: Any) -> Any:
        if isinstance(what, type) or any(map(_has_shape, getattr(what, "__annotations__", {}).values())):
            return shaped(what)
        return _switched(what)

    return decorated


def _has_shape(hint: Any) -> bool:
    """Whether a shape is named in it, or may be behind a name that is not known yet."""
    if isinstance(hint, str | ForwardRef) or getattr(hint, "__module__", "") == "jaxtyping":
        return True
    return any(map(_has_shape, get_args(hint)))


def _switched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checked, unless checks are switched off."""
    strict = checked(function)
    config = jaxtyping.config

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return (function if config.jaxtyping_disable else strict)(*args, **kwargs)

    return called
