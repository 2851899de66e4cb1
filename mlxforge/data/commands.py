"""The one format of answers that stand for a command: its keys, and what is done from which confidence on."""

from __future__ import annotations

from typing import Annotated, Literal

from mlxforge.core.errors import ConfigError
from mlxforge.core.settings import Settings
from mlxforge.core.settings import help as described

Action = Literal["run", "confirm", "suggest", "ask"]
ACTIONS: tuple[Action, ...] = ("run", "confirm", "suggest", "ask")  # from bold to careful
KEYS = ("command", "arguments", "flags", "confidence", "action")
MORE = ("missing", "candidates", "question")  # of answers that run nothing: what is not known, and what to ask
LIMITS = "x-thresholds"  # where a JSON schema of the format keeps them


class Thresholds(Settings):
    """From which confidence on an answer is run, run after a confirmation, or shown as a suggestion; below it asks."""

    run: Annotated[float, described("run it at once from this confidence on", ge=0, le=1)] = 0.9
    confirm: Annotated[float, described("ask 'run this?' from this confidence on", ge=0, le=1)] = 0.7
    suggest: Annotated[float, described("show what it may have been from this confidence on", ge=0, le=1)] = 0.4

    def __post_init__(self) -> None:
        if not self.run > self.confirm > self.suggest > 0:
            values = f"run {self.run:g}, confirm {self.confirm:g}, suggest {self.suggest:g}"
            raise ConfigError("run, confirm, suggest and 0 must fall", where=f"thresholds {values}", fix="such as .9 .7 .4")

    def action(self, confidence: float) -> Action:
        """What a confidence alone calls for."""
        if confidence >= self.run:
            return "run"
        return "confirm" if confidence >= self.confirm else "suggest" if confidence >= self.suggest else "ask"
