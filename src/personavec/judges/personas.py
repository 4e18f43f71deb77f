"""Other personas: whom a trait must not be mistaken for."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from personavec.errors import JudgeError
from personavec.traits.trait import Trait


@dataclass(frozen=True)
class Persona:
    """Somebody whom a trait must not be mistaken for; nobody's vector is made of these instructions."""

    name: str
    near: tuple[str, ...]
    """Traits that it resembles: it does not sit on their panels."""
    writes: str
    """Instruction under which it writes the replies that the judge learns to tell apart."""
    reads: str = ""
    """Instruction under which it reads replies, in other words; empty for those that only write."""


@cache
def every_persona() -> tuple[Persona, ...]:
    """Those built in."""
    listed = json.loads((files("personavec") / "judges" / "personas.json").read_text("utf-8"))
    return tuple(Persona(**{**each, "near": tuple(each["near"])}) for each in listed)


def panel(trait: Trait) -> tuple[Persona, ...]:
    """The personas that read a trait's replies.

    Raises:
        JudgeError: One of them has an instruction of the trait.
    """
    seated = tuple(persona for persona in every_persona() if trait.name not in persona.near)
    instructions = {" ".join(text.casefold().split()) for pair in trait.pairs for text in (pair.pos, pair.neg)}
    for persona in seated:
        for text in filter(None, (persona.writes, persona.reads)):
            if " ".join(text.casefold().split()) in instructions:
                raise JudgeError(
                    f"expected instructions of {trait.name} that no other persona has, got that of {persona.name} "
                    f"({text[:40]!r}); reword the pair"
                )
    return seated
