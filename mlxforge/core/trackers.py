"""The experiment trackers that a run can be followed with, and whether their packages are there."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from mlxforge.core.errors import MissingExtraError

# As the setting names them, and their extras -> the module that is imported.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def check_trackers(names: Iterable[str]) -> None:
    """Raises MissingExtraError for the first tracker whose package is not installed; nothing is imported."""
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            raise MissingExtraError(PACKAGES[name], name, f"trackers: {name}")
