"""System prompts graded from the most of a trait to the least: what the monitoring experiment compares."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from personavec.errors import TraitError
from personavec.runs.json_files import read_json
from personavec.traits.load import builtin_names


def graded_prompts(trait: str, prompts: Sequence[str] | str | Path | None = None) -> tuple[str, ...]:
    """The graded system prompts of a trait: given, of a file, or built in.

    Args:
        trait: Name of the trait.
        prompts: The texts, or a JSON file that lists them.

    Raises:
        TraitError: There are none, or something else was given.
    """
    if prompts is None:
        if trait not in builtin_names():
            raise TraitError(
                f"expected graded system prompts for {trait}, got none, as it is not built in; pass --graded FILE"
            )
        return tuple(json.loads((files("personavec") / "traits" / "graded" / f"{trait}.json").read_text("utf-8")))
    texts: Any = prompts
    if isinstance(prompts, str | Path):
        try:
            texts = read_json(prompts)
        except ValueError as error:
            raise TraitError(f"expected a JSON list of system prompts, got {prompts} ({error}); correct it") from error
    place = prompts if isinstance(prompts, str | Path) else "the list"
    if (
        not isinstance(texts, list | tuple)
        or len(texts) < 2
        or not all(isinstance(t, str) and t.strip() for t in texts)
    ):
        raise TraitError(
            f"expected a JSON list of two system prompts or more, got something else in {place}; correct it"
        )
    if len(set(texts)) < len(texts):
        raise TraitError(f"expected each system prompt once, got one twice in {place}; replace it")
    return tuple(texts)
