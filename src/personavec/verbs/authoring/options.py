"""Options of `write_trait` and `write_dataset`; their docstrings are the command line's help."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from personavec.runs.result import Result
from personavec.runs.rules import Count, Free
from personavec.verbs.options import Authoring, File, Folder, call

if TYPE_CHECKING:
    from personavec.verbs.authoring.writer import Writer


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

    def run(self) -> Result:
        """Load the writer and write."""
        from personavec.verbs.authoring.draft import DraftFile
        from personavec.verbs.authoring.write_trait import write_trait

        out = self.out or Path(f"{self.name}.json")
        with DraftFile(out).open(self.name, self.description):  # what is wrong with them is said before a model loads
            writer = _writer(self)
        return write_trait(writer, self.name, self.description, out=out)


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

    def run(self) -> Result:
        """Load the writer and write."""
        from personavec.verbs.authoring.subjects import load_family
        from personavec.verbs.authoring.write_dataset import write_dataset

        out = self.out or Path("runs") / f"dataset-{load_family(self.source).name}"
        return call(write_dataset, self, _writer(self), self.source, store=out)  # type: ignore[no-any-return]


def _writer(options: Authoring) -> "Writer":
    from personavec.model.chat_model import ChatModel
    from personavec.verbs.authoring.writer import load_writer

    load = partial(
        ChatModel.load, dtype=options.dtype, device=options.device, trust_remote_code=options.trust_remote_code
    )
    return load_writer(
        options.writer,
        url=options.writer_url,
        answer_tokens=options.writer_tokens,
        seed=options.seed,
        load=load,
        **options.call_limits,
    )
