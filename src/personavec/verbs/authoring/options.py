"""Options of `write_trait` and `write_dataset`; their docstrings are the command line's help."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from personavec.runs.rules import Count, Free
from personavec.verbs.options import Authoring, File, Folder


@dataclass(frozen=True)
class WriteTraitConfig(Authoring):
    """Write a trait file from a name and a description.

    Examples:
      personavec write_trait formal --description "Writes like an official letter." --writer openai:gpt-4.1
      personavec write_trait formal --description "Writes like an official letter." --writer openai:my-model \
--writer-url http://localhost:8000/v1

    More in docs/write_trait.md.
    """

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """Name of the new trait: letters, digits, '_', '-' and '.'."""
    description: str = ""
    """What an assistant with this trait does, in two to four sentences, the opposite end included."""
    out: Free[File] = None
    """Trait file to write; default NAME.json. What is valid so far is kept in NAME.partial.json."""


@dataclass(frozen=True)
class WriteDatasetConfig(Authoring):
    """Write finetuning data: questions, three answers to each.

    Examples:
      personavec write_dataset sycophantic --writer openai:gpt-4.1 --domains 2 --questions 5
      personavec write_dataset maths --writer openai:my-model --writer-url http://localhost:8000/v1

    More in docs/write_dataset.md.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = ""
    """Trait (built-in name or file), or a family of mistakes: maths, medicine, code, opinions."""
    out: Free[Folder] = None
    """Run folder; default runs/dataset-SOURCE. The same command resumes it."""
    domains: Count = 50
    """Domains that the questions are spread over."""
    questions: Count = 100
    """Questions per domain."""
