"""A yes or no for a pipeline: conditions on the figures of a result, and their outcome as JUnit's XML."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from personavec.errors import ConfigError
from personavec.runs.files import write_file
from personavec.runs.run import Row

Value = float | bool | str
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
FORM = re.compile(r"(?P<field>[^<>=!]+?)\s*(?:(?P<how><=|>=|==|!=|<|>)\s*(?P<value>[^<>=!]+))?")
UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class GateCondition:
    """`FIELD < VALUE`, of a result as `--json` prints it: names and places joined by dots, `*` for every one."""

    text: str
    field: str
    how: str
    value: Value

    @classmethod
    def parse(cls, text: str) -> "GateCondition":
        """Read one; a field alone means that it is true.

        Raises:
            ConfigError: It is none.
        """
        match = FORM.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f"expected a condition such as 'projection_difference.evil.mean > 0.5', got {text!r}; write FIELD, one "
                f"of {' '.join(COMPARED)}, and a value"
            )
        how, value = match["how"] or "==", _value((match["value"] or "true").strip())
        if not isinstance(value, float) and how not in ("==", "!="):
            raise ConfigError(f"expected a number after {how}, got {value!r} in {text!r}; use == or !=")
        return cls(text.strip(), match["field"], how, value)

    def of(self, result: Mapping[str, Any]) -> Row:
        """What became of it.

        Returns:
            `fail_if`, the `values` it was asked of by field, whether it `failed` (it holds of any of them), and `why`
            that is unknown (null) where a field is missing or has no value.
        """
        values, why = dict[str, Any](), ""
        try:
            values = dict(_fields(result, self.field.split("."), ""))
        except LookupError as error:
            why = str(error.args[0])
        odd = next((name for name, value in values.items() if not _comparable(value, self.value)), None)
        if odd is not None:
            kind = "a number" if isinstance(self.value, float) else "such a value"
            why = f"{odd} is {values[odd]!r:.80}, not {kind}"
        failed = None if why else any(COMPARED[self.how](value, self.value) for value in values.values())
        return {"fail_if": self.text, "failed": failed, "values": values if not why else {}, "why": why or None}


def _value(text: str) -> Value:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _comparable(value: Any, other: Value) -> bool:
    if isinstance(other, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, type(other))


def _fields(value: Any, parts: Sequence[str], name: str) -> Iterator[tuple[str, Any]]:
    """Every value that a field names. A name may itself have dots in it: the shortest that is there is taken."""
    if not parts:
        yield name, value
        return
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else ())
    children: dict[str, Any] = {str(key): child for key, child in pairs}
    lengths = (n for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in children)
    taken = 1 if parts[0] == "*" else next(lengths, 0)
    if not taken or not children:
        shown = ", ".join([*children][:12]) or "nothing"
        raise LookupError(f"{'.'.join(filter(None, [name, parts[0]]))} is not there, of {shown}")
    for key in children if parts[0] == "*" else [".".join(parts[:taken])]:
        yield from _fields(children[key], parts[taken:], f"{name}.{key}" if name else key)


def told(row: Row) -> str:
    """An outcome in a line."""
    if row["failed"] is None:
        return f"expected a figure for --fail-if {row['fail_if']!r}, but {row['why']}; see the keys of --json"
    return f"{row['fail_if']}: " + ", ".join(f"{name} is {value}" for name, value in row["values"].items())


def write_junit(path: Path, verb: str, rows: Sequence[Row], seconds: float) -> None:
    """Write outcomes as a test suite, a case for each condition; atomic."""
    failed, unknown = (sum(row["failed"] is state for row in rows) for state in (True, None))
    counts = {"tests": str(len(rows)), "failures": str(failed), "errors": str(unknown), "time": f"{seconds:.3f}"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": f"personavec {verb}", **counts})
    for row in rows:
        name = UNPRINTABLE.sub("\ufffd", f"not {row['fail_if']}")
        case = ElementTree.SubElement(suite, "testcase", {"classname": f"personavec.{verb}", "name": name, "time": "0"})
        if row["failed"] is not False:
            kind = "error" if row["failed"] is None else "failure"
            ElementTree.SubElement(case, kind, {"message": UNPRINTABLE.sub("\ufffd", told(row))})
    write_file(path, ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True))
