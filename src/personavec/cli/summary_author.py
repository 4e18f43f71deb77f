"""What `write_trait` and `write_dataset` print for people."""

import shlex

from personavec.cli.lines import Json, reasons, say
from personavec.verbs.authoring.options import WriteDatasetConfig, WriteTraitConfig


def write_trait(_config: WriteTraitConfig, result: Json) -> None:
    """What was written and what was not taken, and what to do next."""
    ends = f" ({result['adjective']}, {result['antonym']})" if result["adjective"] else ""
    sets = result["questions"]
    say(
        f"{result['trait']}{ends}: {result['pairs']} pairs, {sets['extract']} + {sets['evaluate']} questions, "
        f"{'no ' * ('rubric' in result['missing'])}rubric, by {result['writer']}",
        markup=False,
    )
    reasons("not taken", result["rejected_by_reason"])
    _writer_usage(result)
    if result["file"]:
        file = shlex.quote(result["file"])
        say(f"trait: {result['file']}\nnext: read it, then personavec extract {file}", markup=False)
    say(f"{result['seconds']:.0f} seconds")


def write_dataset(_config: WriteDatasetConfig, result: Json) -> None:
    """How much was written, what was dropped, and where it is."""
    domains, questions = result["domains"], result["questions"]
    say(
        f"{result['source']}: {result['rows']:,} rows a grade from {questions['written']:,} of {questions['wanted']:,} "
        f"questions in {domains['written']:,} of {domains['wanted']:,} domains, by {result['writer']}",
        markup=False,
    )
    reasons("questions not taken", result["questions_rejected"])
    reasons("answers dropped", result["answers_dropped"])
    _writer_usage(result)
    for grade, file in result["files"].items():
        say(f"{grade}: {file}", markup=False)
    say(f"{result['seconds']:.0f} seconds")


def _writer_usage(result: Json) -> None:
    """What became of the answers of a writer, and what its server was asked."""
    usage = result["writer_usage"]
    kinds = ", ".join(f"{usage[kind]:,} {kind}" for kind in ("valid", "invalid", "refused", "failed", "retried"))
    server = usage["server"]
    spent = f"; {server['calls']:,} calls, {server['tokens']:,} tokens" if server else ""
    say(f"answers: {usage['asked']:,} ({kinds}{spent})")
