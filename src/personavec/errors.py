"""What can go wrong, in words a user can act on.

PersonavecError
├── TraitError    a trait file that is missing or malformed
├── VectorError   a vector that is missing, damaged, or of another model
├── ModelError    a model that cannot be found, chatted with, or read
├── DataError     rows that cannot be read
├── JudgeError    a judge that cannot score
└── ConfigError   options that contradict each other or the run they resume

Every message is one line: expected, got, what to do.
"""


class PersonavecError(Exception):
    """Root of all errors a user can mend; the command line prints it without a traceback and exits 2."""


class TraitError(PersonavecError):
    """A trait that is missing or malformed."""


class VectorError(PersonavecError):
    """A persona vector that is missing, damaged, or of another model."""


class ModelError(PersonavecError):
    """A model that cannot be found, chatted with, or read."""


class SteeringOverflow(ModelError):
    """Some rows of a batch were steered so far that numbers overflowed."""

    def __init__(self, text: str, rows: tuple[int, ...]) -> None:
        super().__init__(text)
        self.rows = rows
        """Which of the rows in the forward pass."""


class DataError(PersonavecError):
    """Rows that cannot be read."""


class JudgeError(PersonavecError):
    """A judge that cannot score."""


class ConfigError(PersonavecError):
    """Options that contradict each other, or the run they resume."""
