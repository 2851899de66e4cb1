"""The errors a user can meet: each says what is wrong, where, and how to mend it.

MlxforgeError            exit code 2: the input is wrong, nothing was done
├── ConfigError          a setting, a flag or a config file
├── DataError            a file, a row, a tokenizer's view of them
├── ModelError           a model folder, an adapter, a family
├── RunError             a run directory: missing, locked, damaged
└── MissingExtraError    an optional package is not installed
RunFailed                exit code 1: the job began and could not go on
Interrupted              exit code 130: stopped by the user, state saved
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class MlxforgeError(Exception):
    """A mistake in what the user gave. ``str()`` is one clear line: where, what, fix."""

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line} ({self.fix})" if self.fix else line


class ConfigError(MlxforgeError):
    """A setting is unknown, ill-typed or out of bounds."""


class DataError(MlxforgeError):
    """A data file cannot be read as what it was given for."""


class ModelError(MlxforgeError):
    """A model or an adapter cannot be used."""


class RunError(MlxforgeError):
    """A run directory is missing, locked or damaged."""


class MissingExtraError(MlxforgeError):
    """An optional package is needed: the fix names the extra."""

    def __init__(self, package: str, extra: str, use: str) -> None:
        super().__init__(f"{use} needs the package '{package}'", fix=f"pip install 'mlxforge[{extra}]'")


class RunFailed(MlxforgeError):
    """The job began and could not go on; what was saved stays."""

    exit_code = 1


class Interrupted(MlxforgeError):
    """Stopped by the user; the state is saved. ``result`` is what the run had reached."""

    exit_code = 130
    result: dict[str, Any] | None = None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for a near miss, else a list of what is known."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
