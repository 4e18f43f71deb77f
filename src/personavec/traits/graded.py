"""System prompts graded from the most of a trait to the least: what the monitoring experiment compares."""

import json
from importlib.resources import files
from pathlib import Path

from personavec.errors import TraitError
from personavec.traits.trait import builtin_names


def graded_prompts(trait: str, file: Path | None = None) -> tuple[str, ...]:
    """The graded system prompts of a trait: of a file, or built in.

    Args:
        trait: Name of the trait.
        file: JSON list of texts.

    Raises:
        TraitError: There are none, or the file holds something else.
    """
    if file is None:
        if trait not in builtin_names():
            raise TraitError(
                f"expected graded system prompts for {trait}, got none, as it is not built in; pass --graded FILE"
            )
        return tuple(json.loads((files("personavec") / "traits" / "graded" / f"{trait}.json").read_text("utf-8")))
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise TraitError(f"expected a JSON list of system prompts, got {file} ({error}); correct it") from error
    texts = content if isinstance(content, list) else []
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TraitError(
            f"expected a JSON list of two system prompts or more, got something else in {file}; correct it"
        )
    if len(set(texts)) < len(texts):
        raise TraitError(f"expected each system prompt once, got one twice in {file}; replace it")
    return tuple(texts)
