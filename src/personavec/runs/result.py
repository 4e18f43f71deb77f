"""What a verb returns: plain data that prints as JSON, shows itself in a notebook and becomes a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from personavec.errors import ConfigError
from personavec.runs.gate import GateCondition
from personavec.runs.show import table


@dataclass(frozen=True, repr=False)
class Result:
    """What a verb found.

    The page and the notebook view are drawn by the room `report`, which is looked up by name when somebody asks for
    one: nothing below it depends on it.
    """

    data: Mapping[str, Any]
    """Everything, as `--json` prints it."""

    page: ClassVar[str] = ""
    """Module of `report` that draws this kind of result; none has neither page nor charts."""

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return dict(self.data)

    @property
    def drawing(self) -> Any:
        """The module that draws it."""
        return import_module(f"personavec.report.{self.page}")

    @property
    def drawn(self) -> Mapping[str, Any]:
        """What the page and the notebook view are made of."""
        return self.data

    @property
    def folder(self) -> Path | None:
        """The store that it was kept in, if any."""
        return Path(self.data["out"]) if self.data.get("out") else None

    def place(self, path: str | Path | None) -> Path:
        """The folder for a page: the one given, made where it is missing, else the store.

        Raises:
            ConfigError: Neither.
        """
        folder = Path(path) if path else self.folder
        if folder is None:
            raise ConfigError("expected a folder for the page, got none; pass one: report(path)")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page as HTML that opens offline, with its charts as PNG and SVG beside it.

        Args:
            path: A folder for `report.html`; default the store that the result was kept in.

        Returns:
            Path of the page.

        Raises:
            ConfigError: This kind of result has no page, or there is no folder to write it to.
        """
        if not self.page:
            raise ConfigError(f"expected a result with a page, got {type(self).__name__}; use to_dict()")
        return Path(self.drawing.write(self.drawn, self.place(path)))

    def published(self) -> dict[str, Any]:
        """Write the page into the store, if this kind of result has one; what `--json` prints, with the page's path."""
        return self.to_dict() | ({"report": str(self.report())} if self.page else {})

    def gate(self, *conditions: str) -> list[dict[str, Any]]:
        """What becomes of conditions on its figures, as the command line's --fail-if takes them.

        Args:
            conditions: Such as "projection_difference.evil.mean > 0.5", of what `to_dict` gives.

        Returns:
            A row for each: `fail_if`, `failed` (whether it holds; null where that is unknown), `values` and `why`.

        Raises:
            ConfigError: It is no condition.
        """
        return [GateCondition.parse(text).of(self.to_dict()) for text in conditions]

    def __repr__(self) -> str:
        lines = [f"{name}: {text}" for name, text in self.lines()]
        return "\n".join([type(self).__name__, *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        rows = table(["", ""], self.lines(), type(self).__name__)
        return rows + (self.drawing.notebook(self.drawn) if self.page else "")

    def lines(self) -> list[tuple[str, str]]:
        """A few lines of name and value that say what was found, for a terminal and a notebook."""
        plain = {name: value for name, value in self.data.items() if isinstance(value, str | int | float | bool)}
        texts = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in plain.values())
        return [(name.replace("_", " "), text) for name, text in zip(plain, texts, strict=True)]
